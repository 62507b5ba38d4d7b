"""The grids on which the predictor counts latencies and scores, and on which the judge reads them.

One fixed grid for every revision makes counts of two revisions comparable bucket by bucket, and turns a
margin into a shift by whole buckets: one latency bucket is a factor of 2**(1/14) = 1.0508, two are 1.104.
Counts are plain (not cumulative): bucket i holds values in (edge[i-1], edge[i]], the last one all above the
last edge, so there are len(edges) + 1 buckets.
"""

from bisect import bisect_left
from typing import Final

LATENCY_STEPS_PER_OCTAVE: Final = 14
LATENCY_EDGES_S: Final = tuple(
    0.0001 * 2 ** (k / LATENCY_STEPS_PER_OCTAVE) for k in range(17 * LATENCY_STEPS_PER_OCTAVE + 1)
)
"""0.1 ms to 13.1 s."""

SCORE_STEP: Final = 0.01
SCORE_EDGES: Final = tuple(round(k * SCORE_STEP, 2) for k in range(1, 100))
"""0.01 to 0.99; scores are probabilities."""


def bucket(edges: tuple[float, ...], value: float) -> int:
    """The bucket of `value`, 0 to len(edges)."""
    return bisect_left(edges, value)
