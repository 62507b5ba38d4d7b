"""How a rollout proceeds: a pure function from what is wanted, known and seen to what is known and done next.

Level-triggered: every call compares the wanted state with the observed one and asks for what is missing, so a
restart at any moment changes nothing. A platform carries the actions out; each is idempotent and names the
revisions it is about, and a platform refuses it when those are no longer the ones in place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from serin import judge
from serin.errors import UserError
from serin.judge.decision import Action as Verdict
from serin.judge.decision import Decision
from serin.judge.policy import ERRORS
from serin.judge.window import ABANDONED, Window
from serin.plan import Checks, OnInconclusive, Plan
from serin.rollout.document import (
    Approval,
    Check,
    Counted,
    HistoryEntry,
    MetricEvidence,
    Phase,
    Ratio,
    Requests,
    Spec,
    Status,
)
from serin.text import count, duration

MAX_RESTARTS: Final = 2
"""A candidate that had to be started again more often than this is not fit to serve."""
MAX_LOSSES: Final = 5
"""Nor is one that stopped being ready more often than this and came back."""
CHECKING: Final = "checking the candidate at 0 % traffic"
STABLE_DOWN: Final = "; stable is not serving"
"""Before the cause: what a reason says of a stable revision that is not there, which is no reason to stop."""
UNPROVEN: Final = (
    "whether the candidate answers predictions is unknown: its model server does not count them and it answered no "
    "recorded request at 0 %; record some, or promote or abort it"
)
PROOF: Final = ("answers", "requests")
"""Checks that send predictions to the candidate."""
BY_REQUEST: Final = "promoted by request, outside the judge's guarantee"


@dataclass(frozen=True, slots=True)
class Revision:
    """`name` is empty while it was asked for and has none yet. `failure` says why it can never become ready;
    `restarts` counts how often it died and was started again."""

    name: str
    ready: bool
    restarts: int = 0
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What a platform sees of one rollout.

    `candidate` is the revision this rollout asked for, None before it exists and after it is gone. `split` is the
    candidate's percent of traffic that the gateway confirms. `windows` are those closed since the last call,
    `counted` what is counted in them. `checks` are the results at 0 % traffic, None until they are in. `refusal` is
    why the platform cannot start (yours to fix), `preparing` what it has to do before it can, `waits_for` an older
    rollout of the same service, `superseded_by` a newer one, `foreign_change` what somebody else changed about the
    service meanwhile.
    """

    stable: Revision | None = None
    candidate: Revision | None = None
    split: int = 0
    windows: tuple[Window, ...] = ()
    counted: Counted = Counted.PREDICTIONS
    checks: tuple[Check, ...] | None = None
    refusal: str | None = None
    preparing: str | None = None
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
    status = status.model_copy(update={"reason": status.reason.partition(STABLE_DOWN)[0]})
    status, actions = _reconcile(spec, status, observation, now)
    if (why := _stable_down(observation.stable)) is not None and not status.phase.terminal:
        status = status.model_copy(update={"reason": f"{status.reason.rstrip('.')}{STABLE_DOWN}: {why}"})
    return status, actions


def _stable_down(stable: Revision | None) -> str | None:
    if stable is None or stable.ready:
        return None
    return stable.failure or (f"it died; restart {stable.restarts} is in progress" if stable.restarts else None)


def _reconcile(spec: Spec, status: Status, observation: Observation, now: datetime) -> Step:
    if status.stage is None and observation.candidate is not None:
        status = status.model_copy(update={"candidate_revision": observation.candidate.name})
    status = _counted(status, observation.windows, observation.counted)
    if observation.stable is not None and observation.stable.name == status.candidate_revision:
        if observation.split != 0:
            return _stay(status, "the candidate is now stable; the gateway has not confirmed this yet")
        return _move(status, Phase.PROMOTED, now, status.history[-1].reason), ()
    if status.phase is Phase.ROLLING_BACK:
        return _rolling_back(status, observation, now)
    decision = None
    if observation.windows or status.judge_state is not None:
        try:
            status, decision = _judged(spec, status, observation.windows, now)
        except UserError as error:
            return _roll_back(status, observation, now, f"stopped: {error}")
    if decision is not None and decision.would is Verdict.ROLLBACK and status.would_roll_back_at is None:
        update = {"entered_at": status.entered_at, "would_roll_back_at": now}
        status = _move(status, status.phase, now, decision.reason, **update)
    reason = _stop_reason(spec, status, observation, decision)
    if reason is not None:
        return _roll_back(status, observation, now, reason)
    if status.stage is None and (undo := _split(status, observation, 0)):
        return _stay(status, "the gateway has not confirmed 0 % yet", *undo)
    return _STEPS[status.phase](spec, status, observation, now, decision)


def unwatched(status: Status, reason: str, now: datetime) -> Status:
    """When a look at a rollout failed for `reason`: with traffic it goes back, for nobody watches it; before that,
    and on its way back, it is tried again."""
    if status.stage is None or status.phase is Phase.ROLLING_BACK:
        return _stay(status, f"retrying after {reason}")[0]
    return _move(status, Phase.ROLLING_BACK, now, f"stopped by {reason}", traffic=0)


def refused(status: Status, reason: str, now: datetime) -> Status:
    """When what a rollout needs before its first traffic is refused, which is for its author to fix."""
    return _move(status, Phase.ROLLING_BACK, now, f"stopped: {reason}")


def _counted(status: Status, windows: tuple[Window, ...], counted: Counted) -> Status:
    """Add the answers in `windows`; those under the split in force also give the observed share."""
    stage_requests = _plus(status.stage_requests, [each for each in windows if each.share == status.traffic / 100])
    in_stage = stage_requests.stable + stage_requests.candidate
    update = {
        "counted": counted if windows else status.counted,
        "requests": _plus(status.requests, windows),
        "errors": _plus_events(status.errors, windows, ERRORS),
        "abandoned": _plus_events(status.abandoned, windows, ABANDONED),
        "stage_requests": stage_requests,
        "observed_traffic": 100 * stage_requests.candidate / in_stage if in_stage else None,
    }
    return status.model_copy(update=update)


def _plus(before: Requests, windows: Sequence[Window]) -> Requests:
    return Requests(
        stable=before.stable + sum(each.stable.requests for each in windows),
        candidate=before.candidate + sum(each.candidate.requests for each in windows),
    )


def _plus_events(before: Requests, windows: Sequence[Window], event: str) -> Requests:
    return Requests(
        stable=before.stable + sum(each.stable.events.get(event, 0) for each in windows),
        candidate=before.candidate + sum(each.candidate.events.get(event, 0) for each in windows),
    )


def _judged(spec: Spec, status: Status, windows: tuple[Window, ...], now: datetime) -> tuple[Status, Decision]:
    """Raises `UserError` when the judge's state is from another version of serin."""
    state = (
        judge.load(status.judge_state)
        if status.judge_state is not None
        else judge.start(judge.policy_for(spec.effective_plan, spec.judge))
    )
    for window in windows:
        state = judge.observe(state, window)
    decision = judge.decide(state, now.timestamp())
    ratios = {each.metric: each.ratio for each in status.evidence}
    if decision.action is Verdict.ROLLBACK or any(int(each.start_s) != int(each.end_s) for each in windows):
        # For people, to whom once a second is often enough.
        ratios = {name: Ratio(low=at.low, high=at.high) for name, at in judge.confidence(state).items()}
    evidence = tuple(
        MetricEvidence(
            metric=each.metric,
            log10_e=each.log10_e,
            judged=each.judged,
            safe=each.safe,
            ratio=ratios.get(each.metric, Ratio()),
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
    }
    return status.model_copy(update=update), decision


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
        return (
            "stopped: plan or judge changed after the start, through an edit or a new version's profile; "
            "create a new rollout"
        )
    if seen.candidate is not None and seen.candidate.failure is not None:
        return f"candidate cannot serve: {seen.candidate.failure}"
    if seen.candidate is not None and seen.candidate.restarts > MAX_RESTARTS:
        return f"candidate died {seen.candidate.restarts} times"
    if decision is not None and decision.action is Verdict.ROLLBACK:
        gave_up = status.abandoned.candidate
        return decision.reason + (f" Clients abandoned {gave_up:,} requests to the candidate." if gave_up else "")
    return None


def _move(status: Status, phase: Phase, now: datetime, reason: str, **update: object) -> Status:
    """Enter a phase or stage, and put that on record."""
    moved = status.model_copy(update={"phase": phase, "entered_at": now, "reason": reason, **update})
    if phase.terminal:
        over = {"finished_at": now, "needs_requests": None, "needs_seconds": None, "judge_state": None}
        moved = moved.model_copy(update=over)
    entry = HistoryEntry(at=now, phase=phase, stage=moved.stage, traffic=moved.traffic, reason=reason)
    return moved.model_copy(update={"history": (*moved.history, entry)})


def _stay(status: Status, reason: str, *actions: Action) -> Step:
    return status.model_copy(update={"reason": reason}), actions


def _hold(status: Status, phase: Phase, now: datetime, reason: str) -> Step:
    """Be in `phase` with the split as it is. The stage's time runs on: the candidate is watched all the while."""
    if status.phase is phase:
        return _stay(status, reason)
    told = reason if phase is Phase.WAITING else "resumed"
    return _move(status, phase, now, told, entered_at=status.entered_at), ()


def _age_s(status: Status, now: datetime) -> float:
    return (now - status.entered_at).total_seconds() if status.entered_at else 0.0


def _total_age_s(status: Status, now: datetime) -> float:
    return (now - status.started_at).total_seconds() if status.started_at else 0.0


def _pending(spec: Spec, status: Status, seen: Observation, now: datetime, _: Decision | None) -> Step:
    if seen.refusal is not None:
        return _move(status, Phase.FAILED, now, seen.refusal), ()
    if spec.judge.without_source:
        name = spec.judge.without_source[0]
        reason = f"judge.metrics: nothing counts {name}; give it a source, such as {{counter: {name}_total}}"
        return _move(status, Phase.FAILED, now, reason), ()
    if seen.waits_for is not None:
        return _stay(status, f"waiting for rollout {seen.waits_for} of the same service")
    if spec.paused:
        return _stay(status, "paused before it started")
    if seen.preparing is not None:
        return _stay(status, seen.preparing)
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
            return _after_checks(spec, status, seen, now, "checks at 0 % traffic are off")
        status = _move(status, Phase.CHECKING, now, CHECKING)
        return status, (RunChecks(candidate=seen.candidate.name, stable=status.stable_revision),)
    if _age_s(status, now) > limit_s:
        return _roll_back(status, seen, now, f"candidate was not ready after {duration(limit_s)}")
    if seen.candidate is None:
        return status, (CreateCandidate(),)
    return _stay(status, f"candidate is starting, {duration(_age_s(status, now))} of at most {duration(limit_s)}")


def _checking(spec: Spec, status: Status, seen: Observation, now: datetime, _: Decision | None) -> Step:
    limit_s = spec.effective_plan.start_seconds
    ready = seen.candidate is not None and seen.candidate.ready
    if seen.checks is not None:
        status = status.model_copy(update={"checks": seen.checks})
        failed = [check for check in seen.checks if not check.passed]
        if failed:
            told = "; ".join(f"{check.name}: {check.detail}" for check in failed)
            return _roll_back(status, seen, now, f"refused at 0 % traffic: {told}")
        if ready:
            return _after_checks(spec, status, seen, now, f"{count(len(seen.checks), 'check')} passed at 0 % traffic")
    if _age_s(status, now) > limit_s:
        return _roll_back(status, seen, now, f"checks at 0 % traffic did not finish within {duration(limit_s)}")
    if seen.candidate is None or not ready:
        return _stay(status, "candidate is not ready; the checks wait for it")
    return _stay(status, CHECKING, RunChecks(candidate=seen.candidate.name, stable=status.stable_revision))


def _after_checks(spec: Spec, status: Status, seen: Observation, now: datetime, told: str) -> Step:
    """The candidate is ready and passed its checks: now traffic, or whoever must allow it."""
    gate = _gate(spec)
    if gate is not None:
        return _move(status, Phase.WAITING, now, f"{told}; {gate}"), ()
    if status.stable_revision is None:
        return _promote(status, seen, now, f"{told}; first model of this service, no baseline to compare with")
    if spec.promote:
        return _promote(status, seen, now, BY_REQUEST)
    return _enter_stage(spec.effective_plan, status, seen, now, 0, told)


def _gate(spec: Spec) -> str | None:
    """What keeps a checked candidate from its first traffic."""
    if spec.promote:
        return None
    if spec.approval is Approval.BEFORE_TRAFFIC and not spec.approved:
        return "waiting for approval before traffic"
    return "paused by request, before traffic" if spec.paused else None


def _enter_stage(plan: Plan, status: Status, seen: Observation, now: datetime, stage: int, told: str) -> Step:
    traffic = _share(plan, stage)
    update = {"stage": stage, "traffic": traffic, "stage_requests": Requests(), "observed_traffic": None}
    status = _move(status, _phase(plan, stage), now, told, **update)
    return status, _split(status, seen, traffic)


def _share(plan: Plan, stage: int) -> int:
    return plan.bake.traffic if stage == len(plan.stages) else plan.stages[stage].traffic


def _phase(plan: Plan, stage: int) -> Phase:
    return Phase.BAKING if stage == len(plan.stages) else Phase.PROGRESSING


def _split(status: Status, seen: Observation, percent: int) -> tuple[Action, ...]:
    """Ask for a split unless the gateway already confirms it."""
    if status.stable_revision is None or seen.candidate is None or seen.split == percent:
        return ()
    return (SetSplit(stable=status.stable_revision, candidate=seen.candidate.name, percent=percent),)


def _waiting(spec: Spec, status: Status, seen: Observation, now: datetime, decision: Decision | None) -> Step:
    """A person decides. With traffic, the judge goes on watching: it may still roll back."""
    if status.stage is not None:
        return _traffic_step(spec, status, seen, now, decision)
    gate = _gate(spec)
    if gate is not None:
        return _stay(status, gate)
    if seen.candidate is None or not seen.candidate.ready:
        return _stay(status, "candidate is not ready; it gets no traffic until then")
    return _after_checks(spec, status, seen, now, "approved" if spec.approved else "resumed")


def _traffic_step(spec: Spec, status: Status, seen: Observation, now: datetime, decision: Decision | None) -> Step:
    """Progressing, Baking, Waiting in between: hold the split, then let people, evidence and time move on."""
    plan = spec.effective_plan
    if seen.candidate is None or not seen.candidate.ready:
        losses = sum(entry.stage is not None and entry.traffic == 0 for entry in status.history)
        if status.traffic != 0 and losses == MAX_LOSSES:
            return _roll_back(status, seen, now, f"candidate became unready {losses + 1} times")
        if status.traffic != 0:
            told = "candidate is not ready; its traffic goes to stable until it recovers"
            status = _move(status, status.phase, now, told, traffic=0)
        elif _age_s(status, now) > plan.start_seconds:
            return _roll_back(status, seen, now, "candidate became unready and did not recover")
        return status, _split(status, seen, 0)
    stage = status.stage or 0
    wanted = _share(plan, stage)
    if status.traffic != wanted:
        return _enter_stage(plan, status, seen, now, stage, "candidate is ready again")
    if seen.split != wanted:
        return _stay(status, f"the gateway has not confirmed {wanted} % yet", *_split(status, seen, wanted))
    if spec.promote:
        return _promote(status, seen, now, BY_REQUEST)
    if spec.paused:
        return _hold(status, Phase.WAITING, now, "paused by request")
    phase = _phase(plan, stage)
    said = decision.reason if decision is not None else "waiting for the first requests"
    shown = phase is Phase.BAKING or (decision is not None and decision.action is Verdict.ADVANCE)
    shown = shown and status.stage_requests.candidate > 0  # else it speaks of an earlier stage
    dry_run = spec.judge.dry_run
    if (status.alert is not None and not dry_run) or not shown:
        return _inconclusive(plan, status, seen, now, phase, status.alert or said)
    if status.counted is Counted.REQUESTS and not any(each.passed and each.name in PROOF for each in status.checks):
        return _inconclusive(plan, status, seen, now, phase, UNPROVEN)
    left_s = (plan.bake.seconds if phase is Phase.BAKING else plan.stages[stage].min_seconds) - _age_s(status, now)
    if left_s > 0:
        status = status.model_copy(update={"needs_seconds": left_s})
        return _hold(status, phase, now, said if dry_run else f"healthy at {wanted} %, {duration(left_s)} left")
    if phase is Phase.BAKING:
        healthy = f"healthy at {wanted} % for {duration(plan.bake.seconds)}"
        return _finish(spec, status, seen, now, said if dry_run else healthy)
    return _enter_stage(plan, status, seen, now, stage + 1, said)


def _inconclusive(plan: Plan, status: Status, seen: Observation, now: datetime, phase: Phase, waiting: str) -> Step:
    if _total_age_s(status, now) <= plan.deadline_seconds:
        return _hold(status, phase, now, waiting)
    told = f"no decision within {duration(plan.deadline_seconds)}: {waiting[:1].lower()}{waiting[1:].rstrip('.')}"
    if plan.on_inconclusive is OnInconclusive.ROLLBACK:
        return _roll_back(status, seen, now, told)
    if plan.on_inconclusive is OnInconclusive.PROMOTE and status.alert is None:
        return _promote(status, seen, now, f"{told}; promoted by plan, outside the judge's guarantee")
    return _hold(status, Phase.WAITING, now, f"{told}; promote or abort it")


def _finish(spec: Spec, status: Status, seen: Observation, now: datetime, told: str) -> Step:
    if spec.approval is Approval.BEFORE_FULL and not spec.approved:
        return _hold(status, Phase.WAITING, now, f"{told}; waiting for approval before full traffic")
    return _promote(status, seen, now, told)


def _promote(status: Status, seen: Observation, now: datetime, told: str) -> Step:
    """Ask for promotion; the terminal phase is entered once the platform shows it done."""
    return _promoting(_move(status, Phase.BAKING, now, told, traffic=100), seen, now)


def _promoting(status: Status, seen: Observation, now: datetime) -> Step:
    if seen.candidate is None or not seen.candidate.ready:
        return _roll_back(status, seen, now, "candidate became unready at promotion")
    return status, (Promote(candidate=seen.candidate.name, stable=status.stable_revision),)


def _baking(spec: Spec, status: Status, seen: Observation, now: datetime, decision: Decision | None) -> Step:
    if status.traffic == 100:
        return _promoting(status, seen, now)
    return _traffic_step(spec, status, seen, now, decision)


def _roll_back(status: Status, seen: Observation, now: datetime, reason: str) -> Step:
    if status.phase is Phase.PENDING:
        return _move(status, Phase.ROLLED_BACK, now, reason), ()
    return _rolling_back(_move(status, Phase.ROLLING_BACK, now, reason, traffic=0), seen, now)


def _rolling_back(status: Status, seen: Observation, now: datetime) -> Step:
    """First the traffic, then the candidate; done when the platform shows neither."""
    if seen.split != 0:
        return status, _split(status, seen, 0)
    if seen.candidate is not None:
        return status, (Discard(candidate=seen.candidate.name, stable=status.stable_revision),)
    return _move(status, Phase.ROLLED_BACK, now, status.history[-1].reason), ()


_STEPS: Final[dict[Phase, Callable[[Spec, Status, Observation, datetime, Decision | None], Step]]] = {
    Phase.PENDING: _pending,
    Phase.DARK: _dark,
    Phase.CHECKING: _checking,
    Phase.PROGRESSING: _traffic_step,
    Phase.WAITING: _waiting,
    Phase.BAKING: _baking,
}
