"""Prometheus as the source of counts, for clusters whose pods cannot be read directly.

Only raw counters are asked for, each with the time it was scraped. rate() and increase() extrapolate to the edges of
their range and give parts of requests, on which no exact test can stand; differences, resets and pods that vanish are
serin's own (`serin.measure.tally`).
"""

import json
import logging
import math
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final
from urllib.parse import urlencode

import urllib3

from serin.judge.policy import Source
from serin.measure.tally import Counts
from serin.model.histograms import LATENCY_EDGES_S, bucket
from serin.text import duration

MAX_AGE_S: Final = 30.0
"""Counts scraped longer ago than this watch nobody."""
ASK_AGAIN_S: Final = 5.0
"""Prometheus knows nothing new more often than it scrapes."""
_LAST_EDGE_S: Final = (1.0, 7200.0)
"""A latency histogram whose last edge is outside of this is not in the unit it is taken to be in."""
_log = logging.getLogger("serin.prometheus")


@dataclass(frozen=True, slots=True)
class Names:
    """What a component calls its counts of requests. `revision` and `namespace` are labels of the series, or of the
    target's `target_info` where `joined`; without `namespace` the revision label holds "<namespace>/<revision>".

    `latency` is a histogram, its edges times `unit_s` are seconds. `active` is a gauge. `latency_lag_s` is that of
    `Counts`.
    """

    component: str
    requests: str
    code: str
    revision: str
    namespace: str | None = None
    joined: bool = False
    latency: str | None = None
    unit_s: float = 1.0
    active: str | None = None
    latency_lag_s: float | None = None


KNOWN: Final = (
    Names(
        component="Kourier",
        requests="envoy_cluster_upstream_rq",
        code="envoy_response_code",
        revision="envoy_cluster_name",
        latency="envoy_cluster_upstream_rq_time_bucket",
        unit_s=0.001,
        active="envoy_cluster_upstream_rq_active",
        latency_lag_s=5.0,  # Envoy brings histograms up to date once in a stats_flush_interval, counters at once
    ),
    Names(
        component="Knative 1.21 and later",
        requests="kn_serving_invocation_duration_seconds_count",
        code="http_response_status_code",
        revision="kn_revision_name",
        namespace="k8s_namespace_name",
        joined=True,
        latency="kn_serving_invocation_duration_seconds_bucket",
    ),
    Names(  # its latencies are cut to whole seconds (fixed in 1.21), so they are left out
        component="Knative 1.19 and 1.20",
        requests="kn_queueproxy_app_duration_seconds_count",
        code="http_response_status_code",
        revision="kn_revision_name",
        namespace="k8s_namespace_name",
        joined=True,
    ),
    Names(
        component="Knative up to 1.18",
        requests="revision_request_count",
        code="response_code",
        revision="revision_name",
        namespace="namespace_name",
        latency="revision_request_latencies_bucket",
        unit_s=0.001,
    ),
)
"""The gateway first: it also counts the errors of requests that reach no pod."""


@dataclass(frozen=True, slots=True)
class Sample:
    labels: Mapping[str, str]
    value: float

    @property
    def process(self) -> str:
        return f"{self.labels.get('job', '')} {self.labels.get('instance', '')}"


@dataclass(frozen=True, slots=True)
class Answers:
    """What Prometheus told about some revisions under one set of names. `times` are when `requests` were scraped,
    `targets` the processes that are scraped for these revisions, known only where names are `joined`."""

    names: Names
    times: Sequence[Sample] = ()
    requests: Sequence[Sample] = ()
    buckets: Sequence[Sample] = ()
    active: Sequence[Sample] = ()
    targets: Sequence[Sample] = ()


def query(names: Names, metric: str, namespace: str, revisions: Iterable[str], function: str = "") -> str:
    """The raw values of a metric, or their scrape times with the function `timestamp`, with the revision's label."""
    labels = _labels(names, namespace, revisions)
    if not names.joined:
        return f"{function}({metric}{labels})" if function else f"{metric}{labels}"
    values = f"{function}({metric})" if function else metric
    return f"{values} * on (job, instance) group_left ({names.revision}) target_info{labels}"


def _labels(names: Names, namespace: str, revisions: Iterable[str]) -> str:
    prefix = f"{namespace}/" if names.namespace is None else ""
    any_of = json.dumps("|".join(re.escape(prefix + revision) for revision in revisions))
    within = f",{names.namespace}={json.dumps(namespace)}" if names.namespace is not None else ""
    return f"{{{names.revision}=~{any_of}{within}}}"


def samples(answer: object) -> list[Sample]:
    """Of an instant query that gives a vector. Raises `ValueError` when it is something else."""
    match answer:
        case {"status": "success", "data": {"resultType": "vector", "result": list(found)}}:
            return [Sample(each["metric"], _finite(each["value"][1])) for each in found]
        case {"status": "error", "error": str(error)}:
            raise ValueError(error)
    raise ValueError("the answer is not that of a Prometheus")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a value is {text}")
    return value


def counts(answers: Answers, namespace: str, stable: str, candidate: str) -> Counts | None:
    """None when nothing was told of either revision.

    A request falls somewhere into a bucket of Prometheus; on the finer grid it is put where the judge cannot see harm
    that may not be there: stable's at the bucket's upper end, the candidate's at its lower one. At the edges of the
    source's own buckets the counts stay exact, between them nothing is seen.
    """
    names = answers.names
    arms = {_label(names, namespace, revision): revision for revision in (stable, candidate)}
    read: dict[str, dict[str, dict[int, int]]] = {each.process: {} for each in answers.targets}
    for each in answers.requests:
        codes = read.setdefault(each.process, {}).setdefault(f"{arms[each.labels[names.revision]]} codes", {})
        code = int(each.labels[names.code])
        codes[code] = codes.get(code, 0) + round(each.value)
    cumulative: defaultdict[tuple[str, str], defaultdict[float, float]] = defaultdict(lambda: defaultdict(float))
    for each in answers.buckets:
        revision = arms[each.labels[names.revision]]
        cumulative[each.process, revision][float(each.labels["le"]) * names.unit_s] += each.value
    for (process, revision), upto in cumulative.items():
        read.setdefault(process, {})[f"{revision} latency"] = on_grid(upto, rounded_up=revision == stable)
    if not answers.times:
        return None
    active = dict.fromkeys(arms.values(), 0)
    for each in answers.active:
        active[arms[each.labels[names.revision]]] += round(each.value)
    at_s = min(each.value for each in answers.times)
    by_pods = names.namespace is not None
    return Counts(at_s, read, active if answers.active else None, names.latency_lag_s, apart=by_pods)


def _label(names: Names, namespace: str, revision: str) -> str:
    return revision if names.namespace is not None else f"{namespace}/{revision}"


def on_grid(cumulative: Mapping[float, float], *, rounded_up: bool) -> dict[int, int]:
    """A histogram of cumulative counts by upper edge in seconds, as counts by bucket of `serin.model.histograms`."""
    result: dict[int, int] = {}
    for (low_s, before), (high_s, upto) in pairwise([(0.0, 0.0), *sorted(cumulative.items())]):
        if rounded_up:
            place = bucket(LATENCY_EDGES_S, high_s)
        else:
            place = min(bucket(LATENCY_EDGES_S, low_s) + 1, len(LATENCY_EDGES_S)) if low_s else 0
        if upto > before:
            result[place] = result.get(place, 0) + round(upto - before)
    return result


def problem(answers: Answers, now_s: float) -> str | None:
    """What is wrong with names, labels, units or age of what was told of one revision; None when nothing."""
    names = answers.names
    if not answers.requests:
        if names.joined and answers.targets:
            return f"{names.requests} has no requests of the revision yet; send it one"
        return f"{names.requests} has no series for the revision"
    for each in answers.requests:
        if not each.labels.get(names.code, "").isdigit():
            found = ", ".join(sorted(each.labels)) or "none"
            return f"{names.requests} has no status code in the label {names.code} (its labels: {found})"
        if "instance" not in each.labels:
            return f"{names.requests} has no label instance; keep the series as they were scraped, not summed"
    if told := _problem_of_copies(names, answers.requests):
        return told
    oldest_s = max(now_s - each.value for each in answers.times) if answers.times else MAX_AGE_S + 1
    if oldest_s > MAX_AGE_S:
        return (
            f"{names.requests} was scraped {duration(oldest_s)} ago; scrape at least every {duration(MAX_AGE_S / 2)}"
        )
    return _problem_of_buckets(names, answers.buckets)


def _problem_of_copies(names: Names, requests: Sequence[Sample]) -> str | None:
    """With several series of one process every request would count as several: evidence that is not there."""
    shown = Counter(
        (each.labels["instance"], each.labels.get(names.revision), each.labels[names.code]) for each in requests
    )
    instance = next((instance for (instance, *_), count in shown.items() if count > 1), None)
    if instance is None:
        return None
    jobs = sorted({each.labels.get("job", "") for each in requests if each.labels["instance"] == instance})
    return (
        f"{names.requests} of {instance} is scraped twice (jobs: {', '.join(jobs)}); scrape it by one job, keep its "
        "label instance, and ask a Prometheus that does not also show what its replicas scraped"
    )


def _problem_of_buckets(names: Names, buckets: Sequence[Sample]) -> str | None:
    if not buckets:
        return None  # no latency is told, as by predictors that count none
    if any("le" not in each.labels for each in buckets):
        return f"{names.latency} has no label le; keep its buckets"
    edges = {float(each.labels["le"]) for each in buckets}
    if float("inf") not in edges:
        return f"{names.latency} has no +Inf bucket; keep all its buckets"
    last_s = max(edges - {float("inf")}, default=0.0) * names.unit_s
    if not _LAST_EDGE_S[0] <= last_s <= _LAST_EDGE_S[1]:
        unit = "seconds" if names.unit_s == 1 else "milliseconds"
        return f"{names.latency} is not in {unit}: its last edge would be {last_s:g} s"
    return None


def diagnose(found: Sequence[Answers], now_s: float) -> Names | str:
    """The first names under which a revision can be watched, else what is wrong: the metric doctor."""
    problems = {each.names: problem(each, now_s) for each in found}
    for names, told in problems.items():
        if told is None:
            return names
    there = [told for each in found if (each.requests or each.targets) and (told := problems[each.names])]
    if there:
        return there[0]
    looked_for = ", ".join(each.names.requests for each in found)
    return (
        f"there is none of {looked_for} for the revision; scrape Kourier's gateway pods (port 9000, "
        "/stats/prometheus) or queue-proxy (port 9091, with request-metrics-protocol: prometheus in "
        "config-observability)"
    )


class PrometheusTelemetry:
    """Counts from a Prometheus server."""

    events = False

    def __init__(self, url: str, timeout_s: float = 5.0) -> None:
        self._url = url.rstrip("/")
        self._http = urllib3.PoolManager(timeout=timeout_s, retries=False, maxsize=16)
        self._lock = threading.Lock()
        self._names: dict[tuple[str, str], Names] = {}
        self._problems: dict[tuple[str, str], tuple[float, str]] = {}
        self._last: dict[tuple[str, str, str], tuple[float, Counts | None]] = {}

    def counts(self, namespace: str, stable: str, candidate: str, _: Mapping[str, Source], /) -> Counts | None:
        """None while there are none."""
        rollout = (namespace, stable, candidate)
        now_s = time.monotonic()
        with self._lock:
            self._last = {each: told for each, told in self._last.items() if now_s - told[0] < ASK_AGAIN_S}
            if rollout in self._last:
                return self._last[rollout][1]
        found = self._counts(namespace, stable, candidate)
        with self._lock:
            self._last[rollout] = now_s, found
        return found

    def problem(self, namespace: str, stable: str) -> str | None:
        """Why the revision could not be watched, and the fix; None when it could."""
        asked_s, told = self._problems.get((namespace, stable), (-math.inf, ""))
        if time.monotonic() - asked_s < ASK_AGAIN_S:
            return told
        found = self._choose(namespace, stable)
        if isinstance(found, Names):
            self._problems.pop((namespace, stable), None)
            return None
        told = f"Prometheus at {self._url}: {found}"
        self._problems[namespace, stable] = time.monotonic(), told
        return told

    def _counts(self, namespace: str, stable: str, candidate: str) -> Counts | None:
        names = self._names.get((namespace, stable)) or self._choose(namespace, stable)
        if isinstance(names, str):
            _log.warning("%s/%s cannot be watched: %s", namespace, stable, names)
            return None
        try:
            return counts(
                self._answers(names, namespace, [stable, candidate], time.time()), namespace, stable, candidate
            )
        except (ValueError, KeyError, urllib3.exceptions.HTTPError) as error:
            _log.warning("%s/%s: %r", namespace, stable, error)
            return None

    def _choose(self, namespace: str, revision: str) -> Names | str:
        now_s = time.time()
        try:
            found = diagnose([self._answers(names, namespace, [revision], now_s) for names in KNOWN], now_s)
        except (ValueError, urllib3.exceptions.HTTPError) as error:
            return f"it does not answer ({error})"
        if isinstance(found, Names):
            self._names[namespace, revision] = found
        return found

    def _answers(self, names: Names, namespace: str, revisions: Sequence[str], at_s: float) -> Answers:
        def ask(metric: str | None, function: str = "") -> list[Sample]:
            return self._ask(query(names, metric, namespace, revisions, function), at_s) if metric else []

        # the times first: a scrape in between makes counts seem older than they are, never newer
        times = ask(names.requests, "timestamp")
        info = f"target_info{_labels(names, namespace, revisions)}"
        return Answers(
            names,
            times,
            ask(names.requests),
            ask(names.latency),
            ask(names.active),
            self._ask(info, at_s) if names.joined else [],
        )

    def _ask(self, promql: str, at_s: float) -> list[Sample]:
        address = f"{self._url}/api/v1/query?{urlencode({'query': promql, 'time': f'{at_s:.3f}'})}"
        answer: Any = self._http.request("GET", address)
        return samples(json.loads(answer.data))
