"""The controller: look at every unfinished rollout when it is due, store the next status, then change the service.

Level-triggered: each look starts from what watches of the API server and the counters show. The status is stored
before the service is changed, with the version it was computed from; so two controllers, or one that died and came
back, can neither undo each other's steps nor forget the way back.

What is looked at is a service with all its rollouts: when something about it changed, and at the latest a period
after the last look. With many rollouts in flight the period grows, so that the work to be done per second does not.
"""

import collections
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serin import plan
from serin.errors import TryAgain, UserError
from serin.kube.api import Api, Conflict, Unavailable
from serin.kube.due import DueTimes
from serin.kube.informer import Cache, Key
from serin.measure.tally import Counts
from serin.platforms.kserve import objects
from serin.platforms.kserve import service as kserve
from serin.platforms.kserve.choreography import Change, Create, Delete, Patch, next_change
from serin.platforms.kserve.gateway import Checks, Gateway, Telemetry
from serin.platforms.kserve.step import Seen, memory, step
from serin.rollout.document import ModelRollout, Phase, Status
from serin.rollout.reconcile import Action, RunChecks, SetSplit, refused, unwatched
from serin.rollout.turns import active_rollouts

TICK_S: Final = 1.0
LOOKS_PER_S: Final = 50
"""A bound on the work, the API server's above all: with more rollouts in flight than this, each is looked at less
often than every `TICK_S`."""
WORKERS: Final = 8
"""They mostly wait for answers of the API server and of predictors."""
ATTEMPTS: Final = 3
"""Tries to patch a service whose status KServe is writing at the same time."""
TALK_S: Final = 5.0
"""A status in which only words and remaining times differ is stored this often."""
LONGEST_RETRY_S: Final = 10.0
_LAG_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)
_log = logging.getLogger("serin.controller")


def service_of(document: dict[str, Any]) -> Key:
    """What a ModelRollout is about."""
    return document["metadata"]["namespace"], document["spec"]["service"]


def rollout_of(document: dict[str, Any]) -> tuple[str, str, str]:
    """Namespace, name, service."""
    return document["metadata"]["namespace"], document["metadata"]["name"], document["spec"]["service"]


def generation_changed(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether somebody wants something else of a ModelRollout: its status does not count, that is what we write."""
    return bool(before["metadata"]["generation"] != after["metadata"]["generation"])


def phase_of(document: dict[str, Any]) -> Phase:
    return Phase(document.get("status", {}).get("phase", Phase.PENDING))


class Failure(StrEnum):
    """Why a look failed."""

    CONFLICT = "conflict"
    UNAVAILABLE = "unavailable"
    PASSING = "passing"
    REFUSED = "refused"
    BUG = "bug"


class Metrics:
    """`collect` gives what is only counted when somebody asks."""

    def __init__(self, api: Api, rollouts: Cache) -> None:
        self._api, self._rollouts = api, rollouts
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.looks = Histogram(
            "serin_reconcile_seconds", "Duration of one reconcile of a service.", registry=self.registry
        )
        self.lag = Histogram(
            "serin_reconcile_lag_seconds",
            "Time from when a reconcile was due (a change, or the interval was over) to its end.",
            buckets=_LAG_S,
            registry=self.registry,
        )
        self.errors = Counter("serin_reconcile_errors", "Failed reconciles.", ["kind"], registry=self.registry)
        for kind in Failure:  # an alert on an increase does not see the first value of a series
            self.errors.labels(kind)
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        rollouts = GaugeMetricFamily("serin_rollouts", "ModelRollouts by phase.", labels=["phase"])
        if (
            self._rollouts.filled.is_set()
        ):  # none yet is not the same as 0: the alert on rollbacks looks at the change
            counts = collections.Counter(phase_of(document) for document in self._rollouts.documents())
            for phase in Phase:
                rollouts.add_metric([phase], counts[phase])
        yield rollouts
        failures = CounterMetricFamily("serin_api_failures", "Failed requests to the API server.", labels=["kind"])
        for kind, count in list(self._api.failures.items()):
            failures.add_metric([kind], count)
        yield failures


class Controller:
    """`rollouts` are grouped by `service_of`; both caches are to call `service_changed`."""

    def __init__(
        self,
        api: Api,
        telemetry: Telemetry,
        gateway: Gateway,
        rollouts: Cache,
        services: Cache,
        metrics: Metrics,
    ) -> None:
        self._api, self._telemetry = api, telemetry
        self._rollouts, self._services, self._metrics = rollouts, services, metrics
        self._checks = Checks(gateway)
        self._due = DueTimes()
        self._stored_s: dict[str, float] = {}
        self._said: dict[str, str] = {}
        self._failures: dict[Key, int] = {}
        self._in_flight: set[Key] = set()

    def service_changed(self, service: Key) -> None:
        self._due.put(service, time.monotonic(), urgent=True)

    def stuck_s(self) -> float:
        """How long something has waited to be looked at."""
        return self._due.overdue_s()

    def run(self, until: Callable[[], bool]) -> None:
        """Look at what is due until `until` holds, and about a second longer."""
        self._due = DueTimes()  # what became due while another led is not late
        for service in self._rollouts.groups():
            self._due.put(service, time.monotonic())

        def work() -> None:
            while (taken := self._due.take(until)) is not None:
                service, since_s = taken
                again_s: float | None = LONGEST_RETRY_S
                try:
                    again_s = self.look(service)
                except Exception:  # one service's trouble must not end the worker that looks at the others
                    _log.exception("%s/%s could not be reconciled", *service)
                self._metrics.lag.observe(time.monotonic() - since_s)
                self._due.done(service)
                if again_s is not None:
                    self._due.put(service, time.monotonic() + again_s)

        workers = [threading.Thread(target=work, name=f"look-{number}", daemon=True) for number in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def look(self, service: Key) -> float | None:
        """One look at a service and its rollouts; in how many seconds the next is due, None when nothing is left."""
        unfinished: list[tuple[ModelRollout, dict[str, Any]]] = []
        done = True
        for document in self._rollouts.of(service):
            if phase_of(document).terminal:
                done &= self._guarded(document, self._let_go, document)
                self._forget(document["metadata"]["uid"])
                continue
            try:
                rollout = objects.rollout(document)
                memory(rollout.status)
                unfinished.append((rollout, document))
            except UserError as error:
                if phase_of(document) is Phase.PENDING:
                    done &= self._guarded(document, self._refuse, document, error)
                else:
                    unfinished.append((objects.going_back(document, str(error), datetime.now(UTC)), document))
        if not unfinished:
            self._in_flight.discard(service)
            self._failures.pop(service, None)
            return None if done else LONGEST_RETRY_S
        self._in_flight.add(service)
        retries_s = []
        by_rollout = {id(rollout): document for rollout, document in unfinished}
        with self._metrics.looks.time():
            for rollout, waits_for, superseded_by in active_rollouts([rollout for rollout, _ in unfinished]):
                document = by_rollout[id(rollout)]
                retries_s.append(self._look(rollout, document, waits_for, superseded_by))
        failed_s = max(retries_s)
        self._failures[service] = self._failures.get(service, 0) + 1 if failed_s else 0
        if failed_s:
            doubled = 2.0 ** min(self._failures[service] - 1, 10)
            return min(max(failed_s, TICK_S) * doubled, LONGEST_RETRY_S)
        return max(TICK_S, len(self._in_flight) / LOOKS_PER_S)

    def _forget(self, uid: str) -> None:
        self._checks.forget(uid)
        self._stored_s.pop(uid, None)
        self._said.pop(uid, None)

    def _look(
        self, rollout: ModelRollout, document: dict[str, Any], waits_for: str | None, superseded_by: str | None
    ) -> float:
        """In how many seconds to try again; 0 when all went well."""
        try:
            self._step(rollout, document, waits_for, superseded_by)
        except Conflict as error:
            self._metrics.errors.labels(Failure.CONFLICT).inc()
            _log.info("%s; reconciling again", error)
            self._guarded(document, self._read_again, *rollout_of(document))
            return TICK_S
        except Unavailable as error:
            self._metrics.errors.labels(Failure.UNAVAILABLE).inc()
            return error.delay_s
        except TryAgain as error:
            self._metrics.errors.labels(Failure.PASSING).inc()
            self._say(document, str(error))
            return error.delay_s
        except UserError as error:
            self._metrics.errors.labels(Failure.REFUSED).inc()
            if self._say(document, str(error)):
                self._guarded(document, self._event, document, "Warning", "Refused", str(error))
            if rollout.status.phase in (Phase.DARK, Phase.CHECKING):
                now = datetime.now(UTC)
                self._guarded(document, self._store, rollout, document, refused(rollout.status, str(error), now), now)
            return TICK_S
        except Exception as error:
            # one broken rollout must neither stop the others nor leave users with a candidate nobody watches
            self._metrics.errors.labels(Failure.BUG).inc()
            _log.exception("%s could not be reconciled", rollout.metadata.name)
            self._guarded(document, self._give_up, rollout, document, error)
            return TICK_S
        self._said.pop(document["metadata"]["uid"], None)
        return 0

    def _say(self, document: dict[str, Any], problem: str) -> bool:
        """Once, until it is another problem or none; whether it was said now."""
        uid = document["metadata"]["uid"]
        if self._said.get(uid) == problem:
            return False
        self._said[uid] = problem
        _log.warning("%s: %s", document["metadata"]["name"], problem)
        return True

    def _guarded(self, document: dict[str, Any], work: Callable[..., object], *arguments: object) -> bool:
        """Do what may fail without harm to others, it is tried again or was only said; whether it did not fail."""
        try:
            work(*arguments)
        except Conflict:
            self._guarded(document, self._read_again, *rollout_of(document))
            return False
        except Unavailable:
            return False
        except (TryAgain, UserError) as error:
            self._say(document, str(error))
            return False
        return True

    def _read_again(self, namespace: str, name: str, service: str) -> None:
        """The watch is late; the next look starts from what is there now."""
        for cache, path in (
            (self._rollouts, objects.rollouts(namespace, name)),
            (self._services, objects.services(namespace, service)),
        ):
            found = self._api.get(path)
            if found is not None:
                cache.put(found)

    def _step(
        self, rollout: ModelRollout, document: dict[str, Any], waits_for: str | None, superseded_by: str | None
    ) -> None:
        uid = document["metadata"]["uid"]
        service = self._service(rollout)
        seen = Seen(
            service=service,
            counts=self._counts(rollout),
            blind=self._blind(rollout, service) if waits_for is None else None,
            checks=self._checks.result(uid) if rollout.status.phase is Phase.CHECKING else None,
            waits_for=waits_for,
            superseded_by=superseded_by,
        )
        if objects.FINALIZER not in document["metadata"].get("finalizers", []):
            if "deletionTimestamp" in document["metadata"]:
                return
            document = self._finalizers(document, [objects.FINALIZER])
        now = datetime.now(UTC)
        status, actions = step(rollout, seen, now)
        moved = (status.phase, status.stage) != (phase_of(document), document.get("status", {}).get("stage"))
        if moved or self._worth_storing(uid, rollout.status, status):
            stored = self._store(rollout, document, status, now)
            self._stored_s[uid] = time.monotonic()
            if moved:
                self._tell(stored, status)
        for action in actions:
            self._act(uid, rollout.model_copy(update={"status": status}), service, action)

    def _worth_storing(self, uid: str, before: Status, after: Status) -> bool:
        """Whether more than the words changed since it was last stored, or that is some time ago."""
        if after == before:
            return False
        quiet = {"reason": "", "needs_seconds": None}
        recently = time.monotonic() - self._stored_s.get(uid, -TALK_S) < TALK_S
        return not recently or before.model_copy(update=quiet) != after.model_copy(update=quiet)

    def _store(
        self, rollout: ModelRollout, document: dict[str, Any], status: Status, now: datetime
    ) -> dict[str, Any]:
        path = objects.rollouts(rollout.metadata.namespace, rollout.metadata.name) + "/status"
        stored = self._api.replace(path, objects.with_status(document, status, now))
        self._rollouts.put(stored)
        return stored

    def _tell(self, document: dict[str, Any], after: Status) -> None:
        _log.info(
            "%s: %s at %d %%: %s",
            document["metadata"]["name"],
            after.phase,
            after.traffic,
            after.reason,
            extra={"rollout": document["metadata"]["name"], "phase": after.phase, "traffic": after.traffic},
        )
        kind = "Warning" if after.phase in (Phase.ROLLING_BACK, Phase.FAILED) else "Normal"
        self._guarded(document, self._event, document, kind, str(after.phase), after.reason)

    # the service

    def _service(self, rollout: ModelRollout) -> kserve.Service | None:
        found = self._services.of((rollout.metadata.namespace, rollout.spec.service))
        return kserve.read(found[0]) if found else None

    def _act(self, uid: str, rollout: ModelRollout, service: kserve.Service | None, action: Action) -> None:
        if isinstance(action, RunChecks):
            self._start_checks(uid, rollout, service, action)
            return
        namespace, predictors = rollout.metadata.namespace, memory(rollout.status).predictors
        if predictors is None:
            return
        for attempt in range(ATTEMPTS):
            change = next_change(action, service, rollout.status, predictors)
            if change is None:
                return
            try:
                self._carry_out(rollout, change)
            except Conflict:
                if attempt == ATTEMPTS - 1:
                    raise
                self._read_again(namespace, rollout.metadata.name, rollout.spec.service)
                service = self._service(rollout)
            else:
                return

    def _carry_out(self, rollout: ModelRollout, change: Change) -> None:
        namespace, name = rollout.metadata.namespace, rollout.spec.service
        _log.debug("%s: %s", rollout.metadata.name, change)
        match change:
            case Patch(document=document, resource_version=version):
                body = {**document, "metadata": {"resourceVersion": version}}
                self._services.put(self._api.patch(objects.services(namespace, name), body))
            case Create(predictor=predictor):
                made = self._api.create(objects.services(namespace), _new_service(namespace, name, predictor))
                self._services.put(made)
            case Delete(resource_version=version):
                self._api.delete(objects.services(namespace, name), version)

    def _give_up(self, rollout: ModelRollout, document: dict[str, Any], error: Exception) -> None:
        """A look failed for a reason nobody foresaw: with traffic the candidate goes back."""
        now = datetime.now(UTC)
        status = unwatched(rollout.status, f"an internal error ({error!r})", now)
        self._store(rollout, document, status, now)
        if status.phase is Phase.ROLLING_BACK and status.stable_revision and status.candidate_revision:
            action = SetSplit(stable=status.stable_revision, candidate=status.candidate_revision, percent=0)
            self._act("", rollout.model_copy(update={"status": status}), self._service(rollout), action)

    # what is counted and checked

    def _counts(self, rollout: ModelRollout) -> Counts | None:
        """None before there is traffic to be counted, and while the counts cannot be read."""
        stable, candidate = rollout.status.stable_revision, rollout.status.candidate_revision
        if rollout.status.stage is None or stable is None or candidate is None:
            return None
        return self._telemetry.counts(rollout.metadata.namespace, stable, candidate, rollout.spec.judge.sources)

    def _blind(self, rollout: ModelRollout, service: kserve.Service | None) -> str | None:
        """Why a rollout that would begin now could not be watched."""
        if rollout.status.phase is not Phase.PENDING or service is None or not service.rolled_out:
            return None
        if rollout.spec.judge.sources and not self._telemetry.events:
            return "a controller with --prometheus reads no counters of model servers, which judge.metrics needs"
        return self._telemetry.problem(rollout.metadata.namespace, service.rolled_out)

    def _start_checks(
        self, uid: str, rollout: ModelRollout, service: kserve.Service | None, action: RunChecks
    ) -> None:
        candidate = service.address("latest") if service is not None else None
        if service is None or candidate is None:
            return
        bodies: list[object] = []
        recorded = self._api.get(objects.config_map(rollout.metadata.namespace, f"{service.name}-requests"))
        if recorded is not None:
            bodies = kserve.requests(recorded)
        self._checks.start(
            uid,
            rollout.metadata.namespace,
            service.name,
            candidate,
            service.address("prev") if action.stable else None,
            bodies,
            same_signature=rollout.spec.effective_plan.checks is not plan.Checks.OWN,
        )

    # the ModelRollout itself

    def _let_go(self, document: dict[str, Any]) -> None:
        """Nothing is left to be done: it may be deleted."""
        if objects.FINALIZER in document["metadata"].get("finalizers", []):
            self._finalizers(document, [])

    def _finalizers(self, document: dict[str, Any], ours: list[str]) -> dict[str, Any]:
        others = [each for each in document["metadata"].get("finalizers", []) if each != objects.FINALIZER]
        metadata = {"finalizers": [*others, *ours], "resourceVersion": document["metadata"]["resourceVersion"]}
        path = objects.rollouts(document["metadata"]["namespace"], document["metadata"]["name"])
        stored = self._api.patch(path, {"metadata": metadata})
        self._rollouts.put(stored)
        return stored

    def _refuse(self, document: dict[str, Any], error: UserError) -> None:
        """The document's spec cannot be: say so, and touch nothing."""
        now = datetime.now(UTC)
        status = Status(phase=Phase.FAILED, reason=str(error), finished_at=now)
        path = objects.rollouts(document["metadata"]["namespace"], document["metadata"]["name"]) + "/status"
        self._rollouts.put(self._api.replace(path, objects.with_status(document, status, now)))

    def _event(self, document: dict[str, Any], kind: str, reason: str, message: str) -> None:
        metadata, now = document["metadata"], datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._api.create(
            objects.events(metadata["namespace"]),
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"generateName": f"{metadata['name'][:50]}-", "namespace": metadata["namespace"]},
                "involvedObject": {
                    "apiVersion": document["apiVersion"],
                    "kind": document["kind"],
                    "name": metadata["name"],
                    "namespace": metadata["namespace"],
                    "uid": metadata["uid"],
                },
                "type": kind,
                "reason": reason,
                "message": message[:1000],
                "source": {"component": "serin"},
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            },
        )


def _new_service(namespace: str, name: str, predictor: Mapping[str, Any]) -> dict[str, Any]:
    """The first model of a service, ready for the releases to come."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {kserve.TAG_ROUTING: "true", kserve.DEPLOYMENT_MODE: "Knative"},
        },
        "spec": {"predictor": dict(predictor)},
    }
