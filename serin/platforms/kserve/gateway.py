"""Kourier: what its Envoys count, and how one revision is reached through it; and what predictors count."""

import concurrent.futures
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlencode, urlparse

import urllib3

from serin.checks import latency
from serin.judge.policy import Source
from serin.kube.api import Api
from serin.measure import envoy
from serin.measure.tally import PREDICTIONS, Counts, Series
from serin.measure.windows import CUT_OFF, TIMED_OUT
from serin.model.histograms import LATENCY_EDGES_S, SCORE_EDGES
from serin.platforms.kserve import bounded, objects
from serin.platforms.kserve.declared import DeclaredEvents
from serin.rollout.document import Check

STATS_PORT: Final = 9000
STATS_FILTER: Final = (
    r"^cluster\..*\.(upstream_rq_([0-9]{3}|active|timeout|tx_reset)|upstream_cx_destroy_local_with_active_rq)$"
)
SCRAPE_S: Final = 0.8
"""Counts of the gateway this old are read again when somebody asks."""
PREDICTOR_PORT: Final = 8080
SILENT_S: Final = 60.0
"""A predictor that never told its counts is asked again after this time."""
PREDICTOR_S: Final = 0.5
PREDICTORS_S: Final = 2.0
"""A predictor, and all of a revision together, are waited for no longer than this: what hangs must not keep the
gateway's counts from being judged."""
REST: Final = 3.0
"""Predictors of a revision that took longer than one may are left alone for this many times as long: looks at other
services need the threads."""
GATEWAY_S: Final = 5.0
GATEWAY_BYTES: Final = 64 * 2**20
_CODES: Final = range(100, 600)
_BUCKETS: Final = {"latency": len(LATENCY_EDGES_S) + 1, "score": len(SCORE_EDGES) + 1}
REVISION: Final = "serving.knative.dev/revision"
SMOKE_REQUESTS: Final = 20
MAX_SILENT: Final = 3
CHECK_S: Final = 60.0
"""For all requests of a check to one revision."""
MAX_BOOT: Final = 100
MAX_ERROR: Final = 160
MOST_VALUES: Final = 10_000
CHECKS: Final = 8
CHECKS_OF_NAMESPACE: Final = 2
"""Checks at a time, and those of one namespace: whose candidates drip must leave threads to others."""
_NOT_OURS: Final = (ValueError, LookupError, TypeError, AttributeError, OverflowError)
Asked = tuple[int | None, float]
"""The status, None without an answer, and the time it took in seconds."""
_log = logging.getLogger("serin.gateway")


@dataclass(frozen=True, slots=True)
class Where:
    """The gateway in the cluster: its namespace, the labels of its pods, its service."""

    namespace: str = "kourier-system"
    pods: str = "app=3scale-kourier-gateway"
    service: str = "kourier"


class Telemetry(Protocol):
    """Where counts of a service's revisions come from."""

    events: bool
    """Whether it tells events of declared metrics."""

    def counts(self, namespace: str, stable: str, candidate: str, sources: Mapping[str, Source], /) -> Counts | None:
        """None while they cannot be read. `sources` are those of the declared metrics."""

    def problem(self, namespace: str, stable: str) -> str | None:
        """Why a rollout of the service could not be watched, and the fix; None when it could."""


Pods = Sequence[Mapping[str, Any]]


class EnvoyTelemetry:
    """Answers as Kourier's Envoys count them; latencies and scores as predictors do, where they do.

    `gateways` gives the gateway's pods, `predictors` those of a namespace and revision.
    """

    events = True

    def __init__(self, gateways: Callable[[], Pods], predictors: Callable[[tuple[str, str]], Pods]) -> None:
        self._gateways, self._predictors = gateways, predictors
        self._http = bounded.Http(16)
        self._lock = threading.Lock()
        self._stats: Mapping[str, envoy.GatewayStats] | str = ""
        self._read_s = 0.0
        self._asked_s = -math.inf
        self._told: dict[tuple[str, str], _Told] = {}
        self._events = DeclaredEvents(self._http)

    def counts(self, namespace: str, stable: str, candidate: str, sources: Mapping[str, Source]) -> Counts | None:
        at_s, gateways = self._scraped()
        if isinstance(gateways, str):
            return None
        nothing = envoy.ClusterStats()
        read: dict[str, Series] = {}
        active = {stable: 0, candidate: 0}
        for pod, stats in gateways.items():
            clusters = {revision: stats.clusters.get(f"{namespace}/{revision}", nothing) for revision in active}
            series: dict[str, Mapping[int, int]] = {}
            for revision, cluster in clusters.items():
                series[f"{revision} codes"] = cluster.codes
                series[f"{revision} unanswered"] = {CUT_OFF: cluster.cut_off, TIMED_OUT: cluster.timed_out}
                active[revision] += cluster.active
            read[pod] = series
        told = [self._predictor_counts(namespace, revision) for revision in active]
        for told_by_revision in told:
            read |= told_by_revision.by_process()
        reports = {}
        for revision in active if sources else ():
            serving = [pod for pod in _running(self._predictors((namespace, revision))) if _serves(pod)]
            pods = {pod["metadata"]["uid"]: f"http://{pod['status']['podIP']}:{PREDICTOR_PORT}" for pod in serving}
            declared = self._events.read(namespace, revision, pods, sources)
            read |= declared.read
            reports[revision] = declared.reports
        incomplete = any(each.incomplete for each in told)
        return Counts(at_s, read, active, incomplete=incomplete, reports=reports)

    def problem(self, namespace: str, stable: str) -> str | None:
        gateways = self._scraped()[1]
        return gateways if isinstance(gateways, str) else None

    def _scraped(self) -> tuple[float, Mapping[str, envoy.GatewayStats] | str]:
        """What all gateways count and since when that is true, one answer for all who ask at about the same time."""
        with self._lock:
            if time.monotonic() - self._asked_s > SCRAPE_S:
                self._read_s, self._asked_s = time.time(), time.monotonic()
                self._stats = self._scrape()
            return self._read_s, self._stats

    def _scrape(self) -> Mapping[str, envoy.GatewayStats] | str:
        """By pod; what is wrong when there is none, or one does not tell. One that gets no new requests, as it is
        going away or not ready, may keep silent."""
        read: dict[str, envoy.GatewayStats] = {}
        for pod in _running(self._gateways()):
            query = urlencode({"usedonly": "", "filter": STATS_FILTER})
            address = f"http://{pod['status']['podIP']}:{STATS_PORT}/stats/prometheus?{query}"
            try:
                answer = self._http.request("GET", address, timeout_s=GATEWAY_S, most_bytes=GATEWAY_BYTES)
                silence = None if answer.status == 200 else f"it answers {answer.status}"
            except (urllib3.exceptions.HTTPError, bounded.TooLarge) as error:
                not_reached = f"it cannot be reached ({type(error).__name__})"
                silence = f"{not_reached}; check whether a network policy blocks serin's controller"
            if silence is None:
                read[pod["metadata"]["uid"]] = envoy.parse(answer.body.decode())
            elif _serves(pod):
                name = pod["metadata"]["name"]
                problem = f"gateway pod {name} does not serve its counters on port {STATS_PORT}: {silence}"
                _log.warning("%s", problem)
                return problem
        return read or "no gateway pod is running"

    def _predictor_counts(self, namespace: str, revision: str) -> "_Told":
        """By process, as each last told: what one that is silent counts meanwhile comes with its next answer.
        Predictors that never told are left out, and asked again after some time."""
        pods = {pod["metadata"]["uid"]: pod for pod in _running(self._predictors((namespace, revision)))}
        start_s = time.monotonic()
        before = self._told.get((namespace, revision))
        if before is None:
            before = _Told(revision, start_s, {}, {})
            self._forget(start_s - SILENT_S)
        counts = {uid: told for uid, told in before.counts.items() if uid in pods}
        failed_s = {uid: at_s for uid, at_s in before.failed_s.items() if uid in pods}
        for uid in sorted(pods, key=lambda uid: failed_s.get(uid, -math.inf)):
            now_s = time.monotonic()
            if start_s < before.rests_until_s or now_s > start_s + PREDICTORS_S - PREDICTOR_S:
                break
            if not (before.known or uid in counts) and now_s - failed_s.get(uid, -math.inf) < SILENT_S:
                continue
            try:
                counts[uid] = self._ask(pods[uid])
                failed_s.pop(uid, None)
            except (urllib3.exceptions.HTTPError, bounded.TooLarge, OSError, RecursionError, *_NOT_OURS):
                failed_s[uid] = time.monotonic()  # it hangs, is gone, or is none of ours
        took_s = time.monotonic() - start_s
        known = before.known or any(PREDICTIONS in series for _, series in counts.values())
        told = _Told(
            revision,
            start_s,
            counts,
            failed_s,
            known=known,
            incomplete=known and any(_serves(pods[uid]) for uid in pods if uid not in counts or uid in failed_s),
            rests_until_s=start_s + took_s * (1 + REST) if took_s > PREDICTOR_S else before.rests_until_s,
        )
        self._told[namespace, revision] = told
        return told

    def _ask(self, pod: Mapping[str, Any]) -> tuple[str, Series]:
        """Its process, and what that counted. Raises when it tells nothing, or what cannot be."""
        address = f"http://{pod['status']['podIP']}:{PREDICTOR_PORT}/metrics/serin.json"
        answer = json.loads(self._http.request("GET", address, timeout_s=PREDICTOR_S).body)
        boot = answer["boot"]
        if not isinstance(boot, str) or len(boot) > MAX_BOOT:
            raise ValueError("boot is no name of a process")
        series = {f" {kind}": _numbers(answer[kind], range(buckets)) for kind, buckets in _BUCKETS.items()}
        if "requests" in answer:
            series[PREDICTIONS] = _numbers(answer["requests"], _CODES)
        return boot, series

    def _forget(self, before_s: float) -> None:
        """Revisions of rollouts that are over."""
        for key, told in list(self._told.items()):
            if told.at_s < before_s:
                self._told.pop(key, None)


@dataclass(frozen=True, slots=True)
class _Told:
    """Of a revision's predictors at a look, by the uid of the pod: process and counts as last told, and when one
    that was asked did not answer. `known`: they are some that count predictions; `incomplete`: and one that is
    ready did not tell when it was last asked."""

    revision: str
    at_s: float
    counts: Mapping[str, tuple[str, Series]]
    failed_s: Mapping[str, float]
    known: bool = False
    incomplete: bool = False
    rests_until_s: float = -math.inf

    def by_process(self) -> dict[str, Series]:
        return {
            boot: {f"{self.revision}{kind}": counts for kind, counts in series.items()}
            for boot, series in self.counts.values()
        }


def _numbers(told: Mapping[str, Any], keys: range) -> dict[int, int]:
    """Raises `ValueError` for counts that cannot be."""
    counts = {int(key): int(count) for key, count in told.items()}
    if any(key not in keys or count < 0 for key, count in counts.items()):
        raise ValueError("impossible counts")
    return counts


def kept_of_pod(document: dict[str, Any]) -> dict[str, Any]:
    """The few fields of a pod that are needed to ask it."""
    metadata, status = document["metadata"], document.get("status", {})
    names = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp")
    return {
        "metadata": {name: metadata[name] for name in names if name in metadata}
        | {"labels": {REVISION: revision_of(document)[1]}},
        "status": {
            "phase": status.get("phase"),
            "podIP": status.get("podIP"),
            "ready": ("Ready", "True") in ((each["type"], each["status"]) for each in status.get("conditions", [])),
        },
    }


def revision_of(pod: Mapping[str, Any]) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"].get("labels", {}).get(REVISION, "")


def _serves(pod: Mapping[str, Any]) -> bool:
    return bool(pod["status"]["ready"]) and "deletionTimestamp" not in pod["metadata"]


def _running(pods: Pods) -> Pods:
    return [pod for pod in pods if pod["status"].get("phase") == "Running" and pod["status"].get("podIP")]


@dataclass(frozen=True, slots=True)
class _Request:
    path: str
    body: object = None


class Gateway:
    """One revision asked through the gateway."""

    def __init__(self, api: Api, where: Where) -> None:
        self._api, self._where = api, where
        self._http = bounded.Http(8)

    def check(
        self,
        name: str,
        candidate: str,
        stable: str | None,
        bodies: Sequence[object],
        *,
        same_signature: bool = True,
        timeout_s: float = 10,
    ) -> tuple[Check, ...]:
        """Answers at 0 % traffic, through the tag addresses `candidate` and `stable`.

        `bodies` are recorded requests of the V1 protocol. Unless it need not have the `same_signature`, the candidate
        must also answer a request with all the features that stable tells of. Who gives no answer a few times, or
        takes long in all, is not asked again: others wait for their checks.
        """
        where = self._where
        service = self._api.get(objects.service(where.namespace, where.service))
        if service is None:
            told = f"there is no Service {where.service} in namespace {where.namespace} to send requests through"
            return (Check(name="gateway", passed=False, detail=told),)
        base = f"http://{service['spec']['clusterIP']}"
        ours = _Revision(self._http, base, candidate, timeout_s)
        theirs = _Revision(self._http, base, stable, timeout_s) if stable else None
        ready = ours.ask([_Request(f"/v1/models/{name}")] * SMOKE_REQUESTS)
        checks = [_count("ready", "report the model as ready", [code for code, _ in ready])]
        if bodies:
            checks += _recorded(name, bodies, ours, theirs)
        if theirs is not None and same_signature and all(check.passed for check in checks):
            checks += _signature(name, ours, theirs)
        return tuple(checks)


def _recorded(name: str, bodies: Sequence[object], ours: "_Revision", theirs: "_Revision | None") -> list[Check]:
    requests = [_Request(f"/v1/models/{name}:predict", body) for body in bodies]
    answers = ours.ask(requests)
    base = theirs.ask(requests[: len(answers)]) if theirs else []
    # a recorded request that stable refuses too says nothing about the candidate
    expected = [i for i in range(len(answers)) if theirs is None or (i < len(base) and base[i][0] in range(200, 300))]
    checks = [_count("answers", "recorded requests were answered", [answers[i][0] for i in expected])]
    if base and checks[-1].passed:
        checks.append(latency([answers[i][1] for i in expected], [base[i][1] for i in expected]))
    return checks


def _signature(name: str, ours: "_Revision", theirs: "_Revision") -> list[Check]:
    """Empty where stable does not tell its features, or does not answer such a request itself."""
    request = _Request(f"/v2/models/{name}/infer", v2_request(theirs.metadata(f"/v2/models/{name}")))
    if request.body is None or [code for code, _ in theirs.ask([request])] != [200]:
        return []
    [(code, _)] = ours.ask([request])
    passed = code is not None and 200 <= code < 300
    said = "was answered" if passed else f"got {code or 'no answer'}{ours.said}"
    detail = f"a request with the features that stable's clients send {said}"
    return [Check(name="requests", passed=passed, detail=detail)]


def v2_request(metadata: object) -> dict[str, Any] | None:
    """A request of the V2 protocol with a value for everything that a model's metadata names as its input; None where
    it does not name what it takes."""
    try:
        inputs = [
            {"name": each["name"], "datatype": each["datatype"], **_data(each["datatype"], each["shape"])}
            for each in metadata["inputs"]  # type: ignore[index]
        ]
    except (KeyError, TypeError, ValueError):
        return None
    return {"inputs": inputs} if inputs else None


def _data(datatype: str, shape: Sequence[int]) -> dict[str, Any]:
    sizes = [1 if size == -1 else int(size) for size in shape]
    if not 0 < math.prod(sizes) <= MOST_VALUES:
        raise ValueError("too large for a request made up")
    value: object = {"BYTES": "a", "BOOL": True}.get(datatype, 1)
    return {"shape": sizes, "data": [value] * math.prod(sizes)}


class _Revision:
    """One that is asked by its tag address, for so long in all. `said` is what was wrong in its last answer."""

    def __init__(self, http: bounded.Http, base: str, url: str, timeout_s: float) -> None:
        self._http, self._base, self._timeout_s = http, base, timeout_s
        self._headers = {"Host": urlparse(url).netloc, "Content-Type": "application/json"}
        self._left_s = CHECK_S
        self.said = ""

    def ask(self, requests: Sequence[_Request]) -> list[Asked]:
        answers: list[Asked] = []
        for request in requests:
            start = time.perf_counter()
            answer = self._answer(request)
            took_s = time.perf_counter() - start
            answers.append((answer.status if answer else None, took_s))
            self.said = _said(answer)
            if sum(code is None for code, _ in answers) == MAX_SILENT:
                break
        return answers

    def metadata(self, path: str) -> object:
        """None when it tells none."""
        answer = self._answer(_Request(path))
        try:
            return json.loads(answer.body) if answer is not None and answer.status == 200 else None
        except (ValueError, RecursionError):
            return None

    def _answer(self, request: _Request) -> bounded.Answer | None:
        timeout_s = min(self._timeout_s, self._left_s)
        if timeout_s <= 0:
            return None
        start = time.monotonic()
        try:
            return self._http.request(
                "GET" if request.body is None else "POST",
                self._base + request.path,
                headers=self._headers,
                body=None if request.body is None else json.dumps(request.body),
                timeout_s=timeout_s,
            )
        except (urllib3.exceptions.HTTPError, bounded.TooLarge):
            return None
        finally:
            self._left_s -= time.monotonic() - start


def _said(answer: bounded.Answer | None) -> str:
    """What an answer tells is wrong, for people."""
    try:
        document = json.loads(answer.body) if answer is not None else None
    except (ValueError, RecursionError):
        return ""
    error = document.get("error") if isinstance(document, dict) else None
    return f": {error[:MAX_ERROR]}" if isinstance(error, str) else ""


def _count(name: str, what: str, codes: Sequence[int | None]) -> Check:
    good = sum(code is not None and 200 <= code < 300 for code in codes)
    bad = sorted({str(code or "no answer") for code in codes if code is None or not 200 <= code < 300})
    detail = f"{good} of {len(codes)} {what}" + (f" (others: {', '.join(bad)})" if bad else "")
    return Check(name=name, passed=good == len(codes) > 0, detail=detail)


class Checks:
    """Checks run beside the loop; results are kept until they are fetched with the same key."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._pool = concurrent.futures.ThreadPoolExecutor(CHECKS, thread_name_prefix="checks")
        self._running: dict[str, concurrent.futures.Future[tuple[Check, ...]]] = {}
        self._under_way: list[tuple[str, concurrent.futures.Future[tuple[Check, ...]]]] = []
        self._lock = threading.Lock()

    def start(
        self,
        key: str,
        namespace: str,
        name: str,
        candidate: str,
        stable: str | None,
        bodies: Sequence[object],
        *,
        same_signature: bool,
    ) -> None:
        """Later, where the namespace has its share of checks under way."""
        with self._lock:
            self._under_way = [each for each in self._under_way if not each[1].done()]
            share = [each for each in self._under_way if each[0] == namespace]
            if key in self._running or len(share) >= CHECKS_OF_NAMESPACE:
                return
            future = self._pool.submit(
                self._gateway.check, name, candidate, stable, bodies, same_signature=same_signature
            )
            self._running[key] = future
            self._under_way.append((namespace, future))

    def result(self, key: str) -> tuple[Check, ...] | None:
        """None until they are in; raises what went wrong with them, and forgets it."""
        future = self._running.get(key)
        if future is None or not future.done():
            return None
        if future.exception() is not None:
            del self._running[key]
        return future.result()

    def forget(self, key: str) -> None:
        self._running.pop(key, None)
