"""The gRPC messages are generated from the protocol's file beside them."""

import subprocess
import sys
from pathlib import Path

PREDICTOR = Path(__file__).parents[2] / "predictor"


def test_the_messages_are_those_of_the_proto_file(tmp_path: Path) -> None:
    out = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    command = [sys.executable, "-P", "-m", "grpc_tools.protoc", f"-I{PREDICTOR}", *out, "inference.proto"]
    subprocess.run(command, check=True, timeout=60)
    for name in ("inference_pb2.py", "inference_pb2.pyi"):
        assert (PREDICTOR / name).read_text() == (tmp_path / name).read_text(), "see the head of inference.proto"
