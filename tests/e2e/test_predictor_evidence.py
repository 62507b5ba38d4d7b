"""What the engine asks of serin's own model server on a cluster: its counts of predictions, and a request made of its
metadata."""

import json

import pytest
import urllib3
from embedded import CHANGES, change_signature, write_model
from predictor_process import request, running

from serin.platforms.kserve import gateway
from serin.platforms.kserve.gateway import EnvoyTelemetry, v2_request
from tests.unit.test_kserve_gateway import HERE, pod

BODY = json.dumps({"instances": [{"tenure": 5}]}).encode()


def test_of_all_that_is_asked_only_predictions_are_told(tmp_path, monkeypatch):
    write_model(tmp_path / "model")
    with running(tmp_path / "model") as (_, port):
        monkeypatch.setattr(gateway, "PREDICTOR_PORT", port)
        for _ in range(20):
            assert request(port, "GET", "/v2/models/churn")[0] == 200
            assert request(port, "GET", "/v2/health/live")[0] == 200
            assert request(port, "GET", "/v1/models/churn")[0] == 200
            assert request(port, "GET", "/v1/models/churn:predict")[0] in (404, 405)
        with urllib3.PoolManager() as http:
            assert http.request("GET", f"http://{HERE}:{port}/.env").status == 404
            assert http.request("GET", f"http://{HERE}:{port}/metrics").status == 200
        infer = json.dumps(v2_request(request(port, "GET", "/v2/models/churn")[1])).encode()
        asked = [
            ("/v1/models/churn:predict", BODY),
            ("/v1/models/churn:explain", BODY),
            ("/v2/models/churn/infer", infer),
            ("/v2/models/churn/versions/churn-00001/infer", infer),
        ]
        assert [request(port, "POST", path, body)[0] for path, body in asked] == [200] * 4
        assert request(port, "POST", "/v1/models/churn:predict", b"{}")[0] == 400
        telemetry = EnvoyTelemetry(list, lambda key: [pod("churn-1-x", "churn-1")])
        told = telemetry._predictor_counts("serving", "churn-1")
    (series,) = told.by_process().values()
    assert series["churn-1 predictions"] == {200: 4, 400: 1}
    assert told.known and not told.incomplete


@pytest.mark.parametrize("change", CHANGES)
def test_a_request_made_of_stables_metadata_shows_another_signature(tmp_path, change):
    for name in ("stable", "candidate"):
        write_model(tmp_path / name)
    change_signature(tmp_path / "candidate", change)
    with running(tmp_path / "stable") as (_, stable), running(tmp_path / "candidate") as (_, candidate):
        body = json.dumps(v2_request(request(stable, "GET", "/v2/models/churn")[1])).encode()
        assert request(stable, "POST", "/v2/models/churn/infer", body)[0] == 200
        status, answer = request(candidate, "POST", "/v2/models/churn/infer", body)
    assert status == 400 and "Contract" in answer["error"]
