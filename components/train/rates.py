"""Strings of many values as numbers: the log-odds of the event among the training rows with that value."""

from typing import Final, Self

import numpy as np
import pandas as pd
from scipy.special import logit
from sklearn.base import BaseEstimator, TransformerMixin

from components.train.features import KNOWN_VALUES

SMOOTHING_ROWS: Final = 10.0
"""Each value's rate is drawn towards the base rate as if by this many rows of it."""
_FOLDS: Final = 5


class EventRates(TransformerMixin, BaseEstimator):
    """A transformer of scikit-learn from str [N, columns] to float32 [N, columns].

    What the learner behind it is fitted on is cross-fitted: each row gets the log-odds of the other folds' rows, else
    the learner would take a rare value's own label for knowledge. Fitted: `values_`, and `margins_`, one longer, the
    last for any other value; both by column.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, X: pd.DataFrame, y: np.ndarray) -> Self:
        self.fit_transform(X, y)
        return self

    def fit_transform(self, X: pd.DataFrame, y: np.ndarray) -> np.ndarray:
        fold = np.random.default_rng(self.seed).permutation(len(y)) % _FOLDS
        self.values_: list[list[str]] = []
        self.margins_: list[np.ndarray] = []
        crossed = np.empty(X.shape, np.float32)
        for i, name in enumerate(X.columns):
            counts = X[name].value_counts()
            values = sorted(map(str, counts.index), key=lambda value: (-counts[value], value))[:KNOWN_VALUES]
            codes, size = _codes(X[name], values), len(values) + 1
            cells = fold * size + codes
            rows = np.bincount(cells, minlength=_FOLDS * size).reshape(_FOLDS, size)
            events = np.bincount(cells, weights=y, minlength=_FOLDS * size).reshape(_FOLDS, size)
            self.values_.append(values)
            self.margins_.append(_margins(rows.sum(0, keepdims=True), events.sum(0, keepdims=True))[0])
            crossed[:, i] = _margins(rows.sum(0) - rows, events.sum(0) - events)[fold, codes]
        return crossed

    def transform(self, X: pd.DataFrame) -> np.ndarray:
        columns = zip(X.columns, self.values_, self.margins_, strict=True)
        return np.column_stack([margins[_codes(X[name], values)] for name, values, margins in columns])


def _codes(column: pd.Series, values: list[str]) -> np.ndarray:
    codes = pd.Index(values).get_indexer(pd.Index(column))
    return np.where(codes < 0, len(values), codes)


def _margins(rows: np.ndarray, events: np.ndarray) -> np.ndarray:
    """Log-odds float32 [folds, values] from counts of that shape."""
    base = (events.sum(1, keepdims=True) + 1) / (rows.sum(1, keepdims=True) + 2)
    margins: np.ndarray = logit((events + SMOOTHING_ROWS * base) / (rows + SMOOTHING_ROWS)).astype(np.float32)
    return margins
