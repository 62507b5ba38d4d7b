"""How a rollout proceeds: a pure function from what is wanted, known and seen to what is known and done next.

Level-triggered: every call compares the wanted state with the observed one and asks for what is missing, so a
restart at any moment changes nothing. A platform carries the actions out; each is idempotent and names the
revisions it is about, and a platform refuses it when those are no longer the ones in place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from serin import judge
from serin.judge.decision import Action as Verdict
from serin.judge.decision import Decision
from serin.judge.window import Window
from serin.plan import Checks, OnInconclusive, Plan
from serin.rollout import (
    Approval,
    Check,
    HistoryEntry,
    MetricEvidence,
    Phase,
    Ratio,
    Requests,
    Spec,
    Status,
)

MAX_RESTARTS: Final = 2
"""A candidate that had to be started again more often than this is not fit to serve."""


@dataclass(frozen=True, slots=True)
class Revision:
    """`failure` says why it can never become ready; `restarts` counts how often it died and was started again."""

    name: str
    ready: bool
    restarts: int = 0
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What a platform sees of one rollout.

    `candidate` is the revision this rollout asked for, None before it exists and after it is gone. `split` is the
    candidate's percent of traffic that the gateway confirms. `windows` are those closed since the last call.
    `checks` are the results at 0 % traffic, None until they are in. `refusal` is why the platform cannot start
    (yours to fix), `waits_for` an older rollout of the same service, `superseded_by` a newer one, `foreign_change`
    what somebody else changed about the service meanwhile.
    """

    stable: Revision | None = None
    candidate: Revision | None = None
    split: int = 0
    windows: tuple[Window, ...] = ()
    checks: tuple[Check, ...] | None = None
    refusal: str | None = None
    waits_for: str | None = None
    superseded_by: str | None = None
    foreign_change: str | None = None


@dataclass(frozen=True, slots=True)
class CreateCandidate:
    """Start the candidate at 0 % traffic."""


@dataclass(frozen=True, slots=True)
class RunChecks:
    candidate: str
    stable: str | None


@dataclass(frozen=True, slots=True)
class SetSplit:
    stable: str
    candidate: str
    percent: int


@dataclass(frozen=True, slots=True)
class Promote:
    """Make the candidate the stable revision, with all traffic."""

    candidate: str
    stable: str | None


@dataclass(frozen=True, slots=True)
class Discard:
    """Take the candidate out of the service; stable has all traffic."""

    candidate: str
    stable: str | None


Action = CreateCandidate | RunChecks | SetSplit | Promote | Discard
Step = tuple[Status, tuple[Action, ...]]


def reconcile(spec: Spec, status: Status, observation: Observation, now: datetime) -> Step:
    """The next status and what the platform is to do. `now` is UTC."""
    if status.phase.terminal:
        return status, ()
    status = _named(status, observation)
    decision = None
    if observation.windows or status.judge_state is not None:
        status, decision = _judged(spec, status, observation, now)
    if observation.stable is not None and observation.stable.name == status.candidate_revision:
        return _move(status, Phase.PROMOTED, now, status.reason), ()
    reason = _stop_reason(spec, status, observation, decision)
    if reason is not None and status.phase is not Phase.ROLLING_BACK:
        return _roll_back(status, observation, now, reason)
    return _STEPS[status.phase](spec, status, observation, now, decision)


def _named(status: Status, seen: Observation) -> Status:
    if status.candidate_revision is None and seen.candidate is not None:
        return status.model_copy(update={"candidate_revision": seen.candidate.name})
    return status


def _judged(spec: Spec, status: Status, seen: Observation, now: datetime) -> tuple[Status, Decision]:
    state = (
        judge.load(status.judge_state)
        if status.judge_state is not None
        else judge.start(judge.policy_for(spec.effective_plan, spec.judge))
    )
    for window in seen.windows:
        state = judge.observe(state, window)
    decision = judge.decide(state, now.timestamp())
    requests = _plus(status.requests, seen.windows)
    steady = tuple(each for each in seen.windows if each.stage == status.stage and each.share is not None)
    stage_requests = _plus(status.stage_requests, steady)
    in_stage = stage_requests.stable + stage_requests.candidate
    errors = Requests(
        stable=status.errors.stable + sum(each.stable.events.get("errors", 0) for each in seen.windows),
        candidate=status.errors.candidate + sum(each.candidate.events.get("errors", 0) for each in seen.windows),
    )
    evidence = tuple(
        MetricEvidence(
            metric=each.metric,
            log10_e=each.log10_e,
            safe=each.safe,
            ratio=Ratio(low=each.low, high=each.high),
            requests=Requests(stable=each.stable_requests, candidate=each.candidate_requests),
        )
        for each in decision.evidence
    )
    update = {
        "judge_state": state.dump(),
        "evidence": evidence,
        "log10_e": decision.log10_e,
        "alert": decision.alert,
        "needs_requests": decision.needs_requests,
        "needs_seconds": decision.needs_s,
        "requests": requests,
        "stage_requests": stage_requests,
        "observed_traffic": 100 * stage_requests.candidate / in_stage if in_stage else None,
        "errors": errors,
    }
    return status.model_copy(update=update), decision


def _plus(before: Requests, windows: tuple[Window, ...]) -> Requests:
    return Requests(
        stable=before.stable + sum(each.stable.requests for each in windows),
        candidate=before.candidate + sum(each.candidate.requests for each in windows),
    )


def _stop_reason(spec: Spec, status: Status, seen: Observation, decision: Decision | None) -> str | None:
    """Why the rollout cannot go on, whatever its phase; None when it can."""
    if spec.abort:
        return "aborted by request"
    if seen.superseded_by is not None:
        return f"superseded by rollout {seen.superseded_by}"
    if status.phase is Phase.PENDING:
        return None
    if seen.foreign_change is not None:
        return f"stopped: {seen.foreign_change}"
    if status.policy_hash != judge.policy_for(spec.effective_plan, spec.judge).hash():
        return "stopped: plan or judge was changed after the start; create a new rollout instead"
    if seen.candidate is not None and seen.candidate.failure is not None:
        return f"candidate cannot serve: {seen.candidate.failure}"
    if seen.candidate is not None and seen.candidate.restarts > MAX_RESTARTS:
        return f"candidate died {seen.candidate.restarts} times"
    if decision is not None and decision.action is Verdict.ROLLBACK:
        return decision.reason
    return None


def _move(status: Status, phase: Phase, now: datetime, reason: str, **update: object) -> Status:
    """Enter a phase or stage, and put that on record."""
    moved = status.model_copy(update={"phase": phase, "entered_at": now, "reason": reason, **update})
    if phase.terminal:
        moved = moved.model_copy(update={"finished_at": now, "needs_requests": None, "needs_seconds": None})
    entry = HistoryEntry(at=now, phase=phase, stage=moved.stage, traffic=moved.traffic, reason=reason)
    return moved.model_copy(update={"history": (*moved.history, entry)})


def _stay(status: Status, reason: str) -> Step:
    return status.model_copy(update={"reason": reason}), ()


def _age_s(status: Status, now: datetime) -> float:
    return (now - status.entered_at).total_seconds() if status.entered_at else 0.0


def _total_age_s(status: Status, now: datetime) -> float:
    return (now - status.started_at).total_seconds() if status.started_at else 0.0


def _pending(spec: Spec, status: Status, seen: Observation, now: datetime, _: Decision | None) -> Step:
    if seen.refusal is not None:
        return _move(status, Phase.FAILED, now, seen.refusal), ()
    if seen.waits_for is not None:
        return _stay(status, f"waits for rollout {seen.waits_for} of the same service")
    if spec.paused:
        return _stay(status, "paused before it began")
    return (
        _move(
            status,
            Phase.DARK,
            now,
            "starting the candidate at 0 % traffic",
            started_at=now,
            stable_revision=seen.stable.name if seen.stable else None,
            policy_hash=judge.policy_for(spec.effective_plan, spec.judge).hash(),
        ),
        (CreateCandidate(),),
    )


def _dark(spec: Spec, status: Status, seen: Observation, now: datetime, _: Decision | None) -> Step:
    limit_s = spec.effective_plan.start_seconds
    if seen.candidate is not None and seen.candidate.ready:
        if spec.effective_plan.checks is Checks.NONE and status.stable_revision is not None:
            return _after_checks(spec, status, seen, now, "checks at 0 % are switched off")
        status = _move(status, Phase.CHECKING, now, "checking the candidate at 0 % traffic")
        return status, (RunChecks(candidate=seen.candidate.name, stable=status.stable_revision),)
    if _age_s(status, now) > limit_s:
        return _roll_back(status, seen, now, f"candidate was not ready after {limit_s:.0f} s")
    if seen.candidate is None:
        return status, (CreateCandidate(),)
    return _stay(status, f"candidate is starting, {_age_s(status, now):.0f} s of at most {limit_s:.0f} s")


def _checking(spec: Spec, status: Status, seen: Observation, now: datetime, _: Decision | None) -> Step:
    limit_s = spec.effective_plan.start_seconds
    if seen.checks is not None:
        status = status.model_copy(update={"checks": seen.checks})
        failed = [check for check in seen.checks if not check.passed]
        if failed:
            told = "; ".join(f"{check.name}: {check.detail}" for check in failed)
            return _roll_back(status, seen, now, f"refused at 0 % traffic: {told}")
        return _after_checks(spec, status, seen, now, f"{len(seen.checks)} checks passed at 0 % traffic")
    if _age_s(status, now) > limit_s:
        return _roll_back(status, seen, now, f"checks at 0 % traffic did not end within {limit_s:.0f} s")
    if seen.candidate is None or not seen.candidate.ready:
        return _stay(status, "candidate is not ready, the checks wait for it")
    return status, (RunChecks(candidate=seen.candidate.name, stable=status.stable_revision),)


def _after_checks(spec: Spec, status: Status, seen: Observation, now: datetime, told: str) -> Step:
    if spec.approval is Approval.BEFORE_TRAFFIC and not spec.approved:
        return _move(status, Phase.WAITING, now, f"{told}; waiting for approval before traffic"), ()
    if status.stable_revision is None:
        return _promote(status, seen, now, f"{told}; first model of this service, no baseline to compare with")
    if spec.promote:
        return _promote(status, seen, now, "promoted by request, outside the judge's guarantee")
    return _enter_stage(spec.effective_plan, status, seen, now, 0, told)


def _enter_stage(plan: Plan, status: Status, seen: Observation, now: datetime, stage: int, told: str) -> Step:
    baking = stage == len(plan.stages)
    traffic = plan.bake.traffic if baking else plan.stages[stage].traffic
    status = _move(
        status,
        Phase.BAKING if baking else Phase.PROGRESSING,
        now,
        told,
        stage=stage,
        traffic=traffic,
        stage_requests=Requests(),
        observed_traffic=None,
    )
    return status, _split(status, seen, traffic)


def _split(status: Status, seen: Observation, percent: int) -> tuple[Action, ...]:
    """Ask for a split unless the gateway already confirms it."""
    if status.stable_revision is None or seen.candidate is None or seen.split == percent:
        return ()
    return (SetSplit(stable=status.stable_revision, candidate=seen.candidate.name, percent=percent),)


def _traffic_step(spec: Spec, status: Status, seen: Observation, now: datetime, decision: Decision | None) -> Step:
    """Progressing and Baking: hold the split, then let time and evidence move on."""
    plan = spec.effective_plan
    if seen.candidate is None or not seen.candidate.ready:
        if status.traffic != 0:
            told = "candidate is not ready: its traffic is with stable until it is back"
            status = _move(status, status.phase, now, told, traffic=0)
        elif _age_s(status, now) > plan.start_seconds:
            return _roll_back(status, seen, now, "candidate stopped being ready and did not come back")
        return status, _split(status, seen, 0)
    stage = status.stage or 0
    baking = stage == len(plan.stages)
    wanted = plan.bake.traffic if baking else plan.stages[stage].traffic
    if status.traffic != wanted:
        return _enter_stage(plan, status, seen, now, stage, "candidate is ready again")
    if seen.split != wanted:
        return status, _split(status, seen, wanted)
    if spec.promote:
        return _promote(status, seen, now, "promoted by request, outside the judge's guarantee")
    if spec.paused:
        return _move(status, Phase.WAITING, now, "paused by request"), ()
    if decision is not None and decision.alert is not None:
        return _inconclusive(plan, status, seen, now, decision.alert)
    if baking:
        left_s = plan.bake.seconds - _age_s(status, now)
        if left_s > 0:
            status = status.model_copy(update={"needs_seconds": left_s})
            return _stay(status, f"baking at {wanted} %, {left_s:.0f} s left")
        return _finish(spec, status, seen, now, f"healthy at {wanted} % for {plan.bake.seconds:.0f} s")
    left_s = plan.stages[stage].min_seconds - _age_s(status, now)
    if decision is not None and decision.action is Verdict.ADVANCE and left_s <= 0:
        return _enter_stage(plan, status, seen, now, stage + 1, decision.reason)
    waiting = decision.reason if decision is not None else "waiting for the first requests"
    return _inconclusive(plan, status, seen, now, waiting)


def _inconclusive(plan: Plan, status: Status, seen: Observation, now: datetime, waiting: str) -> Step:
    if _total_age_s(status, now) <= plan.deadline_seconds:
        return _stay(status, waiting)
    told = f"no decision within {plan.deadline_seconds:.0f} s ({waiting})"
    if plan.on_inconclusive is OnInconclusive.ROLLBACK:
        return _roll_back(status, seen, now, told)
    if plan.on_inconclusive is OnInconclusive.PROMOTE and status.alert is None:
        return _promote(status, seen, now, f"{told}; promoted by plan, outside the judge's guarantee")
    return _move(status, Phase.WAITING, now, f"{told}; promote or abort it"), ()


def _finish(spec: Spec, status: Status, seen: Observation, now: datetime, told: str) -> Step:
    if spec.approval is Approval.BEFORE_FULL and not spec.approved:
        return _move(status, Phase.WAITING, now, f"{told}; waiting for approval before full traffic"), ()
    return _promote(status, seen, now, told)


def _waiting(spec: Spec, status: Status, seen: Observation, now: datetime, decision: Decision | None) -> Step:
    """A person decides. The judge goes on watching: it may still roll back."""
    plan = spec.effective_plan
    if seen.candidate is None or not seen.candidate.ready:
        return status.model_copy(update={"traffic": 0}), _split(status, seen, 0)
    if spec.promote:
        return _promote(status, seen, now, "promoted by request, outside the judge's guarantee")
    if spec.paused:
        return _stay(status, "paused by request")
    overdue = _total_age_s(status, now) > plan.deadline_seconds
    if status.stage is None:
        waits = spec.approval is Approval.BEFORE_TRAFFIC and not spec.approved
        return (status, ()) if waits else _after_checks(spec, status, seen, now, "approved")
    if status.stage == len(plan.stages):
        waits = spec.approval is Approval.BEFORE_FULL and not spec.approved
        return (status, ()) if waits else _enter_stage(plan, status, seen, now, status.stage, "resumed")
    if overdue and (decision is None or decision.action is not Verdict.ADVANCE):
        return status, ()
    return _enter_stage(plan, status, seen, now, status.stage, "resumed")


def _promote(status: Status, seen: Observation, now: datetime, told: str) -> Step:
    """Ask for promotion; the terminal phase is entered once the platform shows it done."""
    if seen.candidate is None:
        return _stay(status, "the candidate is gone")
    if status.phase is not Phase.BAKING or status.traffic != 100:
        status = _move(status, Phase.BAKING, now, told, traffic=100)
    return status, (Promote(candidate=seen.candidate.name, stable=status.stable_revision),)


def _baking(spec: Spec, status: Status, seen: Observation, now: datetime, decision: Decision | None) -> Step:
    if status.traffic != 100:
        return _traffic_step(spec, status, seen, now, decision)
    if seen.candidate is None or not seen.candidate.ready:
        return _roll_back(status, seen, now, "candidate stopped being ready at promotion")
    return status, (Promote(candidate=seen.candidate.name, stable=status.stable_revision),)


def _roll_back(status: Status, seen: Observation, now: datetime, reason: str) -> Step:
    if status.phase is Phase.PENDING:
        return _move(status, Phase.ROLLED_BACK, now, reason), ()
    status = _move(status, Phase.ROLLING_BACK, now, reason, traffic=0)
    return _rolling_back(None, status, seen, now, None)


def _rolling_back(
    _spec: Spec | None, status: Status, seen: Observation, now: datetime, _decision: Decision | None
) -> Step:
    """First the traffic, then the candidate; done when the platform shows neither."""
    if seen.candidate is not None and seen.split != 0:
        return status, _split(status, seen, 0)
    if seen.candidate is not None:
        return status, (Discard(candidate=seen.candidate.name, stable=status.stable_revision),)
    return _move(status, Phase.ROLLED_BACK, now, status.reason), ()


_STEPS: Final[dict[Phase, Callable[[Spec, Status, Observation, datetime, Decision | None], Step]]] = {
    Phase.PENDING: _pending,
    Phase.DARK: _dark,
    Phase.CHECKING: _checking,
    Phase.PROGRESSING: _traffic_step,
    Phase.WAITING: _waiting,
    Phase.BAKING: _baking,
    Phase.ROLLING_BACK: _rolling_back,
}
