"""The gateway's configuration, word for word; Envoy itself reads it in tests/e2e."""

import json
from pathlib import Path

import pytest

from serin.platforms.embedded import gateway
from serin.platforms.embedded.gateway import ServiceRoute, Upstream

GOLDEN = Path(__file__).with_name("gateway.json")
UPSTREAMS = (
    Upstream("default/churn-predictor-00001", "churn", 21001),
    Upstream("default/churn-predictor-00002", "churn", 21002),
)
ROUTES = (
    ServiceRoute("churn", {"default/churn-predictor-00001": 75, "default/churn-predictor-00002": 25}),
    ServiceRoute("fraud", {"default/fraud-predictor-00001": 100, "default/None": 0}),
)


def documents() -> dict[str, object]:
    return {
        "bootstrap": gateway.bootstrap(Path("/home/a user/.serin/gateway"), 8080, 9901),
        "clusters": gateway.clusters(UPSTREAMS),
        "routes": gateway.routes(ROUTES),
    }


def test_the_documents_are_the_golden_ones():
    wanted = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert documents() == wanted, f"if this is meant, write the new documents into {GOLDEN.name}"


def test_a_revision_without_weight_is_not_routed_to():
    assert "default/None" not in json.dumps(gateway.routes(ROUTES))


@pytest.mark.parametrize("part", ["bootstrap", "clusters", "routes"])
def test_everything_listens_on_loopback_only(part):
    text = json.dumps(documents()[part])
    assert text.count('"address": "') == text.count('"address": "127.0.0.1"')


def test_files_are_replaced_whole(tmp_path):
    file = tmp_path / "routes.json"
    gateway.write(file, "1", gateway.routes(ROUTES[:1]))
    gateway.write(file, "2", gateway.routes(ROUTES))
    assert json.loads(file.read_text(encoding="utf-8")) == {"version_info": "2", "resources": gateway.routes(ROUTES)}
    assert list(tmp_path.iterdir()) == [file]
