"""Prediction scores: did they move further than the tolerance, or collapse into one place?"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from serin.judge.primitive import Bet, Floats
from serin.judge.shape import normal_scores, tilt
from serin.model.histograms import SCORE_STEP

QUANTILES: Final = np.arange(1, 10) / 10
BINS: Final = len(QUANTILES) + 1
EXTREME_BINS: Final = 2
"""The lowest and the highest 20 % of stable's scores are what acceptance looks at."""

_TILTS: Final = {0.15: 0.3, 0.35: 0.4, 0.8: 0.3}
_UP, _DOWN, _COLLAPSE = 0.35, 0.35, 0.3
_COLLAPSE_MARGIN: Final = 1.5
_COLLAPSE_RISKS: Final = (3.0, 8.0)


def shift(tolerance: float) -> int:
    """The tolerance in buckets of the score grid."""
    return round(tolerance / SCORE_STEP)


def bets(below: Floats, up: int, down: int, bins: int) -> Iterator[tuple[float, Bet]]:
    """Weighted bets; the arguments are the first categories of the bins of scores moved down by the tolerance,
    of scores moved up by it (highest bin first), and of scores as they are."""
    rising = normal_scores(below)
    falling = normal_scores(1 - below[::-1])
    for strength, weight in _TILTS.items():
        for share, first, scores in ((_UP, up, rising), (_DOWN, down, falling)):
            risks = {first + k: float(risk) for k, risk in enumerate(tilt(scores, strength))}
            yield share * weight, Bet(risks)
    for k in range(BINS):
        for risk in _COLLAPSE_RISKS:
            yield _COLLAPSE / (BINS * len(_COLLAPSE_RISKS)), Bet({bins + k: risk}, _COLLAPSE_MARGIN)
