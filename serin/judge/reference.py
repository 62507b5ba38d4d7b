"""What is known of stable's distribution, so that the bins of later windows can be laid through it.

Bins may only depend on what was seen before the window they bin (predictable bins); stable's counts alone go in.
"""

from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from serin.judge.primitive import Floats, Ints

_FIRST: Final = 100
_LONGEST: Final = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A histogram of stable's values on a fixed grid, and the edges laid through its quantiles.

    `edges`: bucket numbers, nondecreasing, one per quantile; a value belongs below an edge if its bucket is not
    above it. `below`: the part of the counts at or below each edge. There are no edges until there are 100 counts.
    They are laid anew when the counts have doubled, and every 10,000 counts, older counts then weighing half.
    """

    counts: Floats
    edges: Ints
    below: Floats
    next_total: float = _FIRST

    @classmethod
    def empty(cls, buckets: int, quantiles: Floats) -> Self:
        return cls(np.zeros(buckets), np.zeros(0, dtype=np.intp), quantiles)

    def dump(self) -> dict[str, Any]:
        return {
            "counts": {str(k): float(self.counts[k]) for k in np.flatnonzero(self.counts)},
            "buckets": len(self.counts),
            "edges": self.edges.tolist(),
            "below": self.below.tolist(),
            "next_total": self.next_total,
        }

    @classmethod
    def load(cls, document: dict[str, Any]) -> Self:
        counts = np.zeros(document["buckets"])
        for bucket, count in document["counts"].items():
            counts[int(bucket)] = count
        edges = np.array(document["edges"], dtype=np.intp)
        return cls(counts, edges, np.array(document["below"], dtype=np.float64), document["next_total"])

    def learn(self, stable: Floats, quantiles: Floats) -> Self:
        counts = self.counts + stable
        total = float(counts.sum())
        if total < self.next_total:
            return type(self)(counts, self.edges, self.below, self.next_total)
        cumulative = counts.cumsum()
        edges = np.searchsorted(cumulative, quantiles * total)
        below = cumulative[edges] / total
        if total >= _LONGEST:
            counts = counts / 2
        return type(self)(counts, edges, below, min(2 * total, _LONGEST))
