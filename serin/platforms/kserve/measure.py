"""Windows for the judge from what KServe shows of the split and what was counted: pure functions."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Final

from pydantic import Field

from serin.judge.policy import ERRORS, REJECTED
from serin.judge.window import ABANDONED, ArmCounts, Window
from serin.measure.tally import CODES, Counts, Tally, add, counters, others, tells_predictions
from serin.measure.windows import Reading, ahead, window_between
from serin.plan import Stored
from serin.platforms.kserve.service import Service
from serin.rollout.document import Status

BEFORE: Final = -1
"""The stage of what was counted before the first split was in force."""
SETTLE_S: Final = 8.0
"""Knative probes a route for up to 5 s after every change, and Kourier counts the probes as answers."""
SET_BACK_S: Final = 60.0
"""Counts that are older than the last ones by this much are new: the clock was set back, or another controller with
another clock took over. Those that are older by less are a source's second answer to the same question."""
PROBES: Final = 20
"""No more than this many probes of a revision follow a change."""


class Measured(Stored):
    """One look at the counts. `percent` is the candidate's in the traffic rows, `in_force_since_s` since when that is
    also what the service and the rollout ask for; None while a change is under way. `old`: as many answers of each
    revision may still be to requests that were split by an earlier percent. `reports`, `ahead`: by revision, as in
    `Counters`."""

    at_s: float
    window_id: int = 0
    stage: int = BEFORE
    percent: int
    in_force_since_s: float | None
    old: Mapping[str, int] = Field(default_factory=dict)
    reports: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    ahead: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)
    tally: Tally

    @property
    def under_split(self) -> bool:
        """Whether the split was in force when this was counted."""
        return self.in_force_since_s is not None and self.at_s >= self.in_force_since_s

    def reading(self, stable: str, candidate: str, *, predictions_alone: bool) -> Reading:
        arms = {
            revision: counters(self.tally, revision, predictions_alone=predictions_alone).model_copy(
                update={
                    "old": self.old.get(revision, 0),
                    "reports": self.reports.get(revision, ()),
                    "ahead": self.ahead.get(revision, {}),
                }
            )
            for revision in (stable, candidate)
        }
        return Reading(
            at_s=self.at_s,
            window_id=self.window_id,
            stage=self.stage,
            percent=self.percent,
            gateway="",
            stable=arms[stable],
            candidate=arms[candidate],
        )

    def tells_predictions(self, *revisions: str) -> bool:
        """Whether predictions can be told from other requests. Where those of one revision cannot, the other's are
        not taken apart either: they would be compared with something else."""
        return all(tells_predictions(self.tally, revision) for revision in revisions)


def measure(
    before: Measured | None, service: Service, status: Status, counts: Counts, now_s: float
) -> tuple[Measured, Window | None]:
    """A new look, and the window since the last one; the last one again when nothing was counted since.

    Traffic moves before the status says so, and the status is seen some time later. So a window has a known share
    only if the split at both its ends was confirmed and what the rollout had last asked for, and if every answer in
    it was to a request this split had routed; what is counted while it changes belongs to the stage before.
    """
    if before is not None and before.at_s - SET_BACK_S < counts.at_s <= before.at_s:
        return before, None
    stable, candidate = status.stable_revision or "", status.candidate_revision or ""
    percent = service.share(candidate)
    confirmed = status.traffic == service.percent == percent and service.share(stable) == 100 - percent
    on_time = before is not None and before.at_s < counts.at_s
    since_s = before.in_force_since_s if before is not None and on_time and before.percent == percent else None
    since_s = now_s if since_s is None else since_s
    tally = add(before.tally if before is not None else Tally(), counts.read, complete=not counts.incomplete)
    after = Measured(
        at_s=counts.at_s,
        window_id=before.window_id + 1 if before is not None else 0,
        stage=before.stage if before is not None else BEFORE,
        percent=percent,
        in_force_since_s=since_s if confirmed else None,
        reports=counts.reports,
        tally=tally,
    )
    if after.under_split and percent > 0 and status.stage is not None:
        after = after.model_copy(update={"stage": status.stage})
    same_split = (
        before is not None and before.under_split and after.under_split and before.in_force_since_s == since_s
    )
    known = before if same_split else None
    old = {revision: _old(known, tally, revision, counts.active) for revision in (stable, candidate)}
    after = after.model_copy(update={"old": old})
    if before is None or before.percent == percent == 0:
        return after, None
    alone = after.tells_predictions(stable, candidate)
    readings = [each.reading(stable, candidate, predictions_alone=alone) for each in (before, after)]
    window = window_between(*readings)
    if same_split:
        arms = zip((stable, candidate), *((each.stable, each.candidate) for each in readings), strict=True)
        waiting = {revision: ahead(*looks) for revision, *looks in arms}
        after = after.model_copy(update={"ahead": {revision: each for revision, each in waiting.items() if each}})
    # what is no prediction is known from the model servers, who are read one after the other
    taken_apart = alone and any(others(tally, each) > others(before.tally, each) for each in (stable, candidate))
    window = dataclasses.replace(window, counted_apart=counts.apart or taken_apart)
    if not same_split or counts.incomplete or (counts.active is None and before.at_s - since_s < SETTLE_S):
        window = dataclasses.replace(window, share=None)
    elif after.at_s - since_s < SETTLE_S:
        window = without_probes(window)
    lag_s = counts.latency_lag_s
    if lag_s is not None and (window.share is None or before.at_s - since_s < SETTLE_S + lag_s):
        window = _without_latencies(window)
    return after, window


def _old(before: Measured | None, tally: Tally, revision: str, active: Mapping[str, int] | None) -> int:
    """How many answers it takes until all requests of an earlier split surely have theirs; `before` is None when this
    is the first look at the split in force. Probes are among the answers."""
    if active is None:  # who does not tell is given time instead
        return 0
    now = active.get(revision, 0)
    if now == 0:
        return 0
    if before is None:
        return now + PROBES
    answered = _answers(tally, revision) - _answers(before.tally, revision)
    return max(0, before.old.get(revision, 0) - answered)


def _answers(tally: Tally, revision: str) -> int:
    return sum(tally.total.get(f"{revision}{CODES}", {}).values())


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


def _without_latencies(window: Window) -> Window:
    """The window when the latencies in it are not those of its answers but also of earlier ones, split otherwise, and
    of probes. Bets on latency compare how many fall to each revision, so they would take that for harm."""
    stable, candidate = (dataclasses.replace(arm, latency={}) for arm in (window.stable, window.candidate))
    return dataclasses.replace(window, stable=stable, candidate=candidate)


def _at_most(arm: ArmCounts, requests: float) -> ArmCounts:
    refused = arm.events.get(ERRORS, 0) + arm.events.get(REJECTED, 0)  # no request is both
    events = max(refused, *(count for name, count in arm.events.items() if name != ABANDONED), 0)
    return dataclasses.replace(arm, requests=min(arm.requests, max(round(requests), math.ceil(events))))
