"""Counts of Kourier's Envoys and of predictors, over HTTP, from pods that come, go and keep silent."""

import itertools
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serin.judge.policy import Source
from serin.measure.tally import Tally, add, counters
from serin.measure.windows import CUT_OFF, TIMED_OUT
from serin.platforms.kserve import declared
from serin.platforms.kserve import gateway as module
from serin.platforms.kserve.gateway import (
    REVISION,
    SCRAPE_S,
    SILENT_S,
    EnvoyTelemetry,
    Gateway,
    Where,
    kept_of_pod,
    revision_of,
)
from serin.rollout.document import Check

HERE, NOWHERE = "127.0.0.1", "127.0.0.9"


def line(revision: str, count: int, code: int = 200, namespace: str = "serving") -> str:
    labels = f'envoy_response_code="{code}",envoy_cluster_name="{namespace}/{revision}"'
    return f"envoy_cluster_upstream_rq{{{labels}}} {count}\n"


def under_way(revision: str, count: int) -> str:
    return f'envoy_cluster_upstream_rq_active{{envoy_cluster_name="serving/{revision}"}} {count}\n'


def pod(
    name: str,
    revision: str = "",
    ip: str = HERE,
    phase: str = "Running",
    conditions: Sequence[dict[str, str]] = ({"type": "Ready", "status": "True"},),
    **metadata: Any,
) -> dict[str, Any]:
    whole = {
        "metadata": {
            "name": name,
            "namespace": "serving",
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            "creationTimestamp": "2026-11-22T09:30:00Z",
            "labels": {REVISION: revision, "app": "churn"},
            "managedFields": [{"manager": "kubelet"}],
            **metadata,
        },
        "spec": {"containers": []},
        "status": {"phase": phase, "podIP": ip, "conditions": list(conditions)},
    }
    return kept_of_pod(whole)


class World:
    """Every pod has the same pages: what one process on this machine can show."""

    def __init__(self) -> None:
        self.stats = line("churn-1", 90) + line("churn-2", 8) + line("churn-2", 2, code=500) + under_way("churn-1", 3)
        self.predictor: object = {"boot": "b-1", "latency": {"12": 40}, "score": {"3": 40}, "more": 1}
        self.metrics = "null"
        self.sources: dict[str, Source] = {}
        self.asked: list[str] = []
        self.gateways = [pod("kourier-1")]
        self.predictors: dict[str, list[dict[str, Any]]] = {}
        world = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                world.asked.append(path)
                pages = {"/stats/prometheus": world.stats, "/metrics": world.metrics}
                text = pages.get(path, json.dumps(world.predictor))
                self.send_response(200 if text != "null" else 404)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                """A test reads what was asked from `asked`."""

        self.http = ThreadingHTTPServer((HERE, 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.telemetry = EnvoyTelemetry(lambda: self.gateways, lambda key: self.predictors.get(key[1], []))

    def counts(self) -> Any:
        return self.telemetry.counts("serving", "churn-1", "churn-2", self.sources)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_clock_set_back_does_not_keep_old_counts(
    world: "World", clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.counts()
    world.stats = line("churn-1", 95)
    clock[0] += SCRAPE_S + 0.1
    monkeypatch.setattr(module.time, "time", lambda: 10.0)
    found = world.counts()
    assert (found.at_s, found.read["uid-kourier-1"]["churn-1 codes"]) == (10, {200: 95})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> Iterator[World]:
    found = World()
    for name in ("STATS_PORT", "PREDICTOR_PORT"):
        monkeypatch.setattr(module, name, found.http.server_address[1])
    yield found
    found.http.shutdown()
    found.http.server_close()


def test_answers_by_revision_and_code_of_every_gateway(world: World) -> None:
    world.gateways.append(pod("kourier-2"))
    found = world.counts()
    counted = {
        "churn-1 codes": {200: 90},
        "churn-1 unanswered": {CUT_OFF: 0, TIMED_OUT: 0},
        "churn-2 codes": {200: 8, 500: 2},
        "churn-2 unanswered": {CUT_OFF: 0, TIMED_OUT: 0},
    }
    assert found.read == {"uid-kourier-1": counted, "uid-kourier-2": counted}
    assert found.active == {"churn-1": 6, "churn-2": 0}
    assert found.at_s == 1000


def test_a_namesake_in_another_namespace_is_another(world: World) -> None:
    world.stats = line("churn-1", 5, namespace="other")
    read = world.counts().read["uid-kourier-1"]
    assert read["churn-1 codes"] == read["churn-2 codes"] == {}


def test_predictors_are_found_by_the_label_of_their_revision(world: World) -> None:
    world.predictors = {"churn-2": [pod("churn-2-x", "churn-2"), pod("churn-2-y", "churn-2", phase="Pending")]}
    assert world.counts().read["b-1"] == {"churn-2 latency": {12: 40}, "churn-2 score": {3: 40}}
    assert world.asked == ["/stats/prometheus", "/metrics/serin.json"]


def test_events_of_declared_metrics_are_those_of_every_pod(world: World, clock: list[float]) -> None:
    """Whether or not the model server is one of ours."""
    world.predictor = None
    world.sources = {"refunds": Source(counter="refunds_total", labels={"kind": "full"})}
    world.predictors = {"churn-2": [pod("churn-2-x", "churn-2"), pod("churn-2-y", "churn-2")]}
    tally, found = Tally(), []
    for count, started in ((7, 1), (9.5, 1), (4, 2)):
        world.metrics = f'refunds_total{{kind="full"}} {count}\nprocess_start_time_seconds {started}\n'
        counts = world.counts()
        assert counts.reports == {"churn-1": (), "churn-2": ("refunds",)}
        tally = add(tally, counts.read)
        found.append(counters(tally, "churn-2").servers[0].events.get("refunds", 0))
    assert found == [0, 5, 5], "a process that is new has told nothing before its first look"
    assert not any("churn-1 event" in name for name in tally.total)


def test_events_that_one_pod_keeps_to_itself_are_not_reported_and_hold_nothing_else_up(world: World) -> None:
    world.sources = {"refunds": Source(counter="refunds_total")}
    world.metrics = "refunds_total 7\n"
    world.predictors = {"churn-2": [pod("churn-2-x", "churn-2"), pod("churn-2-y", "churn-2", ip=NOWHERE)]}
    counts = world.counts()
    assert counts.reports == {"churn-1": (), "churn-2": ()}
    assert counts.read["uid-churn-2-x "]["churn-2 event refunds"] == {0: 7000}
    assert counts.read["uid-kourier-1"]["churn-2 codes"] == {200: 8, 500: 2} and "b-1" in counts.read
    world.metrics = "refunds_total many\n"
    assert world.counts().reports["churn-2"] == ()


def test_a_pod_that_does_not_serve_yet_need_not_tell_its_events(world: World) -> None:
    world.sources = {"refunds": Source(counter="refunds_total")}
    world.metrics = "refunds_total 7\n"
    starting = pod("churn-2-y", "churn-2", ip=NOWHERE, conditions=())
    world.predictors = {"churn-2": [pod("churn-2-x", "churn-2"), starting]}
    assert world.counts().reports["churn-2"] == ("refunds",)


def test_pods_whose_events_hang_are_left_alone_for_some_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = [2000.0]
    events: Any = world.telemetry._events

    def ask(*_: object) -> tuple[str, dict[str, float]]:
        clock_s[0] += declared.POD_S
        return "", {}

    monkeypatch.setattr(events, "_ask", ask)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock_s[0])
    world.sources = {"refunds": Source(counter="refunds_total")}
    world.predictors = {"churn-2": [pod(f"churn-2-{number}", "churn-2") for number in range(40)]}
    waited_s = 0.0
    for _ in range(120):
        before_s = clock_s[0]
        world.counts()
        assert clock_s[0] - before_s <= declared.REVISION_S
        waited_s += clock_s[0] - before_s
        clock_s[0] += 1
    assert 0 < waited_s < (clock_s[0] - 2000) / declared.REST


def test_rollouts_that_ask_at_the_same_time_share_one_reading(world: World, clock: list[float]) -> None:
    for _ in range(5):
        world.counts()
    assert len(world.asked) == 1
    clock[0] += SCRAPE_S + 0.1
    world.stats = line("churn-1", 95)
    found = world.counts()
    assert (found.at_s, found.read["uid-kourier-1"]["churn-1 codes"]) == (clock[0], {200: 95})


@pytest.mark.parametrize("predictor", [None, {"requests": 4}, [1, 2], {"boot": "b", "latency": {"x": 1}}])
def test_a_predictor_that_keeps_no_counts_is_left_alone(world: World, clock: list[float], predictor: object) -> None:
    world.predictor = predictor
    world.predictors = {"churn-1": [pod("churn-1-x", "churn-1")]}
    asked = []
    for _ in range(4):
        clock[0] += SILENT_S / 3 + 0.1
        assert set(world.counts().read) == {"uid-kourier-1"}
        asked.append(world.asked.count("/metrics/serin.json"))
    assert asked == [1, 1, 1, 2]


def test_what_a_predictor_counts_while_it_is_silent_for_a_moment_is_not_lost(world: World) -> None:
    world.predictors = {"churn-1": [pod("churn-1-x", "churn-1")]}
    tally = Tally()
    for latencies in (40, 50, None, 90):
        world.predictor = latencies and {"boot": "b-1", "latency": {"12": latencies}, "score": {}}
        tally = add(tally, world.counts().read)
    assert counters(tally, "churn-1").servers[0].latency == {12: 50}


def test_predictors_tell_their_predictions_and_when_one_of_them_does_not(world: World) -> None:
    world.predictors = {"churn-2": [pod("churn-2-x", "churn-2")]}
    world.predictor = {"boot": "b-1", "latency": {}, "score": {}, "requests": {"200": 7, "500": 2}}
    found = world.counts()
    assert found.read["b-1"]["churn-2 predictions"] == {200: 7, 500: 2}
    assert not found.incomplete
    world.predictor = None
    assert world.counts().incomplete
    world.predictors["churn-2"] = []
    assert not world.counts().incomplete


@pytest.mark.parametrize("requests", [{"-1": 4}, {"99": 4}, {"200": -4}, {"200": 1e400}, {"200": "x"}, [200]])
def test_predictions_that_cannot_be_are_nobodys(world: World, requests: object) -> None:
    world.predictors = {"churn-1": [pod("churn-1-x", "churn-1")]}
    world.predictor = {"boot": "b-1", "latency": {}, "score": {}, "requests": requests}
    assert set(world.counts().read) == {"uid-kourier-1"}


def test_predictors_that_hang_keep_nobody_from_looking_at_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = [pod(f"churn-2-{number}", "churn-2") for number in range(40)]
    world.predictors = {"churn-2": [*ours, pod("churn-2-well", "churn-2", ip="127.0.0.2")]}
    asked = Counter[str]()

    def ask(pod: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        asked[pod["status"]["podIP"]] += 1
        if pod["status"]["podIP"] == HERE:
            clock_s[0] += module.PREDICTOR_S
            raise TimeoutError
        return "b-well", {"latency": {}}

    clock_s = [2000.0]
    monkeypatch.setattr(world.telemetry, "_ask", ask)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock_s[0])
    waited_s = 0.0
    for _ in range(120):
        before_s = clock_s[0]
        world.counts()
        assert clock_s[0] - before_s <= module.PREDICTORS_S
        waited_s += clock_s[0] - before_s
        clock_s[0] += 1
    assert waited_s < (clock_s[0] - 2000) / module.REST
    assert "b-well" in world.counts().read
    assert asked["127.0.0.2"] > 3


@pytest.mark.parametrize("counts", [{"-1": 4}, {"240": 4}, {"12": -4}])
def test_counts_that_cannot_be_are_nobodys(world: World, counts: dict[str, int]) -> None:
    world.predictor = {"boot": "b-1", "latency": counts, "score": {}}
    world.predictors = {"churn-1": [pod("churn-1-x", "churn-1")]}
    assert set(world.counts().read) == {"uid-kourier-1"}


def test_a_gateway_that_does_not_tell_makes_us_blind(world: World) -> None:
    world.gateways.append(pod("kourier-2", ip=NOWHERE))
    assert world.counts() is None
    told = "gateway pod kourier-2 does not serve its counters on port [0-9]+: it cannot be reached .*network policy"
    assert re.match(told, world.telemetry.problem("serving", "churn-1") or "")


def test_a_gateway_that_gets_no_requests_may_keep_silent(world: World) -> None:
    """One replica that cannot start must not take every rollout back."""
    crashing = {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}
    world.gateways.append(pod("kourier-2", ip=NOWHERE, conditions=[crashing]))
    assert set(world.counts().read) == {"uid-kourier-1"}


def test_a_gateway_that_is_going_away_may_keep_silent(world: World) -> None:
    world.gateways.insert(0, pod("kourier-0", ip=NOWHERE, deletionTimestamp="2026-11-22T09:40:00Z"))
    assert set(world.counts().read) == {"uid-kourier-1"}
    assert world.telemetry.problem("serving", "churn-1") is None


def test_no_gateway_at_all_is_no_reading(world: World) -> None:
    world.gateways = [pod("kourier-1", phase="Pending")]
    assert world.counts() is None
    assert world.telemetry.problem("serving", "churn-1") == "no gateway pod is running"


def test_of_a_pod_only_what_is_needed_is_kept() -> None:
    kept = pod("churn-1-x", "churn-1")
    assert revision_of(kept) == ("serving", "churn-1")
    assert len(json.dumps(kept)) < 400
    assert not {"managedFields", "spec"} & set(itertools.chain(kept, kept["metadata"]))


class Candidates:
    """Both revisions behind one gateway, told apart by the Host header. `hangs` never answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.codes = {"latest-x": 200, "prev-x": 200}
        self.features = {
            "latest-x": {"tenure": "FP32", "plan": "BYTES"},
            "prev-x": {"tenure": "FP32", "plan": "BYTES"},
        }
        self.hangs: set[str] = set()
        self.ended = threading.Event()
        world = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host = self.headers["Host"]
                world.asked.append((host, self.path))
                if host in world.hangs:
                    world.ended.wait(20)
                code, said = world.codes[host], {}
                if self.path == "/v2/models/churn":
                    said = world.metadata(host)
                elif self.path.endswith("/infer"):
                    request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                    if wrong := world.wrong(host, request):
                        code, said = 400, {"error": wrong}
                self.send_response(code)
                self.end_headers()
                self.wfile.write(json.dumps(said).encode())

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """A test reads what was asked from `asked`."""

        self.http = ThreadingHTTPServer((HERE, 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def get(self, path: str) -> dict[str, Any] | None:
        """As the API server tells of the gateway's Service."""
        return {"spec": {"clusterIP": f"{HERE}:{self.http.server_address[1]}"}}

    def metadata(self, host: str) -> dict[str, Any]:
        kinds = self.features[host].items()
        return {"inputs": [{"name": name, "datatype": kind, "shape": [-1, 1]} for name, kind in kinds]}

    def wrong(self, host: str, request: dict[str, Any]) -> str | None:
        """As serin's model server: what is not sent is missing, what is not known is refused."""
        for each in request["inputs"]:
            if self.features[host].get(each["name"]) != each["datatype"]:
                return f"Input {each['name']!r} is unknown, or of another type."
        return None

    def check(self, bodies: int = 0, *, timeout_s: float = 10, **options: Any) -> dict[str, Check]:
        api: Any = self
        gateway = Gateway(api, Where())
        found = gateway.check(
            "churn", "http://latest-x", "http://prev-x", [{}] * bodies, timeout_s=timeout_s, **options
        )
        return {each.name: each for each in found}


@pytest.fixture
def candidates() -> Iterator[Candidates]:
    found = Candidates()
    yield found
    found.ended.set()
    found.http.shutdown()
    found.http.server_close()


def test_a_good_candidate_passes_its_checks(candidates: Candidates) -> None:
    found = candidates.check(bodies=30)
    assert [name for name, each in found.items() if each.passed] == ["ready", "answers", "latency", "requests"]
    assert found["ready"].detail == "20 of 20 report the model as ready"


@pytest.mark.parametrize(
    "features",
    [{"tenure": "FP32"}, {"tenure": "FP32", "tariff": "BYTES"}, {"tenure": "FP32", "plan": "FP32"}],
    ids=["dropped", "renamed", "retyped"],
)
def test_a_candidate_must_take_what_stables_clients_send(candidates: Candidates, features: dict[str, str]) -> None:
    """Without a single recorded request: stable's metadata says what they send."""
    candidates.features["latest-x"] = features
    found = candidates.check()
    assert [name for name, each in found.items() if not each.passed] == ["requests"]
    assert found["requests"].detail == (
        "a request with the features that stable's clients send got 400: Input 'plan' is unknown, or of another type."
    )
    assert all(each.passed for each in candidates.check(same_signature=False).values())


@pytest.mark.parametrize("features", [{"tenure": "FP32", "plan": "BYTES", "new": "FP32"}])
def test_a_feature_that_clients_do_not_send_yet_is_no_reason(
    candidates: Candidates, features: dict[str, str]
) -> None:
    candidates.features["latest-x"] = features
    assert candidates.check()["requests"].passed


def test_who_does_not_tell_its_features_is_not_asked_for_them(candidates: Candidates) -> None:
    candidates.features["prev-x"] = {}
    assert "requests" not in candidates.check()


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        {"inputs": None},
        {"inputs": [{}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": ["a"]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [10**9]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [10**5, -7]}]},
        {"inputs": [{"name": "x", "datatype": {}, "shape": [1]}]},
    ],
)
def test_metadata_of_which_no_request_can_be_made(metadata: object) -> None:
    assert module.v2_request(metadata) is None


def test_requests_that_stable_refuses_too_do_not_count(candidates: Candidates) -> None:
    candidates.codes |= {"prev-x": 400, "latest-x": 400}
    assert candidates.check(bodies=5)["answers"].detail == "0 of 0 recorded requests were answered"


def test_a_candidate_that_hangs_keeps_the_checks_of_others_waiting_no_longer_than_needed(
    candidates: Candidates,
) -> None:
    candidates.hangs = {"latest-x"}
    found = candidates.check(bodies=200, timeout_s=0.1)
    assert not any(each.passed for each in found.values())
    assert found["ready"].detail == "0 of 3 report the model as ready (others: no answer)"
    assert candidates.asked.count(("latest-x", "/v1/models/churn")) == 3
    assert len(candidates.asked) <= 9


def test_a_namespaces_checks_leave_threads_to_others() -> None:
    """Two candidates that drip held all of them."""
    ended, begun = threading.Event(), []

    class Slow:
        def check(self, name: str, *_: object, **__: object) -> tuple[Check, ...]:
            begun.append(name)
            ended.wait(20)
            return ()

    slow: Any = Slow()
    checks = module.Checks(slow)

    def start(namespace: str, name: str) -> None:
        checks.start(f"uid-{name}", namespace, name, "http://x", None, [], same_signature=True)

    try:
        for number in range(20):
            start("theirs", f"t{number}")
        start("ours", "o")
        deadline_s = module.time.monotonic() + 20
        while "o" not in begun and module.time.monotonic() < deadline_s:
            ended.wait(0.01)
        assert sorted(begun) == ["o", "t0", "t1"]
    finally:
        ended.set()
    while checks.result("uid-t0") is None:
        ended.wait(0.01)
    start("theirs", "t2")  # its turn
    while checks.result("uid-t2") is None:
        module.time.sleep(0.01)


def test_without_a_gateway_the_check_names_it(candidates: Candidates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "get", lambda path: None)
    (found,) = candidates.check(bodies=3).values()
    assert (found.passed, found.detail) == (
        False,
        "there is no Service kourier in namespace kourier-system to send requests through",
    )
