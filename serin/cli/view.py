"""A rollout on one screen: live on a terminal, plain lines elsewhere."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from serin.errors import UserError
from serin.judge import timeline
from serin.judge.policy import metric_name
from serin.judge.timeline import Arm
from serin.judge.window import Window
from serin.plan import Checks
from serin.report import words
from serin.rollout.document import Counted, HistoryEntry, MetricEvidence, ModelRollout, Phase, Status

RECENT_S: Final = 30
"""Latencies and rates are those of the last so many seconds."""
WINDOWS: Final = 200
"""As many of the latest windows are enough for RECENT_S."""
SPARK_SLOTS: Final = 10
BAR: Final = 26
RATIO_BAR: Final = 25
RATIO_LIMIT: Final = 4.0
"""The bar of a ratio goes from 1 / RATIO_LIMIT to RATIO_LIMIT."""
HISTORY: Final = 3
REASON_WIDTH: Final = 110
"""Columns a terminal must have for the reasons in a list of rollouts."""
_CHECKS: Final = 1
_FIRST_STAGE: Final = 2
"""Places on the track."""
SILENT_S: Final = 30.0
PLAIN_S: Final = 5.0
"""Without a terminal, a line of progress at most this often."""

_ARM_STYLE: Final = {Arm.STABLE: "cyan", Arm.CANDIDATE: "yellow"}
_STATE_STYLE: Final = {
    words.State.SAFE: "green",
    words.State.WATCHING: "dim",
    words.State.SUSPECT: "bold yellow",
    words.State.HARM: "bold red",
    words.State.NOT_JUDGED: "dim",
}
_PHASE_STYLE: Final = {
    Phase.PROMOTED: "bold green",
    Phase.ROLLING_BACK: "bold red",
    Phase.ROLLED_BACK: "bold red",
    Phase.FAILED: "bold red",
    Phase.WAITING: "bold magenta",
}
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPARKS: Final = " ▁▂▃▄▅▆▇█"

Documents = Sequence[Mapping[str, Any]]
Look = tuple[ModelRollout, Documents, str | None]
"""A rollout, its timeline or the end of it, and the platform's problem."""


def view(rollout: ModelRollout, windows: Documents, now: datetime) -> RenderableType:
    """`windows`: the rollout's timeline, or its last minute; `now` is UTC."""
    status = rollout.status
    end_s = (status.finished_at or now).timestamp()
    recent = [timeline.from_document(document) for document in windows if document["endS"] > end_s - RECENT_S]
    parts: list[RenderableType] = [_head(rollout, now), _reason(status), Text(), _track(rollout), Text()]
    if status.stage is not None and not status.phase.terminal:
        parts += [_split(status, recent), Text()]
    if status.stable_revision or status.candidate_revision:
        parts += [_arms(status, recent, end_s), Text()]
    if status.counted is Counted.REQUESTS:
        parts += [Text(words.ALL_REQUESTS, "dim"), Text()]
    if status.evidence:
        parts += [_evidence(rollout), Text()]
    elif status.checks:
        parts += [_checks(status), Text()]
    waits = words.waits_for(rollout.spec, status, now)
    if waits:
        parts += [Text.assemble(("waiting for  ", "dim"), "; ".join(waits)), Text()]
    return Group(*parts, _history(status.history))


def _head(rollout: ModelRollout, now: datetime) -> Table:
    status = rollout.status
    row = Table.grid(expand=True)
    row.add_column(no_wrap=True, overflow="ellipsis")
    row.add_column(justify="right", no_wrap=True)
    name = Text.assemble((rollout.spec.service, "bold"), ("  rollout ", "dim"), rollout.metadata.name)
    clock = f"  {words.duration(words.elapsed_s(status, now))}" if status.started_at else ""
    row.add_row(name, Text.assemble((status.phase, _PHASE_STYLE.get(status.phase, "bold")), (clock, "dim")))
    return row


def _reason(status: Status) -> Text:
    told = Text(words.sentence(status.reason))
    if status.alert is not None and status.alert != status.reason:
        told.append("\n" + words.sentence(status.alert), "bold magenta")
    return told


def _track(rollout: ModelRollout) -> Text:
    """The way to 100 %, with the place the rollout has reached. What is not on this rollout's way is left out; what
    it was spared, by somebody who promoted it, is not ticked."""
    plan, status = rollout.spec.effective_plan, rollout.status
    first = status.started_at is not None and status.stable_revision is None
    steps = [
        "start",
        "checks",
        *(f"{each.traffic} %" for each in plan.stages),
        f"bake {plan.bake.traffic} %",
        "100 %",
    ]
    last = len(steps) - 1
    stages = range(_FIRST_STAGE, last)
    left_out = set(stages) if first else {_CHECKS} if plan.checks is Checks.NONE else set()
    been = {entry.stage + _FIRST_STAGE for entry in status.history if entry.stage is not None}
    turned_back = status.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.FAILED)
    reached = _place(words.last_forward(status.history) if turned_back else status, len(plan.stages))
    line = Text()
    for index, step in enumerate(steps):
        if index in left_out:
            continue
        if index:
            line.append(" ── ", "dim")
        if index < reached or status.phase is Phase.PROMOTED:
            passed = index not in stages or index in been
            line.append(f"✓ {step}" if passed else f"– {step}", "green" if passed else "dim")
        elif index == reached:
            line.append(f"✗ {step}" if turned_back else f"● {step}", "bold red" if turned_back else "bold reverse")
        else:
            line.append(f"○ {step}", "dim")
    return line


def _place(at: Status | HistoryEntry | None, stages: int) -> int:
    """Index of the step on the track."""
    if at is None or at.phase in (Phase.PENDING, Phase.DARK):
        return 0
    if at.phase is Phase.BAKING and at.traffic == 100:
        return stages + _FIRST_STAGE + 1
    return _CHECKS if at.stage is None else at.stage + _FIRST_STAGE


def _split(status: Status, recent: Sequence[Window]) -> Text:
    observed = status.observed_traffic if status.observed_traffic is not None else _observed(status, recent)
    filled = round(BAR * (observed or 0) / 100)
    wanted = min(round(BAR * status.traffic / 100), BAR - 1)
    line = Text.assemble(("traffic to candidate  ", "dim"))
    for cell in range(BAR):
        if cell == wanted:
            line.append("┃", "bold")
        else:
            line.append("█" if cell < filled else "─", _ARM_STYLE[Arm.CANDIDATE] if cell < filled else "dim")
    line.append(f"  planned {status.traffic} %", "bold")
    return line.append(f"  observed {observed:.1f} %" if observed is not None else "  no requests yet", "dim")


def _observed(status: Status, recent: Sequence[Window]) -> float | None:
    """Percent of the recent requests that the candidate answered under the split that is wanted now."""
    under = [window for window in recent if window.share is not None and round(window.share * 100) == status.traffic]
    candidate = timeline.total(under, Arm.CANDIDATE).requests
    both = candidate + timeline.total(under, Arm.STABLE).requests
    return 100 * candidate / both if both else None


def _arms(status: Status, recent: Sequence[Window], end_s: float) -> Table:
    arms = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    arms.add_column("", no_wrap=True)
    arms.add_column("revision", overflow="ellipsis")  # the one column that gives way on a narrow screen
    for title in ("requests", "errors", "p50", "p99"):
        arms.add_column(title, justify="right", no_wrap=True)
    arms.add_column(f"last {RECENT_S} s", no_wrap=True)
    slots = timeline.slots(recent, SPARK_SLOTS, start_s=end_s - RECENT_S, end_s=end_s)
    for arm, revision, requests, errors in (
        (Arm.STABLE, status.stable_revision, status.requests.stable, status.errors.stable),
        (Arm.CANDIDATE, status.candidate_revision, status.requests.candidate, status.errors.candidate),
    ):
        latencies = timeline.total(recent, arm).latency
        arms.add_row(
            Text(arm, _ARM_STYLE[arm]),
            Text(revision or "none"),
            f"{requests:,}",
            Text(f"{errors:,}", "bold red" if errors else ""),
            words.latency(timeline.latency_s(latencies, 0.5)),
            words.latency(timeline.latency_s(latencies, 0.99)),
            Text(
                _spark([arm.of(slot).requests for slot in slots]),
                _ARM_STYLE[arm],
            ),
        )
    return arms


def _spark(values: Sequence[int]) -> str:
    top = max(values, default=0)
    return "".join(_SPARKS[math.ceil(8 * value / top)] if top else " " for value in values)


def _evidence(rollout: ModelRollout) -> Table:
    judge, status = rollout.spec.judge, rollout.status
    rows = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    rows.add_column("metric", no_wrap=True)
    rows.add_column(words.harm(status.log10_e, judge), no_wrap=True)
    rows.add_column("candidate / stable", no_wrap=True)
    for each in status.evidence:
        state = words.metric_state(each, judge)
        rows.add_row(metric_name(each.metric), Text(state, _STATE_STYLE[state]), _ratio(each))
    return rows


def _ratio(evidence: MetricEvidence) -> Text:
    """The interval on a logarithmic bar whose middle is 1, and in figures."""
    low, high = evidence.ratio.low, evidence.ratio.high
    if low is None and high is None:
        return Text("–", "dim")
    first = _cell(low) if low is not None else 0
    last = _cell(high) if high is not None else RATIO_BAR - 1
    bar = Text()
    for cell in range(RATIO_BAR):
        inside = first <= cell <= last
        middle = cell == RATIO_BAR // 2
        bar.append("┿" if inside and middle else "│" if middle else "━" if inside else "·", "" if inside else "dim")
    return bar.append(f"  {words.interval(low, high)}")


def _cell(ratio: float) -> int:
    clipped = min(max(ratio, 1 / RATIO_LIMIT), RATIO_LIMIT)
    return round((math.log(clipped) / math.log(RATIO_LIMIT) + 1) / 2 * (RATIO_BAR - 1))


def _checks(status: Status) -> Text:
    lines = Text()
    for check in status.checks:
        lines.append("✓ " if check.passed else "✗ ", "green" if check.passed else "bold red")
        lines.append(f"{check.name}: {words.printable(check.detail)}\n")
    lines.rstrip()
    return lines


def _history(history: Sequence[HistoryEntry]) -> Text:
    lines = Text()
    for entry in history[-HISTORY:]:
        lines.append(f"{entry.at:%H:%M:%S}Z  ", "dim")
        lines.append(f"{entry.phase} {entry.traffic} %", _PHASE_STYLE.get(entry.phase, "bold"))
        lines.append(f"  {words.sentence(entry.reason)}\n", "dim")
    lines.rstrip()
    return lines


def plain(before: Status | None, status: Status, *, since_s: float, problem: str | None = None) -> list[str]:
    """The lines to print when `before`, printed `since_s` seconds ago, has become `status`.

    Every change of phase or stage is a line; without one there is a line of progress every 5 seconds, or the
    platform's `problem`, if it has one.
    """
    known = len(before.history) if before is not None else 0
    lines = [
        f"{entry.at:%H:%M:%S}Z {entry.phase}, candidate at {entry.traffic} %: {words.sentence(entry.reason)}"
        for entry in status.history[known:]
    ]
    if lines or (before is not None and (since_s < PLAIN_S or status.phase.terminal)):
        return lines
    if problem is not None and not status.phase.terminal:
        return [f"  {words.sentence(problem)}"]
    if status.stage is None:
        return [f"  {status.phase}: {words.sentence(status.reason)}"]
    return [
        f"  stable {words.count(status.requests.stable, 'request')}, {words.count(status.errors.stable, 'error')}; "
        f"candidate {words.count(status.requests.candidate, 'request')}, "
        f"{words.count(status.errors.candidate, 'error')}. "
        f"{words.sentence(status.reason)}"
    ]


class Silence:
    """Notices that a rollout that needs requests gets none."""

    def __init__(self) -> None:
        self._seen: tuple[object, float] | None = None

    def lasting(self, rollout: ModelRollout, now_s: float) -> str | None:
        """In words, from half a minute on and in steps of as much. `now_s`: of any clock."""
        status = rollout.status
        under_way = status.phase in (Phase.PROGRESSING, Phase.BAKING) and status.stable_revision is not None
        if not under_way or self._seen is None or self._seen[0] != status.requests:
            self._seen = status.requests, now_s
            return None
        silent_s = (now_s - self._seen[1]) // SILENT_S * SILENT_S
        if not silent_s:
            return None
        return f"waits for requests: none for {words.duration(silent_s)}; send some or use --traffic"


def utc_now() -> datetime:
    return datetime.now(UTC)


def live(
    rollout: ModelRollout | None, windows: Documents, problem: str | None, now: datetime, *above: RenderableType
) -> Group:
    """A screen of a live view: what is `above`, what keeps the platform from work, the rollout if there is one. A low
    screen is cut at its end."""
    parts = [*above]
    if problem is not None and (rollout is None or not rollout.status.phase.terminal):
        parts.append(Text(words.sentence(problem), "bold red"))
    if rollout is not None:
        parts.append(view(rollout, windows, now))
    return Group(*parts)


def follow(
    read: Callable[[], Look],
    *,
    console: Console,
    until: Callable[[ModelRollout], bool],
    sleep: Callable[[float], None],
    interval_s: float = 0.5,
    clock: Callable[[], datetime] = utc_now,
) -> ModelRollout:
    """Show what `read` gives until `until` says so; return the rollout as last read. An interrupt leaves the terminal
    as it was."""
    if not console.is_terminal:
        return _follow_plain(read, console=console, until=until, sleep=sleep, interval_s=interval_s, clock=clock)
    with Live(console=console, auto_refresh=False) as screen:
        while True:
            rollout, windows, problem = read()
            screen.update(live(rollout, windows, problem, clock()), refresh=True)
            if until(rollout):
                return rollout
            sleep(interval_s)


def _follow_plain(
    read: Callable[[], Look],
    *,
    console: Console,
    until: Callable[[ModelRollout], bool],
    sleep: Callable[[float], None],
    interval_s: float,
    clock: Callable[[], datetime],
) -> ModelRollout:
    printed: Status | None = None
    printed_at = clock()
    while True:
        rollout, _, problem = read()
        lines = plain(printed, rollout.status, since_s=(clock() - printed_at).total_seconds(), problem=problem)
        if lines:
            printed, printed_at = rollout.status, clock()
            console.print(Text("\n".join(lines)), soft_wrap=True)
        if until(rollout):
            return rollout
        sleep(interval_s)


def table(rollouts: Iterable[ModelRollout], now: datetime, *, width: int) -> Table:
    """One row each, as `kubectl get modelrollouts` prints them; reasons where there is room for them."""
    rows = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("NAME", "SERVICE", "PHASE", "STAGE", "TRAFFIC", "EVIDENCE", "AGE"):
        rows.add_column(title, no_wrap=True)
    if width >= REASON_WIDTH:
        rows.add_column("REASON", overflow="fold")
    for rollout in rollouts:
        status = rollout.status
        cells: list[str | Text] = [
            rollout.metadata.name,
            rollout.spec.service,
            Text(status.phase, _PHASE_STYLE.get(status.phase, "")),
            words.stage(rollout.spec.effective_plan, status),
            f"{status.traffic} %",
            words.harm(status.log10_e, rollout.spec.judge) if status.evidence else "none yet",
            words.age((now - rollout.metadata.creation_timestamp).total_seconds()),
            Text(words.sentence(status.reason)),
        ]
        rows.add_row(*cells[: len(rows.columns)])
    return rows


def since(text: str, now: datetime) -> datetime:
    """The time that a user means by "36h", "7d" or a date, which is one in UTC unless it says otherwise.

    Raises `UserError` when it is none.
    """
    found = _SPAN.fullmatch(text)
    try:
        if found is not None:
            return now - timedelta(seconds=float(found[1]) * _UNIT_S[found[2]])
        named = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise UserError(f"--since {text}: give a span such as 36h or 7d, or a date such as 2026-11-30.") from error
    return named if named.tzinfo is not None else named.replace(tzinfo=UTC)
