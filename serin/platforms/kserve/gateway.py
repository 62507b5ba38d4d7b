"""Kourier: what its Envoys count, and how one revision is reached through it; and what predictors count."""

import concurrent.futures
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final
from urllib.parse import urlencode, urlparse

import urllib3

from serin.checks import SLOWER, SLOWER_AT_LEAST_S
from serin.platforms.kserve import objects
from serin.platforms.kserve.api import Api
from serin.platforms.kserve.measure import Series
from serin.rollout import Check
from serin.telemetry import envoy

STATS_PORT: Final = 9000
STATS_FILTER: Final = r"^cluster\..*\.upstream_rq_[0-9]{3}$"
PREDICTOR_PORT: Final = 8080
SMOKE_REQUESTS: Final = 20
_log = logging.getLogger("serin.gateway")


@dataclass(frozen=True, slots=True)
class Where:
    """The gateway in the cluster: its namespace, the labels of its pods, its service."""

    namespace: str = "kourier-system"
    pods: str = "app=3scale-kourier-gateway"
    service: str = "kourier"


class Gateway:
    def __init__(self, api: Api, where: Where) -> None:
        self._api, self._where = api, where
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=1, read=2), retries=False, maxsize=8)

    def counts(self) -> dict[str, Series] | None:
        """Answers by status code, per gateway pod and "<namespace>/<revision>"; None when a pod does not tell."""
        read: dict[str, Series] = {}
        for pod in self._pods(self._where.namespace, self._where.pods):
            query = urlencode({"usedonly": "", "filter": STATS_FILTER})
            address = f"http://{pod['ip']}:{STATS_PORT}/stats/prometheus?{query}"
            try:
                answer = self._http.request("GET", address)
            except urllib3.exceptions.HTTPError as error:
                _log.warning("gateway %s does not tell its counts: %s", pod["name"], error)
                return None
            if answer.status != 200:
                _log.warning("gateway %s does not tell its counts: %d", pod["name"], answer.status)
                return None
            stats = envoy.parse(answer.data.decode())
            read[pod["uid"]] = {name: dict(cluster.codes) for name, cluster in stats.clusters.items()}
        return read or None

    def predictor_counts(self, namespace: str, revisions: Sequence[str]) -> dict[str, Series]:
        """Latency and score counts of predictors that keep them, by their process; others are left out."""
        read: dict[str, Series] = {}
        labels = f"serving.knative.dev/revision in ({','.join(revisions)})"
        for pod in self._pods(namespace, labels):
            try:
                answer = self._http.request("GET", f"http://{pod['ip']}:{PREDICTOR_PORT}/metrics/serin.json")
                counts = json.loads(answer.data) if answer.status == 200 else None
            except (urllib3.exceptions.HTTPError, ValueError):
                continue
            if isinstance(counts, dict) and {"boot", "latency", "score"} <= counts.keys():
                revision = pod["labels"]["serving.knative.dev/revision"]
                read[counts["boot"]] = {
                    f"{revision} {kind}": {int(key): value for key, value in counts[kind].items()}
                    for kind in ("latency", "score")
                }
        return read

    def _pods(self, namespace: str, labels: str) -> list[dict[str, Any]]:
        listed = self._api.list(objects.pods(namespace), labels)["items"]
        return [
            {
                "name": pod["metadata"]["name"],
                "uid": pod["metadata"]["uid"],
                "labels": pod["metadata"]["labels"],
                "ip": pod["status"]["podIP"],
            }
            for pod in listed
            if pod["status"].get("phase") == "Running" and pod["status"].get("podIP")
        ]

    def check(
        self, name: str, candidate: str, stable: str | None, bodies: Sequence[object], timeout_s: float = 10
    ) -> tuple[Check, ...]:
        """Answers at 0 % traffic, through the tag addresses `candidate` and `stable`.

        `bodies` are recorded requests of the V1 protocol; without any, only that the model says it is ready.
        """
        address = self._api.get(objects.service(self._where.namespace, self._where.service))
        ip = address["spec"]["clusterIP"] if address is not None else None

        def ask(url: str, body: object | None) -> tuple[int | None, float]:
            path = f"/v1/models/{name}" + ("" if body is None else ":predict")
            start = time.perf_counter()
            try:
                answer = self._http.request(
                    "GET" if body is None else "POST",
                    f"http://{ip}{path}",
                    headers={"Host": urlparse(url).netloc, "Content-Type": "application/json"},
                    body=None if body is None else json.dumps(body),
                    timeout=timeout_s,
                )
            except urllib3.exceptions.HTTPError:
                return None, time.perf_counter() - start
            return answer.status, time.perf_counter() - start

        ready = [ask(candidate, None)[0] for _ in range(SMOKE_REQUESTS)]
        checks = [_count("ready", "say that the model is ready", ready)]
        if bodies:
            ours = [ask(candidate, body) for body in bodies]
            theirs = [ask(stable, body) for body in bodies] if stable else []
            # a recorded request that stable refuses too says nothing about the candidate
            expected = [i for i in range(len(bodies)) if not theirs or theirs[i][0] in range(200, 300)]
            checks.append(_count("answers", "recorded requests were answered", [ours[i][0] for i in expected]))
            if theirs and checks[-1].passed:
                checks.append(_latency([ours[i][1] for i in expected], [theirs[i][1] for i in expected]))
        return tuple(checks)


def _count(name: str, what: str, codes: Sequence[int | None]) -> Check:
    good = sum(code is not None and 200 <= code < 300 for code in codes)
    bad = sorted({str(code or "no answer") for code in codes if code is None or not 200 <= code < 300})
    detail = f"{good} of {len(codes)} {what}" + (f" (others: {', '.join(bad)})" if bad else "")
    return Check(name=name, passed=good == len(codes) > 0, detail=detail)


def _latency(ours_s: Sequence[float], theirs_s: Sequence[float]) -> Check:
    slow, base = median(ours_s), median(theirs_s)
    return Check(
        name="latency",
        passed=slow <= SLOWER * base or slow - base <= SLOWER_AT_LEAST_S,
        detail=f"median {slow * 1000:.1f} ms, stable {base * 1000:.1f} ms",
    )


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

    def forget(self, keys: Mapping[str, object]) -> None:
        """Keep only these."""
        self._running = {key: future for key, future in self._running.items() if key in keys}
