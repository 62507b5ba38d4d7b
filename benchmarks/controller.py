"""`make bench-controller`: many rollouts in flight at a real API server, released by the real controller.

What is real: the API server of the current kubeconfig, the ModelRollouts in it, and all of the controller's watching,
judging and writing. What is not: InferenceServices, which follow every patch at once, and the traffic, which is
counted as a gateway and predictors count it; both are in the memory of the controller's process.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil
import urllib3
import yaml
from prometheus_client import start_http_server
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.common import Row, report
from serin.controller.controller import Controller, Metrics, generation_changed, service_of
from serin.errors import TryAgain, UserError
from serin.judge.policy import Source
from serin.kube import leader
from serin.kube.api import Api, Conflict, Json
from serin.kube.informer import Cache, Key
from serin.measure.tally import Counts
from serin.model.histograms import LATENCY_EDGES_S, SCORE_EDGES, bucket
from serin.platforms.kserve import objects
from serin.platforms.kserve.client import CONTROLLER_NAMESPACE, idle
from serin.platforms.kserve.crd import GROUP, PLURAL
from serin.platforms.kserve.service import PERCENT, TAG_ROUTING
from serin.rollout.document import Check

COUNTS: Final = (100, 300, 1000)
MEASURE_S: Final = 60.0
START_LIMIT_S: Final = 600.0
RATE: Final = 50.0
"""Requests per second of each service."""
PERCENTILE: Final = 0.99
CRD: Final = Path(__file__).parents[1] / "manifests/crd/modelrollouts.yaml"
NEEDS: Final = (
    "bench-controller needs a Kubernetes API server: point KUBECONFIG at a cluster in which you may create "
    "namespaces and CustomResourceDefinitions (nothing else of it is used)"
)
PLAN: Final = {"stages": [{"traffic": 5, "minSeconds": 86400}], "deadlineSeconds": 86400}
"""Nothing ends while it is measured."""


@dataclass
class Service:
    """An InferenceService whose revisions are ready as soon as they are asked for."""

    name: str
    namespace: str
    model: str = "s3://bench/stable"
    percent: int | None = None
    version: int = 1
    counted_s: float = field(default_factory=time.monotonic)
    requests: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def candidate(self) -> bool:
        return self.model != "s3://bench/stable"

    def patch(self, document: Json) -> Json:
        if document["metadata"]["resourceVersion"] != str(self.version):
            raise Conflict(f"{self.name} has been modified", delay_s=0)
        self.count()
        predictor = document["spec"]["predictor"]
        self.percent = predictor.get(PERCENT, self.percent)
        self.model = predictor.get("model", {}).get("storageUri", self.model)
        self.version += 1
        return self.document()

    def document(self) -> Json:
        stable, candidate = f"{self.name}-r1", f"{self.name}-r2"
        newest = candidate if self.candidate else stable
        share = 100 if self.percent is None else self.percent
        rows = [{"revisionName": newest, "percent": share, "tag": "latest", "url": f"http://latest-{self.name}"}]
        if self.candidate:
            rows.append(
                {"revisionName": stable, "percent": 100 - share, "tag": "prev", "url": f"http://prev-{self.name}"}
            )
        percent = {} if self.percent is None else {PERCENT: self.percent}
        model = {"modelFormat": {"name": "serin-onnx"}, "runtime": "serin-onnx", "storageUri": self.model}
        status = {"latestCreatedRevision": newest, "latestReadyRevision": newest, "latestRolledoutRevision": stable}
        return {
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "resourceVersion": str(self.version),
                "annotations": {TAG_ROUTING: "true"},
            },
            "spec": {"predictor": {"minReplicas": 1, "model": model, **percent}},
            "status": {"deploymentMode": "Knative", "components": {"predictor": status | {"traffic": rows}}},
        }

    def count(self) -> None:
        """What was answered since it was last counted, under the split in force since then."""
        now_s = time.monotonic()
        answered = RATE * (now_s - self.counted_s)
        share = (100 if self.percent is None else self.percent) / 100 if self.candidate else 0.0
        self.requests[f"{self.name}-r1"] += answered * (1 - share)
        self.requests[f"{self.name}-r2"] += answered * share
        self.counted_s = now_s


class Platform:
    """KServe and its gateway in memory: a cache of services, telemetry and gateway at once."""

    events = True

    def __init__(self) -> None:
        self._services: dict[Key, Service] = {}
        latencies = random.Random(1)
        self._latency = _histogram(LATENCY_EDGES_S, [latencies.lognormvariate(-4.5, 0.5) for _ in range(5000)])
        self._score = _histogram(SCORE_EDGES, [latencies.betavariate(2, 5) for _ in range(5000)])

    def service(self, namespace: str, name: str) -> Service:
        return self._services.setdefault((namespace, name), Service(name, namespace))

    def of(self, key: Key) -> list[Json]:
        return [self.service(*key).document()]

    def put(self, document: Json) -> None:
        """The answer to a patch: it is known already."""

    def counts(self, namespace: str, stable: str, candidate: str, sources: Mapping[str, Source]) -> Counts:
        service = self.service(namespace, stable.removesuffix("-r1"))
        service.count()
        read: dict[str, dict[str, dict[int, int]]] = {"gateway": {}}
        for revision in (stable, candidate):
            answered = service.requests[revision]
            failed = int(answered * 0.002)
            read["gateway"][f"{revision} codes"] = {200: int(answered) - failed, 500: failed}
            read[revision] = {
                f"{revision} predictions": read["gateway"][f"{revision} codes"],
                f"{revision} latency": {key: int(answered * part) for key, part in self._latency.items()},
                f"{revision} score": {key: int(answered * part) for key, part in self._score.items()},
            }
        return Counts(time.time(), read, {stable: 1, candidate: 0})

    def problem(self, namespace: str, stable: str) -> str | None:
        return None

    def check(self, *_: object, **__: object) -> tuple[Check, ...]:
        return (Check(name="ready", passed=True, detail="20 of 20 report the model as ready"),)


def _histogram(edges: tuple[float, ...], values: list[float]) -> dict[int, float]:
    found = Counter(bucket(edges, value) for value in values)
    return {key: count / len(values) for key, count in found.items()}


class ServicesInMemory(Api):
    """The API server, but InferenceServices are those of the platform."""

    platform: Platform

    def patch(self, path: str, document: Json) -> Json:
        if "/inferenceservices/" not in path:
            return super().patch(path, document)
        *_, namespace, _, name = path.split("/")
        return self.platform.service(namespace, name).patch(document)


def serve(namespace: str, port: int) -> None:
    """The process that is measured: the controller of one namespace, until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    platform: Any = Platform()
    api = ServicesInMemory.connect()
    api.platform = platform
    rollouts = Cache(api, objects.rollouts(namespace), group=service_of, matters=generation_changed)
    metrics = Metrics(api, rollouts)
    controller = Controller(api, platform, platform, rollouts, platform, metrics)
    rollouts.changed = controller.service_changed
    start_http_server(port, addr="127.0.0.1", registry=metrics.registry)
    threading.Thread(target=rollouts.follow, args=(stop,), daemon=True).start()
    rollouts.filled.wait()
    controller.run(stop.is_set)


class Observed:
    """The process that is measured, seen from outside."""

    def __init__(self, namespace: str, port: int) -> None:
        command = [sys.executable, "-m", "benchmarks.controller", "--serve", namespace, "--port", str(port)]
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}  # as in the image
        self._process = subprocess.Popen(command, env=os.environ | threads)
        self._seen = psutil.Process(self._process.pid)
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._http = urllib3.PoolManager(retries=urllib3.Retry(30, backoff_factor=0.1), timeout=10)

    def metrics(self) -> dict[str, float]:
        """By name and label."""
        text = self._http.request("GET", self._url).data.decode()
        return {
            " ".join((sample.name, *sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def cpu_s(self) -> float:
        times = self._seen.cpu_times()
        return times.user + times.system

    def memory_mb(self) -> float:
        return self._seen.memory_info().rss / 1e6

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@dataclass(frozen=True)
class Figures:
    in_flight: int
    memory_mb: float
    look_cpu_s: float
    looks_per_s: float
    lag_s: float
    changes_s: tuple[float, ...]
    status_kb: float
    failures: float

    @property
    def change_s(self) -> float:
        return sorted(self.changes_s)[min(int(PERCENTILE * len(self.changes_s)), len(self.changes_s) - 1)]


def measure(api: Api, namespace: str, in_flight: int, port: int, measure_s: float) -> Figures:
    for number in range(in_flight):
        _patiently(api.create, objects.rollouts(namespace), _rollout(namespace, number))
    observed = Observed(namespace, port)
    try:
        limit_s = time.monotonic() + START_LIMIT_S
        while observed.metrics().get("serin_rollouts Progressing", 0) < in_flight:
            if time.monotonic() > limit_s:
                raise TryAgain(f"not all of {in_flight} rollouts had begun after {START_LIMIT_S:.0f} s", delay_s=0)
            time.sleep(1)
        time.sleep(10)
        before, cpu_s, start_s = observed.metrics(), observed.cpu_s(), time.monotonic()
        changes_s, memory_mb = [], observed.memory_mb()
        choice = random.Random(in_flight).sample(range(in_flight), in_flight)
        while time.monotonic() - start_s < measure_s and choice:
            changes_s.append(_change(api, namespace, choice.pop()))
            memory_mb = max(memory_mb, observed.memory_mb())
            time.sleep(0.2)
        time.sleep(max(0.0, measure_s - (time.monotonic() - start_s)))
        after, spent_s, took_s = observed.metrics(), observed.cpu_s() - cpu_s, time.monotonic() - start_s
        looks = after["serin_reconcile_seconds_count"] - before["serin_reconcile_seconds_count"]
        document = api.get(objects.rollouts(namespace, _name(0)))
        return Figures(
            in_flight,
            memory_mb,
            spent_s / looks,
            looks / took_s,
            _percentile(before, after),
            tuple(changes_s),
            len(repr(document)) / 1000,
            sum(value for name, value in after.items() if name.startswith("serin_reconcile_errors_total")),
        )
    finally:
        observed.stop()
        for number in range(in_flight):
            _patiently(api.patch, objects.rollouts(namespace, _name(number)), {"metadata": {"finalizers": None}})
        _patiently(api.delete, objects.rollouts(namespace))


def _patiently(request: Callable[..., object], *arguments: object) -> None:
    """Preparations are not measured: they may be tried again."""
    for attempt in range(10):
        try:
            request(*arguments)
        except Conflict:  # it was created although nobody said so
            return
        except TryAgain:
            if attempt == 9:
                raise
            time.sleep(1)
        else:
            return


def _change(api: Api, namespace: str, number: int) -> float:
    """Time from a change of a rollout's spec to the status that follows from it."""
    path = objects.rollouts(namespace, _name(number))
    start_s = time.monotonic()
    api.patch(path, {"spec": {"paused": True}})
    while (document := api.get(path)) is not None and document["status"]["phase"] != "Waiting":
        time.sleep(0.01)
    return time.monotonic() - start_s


def _percentile(before: dict[str, float], after: dict[str, float]) -> float:
    """Of the lag: the upper edge of its bucket."""
    name = "serin_reconcile_lag_seconds_bucket "
    upto = {float(key.removeprefix(name)): after[key] - before[key] for key in after if key.startswith(name)}
    return min(edge for edge, count in upto.items() if count >= PERCENTILE * max(upto.values()))


def _name(number: int) -> str:
    return f"churn-{number:04d}"


def _rollout(namespace: str, number: int) -> Json:
    return {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "ModelRollout",
        "metadata": {"name": _name(number), "namespace": namespace},
        "spec": {"service": _name(number), "candidate": {"storageUri": "s3://bench/candidate"}, "plan": PLAN},
    }


@contextlib.contextmanager
def prepared(api: Api) -> Iterator[str]:
    """A namespace of its own in which ModelRollouts are known; everything that was not there before is removed."""
    if (lease := api.get(leader.path(CONTROLLER_NAMESPACE, leader.LEASE))) and not idle(lease, datetime.now(UTC)):
        raise UserError(
            f"A controller is at work in {CONTROLLER_NAMESPACE} and would take the rollouts of the benchmark; "
            "take another cluster, or scale it to 0."
        )
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    ours = api.get(f"{definitions}/{PLURAL}.{GROUP}") is None
    namespace = f"serin-bench-{os.getpid()}"
    api.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    try:
        if ours:
            api.create(definitions, yaml.safe_load(CRD.read_text(encoding="utf-8")))
            time.sleep(5)
        yield namespace
    finally:
        api.delete(f"/api/v1/namespaces/{namespace}")
        if ours:
            api.delete(f"{definitions}/{PLURAL}.{GROUP}")


def _rows(found: list[Figures]) -> list[Row]:
    most, least = found[-1], found[0]
    many = f"{most.in_flight:,} in flight"
    rows = [
        Row(f"{many}: peak resident memory", most.memory_mb, "MB", "<= 200"),
        Row(f"{many}: reconcile lag, p99 below", most.lag_s, "s", "<= 2"),
        Row(f"{many}: from spec change to status, p99 of {len(most.changes_s)}", most.change_s, "s", "<= 2"),
        Row(f"{many}: time between two reconciles of a rollout", most.in_flight / most.looks_per_s, "s"),
        Row(f"{many}: failed reconciles", most.failures, ""),
        Row("size of a ModelRollout", most.status_kb, "kB"),
    ]
    for each in found:
        rows.append(Row(f"{each.in_flight:,} in flight: CPU time of a reconcile", 1000 * each.look_cpu_s, "ms"))
        rows.append(Row(f"{each.in_flight:,} in flight: CPU", each.look_cpu_s * each.looks_per_s, "cores"))
    growth = most.look_cpu_s / least.look_cpu_s
    rows.append(
        Row(f"CPU time of a reconcile, {most.in_flight:,} / {least.in_flight:,} in flight", growth, "×", "<= 1.5")
    )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.controller", description=__doc__)
    parser.add_argument("--serve", metavar="NAMESPACE", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=18081)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="rollouts in flight")
    parser.add_argument("--seconds", type=float, default=MEASURE_S, help="of measuring, for each count")
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve, arguments.port)
        return 0
    try:
        api = Api.connect()
        with prepared(api) as namespace:
            found = [
                measure(api, namespace, count, arguments.port, arguments.seconds)
                for count in sorted(arguments.counts)
            ]
    except (UserError, TryAgain) as error:
        print(f"{error}\n{NEEDS}" if isinstance(error, UserError) else error, file=sys.stderr)
        return 2
    whole = (tuple(arguments.counts), arguments.seconds) == (COUNTS, MEASURE_S)
    return report("controller", _rows(found), packages=("pydantic", "urllib3"), keep=whole)


if __name__ == "__main__":
    sys.exit(main())
