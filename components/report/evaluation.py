"""What an evaluation's report tells: tables and charts made from the `Evaluation`, without a word of HTML."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from components.config import Costs
from components.evaluate.evaluation import Check, Difference, Evaluation, Side, Slice, Verdict
from serin.model.histograms import SCORE_EDGES
from serin.report.charts import (
    Axis,
    Chart,
    Interval,
    Key,
    Mark,
    Plot,
    Point,
    Tick,
    nice_top,
    share_ticks,
    upward,
)

WEAKEST: Final = 8
"""Slices shown where the challenger is weakest against the champion."""
SCORE_GROUP: Final = 5
TONES: Final = {Verdict.PROMOTE: "good", Verdict.HOLD: "plain", Verdict.REJECT: "bad"}

_FIGURES: Final = (
    ("log_loss", "log loss"),
    ("brier", "Brier score"),
    ("auc", "AUC"),
    ("calibration_error", "calibration error"),
    ("cost", "cost per decision"),
    ("selection_rate", "selection rate"),
    ("true_positive_rate", "recall"),
)
_LEARNERS: Final = {
    "rule": "one-column rule",
    "logistic": "logistic regression",
    "hist_gradient_boosting": "HistGradientBoosting",
    "xgboost": "XGBoost",
}
_NAMES: Final = {
    **_LEARNERS,
    **dict(_FIGURES),
    "selection_gap": "largest gap in selection rate between groups",
    "true_positive_gap": "largest gap in recall between groups",
}


@dataclass(frozen=True, slots=True)
class LearnerRow:
    learner: str
    log_loss: str
    auc: str
    cost: str
    chosen: bool


@dataclass(frozen=True, slots=True)
class FigureRow:
    name: str
    challenger: str
    champion: str


@dataclass(frozen=True, slots=True)
class CheckRow:
    name: str
    difference: str
    rule: str
    result: str
    tone: str


@dataclass(frozen=True, slots=True)
class SliceRow:
    group: str
    rows: str
    events: str
    log_loss: tuple[str, str]
    selection_rate: tuple[str, str]
    true_positive_rate: tuple[str, str]


@dataclass(frozen=True, slots=True)
class EvaluationStory:
    """Pairs are (challenger, champion). `others` counts the slices that `weakest` were taken from."""

    verdict: str
    tone: str
    reason: str
    rows: str
    events: str
    level: str
    resamples: str
    challenger: str
    champion: str
    learners: tuple[LearnerRow, ...]
    figures: tuple[FigureRow, ...]
    differences: tuple[Interval, ...]
    difference_ticks: tuple[Tick, ...]
    checks: tuple[CheckRow, ...]
    charts: tuple[Chart, ...]
    costs: str | None
    protected: tuple[SliceRow, ...]
    weakest: tuple[SliceRow, ...]
    others: int
    notes: tuple[str, ...]


def tell(evaluation: Evaluation, costs: Costs | None) -> EvaluationStory:
    """`costs` of an error; None leaves out what only they can tell."""
    sides = (evaluation.challenger, evaluation.champion)
    compared = [each for each in evaluation.slices if not each.protected]
    weakest = sorted(compared, key=lambda each: each.champion.log_loss - each.challenger.log_loss)
    differences, ticks = _differences(evaluation)
    by_name = {each.metric: each for each in evaluation.differences}
    return EvaluationStory(
        verdict=evaluation.verdict,
        tone=TONES[evaluation.verdict],
        reason=evaluation.reason,
        rows=f"{evaluation.rows:,}",
        events=f"{evaluation.events:,}",
        level=f"{100 * evaluation.level:g} %",
        resamples=f"{evaluation.resamples:,}",
        challenger=_learner(evaluation.challenger),
        champion=_learner(evaluation.champion),
        learners=_learners(evaluation),
        figures=tuple(_figures(*sides)),
        differences=differences,
        difference_ticks=ticks,
        checks=tuple(_check(check, by_name[check.name]) for check in evaluation.checks),
        charts=tuple(_charts(evaluation, costs)),
        costs=_told_costs(evaluation, costs) if costs else None,
        protected=tuple(_slice(each) for each in evaluation.slices if each.protected),
        weakest=tuple(map(_slice, weakest[:WEAKEST])),
        others=len(compared),
        notes=evaluation.notes,
    )


def signed(value: float, digits: int = 4) -> str:
    """With its sign, and a minus as wide as the plus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _learner(side: Side | None) -> str:
    return readable(side.learner) if side else "not scored"


def readable(name: str) -> str:
    """Of a learner, or of a check such as "log_loss[gender=Female]"."""
    base, group = re.fullmatch(r"([^\[]*)(?:\[(.*)\])?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    shown = _NAMES.get(base, base.replace("_", " "))
    return f"{shown}, {group.replace('=', ' = ', 1)}" if group else shown


def _learners(evaluation: Evaluation) -> tuple[LearnerRow, ...]:
    chosen = evaluation.challenger.digest if evaluation.challenger else None
    return tuple(
        LearnerRow(
            learner=readable(each.learner),
            log_loss=f"{each.log_loss:.4f}",
            auc=f"{each.auc:.4f}",
            cost=f"{each.cost:.4f}",
            chosen=each.digest == chosen,
        )
        for each in sorted(evaluation.candidates, key=lambda each: each.log_loss)
    )


def _figures(challenger: Side | None, champion: Side | None) -> Iterable[FigureRow]:
    for name, shown in _FIGURES:
        values = [getattr(side.metrics, name) if side else None for side in (challenger, champion)]
        yield FigureRow(shown, *("–" if value is None else f"{value:.4f}" for value in values))


def _differences(evaluation: Evaluation) -> tuple[tuple[Interval, ...], tuple[Tick, ...]]:
    """Those over all rows; the ones within groups are among the checks."""
    overall = [each for each in evaluation.differences if "[" not in each.metric]
    if not overall:
        return (), ()
    bounds = {check.name: check.bound for check in evaluation.checks}
    reach = [abs(end) for each in overall for end in (each.low, each.high, bounds.get(each.metric, 0.0))]
    top = nice_top(max(reach))
    axis = Axis(-top, top)
    ticks = tuple(Tick(axis.at(value), f"{value:+g}".replace("-", "−")) for value in (-top, -top / 2, top / 2, top))
    rows = tuple(_difference(each, axis, bounds.get(each.metric)) for each in overall)
    return rows, (*ticks[:2], Tick(50.0, "0"), *ticks[2:])


def _difference(each: Difference, axis: Axis, bound: float | None) -> Interval:
    tone = "good" if each.high < 0 else "bad" if each.low > 0 else "plain"
    return Interval(
        name=readable(each.metric),
        text=_shown(each),
        low=axis.at(each.low),
        high=axis.at(each.high),
        value=axis.at(each.value),
        reference=axis.at(0),
        bound=axis.at(bound) if bound else None,
        tone=tone,
        remark={"good": "better", "bad": "worse", "plain": "inconclusive"}[tone],
    )


def _check(check: Check, difference: Difference) -> CheckRow:
    result, tone = (
        ("passed", "good") if check.passed else ("failed", "bad") if check.broken else ("undecided", "candidate")
    )
    end = "upper" if check.value == difference.high else "lower"
    comparison = {"<": "is below", "<=": "is at most"}[check.direction]
    return CheckRow(
        readable(check.name),
        _shown(difference),
        f"{end} end {comparison} {signed(check.bound) if check.bound else 0}",
        result,
        tone,
    )


def _shown(each: Difference) -> str:
    return f"{signed(each.value)} ({signed(each.low)} to {signed(each.high)})"


def _slice(each: Slice) -> SliceRow:
    sides = (each.challenger, each.champion)
    return SliceRow(
        group=f"{each.column} = {each.value}",
        rows=f"{each.rows:,}",
        events=f"{each.events:,}",
        log_loss=(f"{sides[0].log_loss:.4f}", f"{sides[1].log_loss:.4f}"),
        selection_rate=(_percent(sides[0].selection_rate), _percent(sides[1].selection_rate)),
        true_positive_rate=(_percent(sides[0].true_positive_rate), _percent(sides[1].true_positive_rate)),
    )


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.1f} %"


def _charts(evaluation: Evaluation, costs: Costs | None) -> list[Chart]:
    known = [
        (tone, name, side)
        for tone, name, side in (
            ("stable", "champion", evaluation.champion),
            ("candidate", "challenger", evaluation.challenger),
        )
        if side is not None
    ]
    if not known:
        return []
    keys = tuple(Key(tone, name) for tone, name, _ in known)
    sides = [(tone, side) for tone, _, side in known]
    charts = [_roc(sides, keys), _calibration(sides, keys), _scores(sides, keys)]
    if costs is not None:
        charts.append(_cost(evaluation, sides, keys, costs))
    return [chart for chart in charts if chart is not None]


Sides = Sequence[tuple[str, Side]]
_UNIT: Final = Plot(Axis(0, 1), Axis(0, 1))
_DIAGONAL: Final = Mark("rule", "muted", "M0 100L100 0")


def _roc(sides: Sides, keys: tuple[Key, ...]) -> Chart | None:
    drawn = [(tone, side) for tone, side in sides if side.curves.roc]
    if not drawn:
        return None
    areas = ", ".join(f"{side.metrics.auc:.3f} for {readable(side.learner)}" for _, side in drawn)
    return Chart(
        title="Ranking (ROC)",
        about=f"True positive rate against false positive rate. AUC: {areas}.",
        x=share_ticks(_UNIT.x),
        y=upward(share_ticks(_UNIT.y)),
        marks=(_DIAGONAL, *(_UNIT.line([(x, y) for x, y, _ in side.curves.roc], tone) for tone, side in drawn)),
        keys=keys,
    )


def _calibration(sides: Sides, keys: tuple[Key, ...]) -> Chart | None:
    points: dict[str, list[Point]] = {
        tone: [(predicted, rate) for _, predicted, rate in side.curves.calibration] for tone, side in sides
    }
    reach = nice_top(max((value for some in points.values() for point in some for value in point), default=0.0))
    plot = Plot(Axis(0, min(reach, 1.0)), Axis(0, min(reach, 1.0)))
    return Chart(
        title="Calibration",
        about="Observed rate by predicted probability, per tenth of the rows. The diagonal is perfect calibration.",
        x=share_ticks(plot.x),
        y=upward(share_ticks(plot.y)),
        marks=(
            _DIAGONAL,
            *(mark for tone, some in points.items() for mark in (plot.line(some, tone), plot.points(some, tone))),
        ),
        keys=keys,
    )


def _scores(sides: Sides, keys: tuple[Key, ...]) -> Chart:
    edges = [0.0, *SCORE_EDGES[SCORE_GROUP - 1 :: SCORE_GROUP]]
    shares: dict[str, list[Point]] = {}
    for tone, side in sides:
        groups = [
            sum(side.curves.scores[k : k + SCORE_GROUP]) for k in range(0, len(side.curves.scores), SCORE_GROUP)
        ]
        whole = sum(groups)
        shares[tone] = [(edge, count / whole) for edge, count in zip(edges, groups, strict=True)]
    plot = Plot(Axis(0, 1), Axis(0, 1.1 * max(share for points in shares.values() for _, share in points)))
    marks = []
    for tone, points in shares.items():
        closed = [*points, (1.0, points[-1][1])]
        marks += [plot.step_area(closed, tone), plot.steps(closed, tone)]
    thresholds = ", ".join(f"{side.threshold:.3f} for {readable(side.learner)}" for _, side in sides)
    return Chart(
        title="Scores",
        about=f"Distribution of predicted probabilities on the held-out rows. Thresholds (dashed): {thresholds}.",
        x=share_ticks(plot.x),
        y=(),
        marks=(*marks, *(plot.upright(side.threshold, tone) for tone, side in sides)),
        keys=keys,
    )


def _cost(evaluation: Evaluation, sides: Sides, keys: tuple[Key, ...], costs: Costs) -> Chart | None:
    """From the ROC points: with the event rate they give the cost at every threshold."""
    rate = evaluation.events / evaluation.rows
    lines: dict[str, list[Point]] = {}
    for tone, side in sides:
        below = 0.0
        for flagged, found, threshold in reversed(side.curves.roc):
            cost = costs.false_negative * rate * (1 - found) + costs.false_positive * (1 - rate) * flagged
            lines.setdefault(tone, []).append((below, cost))
            below = threshold
    if not lines:
        return None
    dearest = max(cost for points in lines.values() for _, cost in points)
    plot = Plot(Axis(0, 1), Axis(0, nice_top(dearest)))
    chosen = [plot.points([(side.threshold, side.metrics.cost)], tone) for tone, side in sides]
    return Chart(
        title="Cost per decision",
        about="As a function of the decision threshold; dots mark the thresholds in use.",
        x=share_ticks(plot.x),
        y=tuple(plot.height(plot.y.high * k / 4, f"{plot.y.high * k / 4:g}") for k in range(5)),
        marks=(*(plot.steps([*points, (1.0, points[-1][1])], tone) for tone, points in lines.items()), *chosen),
        keys=keys,
    )


def _told_costs(evaluation: Evaluation, costs: Costs) -> str:
    told = f"A false positive costs {costs.false_positive:g}, a false negative {costs.false_negative:g}."
    for name, side in (("challenger", evaluation.challenger), ("champion", evaluation.champion)):
        if side is not None:
            figures = side.metrics
            found = (
                f" with a recall of {100 * figures.true_positive_rate:.1f} %"
                if figures.true_positive_rate is not None
                else ""
            )
            told += (
                f" The {name}'s threshold of {side.threshold:.3f} selects {100 * figures.selection_rate:.1f} % of "
                f"the rows{found} and costs {1000 * figures.cost:,.0f} per 1,000 decisions."
            )
    return told
