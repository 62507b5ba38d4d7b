"""What Prometheus tells, as counts; and what must be right with it before anybody relies on them."""

import itertools
import json
import math
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serin.measure import prometheus as module
from serin.measure.prometheus import (
    ASK_AGAIN_S,
    KNOWN,
    MAX_AGE_S,
    Answers,
    Names,
    PrometheusTelemetry,
    Sample,
    counts,
    diagnose,
    on_grid,
    query,
    samples,
)
from serin.model.histograms import LATENCY_EDGES_S, bucket

KOURIER, NEW, MIDDLE, OLD = KNOWN
NOW_S = 1_000_000.0
QUEUE_PROXY_EDGES_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, math.inf)


def answers(names: Names = NEW, revision: str = "churn-1", instance: str = "10.0.0.1:9091", ok: int = 90) -> Answers:
    """90 good answers and 10 bad ones, all within 10 ms."""
    shown = revision if names.namespace is not None else f"serving/{revision}"
    pod = {names.revision: shown, "job": "pods", "instance": instance}
    edges = [edge_s / names.unit_s for edge_s in QUEUE_PROXY_EDGES_S]
    return Answers(
        names,
        times=[Sample(pod, NOW_S - 5)],
        requests=[Sample(pod | {names.code: "200"}, ok), Sample(pod | {names.code: "500"}, 10)],
        buckets=[Sample(pod | {"le": str(edge)}, 100 if edge * names.unit_s >= 0.01 else 0) for edge in edges],
        targets=[Sample(pod, 1)] if names.joined else [],
    )


def both(one: Answers, other: Answers) -> Answers:
    lists = ("times", "requests", "buckets", "active", "targets")
    return replace(one, **{name: [*getattr(one, name), *getattr(other, name)] for name in lists})


def test_queries_ask_for_raw_counters_by_revision() -> None:
    assert query(KOURIER, KOURIER.requests, "serving", ["churn-1", "churn-2"]) == (
        r'envoy_cluster_upstream_rq{envoy_cluster_name=~"serving/churn\\-1|serving/churn\\-2"}'
    )
    assert query(OLD, OLD.requests, "serving", ["churn-1"], "timestamp") == (
        r'timestamp(revision_request_count{revision_name=~"churn\\-1",namespace_name="serving"})'
    )
    assert query(NEW, NEW.requests, "serving", ["churn-1"], "timestamp") == (
        "timestamp(kn_serving_invocation_duration_seconds_count) * on (job, instance) "
        r'group_left (kn_revision_name) target_info{kn_revision_name=~"churn\\-1",k8s_namespace_name="serving"}'
    )


@pytest.mark.parametrize("names", KNOWN, ids=lambda names: names.component)
def test_counts_by_process_revision_and_code(names: Names) -> None:
    stable, candidate = answers(names), answers(names, "churn-2", "10.0.0.2:9091", ok=3)
    second_pod = answers(names, instance="10.0.0.3:9091", ok=4)
    found = counts(both(both(stable, candidate), second_pod), "serving", "churn-1", "churn-2")
    assert found is not None
    assert found.at_s == NOW_S - 5
    read = {process: {name: dict(each) for name, each in series.items()} for process, series in found.read.items()}
    assert read["pods 10.0.0.1:9091"]["churn-1 codes"] == {200: 90, 500: 10}
    assert read["pods 10.0.0.2:9091"]["churn-2 codes"] == {200: 3, 500: 10}
    assert read["pods 10.0.0.3:9091"]["churn-1 codes"] == {200: 4, 500: 10}
    (ours,), (theirs,) = read["pods 10.0.0.2:9091"]["churn-2 latency"], read["pods 10.0.0.1:9091"]["churn-1 latency"]
    assert ours < theirs, "the same latencies, in doubt for the candidate"
    assert sum(read["pods 10.0.0.2:9091"]["churn-2 latency"].values()) == 100
    assert found.active is None


def test_a_pod_without_requests_is_known_so_that_its_first_ones_count() -> None:
    silent = replace(answers(revision="churn-2", instance="10.0.0.2:9091"), times=[], requests=[], buckets=[])
    found = counts(both(answers(), silent), "serving", "churn-1", "churn-2")
    assert found is not None
    assert found.read["pods 10.0.0.2:9091"] == {}


def test_counts_are_as_old_as_the_oldest_of_them() -> None:
    late = replace(answers(instance="10.0.0.9:9091"), times=[Sample({}, NOW_S - 14)])
    found = counts(both(answers(), late), "serving", "churn-1", "churn-2")
    assert found is not None
    assert found.at_s == NOW_S - 14


def test_requests_under_way_are_known_from_the_gateway() -> None:
    gateway = answers(KOURIER)
    active = [Sample(gateway.times[0].labels, 3), Sample(gateway.times[0].labels | {"instance": "other"}, 2)]
    found = counts(replace(gateway, active=active), "serving", "churn-1", "churn-2")
    assert found is not None
    assert found.active == {"churn-1": 5, "churn-2": 0}


def test_only_a_gateway_counts_both_revisions_at_once_but_its_latencies_late() -> None:
    told = {names.component: counts(answers(names), "serving", "churn-1", "churn-2") for names in KNOWN}
    traits = {name: (found.apart, found.latency_lag_s) for name, found in told.items() if found is not None}
    assert traits.pop("Kourier") == (False, 5.0)
    assert set(traits.values()) == {(True, None)} and len(traits) == 3


def test_nothing_told_is_not_nothing_counted() -> None:
    assert counts(Answers(NEW), "serving", "churn-1", "churn-2") is None


def coarse(values_s: list[float]) -> dict[float, float]:
    return {edge_s: sum(value_s <= edge_s for value_s in values_s) for edge_s in QUEUE_PROXY_EDGES_S}


def above(grid: dict[int, int], place: int) -> int:
    return sum(count for key, count in grid.items() if key > place)


LATENCIES = st.lists(st.floats(0.0002, 20), min_size=1, max_size=60)


@given(LATENCIES)
def test_on_the_grid_stable_is_never_faster_and_the_candidate_never_slower(values_s: list[float]) -> None:
    stable, candidate = on_grid(coarse(values_s), rounded_up=True), on_grid(coarse(values_s), rounded_up=False)
    assert sum(stable.values()) == sum(candidate.values()) == len(values_s)
    for place in range(len(LATENCY_EDGES_S) + 1):
        truly = sum(bucket(LATENCY_EDGES_S, value_s) > place for value_s in values_s)
        assert above(candidate, place + 1) <= truly <= above(stable, place - 1)


@given(LATENCIES)
def test_at_the_edges_of_the_source_the_counts_stay_exact(values_s: list[float]) -> None:
    for rounded_up in (True, False):
        grid = on_grid(coarse(values_s), rounded_up=rounded_up)
        for edge_s in QUEUE_PROXY_EDGES_S[:-1]:
            exact = sum(value_s > edge_s for value_s in values_s)
            assert above(grid, bucket(LATENCY_EDGES_S, edge_s)) == exact


@pytest.mark.parametrize("names", KNOWN, ids=lambda names: names.component)
def test_the_doctor_takes_the_first_names_that_are_right(names: Names) -> None:
    found = [answers(each) if each is names else Answers(each) for each in KNOWN]
    assert diagnose(found, NOW_S) is names


def without(found: list[Sample], label: str, **others: str) -> list[Sample]:
    return [
        Sample({key: value for key, value in each.labels.items() if key != label} | others, each.value)
        for each in found
    ]


GOOD = answers(OLD)
WRONG = {
    "no code": (replace(GOOD, requests=without(GOOD.requests, "response_code")), "no status code in the label"),
    "a class of codes": (
        replace(GOOD, requests=without(GOOD.requests, "response_code", response_code="2xx")),
        "no status code in the label response_code",
    ),
    "summed": (replace(GOOD, requests=without(GOOD.requests, "instance")), "no label instance"),
    "scraped by two jobs": (
        both(
            GOOD,
            replace(GOOD, requests=[Sample(each.labels | {"job": "more"}, each.value) for each in GOOD.requests]),
        ),
        "of 10.0.0.1:9091 is scraped twice (jobs: more, pods)",
    ),
    "of two replicas": (
        both(GOOD, replace(GOOD, requests=[Sample(each.labels | {"replica": "b"}, 1) for each in GOOD.requests])),
        "of 10.0.0.1:9091 is scraped twice (jobs: pods)",
    ),
    "old": (replace(GOOD, times=[Sample({}, NOW_S - MAX_AGE_S - 3)]), "was scraped 33 s ago"),
    "seconds for milliseconds": (replace(GOOD, buckets=answers(NEW).buckets), "is not in milliseconds"),
    "buckets dropped": (
        replace(GOOD, buckets=[each for each in GOOD.buckets if each.labels["le"] != "inf"]),
        "has no +Inf bucket",
    ),
    "no edges": (replace(GOOD, buckets=without(GOOD.buckets, "le")), "has no label le"),
    "no requests yet": (Answers(NEW, targets=answers().targets), "has no requests of the revision yet"),
    "milliseconds for seconds": (
        replace(
            answers(NEW),
            buckets=[
                Sample(each.labels | {"le": str(1000 * float(each.labels["le"]))}, each.value)
                for each in answers(NEW).buckets
            ],
        ),
        "is not in seconds: its last edge would be 10000 s",
    ),
}


@pytest.mark.parametrize("why", WRONG)
def test_the_doctor_names_what_is_wrong(why: str) -> None:
    found, told = WRONG[why]
    others = [Answers(names) for names in KNOWN if names is not found.names]
    assert told in str(diagnose([*others, found], NOW_S))


def test_without_any_series_the_doctor_says_what_to_scrape() -> None:
    told = diagnose([Answers(names) for names in KNOWN], NOW_S)
    assert isinstance(told, str)
    assert all(names.requests in told for names in KNOWN)
    assert "9091" in told


def test_latency_that_nobody_tells_is_no_reason_to_refuse() -> None:
    assert diagnose([replace(GOOD, buckets=[])], NOW_S) is OLD


@pytest.mark.parametrize(
    "answer", [{}, [], {"status": "success", "data": {"resultType": "matrix", "result": []}}, "not JSON at all"]
)
def test_what_is_not_a_vector_is_refused(answer: object) -> None:
    with pytest.raises(ValueError, match="not that of a Prometheus"):
        samples(answer)


@pytest.mark.parametrize("value", ["NaN", "+Inf"])
def test_a_value_that_is_no_count_is_refused(value: str) -> None:
    found = {"resultType": "vector", "result": [{"metric": {}, "value": [NOW_S, value]}]}
    with pytest.raises(ValueError, match=re.escape(value)):
        samples({"status": "success", "data": found})


def test_an_error_keeps_its_words() -> None:
    with pytest.raises(ValueError, match="many-to-many"):
        samples({"status": "error", "error": "many-to-many matching not allowed"})


class Prometheus:
    """Answers queries for one metric with what it holds, in Prometheus's own form."""

    def __init__(self) -> None:
        self.vectors: dict[str, list[Sample]] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                (promql,) = parse_qs(urlsplit(self.path).query)["query"]
                server.asked.append(promql)
                vector = next((found for name, found in server.vectors.items() if promql.startswith(name)), [])
                result = [{"metric": each.labels, "value": [NOW_S, str(each.value)]} for each in vector]
                body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}})
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:
                """A test reads what was asked from `asked`."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def hold(self, found: Answers) -> None:
        names = found.names
        self.vectors = {
            f"timestamp({names.requests})": list(found.times),
            f"timestamp({names.requests}{{": list(found.times),
            names.requests: list(found.requests),
            names.latency or "no latency": list(found.buckets),
            "target_info": list(found.targets),
        }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Prometheus]:
    found = Prometheus()
    clock = itertools.count(NOW_S, 0.1)
    monkeypatch.setattr(module.time, "time", lambda: next(clock))
    yield found
    found.http.shutdown()
    found.http.server_close()


def test_a_revision_is_watched_under_the_names_that_are_there(server: Prometheus) -> None:
    telemetry = PrometheusTelemetry(server.url)
    server.hold(answers(OLD))
    assert telemetry.problem("serving", "churn-1") is None
    server.asked.clear()
    found = telemetry.counts("serving", "churn-1", "churn-2", {})
    assert found is not None
    assert found.read["pods 10.0.0.1:9091"]["churn-1 codes"] == {200: 90, 500: 10}
    assert len(server.asked) == 3
    assert server.asked[0].startswith("timestamp(")
    assert telemetry.counts("serving", "churn-1", "churn-2", {}) == found, "nothing new is known so soon"
    assert len(server.asked) == 3


def test_what_is_wrong_is_told_with_the_address(server: Prometheus) -> None:
    told = PrometheusTelemetry(server.url).problem("serving", "churn-1")
    assert told is not None
    assert told.startswith(f"Prometheus at {server.url}: there is none of envoy_cluster_upstream_rq")


def test_nobody_there_is_told_and_is_no_count() -> None:
    telemetry = PrometheusTelemetry("http://127.0.0.1:9", timeout_s=1)
    assert "does not answer" in (telemetry.problem("serving", "churn-1") or "")
    assert telemetry.counts("serving", "churn-1", "churn-2", {}) is None


def test_a_clock_set_back_does_not_keep_old_counts(server: Prometheus, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = PrometheusTelemetry(server.url)
    server.hold(answers(OLD))
    telemetry.counts("serving", "churn-1", "churn-2", {})
    asked, later_s = len(server.asked), module.time.monotonic() + ASK_AGAIN_S + 1
    monkeypatch.setattr(module.time, "monotonic", lambda: later_s)
    monkeypatch.setattr(module.time, "time", lambda: NOW_S - 3600)
    telemetry.counts("serving", "churn-1", "churn-2", {})
    assert len(server.asked) > asked
