"""Challenger against champion on the same rows: a paired bootstrap, and the checks the verdict is made of.

Two checks ask for proof: log loss must be shown to be better, cost per decision to be not much worse. The checks of
protected groups, whose rows are few, stand in the way when harm is shown.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np

from components.config import Costs, Gate
from components.evaluate.evaluation import Check, Difference
from components.evaluate.metrics import decision_costs, log_losses

GROUP_ROWS: Final = 100
GROUP_EVENTS: Final = 20
"""A group with fewer rows, or fewer rows of either class, is shown but does not stand in the way."""
LOG_LOSS_MARGIN: Final = 0.02
SELECTION_GAP_MARGIN: Final = 0.15
TRUE_POSITIVE_GAP_MARGIN: Final = 0.10
"""How much may rise: the log loss in a group; the largest difference between groups in the rate of positive
decisions, and in that rate among positive rows. The former follows event rates, which differ between groups for
reasons of their own, so that a model that sees more tells them further apart: its margin is wider."""

_CELLS: Final = 4_000_000

Groups = Mapping[str, Mapping[str, np.ndarray]]
"""Per protected attribute and value, the rows [N] that belong to it, as booleans."""


@dataclass(frozen=True)
class Scored:
    """A model's probabilities [N] and whether it decides for the positive class [N]."""

    p: np.ndarray
    decided: np.ndarray

    def of(self, rows: np.ndarray) -> Self:
        return replace(self, p=self.p[rows], decided=self.decided[rows])


@dataclass(frozen=True)
class Comparison:
    differences: tuple[Difference, ...]
    checks: tuple[Check, ...]


def comparable(y: np.ndarray, members: np.ndarray) -> bool:
    """Whether a group of rows is large enough to be checked."""
    rows, events = int(members.sum()), int(y[members].sum())
    return rows >= GROUP_ROWS and min(events, rows - events) >= GROUP_EVENTS


def compare(
    y: np.ndarray, challenger: Scored, champion: Scored, groups: Groups, *, costs: Costs, gate: Gate, seed: int
) -> Comparison:
    """Differences are challenger minus champion, with bootstrap intervals of level 1 - `gate.alpha`; log loss comes
    first, also among the checks."""
    loss = log_losses(y, challenger.p) - log_losses(y, champion.p)
    champion_cost = decision_costs(y, champion.decided, costs)
    cost = decision_costs(y, challenger.decided, costs) - champion_cost
    squared_error = (challenger.p - y) ** 2 - (champion.p - y) ** 2

    totals = _Totals(len(y))
    statistics = {name: totals.mean(d) for name, d in (("log_loss", loss), ("cost", cost), ("brier", squared_error))}
    margins: dict[str, float] = {}
    for attribute, values in groups.items():
        members = {value: rows for value, rows in values.items() if comparable(y, rows)}
        for value, rows in members.items():
            name = f"log_loss[{attribute}={value}]"
            statistics[name], margins[name] = totals.mean(loss, rows), LOG_LOSS_MARGIN
        if len(members) > 1:
            everyone, positive = list(members.values()), [rows & (y == 1) for rows in members.values()]
            for kind, among, margin in (
                ("selection_gap", everyone, SELECTION_GAP_MARGIN),
                ("true_positive_gap", positive, TRUE_POSITIVE_GAP_MARGIN),
            ):
                name = f"{kind}[{attribute}]"
                statistics[name] = totals.gap_rise(challenger.decided, champion.decided, among)
                margins[name] = margin

    observed, resampled = totals.observed(), totals.resampled(gate.resamples, seed)
    differences = {}
    for name, statistic in statistics.items():
        low, high = np.quantile(statistic(resampled), [gate.alpha / 2, 1 - gate.alpha / 2]).tolist()
        differences[name] = Difference(metric=name, value=float(statistic(observed)[0]), low=low, high=high)
    checks = [
        _better(differences["log_loss"]),
        _not_worse(differences["cost"], gate.cost_margin * float(champion_cost.mean())),
        *(_not_harmed(differences[name], margin) for name, margin in margins.items()),
    ]
    return Comparison(tuple(differences.values()), tuple(checks))


def _better(d: Difference) -> Check:
    return Check(name=d.metric, value=d.high, bound=0, direction="<", passed=d.high < 0, broken=d.low > 0)


def _not_worse(d: Difference, margin: float) -> Check:
    passed = d.high <= margin
    return Check(name=d.metric, value=d.high, bound=margin, direction="<=", passed=passed, broken=d.low > margin)


def _not_harmed(d: Difference, margin: float) -> Check:
    passed = d.low <= margin
    return Check(name=d.metric, value=d.low, bound=margin, direction="<=", passed=passed, broken=not passed)


_Statistic = Callable[[np.ndarray], np.ndarray]
"""Totals of the columns, per resample [R, K], to the statistic per resample [R]."""


class _Totals:
    """Columns of per-row values. Every statistic is a function of column totals, so that a resample of the rows is
    one row of weights, and all statistics of a resample see the same rows."""

    def __init__(self, rows: int) -> None:
        self._columns = [np.ones(rows)]

    def _add(self, values: np.ndarray) -> int:
        self._columns.append(values)
        return len(self._columns) - 1

    def mean(self, values: np.ndarray, among: np.ndarray | None = None) -> _Statistic:
        """The mean of all rows, or of the rows `among`."""
        total = self._add(values if among is None else values * among)
        rows = 0 if among is None else self._add(among)

        def mean(totals: np.ndarray) -> np.ndarray:
            means: np.ndarray = totals[:, total] / totals[:, rows]
            return means

        return mean

    def gap_rise(self, ours: np.ndarray, theirs: np.ndarray, groups: list[np.ndarray]) -> _Statistic:
        """How much larger the gap between the groups' rates is for decisions `ours` than for `theirs`."""
        our_rates = [self.mean(ours, among) for among in groups]
        their_rates = [self.mean(theirs, among) for among in groups]

        def rise(totals: np.ndarray) -> np.ndarray:
            our_gap, their_gap = (
                np.ptp([rate(totals) for rate in rates], axis=0) for rates in (our_rates, their_rates)
            )
            widened: np.ndarray = our_gap - their_gap
            return widened

        return rise

    def observed(self) -> np.ndarray:
        """[1, K]"""
        totals: np.ndarray = np.column_stack(self._columns).sum(axis=0, keepdims=True)
        return totals

    def resampled(self, resamples: int, seed: int) -> np.ndarray:
        """[resamples, K], of rows drawn with replacement."""
        matrix = np.column_stack(self._columns)
        rows = len(matrix)
        rng = np.random.default_rng(seed)
        at_once = max(1, _CELLS // rows)
        totals = []
        for done in range(0, resamples, at_once):
            count = min(at_once, resamples - done)
            drawn = rng.integers(rows, size=(count, rows)) + rows * np.arange(count)[:, None]
            weights = np.bincount(drawn.ravel(), minlength=count * rows).reshape(count, rows)
            totals.append(weights @ matrix)
        return np.concatenate(totals)
