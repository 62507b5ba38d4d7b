"""What a rollout's report tells: a `Story` made from the document and its windows, without a word of HTML."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from serin import judge
from serin.judge import timeline
from serin.judge.timeline import Arm, Slot
from serin.judge.window import Window
from serin.model.histograms import LATENCY_EDGES_S, SCORE_EDGES
from serin.report import words
from serin.report.charts import (
    Axis,
    Chart,
    Interval,
    Key,
    Plot,
    Point,
    Span,
    Tick,
    nice_top,
    share_ticks,
    time_ticks,
    upward,
)
from serin.rollout.document import Check, ModelRollout, Phase

SLOTS: Final = 100
"""Points of a series over time."""
RATIOS: Final = Axis(1 / 8, 8, log=True)
RATIO_TICKS: Final = tuple(Tick(RATIOS.at(each), f"{each:g} ×") for each in (0.25, 0.5, 1, 2, 4))
LATENCY_GROUP: Final = 3
"""Buckets drawn as one: about five to the octave."""
SCORE_GROUP: Final = 5

_TONES: Final = {Phase.PROMOTED: "good", Phase.ROLLED_BACK: "bad", Phase.ROLLING_BACK: "bad", Phase.FAILED: "bad"}
_STATE_TONES: Final = {
    words.State.SAFE: "good",
    words.State.WATCHING: "muted",
    words.State.SUSPECT: "candidate",
    words.State.HARM: "bad",
    words.State.NOT_JUDGED: "muted",
}
_ARMS: Final = (Key("stable", "stable"), Key("candidate", "candidate"))


@dataclass(frozen=True, slots=True)
class Fact:
    label: str
    value: str
    remark: str = ""


@dataclass(frozen=True, slots=True)
class ArmRow:
    arm: Arm
    revision: str
    requests: str
    failed: str
    failed_share: str
    p50: str
    p90: str
    p99: str


@dataclass(frozen=True, slots=True)
class Step:
    at: datetime
    since_start: str
    phase: str
    traffic: int
    reason: str


@dataclass(frozen=True, slots=True)
class Story:
    """`tone` is good, bad or plain. `plan` says per stage what it takes to pass it. `metric_ticks` is empty while no
    ratio is known."""

    tone: str
    phase: str
    headline: str
    reason: str
    alert: str | None
    facts: tuple[Fact, ...]
    arms: tuple[ArmRow, ...]
    charts: tuple[Chart, ...]
    metrics: tuple[Interval, ...]
    metric_ticks: tuple[Tick, ...]
    checks: tuple[Check, ...]
    plan: tuple[str, ...]
    guarantee: str
    steps: tuple[Step, ...]
    identity: tuple[Fact, ...]


def tell(rollout: ModelRollout, documents: Sequence[Mapping[str, Any]]) -> Story:
    """`documents`: the rollout's timeline, one document per window, oldest first; may be empty."""
    status = rollout.status
    windows = [timeline.from_document(document) for document in documents]
    metrics = _metrics(rollout)
    return Story(
        tone=_TONES.get(status.phase, "plain"),
        phase=status.phase,
        headline=words.headline(rollout),
        reason=words.sentence(status.reason),
        alert=words.sentence(status.alert) if status.alert else None,
        facts=_facts(rollout),
        arms=tuple(_arm_row(rollout, arm, windows) for arm in Arm) if windows else (),
        charts=tuple(_charts(rollout, windows)),
        metrics=metrics,
        metric_ticks=RATIO_TICKS if any(row.text for row in metrics) else (),
        checks=status.checks,
        plan=_plan(rollout),
        guarantee=_guarantee(rollout),
        steps=_steps(rollout),
        identity=_identity(rollout),
    )


def _facts(rollout: ModelRollout) -> tuple[Fact, ...]:
    status = rollout.status
    requests, errors = status.requests.candidate, status.errors.candidate
    with_traffic = [entry.at for entry in status.history if entry.traffic > 0]
    without = [entry.at for entry in status.history if with_traffic and entry.at > with_traffic[0]]
    exposed_s = (without[-1] - with_traffic[0]).total_seconds() if without else 0.0
    passed = sum(check.passed for check in status.checks)
    found = [
        Fact(
            "requests answered by the candidate", f"{requests:,}", _share(requests, requests + status.requests.stable)
        ),
        Fact("of which failed", f"{errors:,}", _share(errors, requests)),
        Fact("time with traffic", words.duration(exposed_s)),
    ]
    if status.checks:
        found.append(Fact("checks passed before traffic", f"{passed} of {len(status.checks)}"))
    return tuple(found)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} %" if whole else ""


def _arm_row(rollout: ModelRollout, arm: Arm, windows: Sequence[Window]) -> ArmRow:
    status = rollout.status
    stable = arm is Arm.STABLE
    requests = status.requests.stable if stable else status.requests.candidate
    failed = status.errors.stable if stable else status.errors.candidate
    latency = timeline.total(windows, arm).latency
    p50, p90, p99 = (words.latency(timeline.latency_s(latency, quantile)) for quantile in (0.5, 0.9, 0.99))
    revision = status.stable_revision if stable else status.candidate_revision
    return ArmRow(arm, revision or "none", f"{requests:,}", f"{failed:,}", _share(failed, requests), p50, p90, p99)


def _charts(rollout: ModelRollout, windows: Sequence[Window]) -> list[Chart]:
    status = rollout.status
    if not windows or status.started_at is None:
        return []
    start_s = status.started_at.timestamp()
    end_s = max(windows[-1].end_s, (status.finished_at or status.started_at).timestamp())
    time = Axis(0, end_s - start_s)
    slots = timeline.slots(windows, min(SLOTS, max(1, int(end_s - start_s))), start_s=start_s, end_s=end_s)
    found = [
        _traffic(rollout, slots, time),
        _evidence(rollout, windows, time),
        _requests(slots, time),
        _failures(windows, slots, time),
        _latencies(windows),
        _scores(windows),
    ]
    return [chart for chart in found if chart is not None]


def _traffic(rollout: ModelRollout, slots: Sequence[Slot], time: Axis) -> Chart:
    start_s = slots[0].start_s
    wanted = [(entry.at.timestamp() - start_s, entry.traffic / 100) for entry in rollout.status.history]
    observed = [(slot.middle_s - start_s, slot.observed) for slot in slots if slot.observed is not None]
    steps = [*wanted, (time.high, wanted[-1][1])]
    plot = Plot(time, Axis(0, min(1.0, nice_top(1.1 * max(share for _, share in (*wanted, *observed))))))
    return Chart(
        title="Traffic to the candidate",
        about="Line: planned. Dots: counted at the gateway.",
        x=time_ticks(time, at_most=8),
        y=upward(share_ticks(plot.y)),
        marks=(plot.step_area(steps, "candidate"), plot.steps(steps, "candidate"), plot.dots(observed, "ink")),
        keys=(Key("candidate", "planned"), Key("ink", "observed")),
        spans=_spans(rollout, start_s, time),
        wide=True,
    )


def _spans(rollout: ModelRollout, start_s: float, time: Axis) -> tuple[Span, ...]:
    plan, history = rollout.spec.effective_plan, rollout.status.history
    found = []
    for index, entry in enumerate(history):
        begin = time.at(entry.at.timestamp() - start_s)
        end = time.at(history[index + 1].at.timestamp() - start_s) if index + 1 < len(history) else 100.0
        traffic = entry.phase in (Phase.PROGRESSING, Phase.BAKING)
        name = words.stage(plan, entry) if traffic else str(entry.phase)
        if end > begin:
            found.append(Span(begin, round(end - begin, 2), name, _TONES.get(entry.phase, "plain")))
    return tuple(found)


def _evidence(rollout: ModelRollout, windows: Sequence[Window], time: Axis) -> Chart:
    """The judge's own fold over the same windows, looked at along the way."""
    spec, start_s = rollout.spec, windows[0].start_s
    origin_s = rollout.status.started_at.timestamp() if rollout.status.started_at else start_s
    every_s = (windows[-1].end_s - start_s) / SLOTS
    state = judge.start(judge.policy_for(spec.effective_plan, spec.judge))
    points: list[Point] = [(start_s - origin_s, 0.0)]
    for window in windows:
        state = judge.observe(state, window)
        if window.end_s - origin_s >= points[-1][0] + every_s or window is windows[-1]:
            points.append((window.end_s - origin_s, judge.decide(state, window.end_s).log10_e))
    limit, doubt = -math.log10(spec.judge.alpha), math.log10(spec.judge.suspicion)
    plot = Plot(time, Axis(0, limit * 1.25))
    return Chart(
        title="Evidence of harm",
        about=f"Odds against the candidate being harmless. At {10**limit:,.0f} : 1 it is rolled back.",
        x=time_ticks(time, at_most=8),
        y=(plot.height(0, "none"), plot.height(doubt, f"{10**doubt:,.0f} : 1"), plot.height(limit, _odds(limit))),
        marks=(
            plot.rule(limit, "bad"),
            plot.rule(doubt, "muted"),
            plot.area(points, "ink"),
            plot.line(points, "ink"),
        ),
        notes=(plot.height(limit, "roll back"), plot.height(doubt, "no advance")),
        wide=True,
    )


def _odds(log10: float) -> str:
    return f"{10**log10:,.0f} : 1"


def _requests(slots: Sequence[Slot], time: Axis) -> Chart:
    start_s = slots[0].start_s
    rates = {
        arm: [
            (
                slot.middle_s - start_s,
                arm.of(slot).requests / slot.covered_s,
            )
            for slot in slots
            if slot.covered_s > 0
        ]
        for arm in Arm
    }
    top = max(rate for points in rates.values() for _, rate in points)
    plot = Plot(time, Axis(0, nice_top(top)))
    return Chart(
        title="Requests per second",
        about="Answered by each revision.",
        x=time_ticks(time),
        y=tuple(plot.height(plot.y.high * k / 2, f"{plot.y.high * k / 2:,.4g}") for k in range(3)),
        marks=tuple(plot.line(points, arm) for arm, points in rates.items()),
        keys=_ARMS,
    )


def _failures(windows: Sequence[Window], slots: Sequence[Slot], time: Axis) -> Chart | None:
    start_s = slots[0].start_s
    lines: dict[Arm, list[Point]] = {}
    for arm in Arm:
        requests, failed = 0, 0.0
        points = []
        for slot in slots:
            counts = arm.of(slot)
            requests += counts.requests
            failed += counts.events.get("errors", 0)
            if requests:
                points.append((slot.end_s - start_s, failed / requests))
        lines[arm] = points
    top = max((share for points in lines.values() for _, share in points), default=0.0)
    if top == 0:
        return None
    plot = Plot(time, Axis(0, min(1.0, nice_top(top))))
    told = ", ".join(
        f"{arm} {counts.events.get('errors', 0):,} of {counts.requests:,}"
        for arm in Arm
        for counts in (timeline.total(windows, arm),)
    )
    return Chart(
        title="Cumulative failure rate",
        about=f"Fraction of each revision's requests that failed. In total: {told}.",
        x=time_ticks(time),
        y=upward(share_ticks(plot.y, 2)),
        marks=tuple(plot.line(points, arm) for arm, points in lines.items() if points),
        keys=_ARMS,
    )


def _latencies(windows: Sequence[Window]) -> Chart | None:
    counts = {arm: timeline.total(windows, arm).latency for arm in Arm}
    quantiles = [
        timeline.latency_s(latency, quantile) for latency in counts.values() if latency for quantile in (0.001, 0.999)
    ]
    known = [value for value in quantiles if value is not None]
    if not known:
        return None
    last = LATENCY_EDGES_S[-1]
    axis = Axis(min(known) / 1.3, min(max(known), last) * 1.3, log=True)
    edges = [0.0, *LATENCY_EDGES_S[LATENCY_GROUP - 1 :: LATENCY_GROUP]]
    return _distribution(
        "Latency",
        "Distribution of each revision's response times in the model server.",
        axis,
        tuple(
            Tick(axis.at(ms / 1000), f"{ms:g} ms" if ms < 1000 else f"{ms / 1000:g} s")
            for ms in _round_ms(axis.low * 1000, axis.high * 1000)
        ),
        {arm: _grouped(latency, edges, LATENCY_GROUP, axis.low) for arm, latency in counts.items()},
    )


def _round_ms(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]


def _scores(windows: Sequence[Window]) -> Chart | None:
    counts = {arm: timeline.total(windows, arm).score for arm in Arm}
    if not any(counts.values()):
        return None
    edges = [0.0, *SCORE_EDGES[SCORE_GROUP - 1 :: SCORE_GROUP]]
    axis = Axis(0, 1)
    return _distribution(
        "Scores",
        "Distribution of each revision's predicted probabilities.",
        axis,
        share_ticks(axis),
        {arm: _grouped(score, edges, SCORE_GROUP, 0.0) for arm, score in counts.items()},
    )


def _grouped(counts: Mapping[int, int], edges: Sequence[float], size: int, low: float) -> list[Point]:
    """(lower edge, share) of groups of `size` buckets; the first group's lower edge is drawn at `low`."""
    whole = sum(counts.values())
    groups = [0] * len(edges)
    for bucket, count in counts.items():
        groups[min(bucket // size, len(groups) - 1)] += count
    return [(max(edge, low), count / whole) for edge, count in zip(edges, groups, strict=True)] if whole else []


def _distribution(
    title: str, about: str, axis: Axis, ticks: tuple[Tick, ...], shares: Mapping[Arm, list[Point]]
) -> Chart:
    top = max(share for points in shares.values() for _, share in points)
    plot = Plot(axis, Axis(0, top * 1.1))
    marks = []
    for arm, points in shares.items():
        if points:
            closed = [*points, (axis.high, points[-1][1])]
            marks += [plot.step_area(closed, arm), plot.steps(closed, arm)]
    return Chart(title=title, about=about, x=ticks, y=(), marks=tuple(marks), keys=_ARMS)


def _metrics(rollout: ModelRollout) -> tuple[Interval, ...]:
    rows = []
    for each in rollout.status.evidence:
        state = words.metric_state(each, rollout.spec.judge)
        low, high = each.ratio.low, each.ratio.high
        known = low is not None or high is not None
        rows.append(
            Interval(
                name=judge.metric_name(each.metric),
                text=words.interval(low, high) if known else "",
                low=RATIOS.at(low) if low else 0.0,
                high=RATIOS.at(high) if high is not None and known else 100.0 if known else 0.0,
                reference=RATIOS.at(1),
                tone=_STATE_TONES[state],
                remark=state,
            )
        )
    return tuple(rows)


def _plan(rollout: ModelRollout) -> tuple[str, ...]:
    plan = rollout.spec.effective_plan
    stages = [
        f"{stage.traffic} %: at least {words.duration(stage.min_seconds)}, and until harm of {stage.margin:g} times "
        "stable's rate is ruled out"
        for stage in plan.stages
    ]
    return (*stages, f"{plan.bake.traffic} %: bake for {words.duration(plan.bake.seconds)}, with stable kept warm")


def _guarantee(rollout: ModelRollout) -> str:
    spec = rollout.spec.judge
    return (
        f"At most {100 * spec.alpha:g} % of harmless candidates are ever rolled back, however often the evidence is "
        f"checked. At most {100 * spec.beta:g} % of candidates with the harm that a stage must rule out pass it."
    )


def _steps(rollout: ModelRollout) -> tuple[Step, ...]:
    status = rollout.status
    begin = status.started_at or (status.history[0].at if status.history else None)
    return tuple(
        Step(
            at=entry.at,
            since_start=words.duration((entry.at - begin).total_seconds()) if begin else "",
            phase=entry.phase,
            traffic=entry.traffic,
            reason=words.sentence(entry.reason),
        )
        for entry in status.history
    )


def _identity(rollout: ModelRollout) -> tuple[Fact, ...]:
    status, candidate = rollout.status, rollout.spec.candidate
    found = {
        "rollout": f"{rollout.metadata.namespace}/{rollout.metadata.name}",
        "service": rollout.spec.service,
        "stable revision": status.stable_revision,
        "candidate revision": status.candidate_revision,
        "model": candidate.storage_uri or "custom predictor",
        "digest": candidate.digest,
        "runtime": candidate.runtime if candidate.storage_uri else None,
        "judge's policy": status.policy_hash,
        "started": f"{status.started_at:%Y-%m-%d %H:%M:%S} UTC" if status.started_at else None,
        "ended": f"{status.finished_at:%Y-%m-%d %H:%M:%S} UTC" if status.finished_at else None,
    }
    return tuple(Fact(label, value) for label, value in found.items() if value)
