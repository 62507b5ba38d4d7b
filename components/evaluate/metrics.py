"""What training and evaluation measure. `y` is 0/1 [N], `p` the probability of 1 [N]; numpy only, no scikit-learn."""

import math
from typing import Final

import numpy as np

from components.config import Costs
from serin.model.histograms import SCORE_EDGES

EPSILON: Final = 1e-7
"""Probabilities are kept this far from 0 and 1 in log loss: about the resolution of a float32 below 1."""


def log_losses(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Per row."""
    p = np.clip(p.astype(np.float64), EPSILON, 1 - EPSILON)
    losses: np.ndarray = -np.log(np.where(y == 1, p, 1 - p))
    return losses


def decision_costs(y: np.ndarray, decided: np.ndarray, costs: Costs) -> np.ndarray:
    """Per row; `decided` is True where the model decides for 1."""
    missed, flagged = (y == 1) & ~decided, (y == 0) & decided
    cost: np.ndarray = costs.false_negative * missed + costs.false_positive * flagged
    return cost


def _ranks(p: np.ndarray) -> np.ndarray:
    """1 to N; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = ((last - counts + 1 + last) / 2)[inverse]
    return ranks


def auc(y: np.ndarray, p: np.ndarray) -> float:
    """Area under the ROC curve, by the Mann-Whitney statistic; NaN where `y` holds one class only."""
    events = int(y.sum())
    others = len(y) - events
    if not events or not others:
        return math.nan
    return float((_ranks(p)[y == 1].sum() - events * (events + 1) / 2) / (events * others))


def roc(y: np.ndarray, p: np.ndarray, limit: int = 200) -> list[tuple[float, float, float]]:
    """At most `limit` points (false positive rate, true positive rate, threshold), from (0, 0) to (1, 1), all finite;
    none where `y` holds one class only."""
    if len(np.unique(y)) < 2:
        return []
    order = np.argsort(-p, kind="stable")
    last_of_score = np.flatnonzero(np.append(np.diff(p[order]) != 0, True))
    true = np.cumsum(y[order])[last_of_score] / y.sum()
    false = np.cumsum(1 - y[order])[last_of_score] / (1 - y).sum()
    keep = np.unique(np.linspace(0, len(true) - 1, min(limit - 1, len(true))).astype(int))
    points = zip(false[keep].tolist(), true[keep].tolist(), p[order][last_of_score][keep].tolist(), strict=True)
    return [(0.0, 0.0, 1.0), *points]


def calibration(y: np.ndarray, p: np.ndarray, bins: int = 10) -> list[tuple[int, float, float]]:
    """Reliability by score: per bin of about equal rows (rows, mean probability, event rate)."""
    parts = np.array_split(np.argsort(p, kind="stable"), min(bins, len(p)))
    return [(len(part), float(p[part].mean()), float(y[part].mean())) for part in parts]


def calibration_error(y: np.ndarray, p: np.ndarray) -> float:
    """Expected calibration error over the bins of `calibration`."""
    bins = calibration(y, p)
    return sum(rows * abs(predicted - observed) for rows, predicted, observed in bins) / len(y)


def score_counts(p: np.ndarray) -> list[int]:
    """Rows per bucket of `serin.model.histograms.SCORE_EDGES`."""
    counts: list[int] = np.bincount(
        np.searchsorted(SCORE_EDGES, p, side="left"), minlength=len(SCORE_EDGES) + 1
    ).tolist()
    return counts
