"""The gateway's routes, and the way back to stable that is always there beside them."""

import json
import os

import pytest

from serin.measure.envoy import GatewayStats
from serin.platforms.embedded import gateway
from serin.platforms.embedded.routes import ROUTES, WAY_BACK, Routes, fall_back
from serin.platforms.embedded.store import Service, Store

CANARY = Service("default", "churn", "churn-1", "churn-2", "r", 5, 2)
ALONE = Service("default", "fraud", "fraud-1", None, None, 0, 1)
HEALTHY = {"default/churn-2"}
KEY = ("default", "churn")


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    (opened.home / "gateway").mkdir()
    yield opened
    opened.close()


def weights(store: Store, name: str = ROUTES) -> dict[str, int]:
    """Of every cluster that gets predictions."""
    found: dict[str, int] = {}

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if "weighted_clusters" in value:
                found.update({each["name"]: each["weight"] for each in value["weighted_clusters"]["clusters"]})
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(json.loads((store.home / "gateway" / name).read_text()))
    return found


def in_force(store: Store) -> GatewayStats:
    version = json.loads((store.home / "gateway" / ROUTES).read_text())["version_info"]
    return GatewayStats({}, {"services": version})


def test_a_candidate_with_traffic_has_a_way_back_beside_it_and_none_without(store):
    routes = Routes(store.home, store)
    routes.write([CANARY, ALONE], HEALTHY)
    assert weights(store)["default/churn-2"] == 5
    assert weights(store, WAY_BACK).get("default/churn-2", 0) == 0
    assert weights(store, WAY_BACK)["default/churn-1"] == 100
    routes.write([CANARY, ALONE], set())
    assert weights(store).get("default/churn-2", 0) == 0
    assert not (store.home / "gateway" / WAY_BACK).exists(), "it would name a stable revision of long ago"
    assert not fall_back(store.home)


def test_falling_back_takes_one_rename_and_is_understood_also_after_a_restart(store, monkeypatch):
    routes = Routes(store.home, store)
    routes.write([CANARY, ALONE], HEALTHY)
    assert routes.confirmed(in_force(store))[KEY] == 5

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "save_setting", full)
    monkeypatch.setattr(gateway, "write", full)
    assert routes.fall_back()
    assert weights(store).get("default/churn-2", 0) == 0
    assert routes.confirmed(in_force(store))[KEY] == 0 and routes.in_force(in_force(store))
    assert not routes.fall_back(), "once is enough"
    another = Routes(store.home, store)
    another.recall()
    assert another.confirmed(in_force(store))[KEY] == 0
    monkeypatch.undo()
    routes.write([CANARY, ALONE], HEALTHY)
    assert routes.confirmed(in_force(store))[KEY] == 5, "when there is room, the rollout goes on"


def test_no_candidate_gets_traffic_before_there_is_a_way_back(store, monkeypatch):
    routes = Routes(store.home, store)
    routes.write([CANARY], set())
    write = gateway.write

    def full(path, version, resources):
        if path.name == WAY_BACK:
            raise OSError(28, "No space left on device")
        write(path, version, resources)

    monkeypatch.setattr(gateway, "write", full)
    with pytest.raises(OSError, match="No space"):
        routes.write([CANARY], HEALTHY)
    assert weights(store).get("default/churn-2", 0) == 0


def test_the_way_back_never_outlives_the_routes_it_is_for(store):
    routes = Routes(store.home, store)
    routes.write([CANARY], HEALTHY)
    promoted = Service("default", "churn", "churn-2", None, None, 0, 2)
    routes.write([promoted], HEALTHY)
    assert os.listdir(store.home / "gateway") == [ROUTES]  # noqa: PTH208
    assert weights(store)["default/churn-2"] == 100
