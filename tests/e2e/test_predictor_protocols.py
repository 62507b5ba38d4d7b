"""KServe's own clients against the real server."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import predictor_models as models
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
from predictor_process import free_port, request, running

from benchmarks.predictor_fuzz_protocols import Maker, fuzz_http, fuzz_rpc
from predictor import v2

RECORDS = ({"tenure": 5, "Contract": "One year"}, {"tenure": 40, "Contract": "Größe"})
EXPECTED = [models.score(record) for record in RECORDS]


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """REST and gRPC."""
    root: Path = tmp_path_factory.mktemp("model")
    models.write(root)
    grpc_port = free_port()
    with running(root, "--grpc-port", str(grpc_port), "--max-body-bytes", "20000") as (_, port):
        yield port, grpc_port


def infer_request(*, binary: bool) -> InferRequest:
    tenure, contract = InferInput("tenure", [2], "FP32"), InferInput("Contract", [2, 1], "BYTES")
    tenure.set_data_from_numpy(np.array([5, 40], np.float32), binary_data=binary)
    contract.set_data_from_numpy(np.array([["One year"], ["Größe"]], object), binary_data=binary)
    return InferRequest("churn", [tenure, contract], request_id="42")


def rest(port: int, call: Callable[[InferenceRESTClient, str], Awaitable[object]], protocol: str = "v2") -> object:
    async def run() -> object:
        async with InferenceRESTClient(RESTConfig(protocol=protocol)) as client:
            return await call(client, f"http://127.0.0.1:{port}")

    return asyncio.run(run())


def rpc(port: int, call: Callable[[InferenceGRPCClient], Awaitable[object]]) -> object:
    async def run() -> object:
        async with InferenceGRPCClient(f"127.0.0.1:{port}") as client:
            return await call(client)

    return asyncio.run(run())


def test_rest_v1(ports: tuple[int, int]) -> None:
    answer = rest(ports[0], lambda c, url: c.infer(url, {"instances": list(RECORDS)}, "churn"), protocol="v1")
    assert [row["probability"] for row in answer["predictions"]] == pytest.approx(EXPECTED, abs=1e-6)


@pytest.mark.parametrize("binary", [False, True])
def test_rest_v2(ports: tuple[int, int], binary: bool) -> None:
    answer = rest(ports[0], lambda c, url: c.infer(url, infer_request(binary=binary), "churn"))
    assert answer.id == "42"
    assert answer.get_output_by_name("probability").as_numpy() == pytest.approx(EXPECTED, abs=1e-6)
    assert list(answer.get_output_by_name("decision").data) == ["Yes", "No"]


def test_rest_health(ports: tuple[int, int]) -> None:
    assert rest(ports[0], lambda c, url: c.is_server_ready(url))
    assert rest(ports[0], lambda c, url: c.is_server_live(url))
    assert rest(ports[0], lambda c, url: c.is_model_ready(url, "churn"))


@pytest.mark.parametrize("binary", [False, True])
def test_grpc(ports: tuple[int, int], binary: bool) -> None:
    answer = rpc(ports[1], lambda c: c.infer(infer_request(binary=binary)))
    assert answer.id == "42"
    assert answer.get_output_by_name("probability").as_numpy() == pytest.approx(EXPECTED, abs=1e-6)
    decisions = answer.get_output_by_name("decision").as_numpy()
    assert [d.decode() if isinstance(d, bytes) else d for d in decisions] == ["Yes", "No"]


def test_grpc_health(ports: tuple[int, int]) -> None:
    assert rpc(ports[1], lambda c: c.is_server_ready())
    assert rpc(ports[1], lambda c: c.is_server_live())
    assert rpc(ports[1], lambda c: c.is_model_ready("churn"))


@pytest.fixture
def stub(ports: tuple[int, int]) -> Iterator[pb_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(f"127.0.0.1:{ports[1]}") as channel:
        yield pb_grpc.GRPCInferenceServiceStub(channel)


def tensor(name: str, datatype: str, **contents: list[object]) -> pb.ModelInferRequest.InferInputTensor:
    rows = len(next(iter(contents.values()), [0]))
    return pb.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=[rows], contents=pb.InferTensorContents(**contents)
    )


@pytest.mark.parametrize(
    ("infer", "code", "named"),
    [
        ({"model_name": "other"}, grpc.StatusCode.NOT_FOUND, "'other'"),
        ({}, grpc.StatusCode.INVALID_ARGUMENT, "at least one tensor"),
        ({"inputs": [tensor("x", "FP32", fp32_contents=[1])]}, grpc.StatusCode.INVALID_ARGUMENT, "Unknown field 'x'"),
        (
            {"inputs": [tensor("tenure", "BYTES", bytes_contents=[b"5"])]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "expected datatype FP32, got 'BYTES'",
        ),
        (
            {"inputs": [tensor("tenure", "FP64", fp32_contents=[5])]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "expected 1 values as in its shape, got 0",
        ),
        (
            {"inputs": [tensor("tenure", "UINT8", uint_contents=[5, 300])]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "row 1: expected a whole number from 0 to 255 for UINT8, got 300.",
        ),
        (
            {"inputs": [tensor("tenure", "INT16", int_contents=[40_000])]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "from -32768 to 32767 for INT16, got 40000.",
        ),
        (
            {"inputs": [tensor("tenure", "FP16", fp32_contents=[5])]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "expected FP16 in 'raw_input_contents'",
        ),
        (
            {"inputs": [tensor("tenure", "BOOL")], "raw_input_contents": [b"\2"]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "expected bytes 0 and 1 for BOOL, got 2.",
        ),
        (
            {"inputs": [tensor("tenure", "FP32", fp32_contents=[5])], "raw_input_contents": [b"1234"]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "expected no 'contents' beside 'raw_input_contents'",
        ),
        ({"model_version": "3"}, grpc.StatusCode.NOT_FOUND, "Version '3' of model 'churn' is not served here"),
        (
            {"inputs": [tensor("Contract", "BYTES", bytes_contents=[b"\xff"])]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "expected UTF-8",
        ),
        (
            {"inputs": [tensor("tenure", "FP32")], "raw_input_contents": [b"1234", b"5678"]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "expected 1 tensors as in 'inputs', got 2",
        ),
        (
            {"inputs": [tensor("tenure", "FP32", fp32_contents=[5])], "outputs": [{"name": "x"}]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "'outputs': expected",
        ),
        (
            {"inputs": [tensor("x" * 15_000, "FP32", fp32_contents=[1])]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "Unknown field 'xxx",
        ),
        (
            {"inputs": [tensor("tenure", "FP32", fp32_contents=[1] * 10_000)]},
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "",
        ),
    ],
)
def test_a_bad_grpc_request_is_the_clients_fault(
    stub: pb_grpc.GRPCInferenceServiceStub, infer: dict[str, object], code: grpc.StatusCode, named: str
) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ModelInfer(pb.ModelInferRequest(**{"model_name": "churn"} | infer))
    assert refusal.value.code() == code and named in refusal.value.details()


ANY_DATATYPE = st.sampled_from([*v2.NUMPY_TYPES, "BYTES", "FP8"])


@st.composite
def requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Right, or wrong in a few places."""
    rows = draw(st.integers(1, 2))

    def values(of: st.SearchStrategy[object]) -> st.SearchStrategy[list[object]]:
        return st.lists(of, min_size=rows, max_size=rows)

    contents = st.builds(
        pb.InferTensorContents,
        bool_contents=values(st.booleans()),
        int_contents=values(st.integers(-(2**31), 2**31 - 1)),
        uint64_contents=values(st.integers(0, 2**64 - 1)),
        fp32_contents=values(st.floats(width=32)),
        fp64_contents=values(st.floats()),
        bytes_contents=values(st.sampled_from([b"One year", b"", b"\xff", b"\0"])),
    )
    shape = st.sampled_from([[rows], [rows], [rows, 1], [], [0], [-1], [3], [2**63 - 1], [1, 1, 1]])
    names = draw(st.lists(st.sampled_from(["tenure", "Montant dû", "Contract", "x"]), max_size=3, unique=True))
    inputs = [
        pb.ModelInferRequest.InferInputTensor(
            name=name,
            datatype=draw(st.just("BYTES" if name == "Contract" else "FP32") | ANY_DATATYPE),
            shape=draw(shape),
            contents=draw(contents),
        )
        for name in names
    ]
    return pb.ModelInferRequest(
        model_name=draw(st.sampled_from(["churn", "churn", "churn", "other"])),
        inputs=inputs,
        outputs=draw(st.lists(st.sampled_from([{"name": "decision"}, {"name": "x"}]), max_size=1)),
        raw_input_contents=draw(st.just([]) | st.lists(st.binary(max_size=9), max_size=3)),
    )


CLIENTS_FAULTS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests())
def test_no_grpc_request_is_the_servers_fault(
    stub: pb_grpc.GRPCInferenceServiceStub, request: pb.ModelInferRequest
) -> None:
    try:
        assert stub.ModelInfer(request).outputs
    except grpc.RpcError as refusal:
        assert refusal.code() in CLIENTS_FAULTS, refusal.details()


def test_grpc_datatypes_identity_and_counts(stub: pb_grpc.GRPCInferenceServiceStub, ports: tuple[int, int]) -> None:
    before = request(ports[0], "GET", "/metrics/serin.json")[1]["requests"].get("200", 0)
    inputs = [tensor("tenure", "INT32", int_contents=[5]), tensor("Montant dû", "BOOL", bool_contents=[True])]
    answer, call = stub.ModelInfer.with_call(
        pb.ModelInferRequest(model_name="churn", inputs=inputs, outputs=[{"name": "probability"}]),
        metadata=[("x-request-id", "abc-1")],
    )
    (output,) = answer.outputs
    assert output.contents.fp32_contents == pytest.approx([models.score({"tenure": 5, "Montant dû": 1})], abs=1e-6)
    headers = dict(call.initial_metadata())
    assert headers["x-serin-revision"] == "churn-00001" and headers["x-request-id"] == "abc-1"
    assert request(ports[0], "GET", "/metrics/serin.json")[1]["requests"]["200"] == before + 1


def test_grpc_metadata(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="churn"))
    assert [(t.name, t.datatype) for t in metadata.inputs] == [
        ("tenure", "FP32"), ("Montant dû", "FP32"), ("Contract", "BYTES"),
    ]  # fmt: skip
    assert "binary_tensor_data" in stub.ServerMetadata(pb.ServerMetadataRequest()).extensions


def test_grpc_versions(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    fp16 = pb.ModelInferRequest.InferInputTensor(name="tenure", datatype="FP16", shape=[1])
    answer = stub.ModelInfer(
        pb.ModelInferRequest(
            model_name="churn", model_version="churn-00001", inputs=[fp16],
            raw_input_contents=[np.array([5], "<f2").tobytes()],
        )
    )  # fmt: skip
    assert answer.model_version == "churn-00001"
    assert np.frombuffer(answer.raw_output_contents[0], "<f4") == pytest.approx(
        [models.score({"tenure": 5})], abs=1e-6
    )
    assert stub.ModelReady(pb.ModelReadyRequest(name="churn", version="churn-00001")).ready
    assert list(stub.ModelMetadata(pb.ModelMetadataRequest(name="churn")).versions) == ["churn-00001"]
    for call in (
        lambda: stub.ModelReady(pb.ModelReadyRequest(name="churn", version="3")),
        lambda: stub.ModelMetadata(pb.ModelMetadataRequest(name="churn", version="3")),
    ):
        with pytest.raises(grpc.RpcError) as refusal:
            call()
        assert refusal.value.code() == grpc.StatusCode.NOT_FOUND


def test_http_1_0_is_answered_and_closed(ports: tuple[int, int]) -> None:
    body = b'{"instances": [{"tenure": 5}]}'
    head = f"POST /v1/models/churn:predict HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", ports[0]), timeout=10) as connection:
        connection.sendall(head + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split(b" ", 2)[1] == b"200" and b'"predictions"' in answer
    assert b"transfer-encoding" not in answer.lower()


def test_grpc_cannot_unload_the_model(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="churn"))
    assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_fuzzed_requests_of_each_protocol(tmp_path: Path) -> None:
    """Valid ones are answered, and no other one is the server's fault; the same seeds are in the benchmark."""
    models.write(tmp_path)
    make, grpc_port = Maker(1, "churn", "churn-00001", models.RECORDS), free_port()
    with running(tmp_path, "--grpc-port", str(grpc_port)) as (_, port):
        outcomes = [
            fuzz_http(port, make.v1, 1200),
            fuzz_http(port, make.v2, 1200),
            fuzz_rpc(grpc_port, make.rpc, 1200),
        ]
    for outcome in outcomes:
        assert (outcome.sent, outcome.refused, outcome.blamed) == (1200, 0, 0), outcome.failures
        assert outcome.valid >= 400 and len(outcome.endings) >= 4
