"""Sums of counters over processes that come and go: pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from serin.measure.windows import Counters, ServerCounts
from serin.plan import Stored

Series = Mapping[str, Mapping[int, int]]
"""Cumulative counts by name of what is counted, "<revision> codes", "<revision> unanswered", "<revision> latency" or
"<revision> score", then by the keys that they have in `Counters`."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What had been counted of a rollout's two revisions at `at_s`, by the process that keeps the counts.

    `active`: requests under way by revision; None where the source does not tell. `latency_lag_s`: where the gateway
    counts latencies, how much later than answers it may show them; Knative's probes are among them. None where those
    count them who give the answers. `apart`: whether the revisions were counted at different moments, as is where
    each of their pods counts for itself.
    """

    at_s: float
    read: Mapping[str, Series]
    active: Mapping[str, int] | None = None
    latency_lag_s: float | None = None
    apart: bool = False


class Tally(Stored):
    """What was counted since the first look. `seen` are the counts as last read, by the process that keeps them."""

    seen: Mapping[str, Series] = Field(default_factory=dict)
    total: Series = Field(default_factory=dict)


def add(tally: Tally, read: Mapping[str, Series]) -> Tally:
    """Add what each process counted since it was last read.

    The first look at a process only sets its baseline. A count that fell was reset and counts from zero; a series
    that is gone (a revision some time out of the route) counts from zero when it is back.
    """
    total = {name: dict(counts) for name, counts in tally.total.items()}
    for process, series in read.items():
        before = tally.seen.get(process)
        if before is None:
            continue
        for name, counts in series.items():
            last = before.get(name, {})
            if any(counts.get(key, 0) < count for key, count in last.items()):
                last = {}
            sums = total.setdefault(name, {})
            for key, count in counts.items():
                if count > last.get(key, 0):
                    sums[key] = sums.get(key, 0) + count - last.get(key, 0)
    return Tally(seen=read, total=total)


def counters(tally: Tally, revision: str) -> Counters:
    return Counters(
        codes=tally.total.get(f"{revision} codes", {}),
        unanswered=tally.total.get(f"{revision} unanswered", {}),
        servers={
            0: ServerCounts(
                latency=tally.total.get(f"{revision} latency", {}), score=tally.total.get(f"{revision} score", {})
            )
        },
    )
