"""How serin says things to people: the same words in the live view, in plain lines and in the report."""

import math
from datetime import datetime
from enum import StrEnum
from typing import Final

from serin.judge.policy import SPLIT, JudgeSpec
from serin.plan import OnInconclusive, Plan
from serin.rollout.document import HistoryEntry, MetricEvidence, ModelRollout, Phase, Spec, Status
from serin.text import count as count
from serin.text import duration as duration

_DOWN = (Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.FAILED)


class State(StrEnum):
    """What the judge makes of one metric."""

    SAFE = "safe"
    WATCHING = "watching"
    SUSPECT = "suspect"
    HARM = "harm"
    NOT_JUDGED = "not judged"


def metric_state(evidence: MetricEvidence, judge: JudgeSpec) -> State:
    """A metric is suspect or harmful on the strength of its own part in the combined evidence."""
    if not evidence.judged:
        return State.NOT_JUDGED
    if evidence.metric == SPLIT:
        own, limit = evidence.log10_e, -math.log10(judge.split_alpha)
    else:
        own, limit = evidence.log10_e + math.log10(judge.shares[evidence.metric]), -math.log10(judge.alpha)
    if own >= limit:
        return State.HARM
    if own >= math.log10(judge.suspicion):
        return State.SUSPECT
    return State.SAFE if evidence.safe else State.WATCHING


def harm(log10_e: float, judge: JudgeSpec) -> str:
    """The combined evidence of harm."""
    if log10_e >= -math.log10(judge.alpha):
        return "harm proven"
    if log10_e >= math.log10(judge.suspicion):
        return "harm suspected"
    return "no sign of harm"


def printable(text: str) -> str:
    """On one line and without control characters: parts of it may be a program's last words."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def sentence(text: str) -> str:
    """Printable, with a capital letter at its beginning and a full stop at its end."""
    line = printable(text)
    return line if not line else line[0].upper() + line[1:] + ("" if line[-1] in ".!?…" else ".")


def age(seconds: float) -> str:
    """Short, as kubectl prints it: 45s, 12m, 3h, 8d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def latency(seconds: float | None) -> str:
    """Milliseconds with three digits."""
    if seconds is None:
        return "–"
    if math.isinf(seconds):
        return "> 13 s"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    ms = seconds * 1000
    return f"{ms:.2f} ms" if ms < 10 else f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"


def ratio(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def interval(low: float | None, high: float | None) -> str:
    """A confidence sequence of candidate / stable."""
    if low is None:
        return "not known yet" if high is None else f"at most {ratio(high)} × stable"
    return f"at least {ratio(low)} × stable" if high is None else f"{ratio(low)} to {ratio(high)} × stable"


def stage(plan: Plan, at: Status | HistoryEntry) -> str:
    """The name of the stage a rollout is, or was, in."""
    if at.phase is Phase.PROMOTED or (at.phase is Phase.BAKING and at.traffic == 100):
        return "100 %"
    if at.stage is None:
        return "0 %"
    return f"{plan.stages[at.stage].traffic} %" if at.stage < len(plan.stages) else f"bake {plan.bake.traffic} %"


def last_forward(history: tuple[HistoryEntry, ...]) -> HistoryEntry | None:
    """Where the rollout was before it turned back, if it did."""
    return next((entry for entry in reversed(history) if entry.phase not in _DOWN), None)


def elapsed_s(status: Status, now: datetime) -> float:
    """Since the rollout began, up to its end."""
    return ((status.finished_at or now) - status.started_at).total_seconds() if status.started_at else 0.0


ALL_REQUESTS: Final = "All requests are judged: the model server does not tell which of them are predictions."


def waits_for(spec: Spec, status: Status, now: datetime) -> list[str]:
    """What must still happen before the next step, one phrase each; empty when nothing is known to be missing."""
    if status.phase.terminal or status.phase is Phase.ROLLING_BACK:
        return []
    if status.phase is Phase.WAITING:
        return ["a decision: approve, resume, promote or abort"]
    plan = spec.effective_plan
    since_s = (now - status.entered_at).total_seconds() if status.entered_at else 0.0
    found = []
    if status.phase in (Phase.PROGRESSING, Phase.BAKING) and status.stage is not None:
        baking = status.stage == len(plan.stages)
        at_least_s = plan.bake.seconds if baking else plan.stages[status.stage].min_seconds
        if since_s < at_least_s:
            found.append(f"the stage's minimum time: {duration(since_s)} of {duration(at_least_s)}")
    if status.needs_requests is not None:
        soon = f", {duration(status.needs_seconds)}" if status.needs_seconds is not None else ""
        found.append(f"evidence: about {status.needs_requests:,} more candidate requests{soon}")
    return found


def unattended(plan: Plan) -> str:
    """What becomes of a rollout that nobody sends requests for."""
    then = {
        OnInconclusive.HOLD: "it then waits for a decision",
        OnInconclusive.ROLLBACK: "it is then rolled back",
        OnInconclusive.PROMOTE: "it is then promoted, outside the judge's guarantee",
    }[plan.on_inconclusive]
    return (
        "No requests are sent: the rollout waits for those of the service's users, "
        f"{duration(plan.deadline_seconds)} at most; {then}."
    )


def headline(rollout: ModelRollout) -> str:
    """What became of the rollout, in one sentence without its reason."""
    status, plan = rollout.status, rollout.spec.effective_plan
    took = duration(elapsed_s(status, status.finished_at)) if status.finished_at else ""
    match status.phase:
        case Phase.PROMOTED:
            return f"Promoted after {took}"
        case Phase.ROLLED_BACK:
            before = last_forward(status.history)
            return (
                f"Rolled back after {took} at {stage(plan, before)}" if took and before else "Ended before it started"
            )
        case Phase.FAILED:
            return "Could not start"
        case Phase.ROLLING_BACK:
            return "Rolling back"
        case Phase.WAITING:
            return f"Waiting at {stage(plan, status)}"
        case Phase.PROGRESSING | Phase.BAKING:
            return f"In progress at {stage(plan, status)}"
        case Phase.DARK | Phase.CHECKING | Phase.PENDING:
            return f"{status.phase} at 0 % traffic"
