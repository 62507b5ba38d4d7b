"""Rollouts on recorded or invented requests, judged as in production but without waiting.

Every request carries what each revision would have answered (potential outcomes), so different plans and policies
can be compared on the same stream.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from serin.errors import UserError
from serin.judge.categories import EVENTS, REQUESTS, Row
from serin.judge.decision import Action
from serin.judge.judge import add, start
from serin.judge.policy import Policy, policy_for
from serin.judge.primitive import Floats
from serin.judge.ruling import decide
from serin.judge.state import BEFORE
from serin.judge.window import ArmCounts, Window
from serin.model.histograms import LATENCY_EDGES_S, SCORE_EDGES
from serin.plan import PROFILES, OnInconclusive, Plan

Bools = NDArray[np.bool_]

_SLOWER: Final = 1.5
_SCORE_OFF: Final = 0.1
_CHUNK: Final = 64
_STABLE: Final = "stable"
_CANDIDATE: Final = "candidate"
_NO_COUNTS: Final = ArmCounts()
_LATENCY_EDGES_MS: Final = 1000 * np.array(LATENCY_EDGES_S)
_SCORE_EDGES: Final = np.array(SCORE_EDGES)


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One entry per request in every array, in order of time.

    `t`: seconds since the start of the rollout; entries below 0 are history, of which stable's answers alone count.
    `u`: uniform on [0, 1); the candidate gets the request if `u` is below its share of traffic.
    `err_*`: whether the revision fails the request. `lat_*`: its latency in milliseconds. `score_*`: its score, 0 to
    1; NaN counts as an error. A failed request has no latency and no score.
    """

    t: Floats
    u: Floats
    err_stable: Bools
    err_candidate: Bools
    lat_stable: Floats
    lat_candidate: Floats
    score_stable: Floats
    score_candidate: Floats

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, field.name)) for field in fields(self)}
        if len(lengths) != 1:
            raise UserError(f"A stream's arrays must have one length, got {sorted(lengths)}.")
        if np.any(np.diff(self.t) < 0):
            raise UserError("A stream's requests must be in order of time: sort them by t.")


class Phase(StrEnum):
    PROMOTED = "Promoted"
    ROLLED_BACK = "RolledBack"
    HELD = "Held"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a rollout ended.

    `t`: seconds from its start to the decision: for a promotion, until the last stage was passed and the candidate
    got the bake's traffic (the bake must have gone well, too); for a rollback, until it was decided.
    `candidate_requests`: requests routed to the candidate until then. `harmed_requests`: those of them that stable
    would have served better: without the error, in two thirds of the time or less, or with a score that differs by
    more than 0.1. `blamed`: the metric behind a rollback.
    """

    phase: Phase
    t: float
    candidate_requests: int
    harmed_requests: int
    blamed: str | None


def run(
    stream: Stream | Mapping[str, NDArray[Any]], plan: str | Plan, policy: Policy, *, window_s: float = 1.0
) -> Outcome:
    """Play a rollout of `plan` (a profile's name or a plan) over the stream, in windows of `window_s` seconds.

    The policy's stages are replaced by the plan's. A rollout that has not ended when the stream does is held.
    """
    resolved = _resolve(plan)
    shares = [stage.traffic / 100 for stage in resolved.stages] + [resolved.bake.traffic / 100]
    bake = len(shares) - 1
    state = start(policy_for(resolved, policy))
    tape = _Tape(stream if isinstance(stream, Stream) else Stream(**stream), state.book.categories.row, window_s)
    state = add(state, _window(0, -1.0, 0.0, BEFORE, 0.0), tape.history(), tape.nothing())

    stage, stage_start_s, routed, harmed, end_s = 0, 0.0, 0, 0, 0.0
    promoted = Outcome(Phase.PROMOTED, 0.0, 0, 0, None)
    for k in range(tape.windows):
        start_s, end_s = k * window_s, (k + 1) * window_s
        stable, candidate, worse = tape.read(k, shares[stage])
        routed, harmed = routed + int(candidate[REQUESTS]), harmed + worse
        if stable[REQUESTS] or candidate[REQUESTS]:
            state = add(state, _window(k + 1, start_s, end_s, stage, shares[stage]), stable, candidate)
        if state.peak < 1 / policy.alpha and end_s - stage_start_s < state.policy.stages[stage].min_s:
            continue  # nothing to decide: the judge advances no earlier
        decision = decide(state, end_s)
        if decision.action is Action.ROLLBACK:
            return Outcome(Phase.ROLLED_BACK, end_s, routed, harmed, decision.blamed)
        if decision.action is Action.ADVANCE and stage == bake:
            return promoted
        if decision.action is Action.ADVANCE:
            stage, stage_start_s = stage + 1, end_s
            promoted = Outcome(Phase.PROMOTED, end_s, routed, harmed, None)
        elif stage < bake and end_s >= resolved.deadline_seconds:
            phase = {OnInconclusive.PROMOTE: Phase.PROMOTED, OnInconclusive.ROLLBACK: Phase.ROLLED_BACK}
            return Outcome(phase.get(resolved.on_inconclusive, Phase.HELD), end_s, routed, harmed, None)
    return Outcome(Phase.HELD, end_s, routed, harmed, None)


def _resolve(plan: str | Plan) -> Plan:
    if isinstance(plan, Plan):
        return plan
    if plan not in PROFILES:
        raise UserError(f"There is no profile {plan!r}; choose one of {', '.join(PROFILES)}.")
    return PROFILES[plan]


def _window(number: int, start_s: float, end_s: float, stage: int, share: float) -> Window:
    return Window(number, start_s, end_s, stage, share, _NO_COUNTS, _NO_COUNTS)


class _Tape:
    """A stream cut into windows. A chunk of them is counted at once, as long as the share stays the same."""

    def __init__(self, stream: Stream, row: Row, window_s: float) -> None:
        self._stream, self._row, self._window_s = stream, row, window_s
        self._first = int(np.searchsorted(stream.t, 0.0))
        self.windows = math.floor(stream.t[-1] / window_s) + 1 if len(stream.t) > self._first else 0
        self._chunk, self._share = range(0), math.nan
        self._counts: tuple[Floats, Floats, NDArray[np.intp]]

    def nothing(self) -> Floats:
        return np.zeros(self._row.score.stop)

    def history(self) -> Floats:
        """Stable's counts before the rollout."""
        everything = slice(0, self._first)
        counts: Floats = self._rows(everything, np.zeros(self._first, dtype=np.intp), 1, _STABLE)[0]
        return counts

    def read(self, k: int, share: float) -> tuple[Floats, Floats, int]:
        """Window k under a share of traffic: stable's and the candidate's counts, and the harmed requests."""
        if k not in self._chunk or share != self._share:
            self._chunk, self._share = range(k, min(k + _CHUNK, self.windows)), share
            self._counts = self._count(self._chunk, share)
        stable, candidate, harmed = self._counts
        at = k - self._chunk.start
        return stable[at], candidate[at], int(harmed[at])

    def _count(self, chunk: range, share: float) -> tuple[Floats, Floats, NDArray[np.intp]]:
        stream, size = self._stream, len(chunk)
        begin, end = np.searchsorted(stream.t, (chunk.start * self._window_s, chunk.stop * self._window_s))
        rows = np.arange(begin, end)
        window = np.minimum((stream.t[rows] / self._window_s).astype(np.intp) - chunk.start, size - 1)
        to_candidate = stream.u[rows] < share
        ours, theirs = rows[to_candidate], rows[~to_candidate]
        harmed = np.bincount(window[to_candidate][_worse(stream, ours)], minlength=size)
        return (
            self._rows(theirs, window[~to_candidate], size, _STABLE),
            self._rows(ours, window[to_candidate], size, _CANDIDATE),
            harmed,
        )

    def _rows(self, chosen: "slice | NDArray[np.intp]", window: NDArray[np.intp], size: int, arm: str) -> Floats:
        """One arm's counts, one row per window, of the chosen requests."""
        stream, row = self._stream, self._row
        latency_ms, score = getattr(stream, f"lat_{arm}")[chosen], getattr(stream, f"score_{arm}")[chosen]
        failed = getattr(stream, f"err_{arm}")[chosen] | np.isnan(score)
        width = row.score.stop
        answered, at = ~failed, window * width
        places = np.concatenate(
            (
                at + REQUESTS,
                at[failed] + EVENTS,
                at[answered] + row.latency.start + np.searchsorted(_LATENCY_EDGES_MS, latency_ms[answered]),
                at[answered] + row.score.start + np.searchsorted(_SCORE_EDGES, score[answered]),
            )
        )
        counts: Floats = np.bincount(places, minlength=size * width).reshape(size, width).astype(np.float64)
        counts[:, row.reported] = 1
        return counts


def _worse(stream: Stream, requests: NDArray[np.intp]) -> Bools:
    """Which of the candidate's requests stable would have served better."""
    failed = stream.err_candidate[requests] & ~stream.err_stable[requests]
    slower = stream.lat_candidate[requests] > _SLOWER * stream.lat_stable[requests]
    off = np.abs(stream.score_candidate[requests] - stream.score_stable[requests]) > _SCORE_OFF
    worse: Bools = failed | slower | off
    return worse
