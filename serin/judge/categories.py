"""The categories of things that are counted in a window, as one array of counts per arm."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

import numpy as np

from serin.histograms import LATENCY_EDGES_S, SCORE_EDGES
from serin.judge import latency, scores
from serin.judge.policy import Policy
from serin.judge.primitive import Floats, Ints
from serin.judge.reference import Reference, bins
from serin.judge.window import ArmCounts

LATENCY_BUCKETS: Final = len(LATENCY_EDGES_S) + 1
SCORE_BUCKETS: Final = len(SCORE_EDGES) + 1
REQUESTS: Final = 0
EVENTS: Final = 1


class Tally(NamedTuple):
    """One arm's counts of one window; `latency` and `score` over all buckets of their grids."""

    requests: int
    events: Floats
    latency: Ints
    score: Ints

    @classmethod
    def of(cls, counts: ArmCounts, events: tuple[str, ...]) -> Self:
        return cls(
            counts.requests,
            np.array([counts.events.get(name, 0) for name in events], dtype=np.float64),
            _dense(counts.latency, LATENCY_BUCKETS),
            _dense(counts.score, SCORE_BUCKETS),
        )


def _dense(sparse: Mapping[int, int], size: int) -> Ints:
    counts = np.zeros(size, dtype=np.intp)
    if sparse:
        counts[list(sparse)] = list(sparse.values())
    return counts


@dataclass(frozen=True, slots=True)
class Categories:
    """Where each category stands: the requests, the events, then blocks of bins."""

    events: tuple[str, ...]
    latency_shift: int
    score_shift: int
    latency: int
    slow: int
    score_up: int
    score_down: int
    score: int
    extreme: int
    count: int

    @classmethod
    def of(cls, policy: Policy) -> Self:
        names = tuple(metric.name for metric in policy.event_metrics)
        sizes = (len(names), latency.BINS, len(latency.SLOW), scores.BINS, scores.BINS, scores.BINS, 2)
        starts = np.cumsum((EVENTS, *sizes)).tolist()
        return cls(names, latency.shift(policy.latency.margin), scores.shift(policy.scores.tolerance), *starts[1:])

    def count_arms(
        self, stable: Tally, candidate: Tally, latencies: Reference, score_values: Reference
    ) -> tuple[Floats, Floats]:
        """Counts per category on the candidate and on both arms."""
        ours = self._count(candidate, latencies.edges, score_values.edges, self.latency_shift, self.score_shift)
        theirs = self._count(stable, latencies.edges, score_values.edges, 0, 0)
        return ours, ours + theirs

    def _count(
        self, arm: Tally, latency_edges: Ints, score_edges: Ints, latency_shift: int, score_shift: int
    ) -> Floats:
        counts = np.zeros(self.count)
        counts[REQUESTS] = arm.requests
        counts[EVENTS : self.latency] = arm.events
        if len(latency_edges):
            binned = bins(arm.latency, latency_edges, latency_shift)
            counts[self.latency : self.slow] = binned
            from_above = binned[::-1].cumsum()
            for k, first_bin in enumerate(latency.SLOW.values()):
                counts[self.slow + k] = from_above[latency.BINS - 1 - first_bin]
        if len(score_edges):
            up = bins(arm.score, score_edges, score_shift)
            down = bins(arm.score, score_edges, -score_shift)[::-1]
            counts[self.score_up : self.score_down] = up
            counts[self.score_down : self.score] = down
            counts[self.score : self.extreme] = bins(arm.score, score_edges) if score_shift else up
            counts[self.extreme] = down[-scores.EXTREME_BINS :].sum()
            counts[self.extreme + 1] = up[-scores.EXTREME_BINS :].sum()
        return counts
