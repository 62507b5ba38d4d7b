"""What the judge reads: windows of counters of the two arms."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

ABANDONED: Final = "abandoned"


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """What one revision answered in one window.

    `events` counts requests by kind of harm, at least "errors": 5xx, and requests whose clients gave up before the
    answer came, which `ABANDONED` counts once more by themselves. A harm of degrees is the sum of a value of 0 to 1
    per request: the bets stay valid, as a**x <= 1 + x (a - 1) for x from 0 to 1. `latency` and `score` are sparse
    counts per bucket of `serin.model.histograms`; empty where nothing was measured. Raises `ValueError` for
    counts that cannot be: the judge sees none of them.
    """

    requests: int = 0
    events: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[int, int] = field(default_factory=dict)
    score: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.requests, "requests")
        for name, count in self.events.items():
            _require(count, name)
        for name, counts in (("latency", self.latency), ("score", self.score)):
            for count in counts.values():
                _require(count, name)


@dataclass(frozen=True, slots=True)
class Window:
    """Counters of both arms between two readings.

    `id` rises by at least one from window to window; a window whose id is not above the last one seen is ignored.
    `start_s`, `end_s` are UTC epoch seconds. `stage` is the index of the plan's stage (the bake is the last one).
    `share` is the candidate's configured share of traffic, 0 to 1, in force during the whole window; None when
    it changed inside the window, so that only the observed share can be used. That is used, too, when the arms were
    `counted_apart`, at different moments: they have that share of what was counted only while the load is constant.
    """

    id: int
    start_s: float
    end_s: float
    stage: int
    share: float | None
    stable: ArmCounts
    candidate: ArmCounts
    counted_apart: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.start_s) or not math.isfinite(self.end_s):
            raise ValueError(f"it lasts from {self.start_s} to {self.end_s}")
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}, not from 0 to 1")


def _require(count: float, name: str) -> None:
    if not 0 <= count < math.inf:  # NaN is neither
        raise ValueError(f"{name} is {count}, not a count")
