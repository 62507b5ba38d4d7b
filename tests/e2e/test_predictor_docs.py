"""Every command in docs/predictor.md, against the server the page starts."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import predictor_models as models
import pytest
from predictor_process import DEADLINE_S, free_port, running

PAGE = Path(__file__).parents[2] / "docs" / "predictor.md"


def documented() -> list[tuple[list[str], str]]:
    """The words of each command and what the page shows below it."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    commands = re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", "".join(blocks), re.MULTILINE)
    return [(shlex.split(command), shown) for command, shown in commands]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_command_of_the_page_works(tmp_path: Path) -> None:
    models.write(tmp_path / "model")
    (serve, _), *requests = documented()
    assert serve[:3] == ["python", "-m", "predictor"] and len(requests) > 3
    options = dict(zip(serve[3::2], serve[4::2], strict=True))
    options |= {
        "--model-dir": str(tmp_path / "model"),
        "--log": str(tmp_path / "log"),
        "--grpc-port": str(free_port()),
    }
    more = [word for option in options.items() for word in option]
    with running(tmp_path / "model", *more) as (_, port):
        for command, shown in requests:
            words = [word.replace("127.0.0.1:8080", f"127.0.0.1:{port}") for word in command]
            done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
            answer = json.loads(done.stdout)
            assert not shown or answer == json.loads(shown), command
