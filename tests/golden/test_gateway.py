"""The gateway's configuration, word for word; Envoy itself reads it in tests/e2e."""

import json
import re
from pathlib import Path

from serin.platforms.embedded import gateway
from serin.platforms.embedded.gateway import ServiceRoute, Upstream

GOLDEN = Path(__file__).with_name("gateway.json")
UPSTREAMS = (
    Upstream("default/churn-predictor-00001", "churn", ("sockets/one",)),
    Upstream("default/churn-predictor-00002", "churn", ("sockets/two", "sockets/three")),
)
ROUTES = (
    ServiceRoute(
        "churn",
        {"default/churn-predictor-00001": 75, "default/churn-predictor-00002": 25},
        "default/churn-predictor-00001",
    ),
    ServiceRoute("fraud", {"default/fraud-predictor-00001": 100, "default/None": 0}, "default/fraud-predictor-00001"),
)


def documents() -> dict[str, object]:
    return {
        "bootstrap": gateway.bootstrap(Path("/home/a user/.serin/gateway"), 8080),
        "clusters": gateway.clusters(UPSTREAMS),
        "routes": gateway.routes(ROUTES),
    }


def test_the_documents_are_the_golden_ones():
    wanted = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert documents() == wanted, f"if this is meant, write the new documents into {GOLDEN.name}"


def test_a_revision_without_weight_is_not_routed_to():
    assert "default/None" not in json.dumps(gateway.routes(ROUTES))


def test_one_port_on_loopback_and_everything_else_on_sockets():
    text = json.dumps(documents())
    assert re.findall(r'"socket_address": ({[^}]*})', text) == ['{"address": "127.0.0.1", "port_value": 8080}']
    assert list(dict.fromkeys(re.findall(r'"pipe": {"path": "([^"]*)"', text))) == [
        "sockets/gateway",
        "sockets/one",
        "sockets/two",
        "sockets/three",
    ]


def test_a_sockets_path_is_short_whatever_the_revision_is_called():
    longest = f"{'n' * 63}/{'s' * 50}-predictor-00001"
    assert len(gateway.socket_of(longest, 99)) < 108
    assert len({gateway.socket_of(name, n) for name in (longest, longest.replace("1", "2")) for n in (0, 1)}) == 4


def test_files_are_replaced_whole(tmp_path):
    file = tmp_path / "routes.json"
    gateway.write(file, "1", gateway.routes(ROUTES[:1]))
    gateway.write(file, "2", gateway.routes(ROUTES))
    assert json.loads(file.read_text(encoding="utf-8")) == {"version_info": "2", "resources": gateway.routes(ROUTES)}
    assert list(tmp_path.iterdir()) == [file]
