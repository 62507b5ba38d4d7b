"""Latency: is the candidate, with margin and tolerance taken off, stochastically slower than stable?"""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from serin.judge.primitive import Bet, Floats, Ints
from serin.judge.shape import normal_scores, tilt
from serin.model.histograms import LATENCY_EDGES_S, LATENCY_STEPS_PER_OCTAVE

QUANTILES: Final = np.array([0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.995])
BINS: Final = len(QUANTILES) + 1
SLOW: Final = {"p50": 3, "p90": 5, "p99": 8}
"""Of each exceedance, the first bin above the quantile."""
TAIL: Final = SLOW["p99"] - 1
"""The edge, at stable's p99, around which latencies are compared."""
SHIFTS: Final = np.arange(-LATENCY_STEPS_PER_OCTAVE, LATENCY_STEPS_PER_OCTAVE + 1)
"""Buckets by which the candidate's edge is moved in that comparison: half to twice stable's latency."""

_TILTS: Final = {0.25: 0.30, 0.6: 0.12, 1.2: 0.06}
_STEPS: Final = ((2.0, 6, 0.06), (2.5, 8, 0.34), (7.0, 8, 0.12))
"""Relative risk, the bin it starts at (above p95, above p99), weight."""


def tolerated(margin: float, tolerance_ms: float) -> Ints:
    """Per bucket of the latency grid, the bucket up to which a candidate may move values without doing harm: by the
    margin or by the tolerance, whichever allows more. A monotone map, so "the candidate's latency, mapped back, is
    stochastically at most stable's" is a null hypothesis of the same kind as with the margin alone.
    """
    edges = np.array(LATENCY_EDGES_S)
    by_margin = np.arange(len(edges) + 1) + round(math.log2(margin) * LATENCY_STEPS_PER_OCTAVE)
    by_time = np.searchsorted(edges, edges + tolerance_ms / 1000)
    allowed: Ints = np.minimum(np.maximum(by_margin, np.append(by_time, len(edges))), len(edges))
    return allowed


def bets(below: Floats, first: int) -> Iterator[tuple[float, Bet]]:
    """Weighted bets that latency got worse, over the bins in categories `first` onwards."""
    scores = normal_scores(below)
    for strength, weight in _TILTS.items():
        yield weight, Bet({first + k: float(risk) for k, risk in enumerate(tilt(scores, strength))})
    for risk, start, weight in _STEPS:
        yield weight, Bet({first + k: risk for k in range(start, BINS)})
