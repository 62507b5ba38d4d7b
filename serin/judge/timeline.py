"""The windows of a rollout, read back as series: what the live view and the report show."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from serin.judge.window import ArmCounts, Window
from serin.model.histograms import LATENCY_EDGES_S


class Arm(StrEnum):
    STABLE = "stable"
    CANDIDATE = "candidate"

    def of(self, counts: "Window | Slot") -> ArmCounts:
        return counts.stable if self is Arm.STABLE else counts.candidate


def from_document(document: Mapping[str, Any]) -> Window:
    """The inverse of `serin.measure.windows.to_document`."""
    return Window(
        id=document["id"],
        start_s=document["startS"],
        end_s=document["endS"],
        stage=document["stage"],
        share=document["share"],
        stable=_arm(document["stable"]),
        candidate=_arm(document["candidate"]),
        counted_apart=document.get("countedApart", False),
    )


def _arm(document: Mapping[str, Any]) -> ArmCounts:
    return ArmCounts(
        requests=document["requests"],
        events=document["events"],
        latency={int(bucket): count for bucket, count in document["latency"].items()},
        score={int(bucket): count for bucket, count in document["score"].items()},
    )


def total(windows: Iterable[Window], arm: Arm) -> ArmCounts:
    """All counts of one arm, added up."""
    requests = 0
    events: Counter[str] = Counter()
    latency: Counter[int] = Counter()
    score: Counter[int] = Counter()
    for window in windows:
        counts = arm.of(window)
        requests += counts.requests
        events.update(counts.events)
        latency.update(counts.latency)
        score.update(counts.score)
    return ArmCounts(requests=requests, events=events, latency=latency, score=score)


def latency_s(counts: Mapping[int, int], quantile: float) -> float | None:
    """Upper edge of the bucket that holds the quantile: at most 5 % above the true value.

    None without a count, infinite when it lies above the last edge of the grid.
    """
    missing = quantile * sum(counts.values())
    if missing == 0:
        return None
    for bucket in sorted(counts):
        missing -= counts[bucket]
        if missing <= 0:
            return LATENCY_EDGES_S[bucket] if bucket < len(LATENCY_EDGES_S) else math.inf
    raise AssertionError("a quantile above 1 was asked for")


@dataclass(frozen=True, slots=True)
class Slot:
    """Windows that ended in one stretch of time. `start_s`, `end_s` are UTC epoch seconds; the windows themselves
    last `covered_s`."""

    start_s: float
    end_s: float
    covered_s: float
    stable: ArmCounts
    candidate: ArmCounts

    @property
    def middle_s(self) -> float:
        return (self.start_s + self.end_s) / 2

    @property
    def observed(self) -> float | None:
        """The candidate's share of the requests, 0 to 1; None without a request."""
        requests = self.stable.requests + self.candidate.requests
        return self.candidate.requests / requests if requests else None


def slots(windows: Sequence[Window], count: int, *, start_s: float, end_s: float) -> list[Slot]:
    """Cut the time from `start_s` to `end_s` into `count` equal slots; a window belongs to the one it ended in."""
    width_s = (end_s - start_s) / count
    within: list[list[Window]] = [[] for _ in range(count)]
    for window in windows:
        if start_s < window.end_s <= end_s:
            within[min(int((window.end_s - start_s) / width_s), count - 1)].append(window)
    return [
        Slot(
            start_s=start_s + k * width_s,
            end_s=start_s + (k + 1) * width_s,
            covered_s=sum(window.end_s - window.start_s for window in some),
            stable=total(some, Arm.STABLE),
            candidate=total(some, Arm.CANDIDATE),
        )
        for k, some in enumerate(within)
    ]
