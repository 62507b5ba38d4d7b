"""One look at a rollout on KServe: from what is seen to the next status and what is to be done. Pure."""

import dataclasses
from datetime import datetime
from typing import Final

from pydantic import ValidationError

from serin.errors import UserError
from serin.judge.window import Window
from serin.measure.tally import Counts
from serin.plan import Stored
from serin.platforms.kserve import choreography
from serin.platforms.kserve.choreography import Predictors
from serin.platforms.kserve.measure import Measured, measure
from serin.platforms.kserve.service import Service
from serin.rollout.document import Check, Counted, ModelRollout, Phase, Status
from serin.rollout.reconcile import Action, reconcile
from serin.text import duration

BLIND_S: Final = 60.0
"""A candidate that nobody can watch loses its traffic after this time."""


class Memory(Stored):
    """What the platform keeps in `status.platform`."""

    predictors: Predictors | None = None
    measured: Measured | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """`service` is None when there is none of that name, `counts` when they could not be read; `blind` says why a
    rollout that has not begun could not be watched."""

    service: Service | None
    counts: Counts | None = None
    blind: str | None = None
    checks: tuple[Check, ...] | None = None
    waits_for: str | None = None
    superseded_by: str | None = None


def memory(status: Status) -> Memory:
    """Raises `UserError` when another version of serin wrote it in a way that this one cannot read."""
    try:
        return Memory.model_validate(status.platform or {})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"ModelRollout: status.platform.{field}: {first['msg']}.") from error


def step(rollout: ModelRollout, seen: Seen, now: datetime) -> tuple[Status, tuple[Action, ...]]:
    """The next status, to be stored *before* the actions are carried out: with it a restart finds the way back."""
    status, kept = rollout.status, memory(rollout.status)
    if status.phase.terminal:
        return status, ()
    measured, window = _measured(kept.measured, status, seen, now)
    observation = choreography.observe(seen.service, status, kept.predictors, rollout.spec.candidate)
    observation = dataclasses.replace(
        observation,
        windows=(window,) if window is not None else (),
        counted=_counted(measured, status),
        checks=seen.checks,
        waits_for=seen.waits_for,
        superseded_by=seen.superseded_by,
        refusal=observation.refusal if seen.waits_for is None else None,
        foreign_change=observation.foreign_change or _blind(status, measured, now),
    )
    waits = _waits(rollout, seen) if observation.refusal is None else None
    if waits is not None:
        return status.model_copy(update={"reason": waits}), ()
    after, actions = reconcile(rollout.spec, status, observation, now)
    predictors = kept.predictors
    if status.phase is Phase.PENDING and after.phase is Phase.DARK:
        service = seen.service
        predictors = Predictors(
            stable=dict(service.predictor) if service is not None else None,
            candidate=choreography.candidate_predictor(service, rollout.spec.candidate),
            uid=service.uid if service is not None else None,
        )
    kept = Memory(predictors=predictors, measured=None if after.phase.terminal else measured)
    document = kept.model_dump(mode="json", by_alias=True)
    return after.model_copy(update={"platform": document}), actions


def _waits(rollout: ModelRollout, seen: Seen) -> str | None:
    """What must pass before the rollout can begin."""
    ending = rollout.spec.abort or seen.superseded_by is not None
    if rollout.status.phase is not Phase.PENDING or seen.service is None or seen.waits_for is not None or ending:
        return None
    if seen.blind is not None:
        return f"waiting until it can be watched: {seen.blind}"
    return choreography.unrest(seen.service)


def _measured(
    before: Measured | None, status: Status, seen: Seen, now: datetime
) -> tuple[Measured | None, Window | None]:
    if status.stage is None or status.stable_revision is None or seen.service is None or seen.counts is None:
        return before, None
    if status.traffic == 100 or seen.service.percent in (None, 100):
        return before, None
    return measure(before, seen.service, status, seen.counts, now.timestamp())


def _counted(measured: Measured | None, status: Status) -> Counted:
    arms = (status.stable_revision or "", status.candidate_revision or "")
    told = measured is not None and measured.tells_predictions(*arms)
    return Counted.PREDICTIONS if told else Counted.REQUESTS


def _blind(status: Status, measured: Measured | None, now: datetime) -> str | None:
    if status.stage is None or status.traffic in (0, 100) or status.entered_at is None:
        return None
    last_s = measured.at_s if measured is not None else status.entered_at.timestamp()
    blind_s = abs(now.timestamp() - last_s)  # a clock that was set back is no excuse
    return f"the counters could not be read for {duration(blind_s)}" if blind_s > BLIND_S else None
