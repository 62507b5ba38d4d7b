"""The embedded platform: what a rollout wants done, as rows in the store.

`observe` and `apply` speak to `serin.rollout.reconcile`; `apply` only writes what is wanted, inside the caller's
transaction, so the status that asked for it and the wish itself are never torn apart. The supervisor makes
processes and routes follow.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from serin.judge.window import Window
from serin.platforms.embedded.store import RevisionRecord, Service, Store
from serin.platforms.embedded.takeover import TakeOver, TakeOvers, model_folder
from serin.rollout.document import Check, ModelRollout, Phase
from serin.rollout.reconcile import (
    Action,
    CreateCandidate,
    Discard,
    Observation,
    Promote,
    Revision,
    RunChecks,
    SetSplit,
)


@dataclass(frozen=True, slots=True)
class Gateway:
    """What the gateway confirms: revisions whose health checks pass, and the candidate's percent by service."""

    healthy: frozenset[str] = frozenset()
    splits: Mapping[tuple[str, str], int] = field(default_factory=dict)


class EmbeddedPlatform:
    def __init__(self, store: Store, takeovers: TakeOvers) -> None:
        self._store = store
        self._takeovers = takeovers

    def observe(
        self,
        rollout: ModelRollout,
        gateway: Gateway,
        *,
        windows: tuple[Window, ...] = (),
        waits_for: str | None = None,
        superseded_by: str | None = None,
    ) -> Observation:
        namespace, name = rollout.metadata.namespace, rollout.spec.service
        service = self._store.service(name, namespace)
        ours = service is not None and service.rollout == rollout.metadata.name
        taken = TakeOver()
        if waits_for is None and self._needs_model(rollout, service if ours else None):
            taken = self._takeovers.look(rollout)
        checks = self._store.checks(rollout)
        return Observation(
            stable=self._revision(namespace, service.stable, gateway) if service and service.stable else None,
            candidate=self._revision(namespace, service.candidate, gateway)
            if service and ours and service.candidate
            else None,
            split=gateway.splits.get((namespace, name), 0),
            windows=windows,
            checks=tuple(Check.model_validate(check) for check in checks["checks"]) if checks else None,
            refusal=taken.refusal,
            preparing=taken.progress,
            waits_for=waits_for,
            superseded_by=superseded_by,
        )

    def _needs_model(self, rollout: ModelRollout, service: Service | None) -> bool:
        phase = rollout.status.phase
        return phase is Phase.PENDING or (phase is Phase.DARK and (service is None or service.candidate is None))

    def _revision(self, namespace: str, name: str, gateway: Gateway) -> Revision | None:
        record = self._store.revision(name, namespace)
        if record is None:
            return None
        return Revision(
            name=record.name,
            ready=any(server.pid is not None for server in record.servers) and record.cluster in gateway.healthy,
            restarts=sum(server.restarts for server in record.servers),
            failure=record.failure,
        )

    def apply(self, rollout: ModelRollout, action: Action) -> None:
        """Record what is wanted. `RunChecks` wants nothing recorded: the supervisor runs them."""
        namespace, name = rollout.metadata.namespace, rollout.spec.service
        service = self._store.service(name, namespace) or Service(namespace, name, None, None, None, 0, 0)
        match action:
            case CreateCandidate():
                self._create(rollout, service)
            case SetSplit(stable=stable, candidate=candidate, percent=percent):
                if (service.stable, service.candidate) == (stable, candidate):
                    self._store.save_service(dataclasses.replace(service, percent=percent))
            case Promote(candidate=candidate):
                if service.candidate == candidate:
                    before = self._store.revision(service.stable, namespace) if service.stable else None
                    promoted = dataclasses.replace(service, stable=candidate, candidate=None, rollout=None, percent=0)
                    digest = before.digest if before is not None else service.previous
                    self._store.save_service(dataclasses.replace(promoted, previous=digest))
            case Discard(candidate=candidate):
                if service.candidate == candidate:
                    self._store.save_service(dataclasses.replace(service, candidate=None, rollout=None, percent=0))
            case RunChecks():
                pass

    def withdraw(self, rollout: ModelRollout) -> None:
        """All traffic to stable, until the rollout asks for its split again."""
        service = self._store.service(rollout.spec.service, rollout.metadata.namespace)
        if service is not None and service.rollout == rollout.metadata.name and service.percent:
            self._store.save_service(dataclasses.replace(service, percent=0))

    def _create(self, rollout: ModelRollout, service: Service) -> None:
        if service.candidate is not None:
            return
        candidate = rollout.spec.candidate
        digest = self._takeovers.look(rollout).digest
        if digest is None:  # not yet; it is asked for again
            return
        number = service.revisions + 1
        record = RevisionRecord(
            namespace=service.namespace,
            name=f"{service.name}-predictor-{number:05d}",
            service=service.name,
            model=model_folder(self._store.home, digest),
            digest=digest,
            runtime=candidate.runtime,
            env={variable.name: variable.value for variable in candidate.env},
        )
        self._store.save_revision(record)
        self._store.save_service(
            dataclasses.replace(
                service, candidate=record.name, rollout=rollout.metadata.name, percent=0, revisions=number
            )
        )
