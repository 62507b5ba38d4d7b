"""The application in one process: what it takes, what it answers, what it refuses."""

import asyncio
import math
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import predictor_models as models
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor.app import Health, Observed, Service, application
from predictor.columns import Layout
from predictor.explain import Explainer
from predictor.limits import Limits
from predictor.scorer import Scorer
from predictor.telemetry import Telemetry

PREDICT = "/v1/models/churn:predict"
INFER = "/v2/models/churn/infer"
EXPLAIN = "/v1/models/churn:explain"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("model")
    models.write(root)
    return root


@pytest.fixture(scope="module")
def scorer(root: Path) -> Scorer:
    return Scorer.load(root, models.SIGNATURE)


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry("churn", "churn-00001")


class Client:
    """Calls the application as a server would, without a socket."""

    def __init__(self, app: Observed) -> None:
        self._app = app

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **more)

        return asyncio.run(send())

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)


def serve(scores: object, telemetry: Telemetry, explainer: Explainer | None = None) -> Client:
    limits = Limits(body_bytes=2000, rows=20)
    service = Service("churn", "churn-00001", "sha256:1", scores, telemetry, Health(), limits, explainer=explainer)
    return Client(Observed(application(service), service))


@pytest.fixture
def client(scorer: Scorer, telemetry: Telemetry) -> Client:
    return serve(scorer, telemetry)


def predict(client: Client, *records: object) -> list[dict[str, object]]:
    answer = client.post(PREDICT, content=orjson.dumps({"instances": records}))
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def refusal(client: Client, body: object, path: str = PREDICT, *, status: int = 400) -> str:
    answer = client.post(path, content=body if isinstance(body, bytes) else orjson.dumps(body))
    assert answer.status_code == status, answer.text
    assert answer.headers["x-serin-revision"] == "churn-00001"
    return answer.json()["error"]


# ---- V1


def test_records_are_scored_by_name(client: Client) -> None:
    answers = predict(client, *models.RECORDS)
    for record, answer in zip(models.RECORDS, answers, strict=True):
        assert answer["probability"] == pytest.approx(models.score(record), abs=1e-6)
        assert answer["decision"] == ("Yes" if models.score(record) >= 0.5 else "No")


@pytest.mark.parametrize(
    ("record", "same_as"),
    [
        ({"tenure": 5}, {"tenure": 5, "Montant dû": None, "Contract": None}),
        ({}, {"tenure": None, "Montant dû": None, "Contract": None}),
        ({"Contract": "never seen"}, {"Contract": None}),
        ({"tenure": 5.0}, {"tenure": 5}),
        ({"tenure": True}, {"tenure": 1}),
        ({"Contract": " \u00a0"}, {"Contract": None}),
    ],
)
def test_missing_null_and_unseen(client: Client, record: object, same_as: object) -> None:
    first, second = predict(client, record, same_as)
    assert first == second


def test_lists_in_a_record_are_rows(client: Client) -> None:
    rows = predict(client, {"tenure": [5, 40], "Contract": [None, "One year"]}, {"tenure": [7]})
    assert rows == predict(client, {"tenure": 5}, {"tenure": 40, "Contract": "One year"}, {"tenure": 7})


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b'{"instances": [{"tenure": NaN}]}', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ([], "expected an object"),
        ({}, "'instances' is missing"),
        ({"instances": {}}, "expected a list of records, got object"),
        ({"instances": []}, "empty list"),
        ({"instances": [5]}, "item 0: expected an object with one value per feature, got number"),
        ({"instances": [[5, 1.0, "x"]]}, "got list"),
        ({"instances": [{"tenure": 1, "customerID": "x", "a": 1}]}, "Unknown field 'a', 'customerID'"),
        ({"instances": [{}, {"tenure": "5"}]}, "'tenure', row 1: expected number or null, got string"),
        ({"instances": [{"Contract": 5}]}, "'Contract', row 0: expected string or null, got number"),
        ({"instances": [{"Contract": True}]}, "expected string or null, got boolean"),
        ({"instances": [{"tenure": {"a": 1}}]}, "got object"),
        ({"instances": [{"tenure": 1e300}]}, "row 0: expected a number within"),
        ({"instances": [{"tenure": [1, 2], "Contract": ["x"]}]}, "lists of one length above 0, got lengths [1, 2]"),
        ({"instances": [{"tenure": []}]}, "got lengths [0]"),
        ({"instances": [{"tenure": [1], "Contract": "x"}]}, "'Contract' of 'instances', item 0: expected a list"),
        ({"instances": [{"tenure": [[1]]}]}, "'tenure', row 0: expected number or null, got list"),
    ],
)
def test_a_bad_v1_request_is_the_clients_fault(client: Client, body: object, named: str) -> None:
    assert named in refusal(client, body)


def test_scores_in_the_band_are_for_review(root: Path) -> None:
    unsure = Scorer.load(root, models.SIGNATURE.model_copy(update={"review": (0.4, 0.7)}))
    client = serve(unsure, Telemetry("churn", "churn-00001"))
    answers = predict(client, {"tenure": 5}, {"tenure": 16}, {"tenure": 60})
    assert [answer["review"] for answer in answers] == [False, True, False]
    assert client.get("/v2/models/churn").json()["outputs"][2] == {
        "name": "review",
        "datatype": "BOOL",
        "shape": [-1],
    }


def test_explanations_add_up(scorer: Scorer, telemetry: Telemetry) -> None:
    client = serve(scorer, telemetry, Explainer(models.EXPLANATION, scorer.layout))
    answer = client.post(EXPLAIN, content=orjson.dumps({"instances": models.RECORDS}))
    assert answer.status_code == 200, answer.text
    for record, explained in zip(models.RECORDS, answer.json()["explanations"], strict=True):
        assert set(explained["contributions"]) == {"tenure", "Montant dû", "Contract"}
        log_odds = explained["base"] + sum(explained["contributions"].values())
        assert 1 / (1 + math.exp(-log_odds)) == pytest.approx(explained["probability"], abs=1e-6)
        assert explained["probability"] == pytest.approx(models.score(record), abs=1e-6)
    assert telemetry.requests == {200: 1} and telemetry.score == {}


def test_a_bad_request_for_an_explanation(client: Client, scorer: Scorer, telemetry: Telemetry) -> None:
    assert "no explanation" in refusal(client, {"instances": [{}]}, EXPLAIN, status=404)
    explained = serve(scorer, telemetry, Explainer(models.EXPLANATION, scorer.layout))
    assert "Unknown field 'x'" in refusal(explained, {"instances": [{"x": 1}]}, EXPLAIN)
    assert "at most 20 rows" in refusal(explained, {"instances": [{}] * 21}, EXPLAIN, status=413)


# ---- V2


def tensor(name: str, datatype: str, data: list[object], shape: list[int] | None = None) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "data": data, "shape": shape or [len(data)]}


def test_tensors_are_scored_like_records(client: Client) -> None:
    inputs = [tensor("tenure", "INT64", [5, 40]), tensor("Contract", "BYTES", [None, "One year"], [2, 1])]
    answer = client.post(INFER, json={"id": "42", "inputs": inputs}).json()
    by_name = {output["name"]: output for output in answer["outputs"]}
    expected = predict(client, {"tenure": 5}, {"tenure": 40, "Contract": "One year"})
    assert answer["model_name"] == "churn" and answer["id"] == "42"
    assert by_name["probability"]["data"] == [row["probability"] for row in expected]
    assert by_name["decision"] == {"name": "decision", "datatype": "BYTES", "shape": [2], "data": ["Yes", "No"]}


def test_only_the_outputs_asked_for(client: Client) -> None:
    request = {"inputs": [tensor("tenure", "FP32", [5])], "outputs": [{"name": "decision"}]}
    assert [o["name"] for o in client.post(INFER, json=request).json()["outputs"]] == ["decision"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"[", "not JSON"),
        ([], "expected an object"),
        ({}, "'inputs': expected a list, got null"),
        ({"inputs": []}, "at least one tensor"),
        ({"inputs": [1]}, "'inputs', item 0: expected an object"),
        ({"inputs": [{"data": []}]}, "'name': expected a string, got null"),
        ({"inputs": [tensor("x", "FP32", [1])]}, "Unknown field 'x'"),
        ({"inputs": [tensor("tenure", "BYTES", ["5"])]}, "Tensor 'tenure': expected datatype FP32, got 'BYTES'"),
        ({"inputs": [tensor("Contract", "FP32", [5])]}, "Tensor 'Contract': expected datatype BYTES, got 'FP32'"),
        ({"inputs": [tensor("tenure", "FP32", [5], [2])]}, "expected 2 values as in its shape, got 1"),
        ({"inputs": [tensor("tenure", "FP32", [5], [1, 2])]}, "expected shape [rows] or [rows, 1], got [1,2]"),
        ({"inputs": [tensor("tenure", "FP32", [5], [True])]}, "got [true]"),
        ({"inputs": [tensor("tenure", "FP32", [5], [-1])]}, "got [-1]"),
        ({"inputs": [tensor("tenure", "FP32", ["5"])]}, "'tenure', row 0: expected number or null, got string"),
        ({"inputs": [tensor("tenure", "INT64", [5, 1.5])]}, "'tenure', row 1: expected a whole number from -92"),
        ({"inputs": [tensor("tenure", "UINT8", [300])]}, "a whole number from 0 to 255 for UINT8, got 300."),
        ({"inputs": [tensor("tenure", "UINT8", [-1])]}, "got -1"),
        ({"inputs": [tensor("tenure", "INT8", [128])]}, "from -128 to 127 for INT8, got 128."),
        (
            {"inputs": [tensor("tenure", "UINT64", [1.8446744073709552e19])]},
            "for UINT64, got 1.8446744073709552e+19.",
        ),
        ({"inputs": [tensor("tenure", "INT64", [2**63])]}, "for INT64, got 9223372036854775808."),
        ({"inputs": [tensor("tenure", "FP16", [65505])]}, "a number within ±65504 for FP16, got 65505."),
        ({"inputs": [tensor("tenure", "FP64", [1e300])]}, "'tenure', row 0: expected a number within ±3.4e38"),
        ({"inputs": [tensor("tenure", "BOOL", [2])]}, "row 0: expected true or false for BOOL, got 2."),
        ({"inputs": [tensor("tenure", "FP32", [5])] * 2}, "one tensor per feature, got 'tenure' twice"),
        (
            {"inputs": [tensor("tenure", "FP32", [5]), tensor("Contract", "BYTES", ["a", "b"])]},
            "Tensor 'Contract': expected 1 rows as in the first tensor, got 2",
        ),
        ({"inputs": [tensor("tenure", "FP32", [5])], "id": 7}, "'id': expected a string, got number"),
        ({"inputs": [tensor("tenure", "FP32", [5])], "outputs": [{"name": "x"}]}, "'outputs': expected"),
    ],
)
def test_a_bad_v2_request_is_the_clients_fault(client: Client, body: object, named: str) -> None:
    assert named in refusal(client, body, INFER)


@pytest.mark.parametrize(
    ("datatype", "data", "same_as"),
    [
        ("INT64", [2**63 - 1, None, 5.0], [2.0**63, None, 5]),
        ("UINT8", [0, 255, None], [0, 255, None]),
        ("FP16", [65504, -0.5, None], [65504, -0.5, None]),
        ("BOOL", [True, False, None, 1, 0], [1, 0, None, 1, 0]),
        ("INT8", [True, False], [1, 0]),
    ],
)
def test_values_that_fit_their_datatype(client: Client, datatype: str, data: list[object], same_as: object) -> None:
    answer = client.post(INFER, json={"inputs": [tensor("tenure", datatype, data)]})
    expected = predict(client, *({"tenure": value} for value in same_as))
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [row["probability"] for row in expected]


def test_a_models_version_is_its_revision(client: Client, telemetry: Telemetry) -> None:
    versions = "/v2/models/churn/versions"
    request = {"inputs": [tensor("tenure", "FP32", [5])]}
    answer = client.post(f"{versions}/churn-00001/infer", json=request)
    plain = client.post(INFER, json=request)
    assert answer.status_code == 200 and answer.json()["outputs"] == plain.json()["outputs"]
    assert answer.json()["model_version"] == plain.json()["model_version"] == "churn-00001"
    assert client.get(f"{versions}/churn-00001").json() == client.get("/v2/models/churn").json()
    assert client.get(f"{versions}/churn-00001").json()["versions"] == ["churn-00001"]
    assert client.get(f"{versions}/churn-00001/ready").status_code == 200
    for other in (client.get(f"{versions}/3"), client.get(f"{versions}/3/ready"),
                  client.post(f"{versions}/3/infer", json=request)):  # fmt: skip
        assert other.status_code == 404
        assert (
            other.json()["error"] == "Version '3' of model 'churn' is not served here; this server has 'churn-00001'."
        )
    assert telemetry.requests == {200: 2, 404: 1}


def binary(request: dict[str, object], *tensors: bytes) -> dict[str, Any]:
    """Content and headers of a request with binary tensors."""
    head = orjson.dumps(request)
    return {"content": head + b"".join(tensors), "headers": {"Inference-Header-Content-Length": str(len(head))}}


def binary_tensor(name: str, datatype: str, rows: int, size: int) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": [rows, 1], "parameters": {"binary_data_size": size}}


def test_binary_tensors_in_and_out(client: Client) -> None:
    tenure = np.array([5, np.nan], "<f8").tobytes()
    contract = b"\x08\0\0\0One year" + b"\0\0\0\0"
    request = {
        "inputs": [binary_tensor("tenure", "FP64", 2, 16), binary_tensor("Contract", "BYTES", 2, len(contract))],
        "outputs": [{"name": "decision"}, {"name": "probability", "parameters": {"binary_data": True}}],
    }
    answer = client.post(INFER, **binary(request, tenure, contract))
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["Inference-Header-Content-Length"])
    decision, probability = orjson.loads(answer.content[:length])["outputs"]
    expected = predict(client, {"tenure": 5, "Contract": "One year"}, {})
    assert decision["data"] == [row["decision"] for row in expected]
    assert probability["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(answer.content[length:], "<f4").tolist() == pytest.approx(
        [row["probability"] for row in expected]
    )


def test_all_outputs_binary(client: Client) -> None:
    request = {"inputs": [tensor("tenure", "FP32", [5, 40])], "parameters": {"binary_data_output": True}}
    answer = client.post(INFER, json=request)
    length = int(answer.headers["Inference-Header-Content-Length"])
    assert answer.content[length + 8 :] == b"\x03\0\0\0Yes\x02\0\0\0No"


@pytest.mark.parametrize(
    ("tensors", "data", "named"),
    [
        ([binary_tensor("tenure", "FP32", 1, 8)], b"12345678", "expected 4 bytes for 1 rows of FP32, got 8"),
        ([binary_tensor("tenure", "BOOL", 2, 2)], b"\x01\x02", "expected bytes 0 and 1 for BOOL, got 2"),
        ([binary_tensor("tenure", "FP16", 1, 2)], np.array([np.inf], "<f2").tobytes(), "expected a number within"),
        ([binary_tensor("tenure", "FP32", 1, 8)], b"1234", "'binary_data_size' within the body, got 8"),
        ([binary_tensor("tenure", "FP32", 1, -1)], b"", "'binary_data_size' within the body, got -1"),
        ([binary_tensor("tenure", "FP32", 1, 4)], b"12345", "got 1 more bytes"),
        ([binary_tensor("tenure", "FP32", 1, 4)], np.array([np.inf], "<f4").tobytes(), "expected a number within"),
        ([binary_tensor("Contract", "BYTES", 1, 5)], b"\x02\0\0\0a", "cut-off string"),
        ([binary_tensor("Contract", "BYTES", 1, 2)], b"\x02\0", "cut-off string"),
        ([binary_tensor("Contract", "BYTES", 1, 5)], b"\x01\0\0\0\xff", "row 0: expected UTF-8"),
        ([binary_tensor("Contract", "BYTES", 2, 5)], b"\x01\0\0\0a", "expected 2 values as in its shape, got 1"),
        ([binary_tensor("tenure", "FP32", 1, 4) | {"data": [1]}], b"1234", "'data' or a 'binary_data_size'"),
        ([binary_tensor("tenure", "FP32", 1, 4) | {"parameters": {"binary_data_size": "4"}}], b"1234", "an integer"),
        ([binary_tensor("tenure", "FP32", 1, 4) | {"parameters": []}], b"1234", "'parameters'"),
    ],
)
def test_bad_binary_tensors(client: Client, tensors: list[object], data: bytes, named: str) -> None:
    answer = client.post(INFER, **binary({"inputs": tensors}, data))
    assert answer.status_code == 400 and named in answer.json()["error"]


@pytest.mark.parametrize("length", ["x", "-1", "100", "9" * 5000, "²"])
def test_a_bad_json_length(client: Client, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode()}
    answer = client.post(INFER, content=b'{"inputs":[]}', headers=headers)
    assert answer.status_code == 400 and "Inference-Header-Content-Length" in answer.json()["error"]


def test_metadata_comes_from_the_signature(client: Client) -> None:
    metadata = client.get("/v2/models/churn").json()
    assert metadata["inputs"][0] == {"name": "tenure", "datatype": "FP32", "shape": [-1, 1]}
    assert [(t["name"], t["datatype"]) for t in metadata["inputs"][1:]] == [
        ("Montant dû", "FP32"),
        ("Contract", "BYTES"),
    ]


# ---- around the model


@pytest.mark.parametrize("path", ["/v1/models/other:predict", "/v2/models/other/infer", "/v3", "/v2/models/x"])
def test_unknown_names_are_404(client: Client, path: str) -> None:
    assert client.request("GET" if path.endswith("x") else "POST", path).status_code == 404


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_clients_cannot_unload_the_model(client: Client, verb: str) -> None:
    assert client.post(f"/v2/repository/models/churn/{verb}").status_code == 404
    assert predict(client, {"tenure": 5})


def test_limits(client: Client) -> None:
    assert "at most 20 rows, got 21" in refusal(client, {"instances": [{}] * 21}, status=413)
    assert "at most 20 rows, got 21" in refusal(client, {"instances": [{"tenure": [1] * 21}]}, status=413)
    assert "at most 20 rows" in refusal(client, {"inputs": [tensor("tenure", "FP32", [1] * 21)]}, INFER, status=413)
    assert "at most 2000 bytes" in refusal(client, b" " * 2001, status=413)


def test_compressed_bodies_are_refused(client: Client) -> None:
    answer = client.post(PREDICT, content=b"x", headers={"content-encoding": "gzip"})
    assert answer.status_code == 415 and "'gzip'" in answer.json()["error"]


def test_a_refusal_repeats_no_more_than_a_sentence(client: Client) -> None:
    assert len(refusal(client, {"instances": [{"x" * 1500: 1}]})) == 1000


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/json; charset=utf-8"])
def test_json_needs_no_content_type(client: Client, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    assert client.post(PREDICT, content=b'{"instances":[{}]}', headers=headers).status_code == 200


def test_headers_name_revision_digest_and_request(client: Client) -> None:
    echoed = client.post(PREDICT, content=b"{", headers={"x-request-id": "abc-1"}).headers
    assert (echoed["x-serin-revision"], echoed["x-serin-model-digest"], echoed["x-request-id"]) == (
        "churn-00001",
        "sha256:1",
        "abc-1",
    )
    made = [client.get("/", headers={"x-request-id": "with space"}).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1] and " " not in made[0]


# ---- telemetry


class Broken:
    signature = models.SIGNATURE
    layout = Layout.of(models.SIGNATURE.features)

    def score(self, batch: object) -> object:
        raise RuntimeError("boom")


def test_failures_are_counted_and_named(telemetry: Telemetry) -> None:
    client = serve(Broken(), telemetry)
    answer = client.post(PREDICT, content=b'{"instances":[{}]}', headers={"x-request-id": "abc-1"})
    assert answer.status_code == 500 and "boom" not in answer.text
    assert answer.headers["x-serin-revision"] == "churn-00001"
    assert telemetry.requests == {500: 1} and telemetry.latency.total() == 1


def test_both_renderings_tell_the_same(client: Client, telemetry: Telemetry) -> None:
    predict(client, *models.RECORDS)
    refusal(client, b"{")
    client.get("/v2/health/ready")  # not an inference request
    counts = client.get("/metrics/serin.json").json()
    assert (counts["revision"], counts["boot"]) == ("churn-00001", telemetry.boot)
    assert counts["requests"] == {"200": 1, "400": 1}
    assert sum(counts["latency"].values()) == 2 and sum(counts["score"].values()) == 3
    buckets = {math.ceil(models.score(record) * 100) - 1 for record in models.RECORDS}
    assert {int(bucket) for bucket in counts["score"]} == buckets

    text = client.get("/metrics").text
    labels = 'model="churn",revision="churn-00001"'
    assert f"serin_request_duration_seconds_count{{{labels}}} 2.0" in text
    assert f'serin_requests_total{{code="400",{labels}}} 1.0' in text
    assert f'serin_score_bucket{{le="0.99",{labels}}} 3.0' in text


# ---- anything at all

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["tenure", "Contract", "FP32", "BYTES"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["instances", "inputs", "outputs", "name", "shape", "datatype", "data", "id", "tenure",
                         "Contract", "parameters", "binary_data_size"]),
        inner,
        max_size=5,
    ),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(body=json_values.map(orjson.dumps) | st.binary(max_size=200), path=st.sampled_from([PREDICT, INFER]))
def test_no_body_is_the_servers_fault(scorer: Scorer, body: bytes, path: str) -> None:
    answer = serve(scorer, Telemetry("churn", "churn-00001")).post(path, content=body)
    assert answer.status_code in (200, 400, 413), answer.text
