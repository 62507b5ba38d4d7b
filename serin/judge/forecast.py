"""What a plan takes and what a regression costs, before the rollout: by simulating it on invented traffic."""

from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from serin.judge import latency
from serin.judge.book import Book
from serin.judge.policy import ERRORS, REJECTED, JudgeSpec, metric_name, policy_for
from serin.judge.primitive import Floats
from serin.judge.reference import Reference
from serin.judge.simulate import Outcome, Phase, Stream, run
from serin.plan import Plan

_RUNS: Final = 5
_LONGEST: Final = 300_000
"""Requests of one simulated rollout."""
_PER_WINDOW: Final = 10
_REGRESSION: Final = 0.02


@dataclass(frozen=True, slots=True)
class Traffic:
    """`latency_ms` is the median; latencies are taken to be lognormal with sigma 0.5, scores to be uniform."""

    rps: float
    error_rate: float = 0.01
    latency_ms: float = 80.0


@dataclass(frozen=True, slots=True)
class StageNeed:
    """The claim of a stage that takes longest, the requests of both arms it needs, and their time."""

    traffic: int
    slowest: str
    requests: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """Medians over simulated rollouts; times in seconds. `healthy_s` is the time to the bake, None if most runs of a
    healthy candidate are not through within the deadline (or within 300,000 requests). `exposed`: requests a
    candidate with 2 points more errors gets until it is rolled back, None if most are not."""

    stages: tuple[StageNeed, ...]
    healthy_s: float | None
    exposed: int | None
    exposed_s: float | None


def forecast(plan: Plan, judge: JudgeSpec, traffic: Traffic, rng: np.random.Generator) -> Forecast:
    healthy = [_simulate(plan, judge, traffic, traffic.error_rate, rng) for _ in range(_RUNS)]
    worse = [_simulate(plan, judge, traffic, traffic.error_rate + _REGRESSION, rng) for _ in range(_RUNS)]
    through = [outcome.t for outcome in healthy if outcome.phase is Phase.PROMOTED]
    found = [outcome for outcome in worse if outcome.phase is Phase.ROLLED_BACK and outcome.blamed]
    most = _RUNS // 2
    return Forecast(
        tuple(_stage_needs(plan, judge, traffic)),
        median(through) if len(through) > most else None,
        int(median(outcome.candidate_requests for outcome in found)) if len(found) > most else None,
        median(outcome.t for outcome in found) if len(found) > most else None,
    )


def _stage_needs(plan: Plan, judge: JudgeSpec, traffic: Traffic) -> list[StageNeed]:
    """Expected growth of each claim when the candidate is as good as stable: n = ln(missing) / growth per request."""
    policy = policy_for(plan, judge)
    latencies, scores = Reference.empty(0, latency.QUANTILES), Reference.empty(0, latency.QUANTILES)
    needs = []
    for stage in plan.stages:
        book, share = Book.of(policy, stage.margin, latencies, scores), stage.traffic / 100
        claims = book.claims
        if claims is None:
            raise AssertionError("a stage of a plan has a margin")
        candidate = claims.requests_needed(claims.prior, 1 / judge.beta, _rates(book, traffic), share)
        slowest = int(np.argmax(candidate))
        requests = float(candidate[slowest]) / share
        needs.append(StageNeed(stage.traffic, book.claimed[slowest].what, requests, requests / traffic.rps))
    return needs


def _rates(book: Book, traffic: Traffic) -> Floats:
    """What each claim's category is expected to hold per request; there are no client errors."""
    rates = np.zeros(book.categories.count)
    expected = {ERRORS: traffic.error_rate, metric_name(REJECTED): 0.0, "lowest scores": 0.2, "highest scores": 0.2}
    expected |= {f"latency above {name}": 1 - latency.QUANTILES[k - 1] for name, k in latency.SLOW.items()}
    for claim in book.claimed:
        rates[claim.category] = expected.get(claim.what, traffic.error_rate)
    return rates


def _simulate(
    plan: Plan, judge: JudgeSpec, traffic: Traffic, candidate_rate: float, rng: np.random.Generator
) -> Outcome:
    horizon_s = min(plan.deadline_seconds + plan.bake.seconds * judge.patience, _LONGEST / traffic.rps)
    history_s = min(3600.0, 10_000 / traffic.rps)
    size = int(rng.poisson(traffic.rps * (history_s + horizon_s)))
    latency_ms = traffic.latency_ms * np.exp(0.5 * rng.standard_normal(size))
    luck, score = rng.random(size), rng.random(size)
    return run(
        Stream(
            t=np.sort(rng.uniform(-history_s, horizon_s, size)),
            u=rng.random(size),
            err_stable=luck < traffic.error_rate,
            err_candidate=luck < candidate_rate,
            lat_stable=latency_ms,
            lat_candidate=latency_ms,
            score_stable=score,
            score_candidate=score,
        ),
        plan,
        policy_for(plan, judge),
        window_s=max(1.0, _PER_WINDOW / traffic.rps),
    )
