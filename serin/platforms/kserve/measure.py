"""Counts of both arms over gateways and pods that come and go, as windows for the judge: pure functions."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Final

from pydantic import Field

from serin.judge.window import ArmCounts, Window
from serin.plan import Document
from serin.platforms.kserve.service import Service
from serin.rollout import Status
from serin.telemetry.windows import Counters, Reading, window_between

BEFORE: Final = -1
"""The stage of what was counted before the first split was in force."""
SETTLE_S: Final = 8.0
"""Knative probes a route for up to 5 s after every change, and Kourier counts the probes as answers."""

Series = Mapping[str, Mapping[int, int]]
"""Cumulative counts by name of what is counted, then by status code or bucket."""


class Tally(Document):
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
        latency=tally.total.get(f"{revision} latency", {}),
        score=tally.total.get(f"{revision} score", {}),
    )


class Measured(Document):
    """One look at the counts. `percent` is the candidate's in the traffic rows, `steady_since_s` since when that is
    also what the service asks for; None while a change is under way."""

    at_s: float
    window_id: int = 0
    stage: int = BEFORE
    percent: int
    steady_since_s: float | None
    tally: Tally

    def reading(self, stable: str, candidate: str) -> Reading:
        return Reading(
            at_s=self.at_s,
            window_id=self.window_id,
            stage=self.stage,
            percent=self.percent,
            gateway="",
            stable=counters(self.tally, stable),
            candidate=counters(self.tally, candidate),
        )


def measure(
    before: Measured | None, service: Service, status: Status, counts: Mapping[str, Series], at_s: float
) -> tuple[Measured, Window | None]:
    """A new look, and the window since the last one.

    Traffic moves before the status says so. So a window has a known share only if the split was confirmed at both
    its ends; what is counted while it changes belongs to the stage before.
    """
    stable, candidate = status.stable_revision or "", status.candidate_revision or ""
    percent = service.share(candidate)
    confirmed = service.percent == percent and service.share(stable) == 100 - percent
    since_s = before.steady_since_s if before is not None and before.percent == percent else None
    since_s = at_s if since_s is None else since_s
    old_stage = before.stage if before is not None else BEFORE
    after = Measured(
        at_s=at_s,
        window_id=before.window_id + 1 if before is not None else 0,
        stage=status.stage if confirmed and percent > 0 and status.stage is not None else old_stage,
        percent=percent,
        steady_since_s=since_s if confirmed else None,
        tally=add(before.tally if before is not None else Tally(), counts),
    )
    if before is None or before.percent == percent == 0:
        return after, None
    window = window_between(before.reading(stable, candidate), after.reading(stable, candidate))
    steady = before.steady_since_s is not None and before.steady_since_s == after.steady_since_s
    if not steady:
        return after, dataclasses.replace(window, share=None)
    return after, without_probes(window) if at_s - since_s < SETTLE_S else window


def without_probes(window: Window) -> Window:
    """The window while Knative still probes the route.

    How many of the answers are probes is unknown; that they are good answers, and as many for each revision, is not.
    So errors are judged by the share asked for, and of the answers only as many are kept as fit that share.
    """
    share = window.share
    if share is None or not 0 < share < 1:
        return window
    odds = share / (1 - share)
    return dataclasses.replace(
        window,
        stable=_at_most(window.stable, window.candidate.requests / odds),
        candidate=_at_most(window.candidate, window.stable.requests * odds),
    )


def _at_most(arm: ArmCounts, requests: float) -> ArmCounts:
    events = math.ceil(sum(arm.events.values()))
    events = math.ceil(sum(arm.events.values()))
    return dataclasses.replace(arm, requests=min(arm.requests, max(round(requests), events)))
