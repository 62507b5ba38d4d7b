"""The guarantee: a candidate that does no harm is rolled back with probability at most alpha, whatever the base rates
do, however traffic is allotted, and however often one looks.

First exactly, bet by bet, by enumerating what a request (or a small block) can do; then by simulation of the whole
fold at a level large enough that eighty rollouts can tell.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from serin.judge import (
    Action,
    ArmCounts,
    EventMetric,
    LatencyMetric,
    Policy,
    ScoreMetric,
    State,
    decide,
    observe,
    start,
)
from serin.judge.latency import tolerated
from serin.judge.policy import StagePolicy
from serin.model.histograms import LATENCY_EDGES_S, SCORE_EDGES
from tests.unit.judging import LATENCY as LATENCY_CHANCES
from tests.unit.judging import LATENCY_S, SCORE, arm, draw, histogram, taught, window
from tests.unit.judging import SCORES as SCORE_CHANCES

Outcomes = list[tuple[float, ArmCounts]]
"""What one request can do on an arm: probability, counts."""

ERRORS, ERRORS_FLOOR, REJECTED, REJECTED_FLOOR, LATENCY, SCORES, SPLIT = range(7)
SHARES = (0.01, 0.05, 0.5, 0.99)


def events(**rates: float) -> Outcomes:
    name, rate = next(iter(rates.items()))
    other = {"errors": 0, "rejected": 0}
    return [(rate, ArmCounts(1, {**other, name: 1})), (1 - rate, ArmCounts(1, other))]


def latencies(buckets: dict[int, int]) -> Outcomes:
    total = sum(buckets.values())
    return [(count / total, ArmCounts(1, {"errors": 0}, latency={k: 1})) for k, count in buckets.items()]


def score_values(buckets: dict[int, int]) -> Outcomes:
    total = sum(buckets.values())
    return [(count / total, ArmCounts(1, {"errors": 0}, score={k: 1})) for k, count in buckets.items()]


def growth(state: State, share: float, stable: Outcomes, candidate: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    """Expected factor of every bet on harm, and of every bet of the claims, over one request."""
    harm, claims = np.zeros_like(state.harm), np.zeros_like(state.claims)
    for weight, arms in ((share, candidate), (1 - share, stable)):
        for chance, counts in arms:
            pair = (ArmCounts(), counts) if arms is candidate else (counts, ArmCounts())
            after = observe(state, window(1, *pair, share=share))
            assert after.stage == 0
            harm += weight * chance * after.harm / state.harm
            claims += weight * chance * after.claims / state.claims
    return harm, claims


def of(state: State, process: int) -> np.ndarray:
    return state.book.harm.process == process


def claims_of(state: State, what: str) -> np.ndarray:
    index = [claim.what for claim in state.book.claimed].index(what)
    return state.book.claims.process == index


@pytest.fixture(scope="module")
def judge() -> State:
    return replace(observe(taught(), window(1, ArmCounts(), ArmCounts())), last_id=0)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("rate", [0.002, 0.03, 0.5])
def test_bets_on_event_ratios_are_fair_at_the_margin_and_lose_below_it(
    judge: State, share: float, rate: float
) -> None:
    for name, process in (("errors", ERRORS), ("rejected", REJECTED)):
        at, _ = growth(judge, share, events(**{name: rate}), events(**{name: 1.05 * rate}))
        assert at[of(judge, process)] == pytest.approx(1, abs=1e-12)
        below, _ = growth(judge, share, events(**{name: rate}), events(**{name: rate}))
        assert np.all(below[of(judge, process)] < 1)


def test_bets_on_the_floor_are_fair_at_the_floor(judge: State) -> None:
    at, _ = growth(judge, 0.05, events(errors=0.0), events(errors=0.001))
    assert at[of(judge, ERRORS_FLOOR)] == pytest.approx(1, abs=1e-12)
    below, _ = growth(judge, 0.05, events(errors=0.5), events(errors=0.0005))
    assert np.all(below[of(judge, ERRORS_FLOOR)] < 1)


@pytest.mark.parametrize("share", SHARES)
def test_bets_on_latency_are_fair_at_margin_and_tolerance(judge: State, share: float) -> None:
    stable = histogram(LATENCY_EDGES_S, np.concatenate((LATENCY_S[:500], LATENCY_S[:500] / 40)))
    moved = tolerated(1.10, 2.0)
    slower: dict[int, int] = {}
    for bucket, count in stable.items():
        slower[int(moved[bucket])] = slower.get(int(moved[bucket]), 0) + count
    at, _ = growth(judge, share, latencies(stable), latencies(slower))
    assert at[of(judge, LATENCY)] == pytest.approx(1, abs=1e-12)
    same, _ = growth(judge, share, latencies(stable), latencies(stable))
    assert np.all(same[of(judge, LATENCY)] < 1)
    beyond, _ = growth(judge, share, latencies(stable), latencies({bucket + 2: n for bucket, n in slower.items()}))
    assert np.any(beyond[of(judge, LATENCY)] > 1)


def test_a_millisecond_more_is_within_the_tolerance_where_the_margin_is_less() -> None:
    edges = np.array(LATENCY_EDGES_S)
    slow, fast = np.searchsorted(edges, (0.2, 0.002))
    moved = tolerated(1.10, 2.0)
    assert edges[moved[slow]] / edges[slow] == pytest.approx(1.104, abs=0.001)
    assert edges[moved[fast]] == pytest.approx(0.004, rel=0.06)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("direction", [1, -1])
def test_bets_on_moved_scores_are_fair_at_the_tolerance(judge: State, share: float, direction: int) -> None:
    stable = histogram(SCORE_EDGES, np.clip(SCORE[:1000], 0.05, 0.95))
    moved = {bucket + 2 * direction: count for bucket, count in stable.items()}
    at, _ = growth(judge, share, score_values(stable), score_values(moved))
    bets = of(judge, SCORES).nonzero()[0]
    up, down = bets[0:6:2], bets[1:6:2]
    fair, losing = (up, down) if direction > 0 else (down, up)
    assert at[fair] == pytest.approx(1, abs=1e-12)
    assert np.all(at[losing] < 1)


def test_bets_on_collapse_are_fair_at_one_and_a_half_times_the_bin(judge: State) -> None:
    collapse = of(judge, SCORES).nonzero()[0][6:]
    edges = judge.score.edges
    inside, outside = int(edges[3]) + 1, int(edges[6]) + 1
    stable = score_values({inside: 20, outside: 80})
    at, _ = growth(judge, 0.1, stable, score_values({inside: 30, outside: 70}))
    assert at[collapse[8:10]] == pytest.approx(1, abs=1e-12)
    assert np.all(at[collapse] <= 1 + 1e-12)


@pytest.mark.parametrize("share", SHARES)
def test_bets_on_the_split_are_fair_when_the_share_is_the_wanted_one(judge: State, share: float) -> None:
    at, _ = growth(judge, share, events(errors=0.1), events(errors=0.3))
    assert at[of(judge, SPLIT)] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("share", SHARES)
def test_claims_are_fair_at_the_margin_and_lose_beyond(judge: State, share: float) -> None:
    margin = judge.policy.stages[0].margin
    rate = 0.01
    _, at = growth(judge, share, events(errors=rate), events(errors=margin * rate))
    ratio = claims_of(judge, "errors").nonzero()[0][:2]
    assert at[ratio] == pytest.approx(1, abs=1e-12)
    _, beyond = growth(judge, share, events(errors=rate), events(errors=1.3 * margin * rate))
    assert np.all(beyond[ratio] < 1)
    limit = margin * judge.policy.errors.acceptable_rate
    _, at = growth(judge, share, events(errors=0.0), events(errors=limit))
    assert at[claims_of(judge, "errors").nonzero()[0][2:]] == pytest.approx(1, abs=1e-12)


def test_claims_about_latency_and_scores_are_fair_at_the_margin(judge: State) -> None:
    margin = judge.policy.stages[0].margin
    slow = int(tolerated(1.10, 2.0)[judge.latency.edges[7]]) + 1
    fast = int(judge.latency.edges[0])
    stable = latencies({int(judge.latency.edges[7]) + 1: 1, fast: 99})
    _, at = growth(judge, 0.05, stable, latencies({slow: 5, fast: 95}))
    assert margin == 5
    assert at[claims_of(judge, "latency above p99")] == pytest.approx(1, abs=1e-12)
    low, high = 0, 99
    _, at = growth(judge, 0.05, score_values({low: 10, high: 90}), score_values({low: 50, high: 50}))
    assert at[claims_of(judge, "lowest scores")] == pytest.approx(1, abs=1e-12)


def blocks(candidate: int, stable: int, rate_c: float, rate_b: float) -> Iterator[tuple[float, ArmCounts, ArmCounts]]:
    for x_c, x_b in product(range(candidate + 1), range(stable + 1)):
        chance = binom.pmf(x_c, candidate, rate_c) * binom.pmf(x_b, stable, rate_b)
        yield chance, arm(stable, x_b, rejected=0), arm(candidate, x_c, rejected=0)


@pytest.mark.parametrize(("candidate", "stable"), [(1, 1), (2, 3), (5, 1), (1, 6), (3, 0), (0, 3)])
@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_with_the_observed_share_no_composition_of_a_block_helps_a_bet(
    judge: State, candidate: int, stable: int, rate: float
) -> None:
    expected = np.zeros_like(judge.harm)
    for chance, ours, theirs in blocks(candidate, stable, min(1.05 * rate, 1.0), rate):
        expected += chance * observe(judge, window(1, ours, theirs, share=None)).harm / judge.harm
    assert np.all(expected[of(judge, ERRORS)] <= 1 + 1e-12)
    assert expected[of(judge, SPLIT)] == pytest.approx(1, abs=1e-15)


def test_a_harm_of_degrees_counts_as_the_sum_of_its_values(judge: State) -> None:
    """Costs of 0, 0.3 and 1 on both arms, with means in the ratio of the margin: bets are fair or lose."""
    stable = [(0.9, 0.0), (0.08, 0.3), (0.02, 1.0)]
    candidate = [(1 - 0.1 * 1.05, 0.0), (0.08 * 1.05, 0.3), (0.02 * 1.05, 1.0)]
    outcomes = [
        [(chance, ArmCounts(1, {"errors": cost, "rejected": 0})) for chance, cost in arms]
        for arms in (stable, candidate)
    ]
    at, _ = growth(judge, 0.3, *outcomes)
    assert np.all(at[of(judge, ERRORS)] <= 1 + 1e-12)
    assert np.all(at[of(judge, ERRORS)] > 0.97)
    doubled = [(chance, ArmCounts(1, {"errors": min(1, 5 * c.events["errors"])})) for chance, c in outcomes[1]]
    worse, _ = growth(judge, 0.3, outcomes[0], doubled)
    assert np.any(worse[of(judge, ERRORS)] > 1.01)


@pytest.mark.parametrize("spec", [{}, {"metrics": (EventMetric(name="refunds", weight=3.0),)}, {"start_share": 0.4}])
def test_all_wealth_is_one_at_the_start_and_weights_are_shares(spec: dict) -> None:
    state = start(Policy(**spec))
    by_metric, split = state.book.evidence(state.harm, state.cash)
    assert by_metric == pytest.approx(1, abs=1e-12)
    assert split == pytest.approx(1, abs=1e-12)
    assert state.book.weights.sum() == pytest.approx(1, abs=1e-12)
    claims = state.book.claims
    assert claims.evidence(state.claims) == pytest.approx(1, abs=1e-12)


def test_fresh_bets_are_paid_from_the_cash_before_the_window_and_nobody_gains_by_waiting(judge: State) -> None:
    """After an hour, a window in which all candidates fail multiplies fresh bets as it does the old ones."""
    empty, failing = (ArmCounts(), ArmCounts()), (arm(0), arm(1, 1, rejected=1))
    hour = replace(window(2, *empty), start_s=3600.0, end_s=3601.0)
    waited = observe(observe(judge, window(1, *empty)), hour)
    by_metric, _ = waited.book.evidence(waited.harm, waited.cash)
    assert by_metric == pytest.approx(1, abs=1e-12)
    at_once = observe(observe(judge, window(1, *empty)), replace(hour, candidate=failing[1], stable=failing[0]))
    factor = np.exp(at_once.book.harm.log_e(*_counts(at_once, *failing), 1, hour.share))
    assert at_once.harm == pytest.approx(waited.harm * factor)


def _counts(state: State, stable: ArmCounts, candidate: ArmCounts) -> tuple[np.ndarray, np.ndarray]:
    categories = state.book.categories
    ours = categories.candidate @ categories.row.of(candidate)
    return ours, ours + categories.stable @ categories.row.of(stable)


def test_bins_are_laid_before_the_window_that_fills_them(judge: State) -> None:
    """A window that moves the bins of the next ones is itself put into the old ones."""
    slow = arm(5000, latency_s=np.full(5000, 3.0), score=np.full(5000, 0.99))
    after = observe(judge, window(1, slow, slow))
    assert not np.array_equal(after.latency.edges, judge.latency.edges)
    factor = np.exp(np.clip(judge.book.harm.log_e(*_counts(judge, slow, slow), 5000, 0.05), None, 130))
    assert after.harm == pytest.approx(judge.harm * factor)


def test_a_rollback_needs_all_of_the_evidence_and_a_stage_all_of_its_claims(judge: State) -> None:
    policy = judge.policy
    just, almost = (replace(judge, peak=share / policy.alpha, blamed="errors") for share in (1.0, 0.999))
    assert decide(just, 61.0).action is Action.ROLLBACK
    assert decide(almost, 61.0).action is not Action.ROLLBACK
    claims = judge.book.claims
    for share, action in ((1.0001, Action.ADVANCE), (0.999, Action.WAIT)):
        told = replace(judge, claims=share / policy.beta * claims.prior, stage_counts=_everything_measured(judge))
        assert decide(told, 400.0).action is action


def _everything_measured(state: State) -> np.ndarray:
    counts = np.zeros_like(state.stage_counts)
    counts[0], counts[1] = 100, 1000
    return counts


def test_claims_start_afresh_in_every_stage(judge: State) -> None:
    later = observe(observe(judge, window(1, arm(1900), arm(100))), window(2, ArmCounts(), ArmCounts(), stage=1))
    assert later.claims == pytest.approx(later.book.claims.prior)


# The whole fold.

ALPHA = 0.2
RUNS = 80
WINDOWS = 45


def only(metric: str) -> Policy:
    """Practically all weight on one metric, at a level that eighty rollouts can check."""
    weight = dict.fromkeys(("errors", "rejected", "latency", "scores"), 1e-6) | {metric: 1.0}
    return Policy(
        alpha=ALPHA,
        errors=EventMetric(name="errors", weight=weight["errors"]),
        rejected=EventMetric(name="rejected", weight=weight["rejected"]),
        latency=LatencyMetric(weight=weight["latency"]),
        scores=ScoreMetric(weight=weight["scores"]),
        stages=(StagePolicy(min_s=10, margin=3), StagePolicy(min_s=10, margin=2), StagePolicy(min_s=10, margin=None)),
    )


def at_the_boundary(metric: str) -> dict[str, np.ndarray]:
    """Latencies or scores of a candidate that is as bad as it may be."""
    if metric == "latency":
        moved = np.zeros_like(LATENCY_CHANCES)
        np.add.at(moved, tolerated(1.10, 2.0), LATENCY_CHANCES)
        return {"latency": moved}
    return {"score": np.append([0, 0], SCORE_CHANCES[:-2])} if metric == "scores" else {}


def false_alarms(metric: str, seed: int) -> int:
    """Rollouts of a candidate on the boundary of the null that would ever have been rolled back.

    Everything is against the judge: base rates drift and jump, traffic is raised while the evidence is high and
    lowered while it is low, some windows have no configured share, and it is looked at after each.
    """
    rng = np.random.default_rng(seed)
    learned, worse = taught(only(metric)), at_the_boundary(metric)
    alarms = 0
    for _ in range(RUNS):
        state, phase = learned, rng.uniform(0, 60)
        for k in range(1, WINDOWS):
            rate = 0.03 * 3 ** np.sin((k + phase) / 9) + (0.2 if 30 <= k < 34 else 0.0)
            by_metric, _ = state.book.evidence(state.harm, state.cash)
            share = 0.6 if state.book.weights @ by_metric > 1 else 0.05
            requests = int(rng.integers(300, 1500))
            ours = int(rng.binomial(requests, share))
            stable = draw(rng, requests - ours, {"errors": rate, "rejected": rate})
            candidate = draw(rng, ours, {"errors": 1.05 * rate, "rejected": 1.05 * rate}, **worse)
            told = None if k % 7 == 0 else share
            state = observe(state, window(k, stable, candidate, share=told, stage=k // 20))
        alarms += state.peak >= 1 / ALPHA
    return alarms


@pytest.mark.parametrize("metric", ["errors", "latency", "scores"])
def test_against_every_adversity_the_level_holds(metric: str) -> None:
    assert false_alarms(metric, 11) <= binom.ppf(0.999, RUNS, ALPHA)
