"""Which feature moved a score, and by how much: Shapley values from the parameters that training stored.

For trees these are the path-dependent values of Lundberg et al. (TreeSHAP, arXiv:1802.03888), computed for all
paths from a root to a leaf at once as in GPUTreeShap (Mitchell et al., arXiv:2010.13972).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import factorial
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from predictor.columns import Batch, Layout
from serin.errors import UserError
from serin.model.explanation import EXPLANATION_FILE, Category, Explanation, Linear, Number, Rate, Single, Tree, Trees

Values = NDArray[Any]

MAX_ROWS: Final = 256
"""An explanation takes about a millisecond a row."""


@dataclass(frozen=True, slots=True)
class Contributions:
    """In log-odds: `base` + the sum of a row of `values` [rows, features] is the log-odds of the row's score."""

    base: float
    features: tuple[str, ...]
    values: Values


class _Learner(Protocol):
    base: float

    def contributions(self, columns: Values, log_odds: Values) -> Values:
        """Shapley values [rows, columns] of columns float32 [rows, columns]; `log_odds` [rows] is their sum and
        `base`."""
        ...


class Explainer:
    """Raises `UserError` when `explanation` is of other features than `layout`."""

    def __init__(self, explanation: Explanation, layout: Layout) -> None:
        self._explanation = explanation
        self._learner = _learner(explanation.learner)
        self._features = tuple(feature.name for feature in (*layout.numbers, *layout.strings))
        self._numbers = len(layout.numbers)
        learner = explanation.learner
        explained = [learner] if isinstance(learner, Single) else explanation.columns
        if unknown := {part.feature for part in explained} - layout.names:
            raise UserError(
                f"Model: {EXPLANATION_FILE} explains {sorted(unknown)}, which the signature does not have; "
                "export the model again."
            )
        self._places = [self._features.index(part.feature) for part in explained]

    def explain(self, batch: Batch, scores: Values) -> Contributions:
        """`scores`: what the model gave the rows of `batch`."""
        slope, intercept = self._explanation.slope, self._explanation.intercept
        probability = np.clip(scores.astype(np.float64), 1e-15, 1 - 1e-15)
        log_odds = (np.log(probability) - np.log1p(-probability) - intercept) / slope
        of_columns = slope * self._learner.contributions(self._columns(batch), log_odds)
        values = np.zeros((batch.rows, len(self._features)))
        for place, contribution in zip(self._places, of_columns.T, strict=True):
            values[:, place] += contribution
        return Contributions(slope * self._learner.base + intercept, self._features, values)

    def _columns(self, batch: Batch) -> Values:
        columns = np.empty((batch.rows, len(self._explanation.columns)), np.float32)
        for i, (column, place) in enumerate(zip(self._explanation.columns, self._places, strict=False)):
            if isinstance(column, Number):
                values = batch.numbers[place]
                columns[:, i] = np.where(np.isnan(values), np.float32(column.fill), values)
                continue
            values = batch.strings[place - self._numbers]
            if isinstance(column, Category):
                columns[:, i] = values == column.value
            elif isinstance(column, Rate):
                columns[:, i] = [column.rates.get(value, column.other) for value in values]
            else:
                columns[:, i] = [column.values.index(v) if v in column.values else -1 for v in values]
        return columns


def load(root: Path, layout: Layout) -> Explainer | None:
    """None for a model without an explanation."""
    path = root / EXPLANATION_FILE
    if not path.exists():
        return None
    return Explainer(Explanation.model_validate_json(path.read_text(encoding="utf-8")), layout)


def _learner(learner: Linear | Trees | Single) -> _Learner:
    match learner:
        case Linear():
            return _Linear(learner)
        case Trees():
            return _Trees(learner)
        case Single():
            return _Single(learner)


class _Single:
    def __init__(self, single: Single) -> None:
        self.base = single.base

    def contributions(self, columns: Values, log_odds: Values) -> Values:
        result: Values = (log_odds - self.base)[:, None]
        return result


class _Linear:
    def __init__(self, linear: Linear) -> None:
        self.base = linear.base
        self._weights, self._centers = np.array(linear.weights), np.array(linear.centers)

    def contributions(self, columns: Values, log_odds: Values) -> Values:
        result: Values = self._weights * (columns.astype(np.float64) - self._centers)
        return result


@dataclass(frozen=True, slots=True)
class _Step:
    """All that a path asks of one column: a value in [low, high). `share` of the training rows that came by those
    questions went the path's way."""

    low: float = -np.inf
    high: float = np.inf
    share: float = 1.0


_ANYTHING: Final = _Step()


class _Trees:
    """Arrays [paths, steps]; short paths are padded with steps that ask nothing, which changes no Shapley value."""

    def __init__(self, trees: Trees) -> None:
        paths = [path for tree in trees.trees for path in _paths(tree, 0, {})]
        depth = max(1, *(len(steps) for steps, _ in paths))
        padded = [[*steps.items(), *[(0, _ANYTHING)] * (depth - len(steps))] for steps, _ in paths]
        self._column = np.array([[column for column, _ in path] for path in padded])
        self._low = np.array([[step.low for _, step in path] for path in padded], np.float32)
        self._high = np.array([[step.high for _, step in path] for path in padded], np.float32)
        self._share = np.array([[step.share for _, step in path] for path in padded])
        self._leaf = np.array([leaf for _, leaf in paths])
        self._weights = [factorial(s) * factorial(depth - s - 1) / factorial(depth) for s in range(depth)]
        self.base = trees.bias + float(self._leaf @ self._share.prod(axis=1))

    def contributions(self, columns: Values, log_odds: Values) -> Values:
        return np.array([self._row(row) for row in columns])

    def _row(self, row: Values) -> Values:
        values = row[self._column]
        met = ((values >= self._low) & (values < self._high)).astype(np.float64)
        step_values = self._shapley(met) * self._leaf[:, None]
        return np.bincount(self._column.ravel(), step_values.ravel(), minlength=len(row))

    def _shapley(self, met: Values) -> Values:
        """Of the game in which a coalition of steps wins the product of `met` over its members and of `share`
        over the others. Grouped by coalition size that product is the polynomial prod(share + met x); leaving
        out one player divides its factor out again."""
        share, depth = self._share, met.shape[1]
        sizes = np.zeros((len(met), depth + 1))
        sizes[:, 0] = 1
        for j in range(depth):
            sizes[:, 1:] = sizes[:, 1:] * share[:, [j]] + sizes[:, :-1] * met[:, [j]]
            sizes[:, 0] *= share[:, j]
        total = np.zeros_like(met)
        without = np.zeros_like(met)  # of size s, going down from the largest
        for s in reversed(range(depth)):
            present = sizes[:, [s + 1]] - share * without
            absent = np.divide(sizes[:, [s]], share, out=np.zeros_like(met), where=share > 0)
            without = np.where(met == 1, present, absent)
            total += self._weights[s] * without
        result: Values = (met - share) * total
        return result


def _paths(tree: Tree, node: int, steps: dict[int, _Step]) -> Iterator[tuple[dict[int, _Step], float]]:
    """Every path from `node` to a leaf: what it asks, by column, and the leaf's value. `steps` led to `node`."""
    if tree.left[node] == -1:
        yield steps, tree.value[node]
        return
    column, threshold = tree.column[node], tree.value[node]
    so_far = steps.get(column, _ANYTHING)
    for child, low, high in (
        (tree.left[node], so_far.low, min(so_far.high, threshold)),
        (tree.right[node], max(so_far.low, threshold), so_far.high),
    ):
        share = so_far.share * tree.cover[child] / tree.cover[node]
        yield from _paths(tree, child, steps | {column: _Step(low, high, share)})
