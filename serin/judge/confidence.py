"""How much worse, or better: anytime confidence sequences of candidate / stable.

For a metric's ratio rho, a mixture of bets with relative risks above 1 tests "the ratio is at most rho", one of bets
below 1 tests "at least rho". What is not rejected at alpha / 2 is the interval; it holds at all times at once with
probability 1 - alpha (Ville 1939; Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic
confidence sequences", AoS 2021), for a ratio that stays the same, and whatever base rates and traffic do. Windows in
which the share of traffic changed are left out.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from serin.judge.categories import REQUESTS
from serin.judge.latency import SHIFTS
from serin.judge.policy import LATENCY, SPLIT
from serin.judge.primitive import Floats
from serin.judge.state import State
from serin.model.histograms import LATENCY_STEPS_PER_OCTAVE

_STRENGTHS: Final = np.geomspace(0.01, 5.0, 24)
"""Logarithms of the relative risks bet on, with equal weights."""
_FURTHEST: Final = np.log(1e4)
_HALVINGS: Final = 24


@dataclass(frozen=True, slots=True)
class Interval:
    """Of candidate / stable; None where nothing bounds it yet."""

    low: float | None = None
    high: float | None = None


def confidence(state: State) -> dict[str, Interval]:
    """By metric: of event metrics the ratio of rates; of latency the ratio at stable's p99 (by what factor the
    candidate's latency exceeds stable's at the rate at which stable exceeds its p99), in buckets of 5 % from half
    to twice; of the split the ratio of observed to wanted odds. Scores have no ratio.
    """
    categories = state.book.categories
    names = [SPLIT, *categories.row.events]
    shares = np.array([share for share in state.compared if 0 < share < 1])
    if not len(shares):
        return dict.fromkeys((*names, LATENCY), Interval())
    counts = np.stack([state.compared[share] for share in shares.tolist()])
    candidate, both = np.moveaxis(counts, 1, 0)
    goal = np.log(2 / state.policy.alpha)

    rates = slice(REQUESTS, categories.tail)
    low, high = (
        _bounds(candidate[:, rates], both[:, rates], shares, goal, direction=direction) for direction in (1, -1)
    )
    intervals = {name: Interval(*_known(low[k], high[k])) for k, name in enumerate(names)}

    tail = slice(categories.tail, categories.measured)
    factors = 2.0 ** (SHIFTS / LATENCY_STEPS_PER_OCTAVE)
    above, below = (
        _log_evidence(candidate[:, tail], both[:, tail], shares, np.ones(len(SHIFTS)), direction) >= goal
        for direction in (1, -1)
    )
    # Of a nested family of nulls, those before the first that stands.
    slower, faster = int(np.argmin([*above, False])), int(np.argmin([*below[::-1], False]))
    intervals[LATENCY] = Interval(
        float(factors[slower - 1]) if slower else None, float(factors[len(factors) - faster]) if faster else None
    )
    return intervals


def _known(low: float, high: float) -> tuple[float | None, float | None]:
    """The searched range's own ends bound nothing."""
    return (
        float(np.exp(low)) if low > -_FURTHEST else None,
        float(np.exp(high)) if high < _FURTHEST else None,
    )


def _bounds(candidate: Floats, both: Floats, shares: Floats, goal: float, *, direction: int) -> Floats:
    """Log of the largest ratio that bets in `direction` 1 reject, or of the smallest that those in -1 do."""
    rejected = np.full(candidate.shape[1], -direction * _FURTHEST)
    stands = -rejected
    for _ in range(_HALVINGS):
        middle = (rejected + stands) / 2
        rejects = _log_evidence(candidate, both, shares, np.exp(middle), direction) >= goal
        rejected, stands = np.where(rejects, middle, rejected), np.where(rejects, stands, middle)
    return rejected


def _log_evidence(candidate: Floats, both: Floats, shares: Floats, rho: Floats, direction: int) -> Floats:
    """Log e-value, per metric, against a ratio on the wrong side of `rho`; counts are [share, metric]."""
    odds = rho * shares[:, None]
    null = odds / (odds + 1 - shares[:, None])
    strengths = direction * _STRENGTHS[:, None, None]
    bets = (candidate * strengths - both * np.log1p(null * np.expm1(strengths))).sum(axis=1)
    largest = bets.max(axis=0)
    evidence: Floats = largest + np.log(np.exp(bets - largest).mean(axis=0))
    return evidence
