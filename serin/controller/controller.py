"""The controller's loop: look at every unfinished rollout, store the next status, then change the service.

Level-triggered: each look starts from what the API server and the gateway show. The status is stored before the
service is changed, with the version it was computed from; so two controllers, or one that died and came back, can
neither undo each other's steps nor forget the way back.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serin.controller.cache import Cache
from serin.errors import TryAgain, UserError
from serin.platforms.kserve import objects
from serin.platforms.kserve import service as kserve
from serin.platforms.kserve.api import Api, Conflict
from serin.platforms.kserve.choreography import Change, Create, Delete, Patch, next_change
from serin.platforms.kserve.gateway import Checks, Gateway
from serin.platforms.kserve.measure import Series
from serin.platforms.kserve.step import Seen, memory, step
from serin.reconcile import Action, RunChecks, SetSplit, unwatched
from serin.rollout import ModelRollout, Phase, Status
from serin.turns import active_rollouts

TICK_S: Final = 1.0
ATTEMPTS: Final = 3
"""Tries to patch a service whose status KServe is writing at the same time."""
TALK_S: Final = 5.0
"""A status in which only words and remaining times differ is stored this often."""
_log = logging.getLogger("serin.controller")


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rollouts = Gauge("serin_rollouts", "ModelRollouts by phase.", ["phase"], registry=self.registry)
        self.looks = Histogram("serin_look_seconds", "Time of one look at a rollout.", registry=self.registry)
        self.late = Gauge("serin_loop_seconds", "Time of the last round over all rollouts.", registry=self.registry)
        self.errors = Counter("serin_look_errors", "Looks that failed.", ["kind"], registry=self.registry)


class Controller:
    def __init__(self, api: Api, gateway: Gateway, cache: Cache, metrics: Metrics) -> None:
        self._api, self._gateway, self._cache, self._metrics = api, gateway, cache, metrics
        self._checks = Checks(gateway)
        self._stored_s: dict[str, float] = {}
        self.last_round_s = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            start = time.monotonic()
            self._cache.changed.clear()
            self.round()
            self.last_round_s = time.monotonic()
            self._metrics.late.set(self.last_round_s - start)
            rest = TICK_S - (self.last_round_s - start)
            stop.wait(max(rest, 0.01))

    def round(self) -> None:
        """One look at each unfinished rollout."""
        documents = {each["metadata"]["uid"]: each for each in self._cache.documents()}
        phases = dict.fromkeys(Phase, 0)
        unfinished: list[tuple[ModelRollout, dict[str, Any]]] = []
        for document in documents.values():
            phase = Phase(document.get("status", {}).get("phase", Phase.PENDING))
            phases[phase] += 1
            if phase.terminal:
                self._guarded(document, self._let_go, document)
                continue
            try:
                unfinished.append((objects.rollout(document), document))
            except UserError as error:
                self._guarded(document, self._refuse, document, error)
        for phase, count in phases.items():
            self._metrics.rollouts.labels(phase).set(count)
        counts = self._counts() if unfinished else None
        by_rollout = {id(rollout): document for rollout, document in unfinished}
        for rollout, waits_for, superseded_by in active_rollouts([rollout for rollout, _ in unfinished]):
            document = by_rollout[id(rollout)]
            with self._metrics.looks.time():
                self._look(rollout, document, counts, waits_for, superseded_by)
        self._checks.forget(documents)
        self._stored_s = {uid: at_s for uid, at_s in self._stored_s.items() if uid in documents}

    def _look(
        self,
        rollout: ModelRollout,
        document: dict[str, Any],
        counts: Mapping[str, Series] | None,
        waits_for: str | None,
        superseded_by: str | None,
    ) -> None:
        try:
            self._step(rollout, document, counts, waits_for, superseded_by)
        except Conflict as error:
            self._metrics.errors.labels("conflict").inc()
            _log.info("%s; looking again", error)
        except TryAgain as error:
            self._metrics.errors.labels("passing").inc()
            _log.warning("%s: %s", rollout.metadata.name, error)
        except UserError as error:
            self._metrics.errors.labels("refused").inc()
            _log.warning("%s: %s", rollout.metadata.name, error)
            self._guarded(document, self._event, document, "Warning", "Refused", str(error))
        except Exception as error:
            # one broken rollout must neither stop the others nor leave users with a candidate nobody watches
            self._metrics.errors.labels("bug").inc()
            _log.exception("%s could not be reconciled", rollout.metadata.name)
            self._guarded(document, self._give_up, rollout, document, error)

    def _guarded(self, document: dict[str, Any], work: Callable[..., object], *arguments: object) -> None:
        """Do what may fail without harm to others; it is tried again, or was only said."""
        try:
            work(*arguments)
        except (TryAgain, UserError) as error:
            _log.warning("%s: %s", document["metadata"]["name"], error)

    def _step(
        self,
        rollout: ModelRollout,
        document: dict[str, Any],
        counts: Mapping[str, Series] | None,
        waits_for: str | None,
        superseded_by: str | None,
    ) -> None:
        uid = document["metadata"]["uid"]
        service = self._service(rollout)
        seen = Seen(
            service=service,
            counts=self._of(rollout, counts) if counts is not None else None,
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
        if self._worth_storing(uid, rollout.status, status):
            stored = self._store(rollout, document, status, now)
            self._stored_s[uid] = time.monotonic()
            if (status.phase, status.stage) != (rollout.status.phase, rollout.status.stage):
                self._tell(stored, rollout.status, status)
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
        self._cache.put(stored)
        return stored

    def _tell(self, document: dict[str, Any], before: Status, after: Status) -> None:
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
        document = self._api.get(objects.services(rollout.metadata.namespace, rollout.spec.service))
        return kserve.read(document) if document is not None else None

    def _act(self, uid: str, rollout: ModelRollout, service: kserve.Service | None, action: Action) -> None:
        if isinstance(action, RunChecks):
            self._start_checks(uid, rollout, service, action)
            return
        predictors = memory(rollout.status).predictors
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
                service = self._service(rollout)
            else:
                return

    def _carry_out(self, rollout: ModelRollout, change: Change) -> None:
        namespace, name = rollout.metadata.namespace, rollout.spec.service
        _log.debug("%s: %s", rollout.metadata.name, change)
        match change:
            case Patch(document=document, resource_version=version):
                body = {**document, "metadata": {"resourceVersion": version}}
                self._api.patch(objects.services(namespace, name), body)
            case Create(predictor=predictor):
                self._api.create(objects.services(namespace), _new_service(namespace, name, predictor))
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

    def _counts(self) -> Mapping[str, Series] | None:
        try:
            return self._gateway.counts()
        except (TryAgain, UserError) as error:
            _log.warning("no counts of the gateway: %s", error)
            return None

    def _of(self, rollout: ModelRollout, counts: Mapping[str, Series]) -> Mapping[str, Series]:
        """The counts of the rollout's two revisions, under their names."""
        revisions = [name for name in (rollout.status.stable_revision, rollout.status.candidate_revision) if name]
        namespace = rollout.metadata.namespace
        read: dict[str, Series] = {
            pod: {f"{name} codes": series.get(f"{namespace}/{name}", {}) for name in revisions}
            for pod, series in counts.items()
        }
        if rollout.status.stage is not None:
            read |= self._gateway.predictor_counts(namespace, revisions)
        return read

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
        self._checks.start(uid, service.name, candidate, service.address("prev") if action.stable else None, bodies)

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
        self._cache.put(stored)
        return stored

    def _refuse(self, document: dict[str, Any], error: UserError) -> None:
        """The document's spec cannot be: say so, and touch nothing."""
        now = datetime.now(UTC)
        status = Status(phase=Phase.FAILED, reason=str(error), finished_at=now)
        path = objects.rollouts(document["metadata"]["namespace"], document["metadata"]["name"]) + "/status"
        self._cache.put(self._api.replace(path, objects.with_status(document, status, now)))

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
