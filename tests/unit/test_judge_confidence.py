"""Confidence sequences of candidate / stable hold at all times at once."""

from functools import partial

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import binom

from serin.judge import ArmCounts, Interval, Policy, State, confidence, observe
from serin.judge.confidence import _STRENGTHS
from tests.unit.judging import LATENCY, arm, draw, taught, window

ALPHA = 0.2


def seen(windows: list[tuple[ArmCounts, ArmCounts, float | None]], policy: Policy | None = None) -> State:
    state = taught(policy)
    for k, (stable, candidate, share) in enumerate(windows):
        state = observe(state, window(k + 1, stable, candidate, share=share))
    return state


def test_nothing_is_known_before_any_traffic() -> None:
    nothing = dict.fromkeys(("split", "errors", "rejected", "latency"), Interval())
    assert confidence(taught()) == nothing
    assert confidence(seen([(arm(100, 1), arm(10), None)])) == nothing


def test_the_bounds_of_one_share_by_hand() -> None:
    """Two binomial likelihood ratios, one per side, mixed over the relative risks."""
    found = confidence(seen([(arm(9500, 90), arm(500, 20), 0.05)]))["errors"]

    def log_e(direction: int, rho: float) -> float:
        null = rho * 0.05 / (rho * 0.05 + 0.95)
        risks = np.exp(direction * _STRENGTHS)
        alternative = null * risks / (1 - null + null * risks)
        ratios = binom.logpmf(20, 110, alternative) - binom.logpmf(20, 110, null)
        return float(logsumexp(ratios) - np.log(len(risks)) - np.log(2 / 0.01))

    assert found.low == pytest.approx(brentq(partial(log_e, 1), 0.1, 4), rel=1e-4)
    assert found.high == pytest.approx(brentq(partial(log_e, -1), 4.2, 100), rel=1e-4)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.0])
def test_the_interval_holds_the_ratio_at_all_times_whatever_base_rate_and_traffic_do(ratio: float) -> None:
    rng = np.random.default_rng(2)
    policy = Policy(alpha=ALPHA)
    runs, missed, last = 40, 0, Interval()
    for _ in range(runs):
        state, ever = taught(policy), False
        for k in range(30):
            rate = 0.02 * 4 ** np.sin(k / 5)
            share = (0.05, 0.25, 0.5)[k // 10]
            stable = arm(2000, int(rng.binomial(2000, rate)))
            requests = int(2000 * share / (1 - share))
            state = observe(
                state,
                window(k + 1, stable, arm(requests, int(rng.binomial(requests, ratio * rate))), share=share),
            )
            if k % 3 == 2:
                last = confidence(state)["errors"]
                ever |= (last.low or 0) > ratio or (last.high or np.inf) < ratio
        missed += ever
        assert last.low is not None
        assert last.high is not None
        assert last.high / last.low < 2
    assert missed <= binom.ppf(0.999, runs, ALPHA)


@pytest.mark.parametrize("buckets", [-6, 0, 5])
def test_latency_is_compared_at_stables_p99_in_buckets(buckets: int) -> None:
    rng = np.random.default_rng(3)
    moved = np.roll(LATENCY, buckets)
    rates = {"errors": 0.01}
    state = seen([(draw(rng, 2000, rates), draw(rng, 1000, rates, moved), 1 / 3) for _ in range(40)])
    found = confidence(state)["latency"]
    assert found.low is not None
    assert found.high is not None
    assert found.low < 2 ** (buckets / 14) < found.high < 1.4 * found.low
    assert np.log2(found.low) * 14 == pytest.approx(round(np.log2(found.low) * 14))


def test_a_latency_out_of_the_compared_range_is_bounded_by_its_end() -> None:
    rng = np.random.default_rng(4)
    rates = {"errors": 0.01}
    state = seen([(draw(rng, 2000, rates), draw(rng, 1000, rates, np.roll(LATENCY, 40)), 1 / 3) for _ in range(10)])
    assert confidence(state)["latency"] == Interval(low=2.0, high=None)


def test_the_split_is_a_ratio_of_odds() -> None:
    right = confidence(seen([(arm(9500), arm(500), 0.05), (arm(5000), arm(5000), 0.5)]))["split"]
    half = confidence(seen([(arm(9500), arm(250), 0.05), (arm(5000), arm(2500), 0.5)]))["split"]
    assert right.low < 1 < right.high
    assert half.low < 0.5 < half.high < 0.7


def test_errors_of_one_arm_only_bound_one_side() -> None:
    found = confidence(seen([(arm(950), arm(50, 20), 0.05)]))["errors"]
    assert found.low > 20
    assert found.high is None
    assert confidence(seen([(arm(500, 30), arm(500, 0), 0.5)]))["errors"].low is None
