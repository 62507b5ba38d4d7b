"""What is counted: a window as one row of numbers per arm, and the categories of events bets are placed on.

A row holds the requests, per event metric its events and whether they were reported, and the histograms. A category
is a set of places in the row; the margins move the candidate's buckets before they are put into bins.
"""

from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np

from serin.judge import latency, scores
from serin.judge.policy import Policy, Scores
from serin.judge.primitive import Floats, Ints
from serin.judge.window import ArmCounts
from serin.model.histograms import LATENCY_EDGES_S, SCORE_EDGES

LATENCY_BUCKETS: Final = len(LATENCY_EDGES_S) + 1
SCORE_BUCKETS: Final = len(SCORE_EDGES) + 1
REQUESTS: Final = 0
EVENTS: Final = 1
"""The first places in rows and categories alike: the requests, then the events."""


@dataclass(frozen=True, slots=True)
class Row:
    """Where things stand in a window's row of numbers."""

    events: tuple[str, ...]

    @property
    def reported(self) -> int:
        return EVENTS + len(self.events)

    @property
    def latency(self) -> slice:
        start = EVENTS + 2 * len(self.events)
        return slice(start, start + LATENCY_BUCKETS)

    @property
    def score(self) -> slice:
        return slice(self.latency.stop, self.latency.stop + SCORE_BUCKETS)

    def of(self, counts: ArmCounts) -> Floats:
        row = np.zeros(self.score.stop)
        row[REQUESTS] = counts.requests
        for k, name in enumerate(self.events):
            if name in counts.events:
                row[EVENTS + k] = counts.events[name]
                row[self.reported + k] = 1
        for histogram, place in ((counts.latency, self.latency), (counts.score, self.score)):
            if histogram:
                row[np.array(list(histogram)) + place.start] = list(histogram.values())
        return row


@dataclass(frozen=True, slots=True)
class Categories:
    """Where each category stands, and `stable`, `candidate`: matrices from an arm's row to its categories.

    `tail`: latencies above stable's p99, on the candidate above every shift of it. The categories before `measured`
    are what confidence sequences are about.
    `measured`: per event metric the windows that reported it, then the latencies and the scores counted.
    `latency`, `score_up`, `score_down`, `score`: bins, of scores moved down by the tolerance, moved up by it (highest
    bin first), and as they are. `slow`: latencies above stable's quantiles; `extreme`: lowest and highest scores.
    """

    row: Row
    tail: int
    measured: int
    latency: int
    slow: int
    score_up: int
    score_down: int
    score: int
    extreme: int
    count: int
    stable: Floats
    candidate: Floats

    @classmethod
    def of(cls, policy: Policy, latency_edges: Ints, score_edges: Ints) -> Self:
        """The edges are bucket numbers; bins whose edges are not known yet stay empty."""
        row = Row(tuple(metric.name for metric in policy.event_metrics))
        events = len(row.events)
        sizes = (
            EVENTS + events,
            len(latency.SHIFTS),
            events + 2,
            latency.BINS,
            len(latency.SLOW),
            *(scores.BINS,) * 3,
            2,
        )
        tail, measured, latencies, slow, up, down, plain, extreme, count = np.cumsum(sizes).tolist()
        nothing = np.zeros((0, 0))
        layout = cls(row, tail, measured, latencies, slow, up, down, plain, extreme, count, nothing, nothing)
        tolerated = latency.tolerated(policy.latency.margin, policy.latency.tolerance_ms)
        stable = layout._members(latency_edges, score_edges, 0)
        candidate = layout._members(tolerated[latency_edges], score_edges, scores.shift(policy.scores.tolerance))
        if len(latency_edges):
            edge = latency_edges[latency.TAIL] + latency.SHIFTS
            within = (edge >= 0) & (edge < len(LATENCY_EDGES_S))
            buckets = np.arange(LATENCY_BUCKETS)
            stable[tail:measured, row.latency] = within[:, None] & (buckets > latency_edges[latency.TAIL])
            candidate[tail:measured, row.latency] = within[:, None] & (buckets > edge[:, None])
        if policy.scores.expected is Scores.DIFFERENT:
            stable[:, row.score] = candidate[:, row.score] = 0
        return replace(layout, stable=stable, candidate=candidate)

    def _members(self, latency_edges: Ints, score_edges: Ints, score_shift: int) -> Floats:
        """1 where a place of the row belongs to a category; the edges are those of the arm in question."""
        row, events = self.row, len(self.row.events)
        members = np.zeros((self.count, row.score.stop))
        for k in range(EVENTS + events):
            members[k, k] = 1
        for k in range(events):
            members[self.measured + k, row.reported + k] = 1
        members[self.measured + events, row.latency] = 1
        members[self.measured + events + 1, row.score] = 1
        if len(latency_edges):
            _fill(members, self.latency, row.latency, latency_edges)
            for k, first in enumerate(latency.SLOW.values()):
                members[self.slow + k] = members[self.latency + first : self.slow].sum(axis=0)
        if len(score_edges):
            _fill(members, self.score_up, row.score, score_edges + score_shift)
            _fill(members, self.score_down, row.score, score_edges - score_shift)
            _fill(members, self.score, row.score, score_edges)
            members[self.score_down : self.score] = members[self.score_down : self.score][::-1].copy()
            members[self.extreme] = members[self.score - scores.EXTREME_BINS : self.score].sum(axis=0)
            members[self.extreme + 1] = members[self.score_down - scores.EXTREME_BINS : self.score_down].sum(axis=0)
        return members


def _fill(members: Floats, first_bin: int, place: slice, edges: Ints) -> None:
    """Put every bucket into the first bin whose upper edge it does not exceed."""
    buckets = np.arange(place.stop - place.start)
    members[first_bin + np.searchsorted(edges, buckets), place.start + buckets] = 1
