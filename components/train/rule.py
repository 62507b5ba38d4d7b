"""What teams use before machine learning: the event rate per value or range of the single strongest column."""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import pandas as pd
from scipy.special import logit

from components.train.features import top_categories

RANGES: Final = 10
SMOOTHING_ROWS: Final = 10.0
"""Each range's rate is drawn towards the base rate as if by this many rows of it."""
_FOLDS: Final = 5


@dataclass(frozen=True)
class Ranges:
    """Code i is (edges[i-1], edges[i]]; missing has the last code."""

    edges: np.ndarray

    @property
    def size(self) -> int:
        return len(self.edges) + 2

    def codes(self, column: pd.Series) -> np.ndarray:
        values = column.to_numpy(np.float32)
        return np.where(np.isnan(values), self.size - 1, np.searchsorted(self.edges, values, side="left"))


@dataclass(frozen=True)
class Values:
    """Code i is values[i]; rare and unseen values share the last code."""

    values: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.values) + 1

    def codes(self, column: pd.Series) -> np.ndarray:
        known = {value: code for code, value in enumerate(self.values)}
        return column.map(known).fillna(len(known)).to_numpy(np.int64)


def _bins(column: pd.Series) -> Ranges | Values:
    if column.dtype == np.float32:
        present = column.dropna().to_numpy()
        shares = np.arange(1, RANGES) / RANGES
        return Ranges(np.unique(np.quantile(present, shares, method="lower") if len(present) else present))
    return Values(tuple(top_categories(column)))


def _rates(codes: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Smoothed event rate per code, strictly between 0 and 1."""
    rows = np.bincount(codes, minlength=size)
    events = np.bincount(codes, weights=y, minlength=size)
    base = (y.sum() + 1) / (len(y) + 2)
    rates: np.ndarray = (events + SMOOTHING_ROWS * base) / (rows + SMOOTHING_ROWS)
    return rates


class SingleColumnRule:
    """A classifier in scikit-learn's manner. Fitted: `column_` (its input name), `bins_`, and `margins_`, the
    log-odds per code of the bins."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, X: pd.DataFrame, y: np.ndarray) -> Self:
        fold = np.random.default_rng(self.seed).permutation(len(y)) % _FOLDS
        losses = {}
        for name in X.columns:
            bins = _bins(X[name])
            losses[name] = self._out_of_fold_loss(bins.codes(X[name]), y, bins.size, fold)
        self.column_ = min(losses, key=losses.__getitem__)
        self.bins_ = _bins(X[self.column_])
        self.margins_ = logit(_rates(self.bins_.codes(X[self.column_]), y, self.bins_.size))
        return self

    @staticmethod
    def _out_of_fold_loss(codes: np.ndarray, y: np.ndarray, size: int, fold: np.ndarray) -> float:
        rates = np.empty(len(y))
        for k in range(_FOLDS):
            held_out = fold == k
            rates[held_out] = _rates(codes[~held_out], y[~held_out], size)[codes[held_out]]
        return -float(np.mean(np.log(np.where(y == 1, rates, 1 - rates))))

    def decision_function(self, X: pd.DataFrame) -> np.ndarray:
        margins: np.ndarray = self.margins_[self.bins_.codes(X[self.column_])]
        return margins
