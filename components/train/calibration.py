"""From log-odds to decisions: sigmoid calibration, and the threshold that costs least."""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from components.config import Costs
from components.evaluate.metrics import log_losses

_FOLDS: Final = 5


@dataclass(frozen=True)
class Sigmoid:
    """probability = 1 / (1 + exp(-(slope * margin + intercept))): Platt scaling; the default changes nothing."""

    slope: float = 1.0
    intercept: float = 0.0

    @classmethod
    def fit(cls, margins: np.ndarray, y: np.ndarray) -> Self:
        learner = LogisticRegression(C=np.inf).fit(margins[:, None], y)
        return cls(float(learner.coef_[0, 0]), float(learner.intercept_[0]))

    def __call__(self, margins: np.ndarray) -> np.ndarray:
        probabilities: np.ndarray = expit(self.slope * margins + self.intercept)
        return probabilities


IDENTITY: Final = Sigmoid()


def calibrate(margins: np.ndarray, y: np.ndarray, seed: int) -> tuple[Sigmoid, np.ndarray]:
    """The sigmoid to put behind out-of-fold `margins`, and the out-of-fold probabilities it gives.

    It is fitted on all of them, but kept only if it lowers log loss on margins it was not fitted on; those
    cross-fitted probabilities are returned then. A sigmoid that falls with the margin is never kept.
    """
    crossed = np.empty(len(y))
    for fit, held_out in StratifiedKFold(_FOLDS, shuffle=True, random_state=seed).split(margins, y):
        crossed[held_out] = Sigmoid.fit(margins[fit], y[fit])(margins[held_out])
    sigmoid = Sigmoid.fit(margins, y)
    if sigmoid.slope > 0 and log_losses(y, crossed).mean() < log_losses(y, IDENTITY(margins)).mean():
        return sigmoid, crossed
    return IDENTITY, IDENTITY(margins)


def cheapest_threshold(probabilities: np.ndarray, y: np.ndarray, costs: Costs) -> float:
    """The threshold with the least cost on these rows; among equals the one nearest, in log-odds, to
    false_positive / (false_positive + false_negative), which is the cheapest for perfect probabilities."""
    order = np.argsort(probabilities, kind="stable")
    p, events = probabilities[order], y[order]
    # a threshold between p[i-1] and p[i] misses the events before i and flags the others from i on
    missed = np.concatenate([[0], np.cumsum(events)])
    flagged = np.concatenate([np.cumsum((1 - events)[::-1])[::-1], [0]])
    cost = costs.false_negative * missed + costs.false_positive * flagged
    cuts = np.concatenate([[p[0] / 2], (p[:-1] + p[1:]) / 2, [(p[-1] + 1) / 2]])
    # no cut between equal scores, nor between scores that are equal in the model's float32
    apart = np.concatenate([[True], p[1:].astype(np.float32) > p[:-1].astype(np.float32), [True]])
    cost, cuts = cost[apart], cuts[apart]
    best = cuts[cost == cost.min()]
    ideal = costs.false_positive / (costs.false_positive + costs.false_negative)
    return float(best[np.argmin(np.abs(logit(best) - logit(ideal)))])
