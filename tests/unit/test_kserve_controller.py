"""The controller against an API server in memory, in front of the fake KServe."""

import copy
import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client import generate_latest

from serin.controller.controller import (
    LONGEST_RETRY_S,
    LOOKS_PER_S,
    Controller,
    Metrics,
    generation_changed,
    service_of,
)
from serin.errors import UserError
from serin.judge.policy import Source
from serin.kube.api import Conflict, Unavailable
from serin.kube.informer import Cache
from serin.measure.tally import PARTS, Counts
from serin.platforms.kserve import objects, service
from serin.rollout.document import Check
from tests.unit.kserve_fake import FakeKServe, merge, promoted

SPEC = {
    "service": "churn",
    "candidate": {"storageUri": "v3"},
    "plan": {
        "stages": [{"traffic": 10, "minSeconds": 0}, {"traffic": 50, "minSeconds": 0}],
        "bake": {"traffic": 99, "seconds": 0},
    },
    "judge": {"dryRun": True},
}
PATH = objects.rollouts("serving", "churn-3")


class FakeApi:
    """Objects by path, with versions, merge patches, finalizers and the status subresource."""

    def __init__(self, fake: FakeKServe) -> None:
        self.fake = fake
        self.objects: dict[str, dict[str, Any]] = {}
        self.events: list[tuple[str, str]] = []
        self.failures: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.down = False
        self._versions = itertools.count(1)

    def add(self, spec: dict[str, Any], name: str = "churn-3") -> None:
        metadata = {"name": name, "namespace": "serving", "uid": name, "creationTimestamp": "2026-11-22T09:30:00Z"}
        metadata |= {"generation": 1}
        document = {"apiVersion": "serin.dev/v1alpha1", "kind": "ModelRollout", "metadata": metadata, "spec": spec}
        self._put(objects.rollouts("serving", name), document)

    def _put(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        document = copy.deepcopy(document)
        document["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[path] = document
        if "deletionTimestamp" in document["metadata"] and not document["metadata"].get("finalizers"):
            del self.objects[path]
        return copy.deepcopy(document)

    def _alive(self, verb: str) -> None:
        if self.down:
            raise Unavailable("the API server does not answer", delay_s=1)
        self.requests[verb] += 1

    def _service(self) -> dict[str, Any] | None:
        if not self.fake.exists:
            return None
        document = self.fake.read()
        document["metadata"] |= {"namespace": "serving", "uid": "churn", "creationTimestamp": "2026-11-22T09:00:00Z"}
        return document

    def get(self, path: str) -> dict[str, Any] | None:
        self._alive("get")
        if path == objects.services("serving", "churn"):
            return self._service()
        return copy.deepcopy(self.objects.get(path))

    def list(self, path: str, labels: str = "") -> dict[str, Any]:
        self._alive("list")
        if path == objects.services():
            items = [self._service()] if self.fake.exists else []
        else:
            items = copy.deepcopy([each for each in self.objects.values() if each.get("kind") == "ModelRollout"])
        return {"items": items, "metadata": {"resourceVersion": "0"}}

    def create(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        self._alive("create")
        if path.endswith("/events"):
            self.events.append((document["reason"], document["message"]))
        return document

    def patch(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        self._alive("patch")
        version = document["metadata"]["resourceVersion"]
        if path == objects.services("serving", "churn"):
            if version != str(self.fake.version):
                raise Conflict("the object has been modified", delay_s=0)
            self.fake.patch({"spec": document["spec"]})
            return self._service() or {}
        return self._put(path, merge(self._current(path, version), document))

    def replace(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        self._alive("replace")
        path = path.removesuffix("/status")
        current = self._current(path, document["metadata"]["resourceVersion"])
        return self._put(path, {**current, "status": document["status"]})

    def _current(self, path: str, version: str) -> dict[str, Any]:
        if path not in self.objects or self.objects[path]["metadata"]["resourceVersion"] != version:
            raise Conflict("the object has been modified", delay_s=0)
        return self.objects[path]

    def delete(self, path: str, resource_version: str) -> None:
        self.fake.exists = False

    def ask_to_delete(self) -> None:
        document = self.objects[PATH]
        document["metadata"] |= {"deletionTimestamp": "2026-11-22T09:40:00Z", "generation": 2}
        self._put(PATH, document)


class FakeGateway:
    events = True

    def __init__(self, fake: FakeKServe) -> None:
        self._fake = fake
        self._codes: dict[str, int] = {}
        self.blind: str | None = None
        self.refunds: dict[str, float] = {}
        """Per request of a revision."""

    def serve(self) -> None:
        for name, percent in self._fake.traffic().items():
            self._codes[name] = self._codes.get(name, 0) + 10 * percent

    def counts(self, namespace: str, stable: str, candidate: str, sources: Mapping[str, Source]) -> Counts:
        read = {
            process: {f"{name} {kind}": {200: self._codes.get(name, 0)} for name in (stable, candidate)}
            for process, kind in (("kourier", "codes"), ("servers", "predictions"))
        }
        for name, rate in self.refunds.items() if sources else ():
            told = {f"{name} event {metric}": {0: int(PARTS * rate * self._codes.get(name, 0))} for metric in sources}
            read[f"pod of {name}"] = told
        return Counts(time.time(), read, {}, reports=dict.fromkeys(self.refunds, tuple(sources)))

    def problem(self, namespace: str, stable: str) -> str | None:
        return self.blind

    def check(self, *_: object, **__: object) -> tuple[Check, ...]:
        return (Check(name="ready", passed=True, detail="20 of 20 report the model as ready"),)


class World:
    def __init__(self) -> None:
        self.fake = promoted()
        self.api, self.gateway = FakeApi(self.fake), FakeGateway(self.fake)
        self.restart()

    def restart(self) -> None:
        api: Any = self.api
        gateway: Any = self.gateway
        self.rollouts = Cache(api, objects.rollouts(), group=service_of, matters=generation_changed)
        self.services = Cache(api, objects.services(), keep=service.kept)
        self.metrics = Metrics(api, self.rollouts)
        self.controller = Controller(api, gateway, gateway, self.rollouts, self.services, self.metrics)

    def round(self) -> None:
        self.gateway.serve()
        self.fake.tick()
        if not self.api.down:
            self.rollouts.refresh()
            self.services.refresh()
        for group in self.rollouts.groups():
            self.controller.look(group)

    def status(self, path: str = PATH) -> dict[str, Any]:
        found: dict[str, Any] = self.api.objects[path].get("status", {})
        return found

    def until(self, *phases: str, rounds: int = 400, path: str = PATH) -> dict[str, Any]:
        for _ in range(rounds):
            if path in self.api.objects and self.status(path).get("phase") in phases:
                return self.status(path)
            self.round()
        raise AssertionError(f"{self.status(path).get('phase')}: {self.status(path).get('reason')}")


@pytest.fixture
def world() -> World:
    return World()


REFUNDS = {"metrics": [{"name": "refunds", "weight": 0.5, "source": {"counter": "refunds_total"}}]}


def test_a_declared_metric_that_rises_sends_the_candidate_back(world: World) -> None:
    world.gateway.refunds = {"r2": 0.02, "r3": 0.5}
    world.api.add(SPEC | {"judge": REFUNDS | {"require": ["refunds"]}})
    status = world.until("Promoted", "RolledBack")
    assert status["phase"] == "RolledBack"
    assert status["reason"].startswith("The candidate is harmful: refunds in "), status["reason"]


def test_a_declared_metric_that_does_not_rise_is_judged_and_passes(world: World) -> None:
    world.gateway.refunds = {"r2": 0.02, "r3": 0.02}
    world.api.add(SPEC | {"judge": REFUNDS | {"require": ["refunds"]}})
    status = world.until("Promoted", "RolledBack")
    assert status["phase"] == "Promoted", status["reason"]
    assert {each["metric"]: each["judged"] for each in status["evidence"]}["refunds"]


def test_a_declared_metric_waits_for_a_controller_that_can_count_it(world: World) -> None:
    world.gateway.events = False
    world.api.add(SPEC | {"judge": REFUNDS})
    for _ in range(5):
        world.round()
    assert world.status()["phase"] == "Pending"
    assert "reads no counters of model servers" in world.status()["reason"]


def test_a_rollout_is_promoted_with_events_and_conditions(world: World) -> None:
    world.api.add(SPEC)
    status = world.until("Promoted")
    assert world.fake.settle().traffic() == {"r3": 100}
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    assert conditions == {"Complete": "True", "Promoted": "True"}
    told = [reason for reason, _ in world.api.events]
    assert [name for name, _ in itertools.groupby(told)] == ["Dark", "Checking", "Progressing", "Baking", "Promoted"]
    assert status["judgeState"] is None, "nobody reads it again, and it is most of the document"
    assert status["platform"]["measured"] is None
    assert status["evidence"]
    world.round()
    assert (
        "finalizers" not in world.api.objects[PATH]["metadata"]
        or not world.api.objects[PATH]["metadata"]["finalizers"]
    )


@pytest.mark.parametrize("phase", ["Dark", "Checking", "Progressing", "Baking"])
def test_another_controller_goes_on_where_the_last_one_died(world: World, phase: str) -> None:
    world.api.add(SPEC)
    world.until(phase)
    world.restart()
    world.until("Promoted")
    assert world.fake.settle().traffic() == {"r3": 100}


@pytest.mark.parametrize("phase", ["Dark", "Progressing", "Baking"])
def test_deleting_a_rollout_brings_traffic_back_first(world: World, phase: str) -> None:
    world.api.add(SPEC)
    world.until(phase)
    world.api.ask_to_delete()
    for _ in range(60):
        world.round()
        if PATH not in world.api.objects:
            break
    assert PATH not in world.api.objects
    assert {world.fake.models[name] for name in world.fake.settle().traffic()} == {"v2"}
    assert world.fake.percent is None


def test_an_api_server_that_is_away_changes_nothing(world: World) -> None:
    world.api.add(SPEC)
    world.until("Progressing")
    world.api.down = True
    before = world.fake.settle().traffic()
    for _ in range(5):
        world.round()
    assert world.fake.traffic() == before
    world.api.down = False
    world.until("Promoted")


def test_of_one_service_only_the_oldest_acts(world: World) -> None:
    world.api.add(SPEC)
    world.api.add({**SPEC, "candidate": {"storageUri": "v4"}}, "churn-4")
    world.until("Progressing")
    second = objects.rollouts("serving", "churn-4")
    assert world.status(second)["reason"] == "waiting for rollout churn-3 of the same service"
    world.until("Promoted", path=second)
    assert world.status()["phase"] == "Promoted"
    assert world.fake.settle().traffic() == {"r4": 100}


def test_a_spec_that_cannot_be_fails_and_touches_nothing(world: World) -> None:
    world.api.add({**SPEC, "judge": {"require": ["nothing-of-that-name"]}})
    version = world.fake.version
    status = world.until("Failed")
    assert "no metric is called 'nothing-of-that-name'" in status["reason"]
    assert world.fake.version == version


@pytest.mark.parametrize("unreadable", ["spec", "status", "platform"])
@pytest.mark.parametrize("phase", ["Dark", "Progressing", "Baking"])
def test_a_rollout_under_way_that_this_version_cannot_read_goes_back(
    world: World, phase: str, unreadable: str
) -> None:
    world.api.add(SPEC)
    world.until(phase)
    document = world.api.objects[PATH]
    match unreadable:
        case "spec":
            document["spec"]["judge"] = {"newerOption": 1}
        case "status":
            document["status"]["history"] = [{"newer": "shape"}]
        case "platform":
            document["status"]["platform"]["measured"] = {"newer": "shape"}
    world.round()
    assert world.status()["phase"] == "RollingBack"
    assert world.api.events[-1][0] == "RollingBack"
    status = world.until("RolledBack", "Failed")
    assert status["phase"] == "RolledBack"
    assert status["reason"].startswith("stopped: this version of serin cannot read the rollout")
    assert {world.fake.models[name] for name in world.fake.settle().traffic()} == {"v2"}
    assert world.fake.percent is None


@pytest.mark.parametrize("phase", ["Dark", "Progressing", "Baking"])
def test_what_another_version_added_to_the_status_is_passed_over(world: World, phase: str) -> None:
    world.api.add(SPEC)
    world.until(phase)
    status = world.api.objects[PATH]["status"]
    platform = status["platform"]
    for part in (status, status["requests"], status["history"][0], platform, platform["predictors"]):
        part["newer"] = 1
    assert world.until("Promoted", "RolledBack", "Failed")["phase"] == "Promoted"


def test_a_namespace_may_begin_with_a_digit() -> None:
    metadata = {"name": "churn-3", "namespace": "1st-team", "creationTimestamp": "2026-11-22T09:30:00Z"}
    assert objects.rollout({"metadata": metadata, "spec": SPEC}).metadata.namespace == "1st-team"


def test_what_is_refused_at_0_percent_ends_the_rollout_with_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def patch(path: str, document: dict[str, Any]) -> dict[str, Any]:
        if path == objects.services("serving", "churn"):
            raise UserError("PATCH churn: admission webhook denied the request: no storage but ours")
        return real(path, document)

    real = world.api.patch
    monkeypatch.setattr(world.api, "patch", patch)
    world.api.add(SPEC)
    status = world.until("RolledBack", rounds=10)
    assert status["reason"] == ("stopped: PATCH churn: admission webhook denied the request: no storage but ours")
    assert world.fake.percent is None


def test_recorded_requests_that_are_none_end_the_rollout_with_the_reason(world: World) -> None:
    path = objects.config_map("serving", "churn-requests")
    world.api.objects[path] = {"metadata": {"name": "churn-requests"}, "data": {"requests.json": "{}"}}
    world.api.add(SPEC)
    assert "requests.json is not a list" in world.until("RolledBack", rounds=60)["reason"]


def test_a_stale_view_is_refused_and_looked_at_again(world: World) -> None:
    world.api.add(SPEC)
    world.until("Progressing")
    stale = copy.deepcopy(world.api.objects[PATH])
    world.round()
    world.rollouts._groups.clear()
    world.rollouts._group_of.clear()
    world.rollouts.put(stale)
    world.gateway.serve()
    traffic, stored = world.fake.traffic(), copy.deepcopy(world.api.objects[PATH])
    world.controller.look(("serving", "churn"))
    assert world.api.objects[PATH] == stored
    assert world.fake.traffic() == traffic
    world.until("Promoted")


def test_an_error_nobody_foresaw_takes_the_traffic_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.api.add(SPEC)
    world.until("Progressing")

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("serin.controller.controller.step", broken)
    for _ in range(5):
        world.round()
    assert world.status()["phase"] == "RollingBack"
    assert world.fake.traffic() == {"r2": 100}
    monkeypatch.undo()
    assert "a bug" in world.until("RolledBack")["reason"]
    assert {world.fake.models[name] for name in world.fake.settle().traffic()} == {"v2"}


def test_without_the_lease_nothing_is_done_and_with_it_again_it_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serin.controller.controller.TICK_S", 0.01)
    monkeypatch.setattr("serin.kube.due._POLL_S", 0.01)
    lost = threading.Event()

    def term() -> threading.Thread:
        thread = threading.Thread(target=world.controller.run, args=(lost.is_set,), daemon=True)
        thread.start()
        return thread

    def until(phase: str) -> None:
        for _ in range(1000):
            if world.status().get("phase") == phase:
                return
            world.gateway.serve()
            world.fake.tick()
            world.services.refresh()
            time.sleep(0.01)
        raise AssertionError(world.status())

    world.api.add(SPEC)
    world.rollouts.refresh()
    world.services.refresh()
    first = term()
    until("Progressing")
    world.api.down = True
    lost.set()
    first.join(20)
    assert not first.is_alive()
    world.api.down = False
    requests = world.api.requests.total()
    world.fake.settle()
    assert world.api.requests.total() == requests
    lost.clear()
    term()
    until("Promoted")
    lost.set()


def test_what_changed_before_it_led_is_not_overdue_when_it_leads(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.api.add(SPEC)
    world.rollouts.refresh()
    with monkeypatch.context() as earlier:
        long_ago_s = time.monotonic() - 300
        earlier.setattr(time, "monotonic", lambda: long_ago_s)
        world.controller.service_changed(("serving", "churn"))
    monkeypatch.setattr("serin.kube.due._POLL_S", 0.01)
    waited_s: list[float] = []

    def until() -> bool:
        waited_s.append(world.controller.stuck_s())
        return len(waited_s) > 20

    world.controller.run(until)
    assert max(waited_s) < 60


def test_a_server_that_stays_away_is_asked_less_and_less(world: World) -> None:
    world.api.add(SPEC)
    world.until("Progressing")
    world.api.down = True
    world.gateway.serve()
    pauses_s = [world.controller.look(("serving", "churn")) for _ in range(7)]
    assert pauses_s == [1, 2, 4, 8, 10, 10, 10]
    world.api.down = False
    world.round()
    world.gateway.serve()
    assert world.controller.look(("serving", "churn")) == 1


def test_a_rollout_that_could_not_be_watched_waits_and_says_why(world: World) -> None:
    world.gateway.blind = "Prometheus at http://p: nobody scrapes"
    world.api.add(SPEC)
    world.round()
    assert world.status()["phase"] == "Pending"
    assert world.status()["reason"] == "waiting until it can be watched: Prometheus at http://p: nobody scrapes"
    assert world.fake.percent is None
    world.gateway.blind = None
    world.until("Promoted")


def test_what_could_not_be_let_go_is_tried_again(world: World) -> None:
    world.api.add(SPEC)
    world.until("Promoted")
    world.rollouts.refresh()
    world.api.down = True
    assert world.controller.look(("serving", "churn")) == LONGEST_RETRY_S
    world.api.down = False
    assert world.controller.look(("serving", "churn")) is None
    assert not world.api.objects[PATH]["metadata"]["finalizers"]


def test_looks_ask_the_api_server_for_nothing_they_know_from_watches(world: World) -> None:
    world.api.add(SPEC)
    world.until("Progressing")
    world.gateway.serve()
    world.api.requests.clear()
    world.controller.look(("serving", "churn"))
    assert set(world.api.requests) <= {"replace", "patch", "create"}


def test_with_many_in_flight_each_is_looked_at_less_often(world: World) -> None:
    world.api.add(SPEC)
    world.controller._in_flight |= {("serving", f"other-{number}") for number in range(999)}
    world.rollouts.refresh()
    world.services.refresh()
    assert world.controller.look(("serving", "churn")) == 1000 / LOOKS_PER_S


def test_metrics_tell_phases_lag_and_failures(world: World) -> None:
    world.api.add(SPEC)
    world.until("Progressing")
    world.api.failures["503"] = 2
    text = generate_latest(world.metrics.registry).decode()
    assert 'serin_rollouts{phase="Progressing"} 1.0' in text
    assert 'serin_rollouts{phase="Promoted"} 0.0' in text
    assert 'serin_api_failures_total{kind="503"} 2.0' in text
    assert "serin_reconcile_lag_seconds_bucket" in text
