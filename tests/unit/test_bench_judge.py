"""The judges that ours is compared with, and the streams they all see."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import scenarios
from benchmarks.judge import (
    COHORT_S,
    LONGEST_DELAY_S,
    WRONG,
    Job,
    label_rollbacks,
    label_windows_as_they_come,
    label_windows_by_cohort,
    windows,
    work,
)
from benchmarks.peers import (
    Limits,
    Look,
    Traffic,
    argo,
    calibrated,
    flagger,
    kayenta,
    looks_needed,
    mann_whitney_differs,
)

LIMITS = Limits(error_rate=0.05, p99_ms=500)
GOOD = Look(requests=100, error_rate=0.01, p50_ms=80, p90_ms=150, p99_ms=260, mean_score=0.3)
FAILING = Look(100, 1.0, np.nan, np.nan, np.nan, np.nan)
SLOW = Look(100, 0.01, 80, 150, 900, 0.3)
NOTHING = Look(0, *(np.nan,) * 5)


def test_flagger_rolls_back_on_the_tick_after_the_fifth_failure() -> None:
    verdict = flagger(lambda *_: FAILING, LIMITS)
    assert (verdict.rolled_back, verdict.t, verdict.requests) == (True, 360, 600)


def test_flagger_takes_no_traffic_for_a_failure_and_moves_on_after_three_good_minutes() -> None:
    assert flagger(lambda *_: NOTHING, LIMITS).rolled_back
    verdict = flagger(lambda *_: GOOD, LIMITS)
    assert (verdict.rolled_back, verdict.t) == (False, 180)


def test_flagger_adds_up_failures_of_different_metrics_and_argo_does_not() -> None:
    looks = [FAILING, SLOW] * 3 + [GOOD] * 60
    assert flagger(lambda minute, *_: looks[minute], LIMITS).rolled_back
    assert not argo(lambda minute, *_: looks[minute], LIMITS, interval=1).rolled_back


def test_argo_stops_at_the_fourth_failure() -> None:
    assert argo(lambda *_: FAILING, LIMITS, interval=1).t == 240
    assert argo(lambda *_: FAILING, LIMITS, interval=5).t == 1200


def test_kayenta_stops_early_on_errors_alone() -> None:
    wobble = [Look(100, 0.01 + k / 1e5, 80 + k, 150 + k, 260 + k, 0.3) for k in range(60)]
    worse = [Look(100, 0.05 + k / 1e5, 80 + k, 150 + k, 260 + k, 0.3) for k in range(60)]
    moved = [Look(100, 0.01 + k / 1e5, 80 + k, 150 + k, 260 + k, 0.4) for k in range(60)]
    verdicts = [
        kayenta(lambda minute, *_, arm=arm: arm[minute], lambda minute, *_: wobble[minute])
        for arm in (wobble, worse, moved)
    ]
    assert [(verdict.rolled_back, verdict.t) for verdict in verdicts] == [(False, 3600), (True, 600), (True, 1200)]


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_the_interval_agrees_with_the_rank_test(shift: float) -> None:
    """Without a tolerance, the interval leaves out zero where the two-sided test rejects."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        control, experiment = rng.normal(size=20), rng.normal(size=20) + shift
        p = stats.mannwhitneyu(experiment, control, method="asymptotic", use_continuity=False).pvalue
        if abs(p - 0.02) > 0.002:
            assert mann_whitney_differs(experiment, control, falls=True, tolerance=0.0) == (p < 0.02)


def test_calibrated_limits_keep_their_promise_and_no_more_than_that() -> None:
    healthy = [looks_needed(Traffic(scenarios.stream(np.random.default_rng(k), 2, 1800))) for k in range(40)]

    def policy(looks, limits):
        return argo(looks, limits, interval=1)

    limits = calibrated(policy, healthy, 0.1)
    rolled_back = np.mean([policy(lambda *key, table=table: table[key], limits).rolled_back for table in healthy])
    assert 0 < rolled_back <= 0.1


def test_a_look_counts_its_arm_and_its_minutes_alone() -> None:
    stream = scenarios.stream(np.random.default_rng(1), 20, 300, scenarios.errors(1.0))
    traffic = Traffic(stream)
    during = (stream.t >= 60) & (stream.t < 180)
    candidate, baseline = traffic.candidate(1, 2, 0.25), traffic.baseline(1, 2, 0.25)
    assert candidate.requests == np.sum(during & (stream.u < 0.25))
    assert (candidate.error_rate, np.isnan(candidate.p99_ms)) == (1.0, True)
    assert baseline.requests == np.sum(during & (stream.u >= 0.25) & (stream.u < 0.5))
    assert baseline.error_rate < 0.1


def test_bursts_share_their_clients_fate() -> None:
    by_client, by_second, by_request = (
        scenarios.sticky(np.random.default_rng(5), 20, 100, 5, counted) for counted in scenarios.Counted
    )
    assert len(by_client.t) < len(by_second.t) < len(by_request.t)
    assert set(by_client.u) == set(by_second.u) == set(by_request.u)
    assert 4 < len(by_request.t) / len(by_client.t) < 6


def test_the_same_seeds_give_the_same_results() -> None:
    job = Job("total failure", 10, range(2), ("serin", "Flagger, docs", "Argo, docs", "Kayenta"), horizon_s=1800)
    first = work(job)
    assert first == work(job)
    assert all(result.rolled_back for by_judge in first for result in by_judge.values())
    assert all(by_judge["serin"].requests < by_judge["Kayenta"].requests for by_judge in first)


def test_windows_that_are_timed_report_every_metric() -> None:
    for window in windows(3):
        assert window.stable.requests + window.candidate.requests == 100
        assert set(window.candidate.events) == {"errors", "rejected", "refused"}
        assert sum(window.stable.latency.values()) == window.stable.requests - window.stable.events["errors"]


def test_each_late_label_is_counted_once_in_the_cohort_of_its_request() -> None:
    labels = scenarios.late_labels(np.random.default_rng(2), 20, 600)
    ends_s = (np.floor(labels.t / COHORT_S) + 1) * COHORT_S
    in_time = labels.known_t <= ends_s + LONGEST_DELAY_S
    by_cohort = list(label_windows_by_cohort(labels))
    assert [each.end_s for each in by_cohort] == np.unique(ends_s).tolist()
    for each in by_cohort:
        for arm, counts in ((False, each.stable), (True, each.candidate)):
            own = (ends_s == each.end_s) & (labels.to_candidate == arm) & in_time
            assert (counts.requests, counts.events[WRONG]) == (own.sum(), labels.bad[own].sum())
    assert 0 < np.sum(~in_time) < 0.02 * len(in_time)


def test_as_they_come_each_late_label_is_counted_once_when_it_is_known() -> None:
    labels = scenarios.late_labels(np.random.default_rng(2), 20, 600)
    as_they_come = list(label_windows_as_they_come(labels))
    for arm in ("stable", "candidate"):
        own = labels.to_candidate == (arm == "candidate")
        counted = [getattr(each, arm) for each in as_they_come]
        assert sum(each.requests for each in counted) == own.sum()
        assert sum(each.events[WRONG] for each in counted) == np.sum(own & labels.bad & (labels.known_t < 600))


def test_labels_as_they_come_condemn_the_harmless_and_by_cohort_the_harmful_alone() -> None:
    seeds = range(3)
    assert label_rollbacks(label_windows_as_they_come, 1.0, seeds) == 3
    assert label_rollbacks(label_windows_by_cohort, 1.0, seeds) == 0
    assert label_rollbacks(label_windows_by_cohort, 1.5, seeds) == 3
