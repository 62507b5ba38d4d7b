"""Bets on the shape of a distribution: bins through stable's quantiles, relative risks that rise from bin to bin.

If the candidate's values are stochastically no larger than stable's, then for every vector of relative risks that
never falls from bin to bin the wealth sum_k p_k r_k / (1 + w (r_k - 1)) is at most 1: it is 1 for equal
distributions, and r / (1 + w (r - 1)) rises with r. A sequential rank test with chosen alternatives.
"""

from statistics import NormalDist
from typing import Final

import numpy as np

from serin.judge.primitive import Floats

_NORMAL: Final = NormalDist()
_EDGE: Final = 1e-4


def normal_scores(below: Floats) -> Floats:
    """Mean of a standard normal variable within each bin, when the bins hold the parts `below` their upper edge."""
    cuts = [_NORMAL.inv_cdf(p) for p in np.clip(below, _EDGE, 1 - _EDGE)]
    mass = np.diff([0.0, *map(_NORMAL.cdf, cuts), 1.0])
    density = np.diff([0.0, *map(_NORMAL.pdf, cuts), 0.0])
    empty = mass < 1e-9
    scores = np.where(empty, [*cuts, cuts[-1]], -density / np.where(empty, 1.0, mass))
    return np.maximum.accumulate(scores)


def tilt(scores: Floats, strength: float) -> Floats:
    """Relative risk of each bin when the whole distribution moves up by `strength` standard deviations."""
    return np.exp(strength * scores - strength**2 / 2)
