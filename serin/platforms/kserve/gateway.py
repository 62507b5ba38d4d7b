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
from serin.kube.api import Api
from serin.measure import envoy
from serin.measure.tally import Counts, Series
from serin.measure.windows import CUT_OFF, TIMED_OUT
from serin.model.histograms import LATENCY_EDGES_S, SCORE_EDGES
from serin.platforms.kserve import objects
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
_BUCKETS: Final = {"latency": len(LATENCY_EDGES_S) + 1, "score": len(SCORE_EDGES) + 1}
REVISION: Final = "serving.knative.dev/revision"
SMOKE_REQUESTS: Final = 20
MAX_SILENT: Final = 3
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

    def counts(self, namespace: str, stable: str, candidate: str) -> Counts | None:
        """None while they cannot be read."""

    def problem(self, namespace: str, stable: str) -> str | None:
        """Why a rollout of the service could not be watched, and the fix; None when it could."""


Pods = Sequence[Mapping[str, Any]]


class EnvoyTelemetry:
    """Answers as Kourier's Envoys count them; latencies and scores as predictors do, where they do.

    `gateways` gives the gateway's pods, `predictors` those of a namespace and revision.
    """

    def __init__(self, gateways: Callable[[], Pods], predictors: Callable[[tuple[str, str]], Pods]) -> None:
        self._gateways, self._predictors = gateways, predictors
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=1, read=2), retries=False, maxsize=16)
        self._lock = threading.Lock()
        self._stats: Mapping[str, envoy.GatewayStats] | str = ""
        self._read_s = 0.0
        self._asked_s = -math.inf
        self._told: dict[tuple[str, str], _Told] = {}

    def counts(self, namespace: str, stable: str, candidate: str) -> Counts | None:
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
        for revision in active:
            read |= self._predictor_counts(namespace, revision)
        return Counts(at_s, read, active)

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
                answer = self._http.request("GET", address)
                silence = None if answer.status == 200 else f"it answers {answer.status}"
            except urllib3.exceptions.HTTPError as error:
                not_reached = f"it cannot be reached ({type(error).__name__})"
                silence = f"{not_reached}; check whether a network policy blocks serin's controller"
            if silence is None:
                read[pod["metadata"]["uid"]] = envoy.parse(answer.data.decode())
            elif "deletionTimestamp" not in pod["metadata"] and pod["status"]["ready"]:
                name = pod["metadata"]["name"]
                problem = f"gateway pod {name} does not serve its counters on port {STATS_PORT}: {silence}"
                _log.warning("%s", problem)
                return problem
        return read or "no gateway pod is running"

    def _predictor_counts(self, namespace: str, revision: str) -> dict[str, Series]:
        """By process, as each last told: what one that is silent counts meanwhile comes with its next answer.
        Predictors that never told are left out, and asked again after some time."""
        pods = {pod["metadata"]["uid"]: pod for pod in _running(self._predictors((namespace, revision)))}
        start_s = time.monotonic()
        before = self._told.get((namespace, revision))
        if before is None:
            before = _Told(start_s, {}, {})
            self._forget(start_s - SILENT_S)
        counts = {uid: told for uid, told in before.counts.items() if uid in pods}
        failed_s = {uid: at_s for uid, at_s in before.failed_s.items() if uid in pods}
        for uid in sorted(pods, key=lambda uid: failed_s.get(uid, -math.inf)):
            now_s = time.monotonic()
            if now_s > start_s + PREDICTORS_S - PREDICTOR_S:
                break
            if uid not in counts and now_s - failed_s.get(uid, -math.inf) < SILENT_S:
                continue
            try:
                counts[uid] = self._ask(pods[uid])
                failed_s.pop(uid, None)
            except (urllib3.exceptions.HTTPError, OSError, ValueError, LookupError, TypeError, AttributeError):
                failed_s[uid] = time.monotonic()  # it hangs, is gone, or is none of ours
        self._told[namespace, revision] = _Told(start_s, counts, failed_s)
        return {
            boot: {f"{revision} {kind}": by_bucket for kind, by_bucket in series.items()}
            for boot, series in counts.values()
        }

    def _ask(self, pod: Mapping[str, Any]) -> tuple[str, Series]:
        """Its process, and what that counted. Raises when it tells nothing, or what cannot be."""
        address = f"http://{pod['status']['podIP']}:{PREDICTOR_PORT}/metrics/serin.json"
        answer = json.loads(self._http.request("GET", address, timeout=PREDICTOR_S).data)
        series = {kind: {int(bucket): int(count) for bucket, count in answer[kind].items()} for kind in _BUCKETS}
        for kind, buckets in _BUCKETS.items():
            if any(not 0 <= bucket < buckets or count < 0 for bucket, count in series[kind].items()):
                raise ValueError(f"{kind} has impossible counts")
        return answer["boot"], series

    def _forget(self, before_s: float) -> None:
        """Revisions of rollouts that are over."""
        for key, told in list(self._told.items()):
            if told.at_s < before_s:
                self._told.pop(key, None)


@dataclass(frozen=True, slots=True)
class _Told:
    """Of a revision's predictors at a look, by the uid of the pod: process and counts as last told, and when one
    that was asked did not answer."""

    at_s: float
    counts: Mapping[str, tuple[str, Series]]
    failed_s: Mapping[str, float]


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


def _running(pods: Pods) -> Pods:
    return [pod for pod in pods if pod["status"].get("phase") == "Running" and pod["status"].get("podIP")]


class Gateway:
    """One revision asked through the gateway."""

    def __init__(self, api: Api, where: Where) -> None:
        self._api, self._where = api, where
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=1, read=2), retries=False, maxsize=8)

    def check(
        self, name: str, candidate: str, stable: str | None, bodies: Sequence[object], timeout_s: float = 10
    ) -> tuple[Check, ...]:
        """Answers at 0 % traffic, through the tag addresses `candidate` and `stable`.

        `bodies` are recorded requests of the V1 protocol; without any, only that the model says it is ready. Who
        gives no answer a few times is not asked again: others wait for their checks.
        """
        where = self._where
        address = self._api.get(objects.service(where.namespace, where.service))
        if address is None:
            told = f"there is no Service {where.service} in namespace {where.namespace} to send requests through"
            return (Check(name="gateway", passed=False, detail=told),)

        def ask(url: str, asked: Sequence[object]) -> list[Asked]:
            """Each body, or for None whether the model is ready."""
            answers: list[Asked] = []
            for body in asked:
                path = f"/v1/models/{name}" + ("" if body is None else ":predict")
                start = time.perf_counter()
                try:
                    code: int | None = self._http.request(
                        "GET" if body is None else "POST",
                        f"http://{address['spec']['clusterIP']}{path}",
                        headers={"Host": urlparse(url).netloc, "Content-Type": "application/json"},
                        body=None if body is None else json.dumps(body),
                        timeout=timeout_s,
                    ).status
                except urllib3.exceptions.HTTPError:
                    code = None
                answers.append((code, time.perf_counter() - start))
                if sum(code is None for code, _ in answers) == MAX_SILENT:
                    break
            return answers

        ready = ask(candidate, [None] * SMOKE_REQUESTS)
        checks = [_count("ready", "report the model as ready", [code for code, _ in ready])]
        if bodies:
            ours = ask(candidate, bodies)
            theirs = ask(stable, bodies[: len(ours)]) if stable else []
            # a recorded request that stable refuses too says nothing about the candidate
            expected = [
                i for i in range(len(ours)) if not stable or (i < len(theirs) and theirs[i][0] in range(200, 300))
            ]
            checks.append(_count("answers", "recorded requests were answered", [ours[i][0] for i in expected]))
            if theirs and checks[-1].passed:
                checks.append(latency([ours[i][1] for i in expected], [theirs[i][1] for i in expected]))
        return tuple(checks)


def _count(name: str, what: str, codes: Sequence[int | None]) -> Check:
    good = sum(code is not None and 200 <= code < 300 for code in codes)
    bad = sorted({str(code or "no answer") for code in codes if code is None or not 200 <= code < 300})
    detail = f"{good} of {len(codes)} {what}" + (f" (others: {', '.join(bad)})" if bad else "")
    return Check(name=name, passed=good == len(codes) > 0, detail=detail)


class Checks:
    """Checks run beside the loop; results are kept until they are fetched with the same key."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._pool = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="checks")
        self._running: dict[str, concurrent.futures.Future[tuple[Check, ...]]] = {}

    def start(self, key: str, name: str, candidate: str, stable: str | None, bodies: Sequence[object]) -> None:
        if key not in self._running:
            self._running[key] = self._pool.submit(self._gateway.check, name, candidate, stable, bodies)

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
