"""Labels that arrive later, and requests that are not independent."""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.stats import binom

from serin.judge import EventMetric, JudgeSpec, LatencyMetric, Policy, ScoreMetric, State, observe, policy_for, start
from serin.judge.cohorts import Cohort, Labels, windows
from serin.plan import PROFILES
from tests.unit.judging import arm, window

METRIC = "wrong_decisions"
SHARE, RATE = 0.2, 0.1
POLICY = policy_for(
    PROFILES["fast"],
    JudgeSpec(
        alpha=0.05,
        errors=EventMetric(name="errors", weight=1e-6),
        rejected=EventMetric(name="rejected", weight=1e-6),
        latency=LatencyMetric(weight=1e-6),
        scores=ScoreMetric(weight=1e-6),
        metrics=(EventMetric(name=METRIC, weight=1.0),),
    ),
)


def arms_of(rng: np.random.Generator, requests: int, rate: float, delay_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Which requests are bad, and after how long that is known."""
    return rng.random(requests) < rate, rng.exponential(delay_s, requests)


def labels_at(now: float, end_s: float, bad: np.ndarray, delay_s: np.ndarray) -> Labels:
    known = delay_s <= now - end_s
    return Labels(len(bad), int(known.sum()), int(bad[known].sum()))


def history(rng: np.random.Generator, candidate_rate: float, count: int = 40) -> list[tuple[float, tuple, tuple]]:
    """Cohorts of a minute; stable's labels take ten minutes, the candidate's two."""
    cohorts = []
    for k in range(count):
        ours = int(rng.binomial(400, SHARE))
        stable, candidate = arms_of(rng, 400 - ours, RATE, 600), arms_of(rng, ours, candidate_rate, 120)
        cohorts.append((60.0 * (k + 1), stable, candidate))
    return cohorts


def seen_at(now: float, cohorts: list[tuple[float, tuple, tuple]]) -> Iterator[Cohort]:
    for k, (end_s, stable, candidate) in enumerate(cohorts):
        if end_s <= now:
            arms = labels_at(now, end_s, *stable), labels_at(now, end_s, *candidate)
            yield Cohort(k, end_s - 60, end_s, 0, *arms)


def judged(cohorts: list[tuple[float, tuple, tuple]], longest_delay_s: float) -> State:
    """Looked at every five minutes, with all windows mature by then; those seen before change nothing."""
    state = start(POLICY)
    for now in np.arange(300.0, 3 * 3600, 300.0):
        for each in windows(seen_at(now, cohorts), METRIC, now, longest_delay_s=longest_delay_s):
            state = observe(state, each)
    return state


def rolled_back(state: State) -> bool:
    return state.peak >= 1 / state.policy.alpha


def test_different_delays_do_no_harm_to_a_harmless_candidate() -> None:
    rng = np.random.default_rng(1)
    runs = 30
    late = sum(rolled_back(judged(history(rng, RATE), 5400)) for _ in range(runs))
    assert late <= binom.ppf(0.999, runs, POLICY.alpha)


def test_a_worse_candidate_is_found_once_its_labels_are_in() -> None:
    state = judged(history(np.random.default_rng(2), 2 * RATE), 5400)
    assert rolled_back(state)
    assert state.blamed == METRIC


def test_counted_as_they_arrive_the_same_labels_would_condemn_it() -> None:
    """What cohorts are for: in order of arrival the faster arm has more bad labels at any time."""
    rng = np.random.default_rng(3)
    condemned = 0
    for _ in range(5):
        state, before = start(POLICY), (0, 0)
        cohorts = history(rng, RATE)
        for k, now in enumerate(np.arange(60.0, 2400.0, 60.0)):
            seen = list(seen_at(now, cohorts))
            bad = sum(c.stable.harm for c in seen), sum(c.candidate.harm for c in seen)
            requests = 400 - round(400 * SHARE), round(400 * SHARE)
            new = [arm(n, 0, **{METRIC: int(b - a)}) for n, a, b in zip(requests, before, bad, strict=True)]
            state, before = observe(state, window(k, *new, share=SHARE)), bad
        condemned += rolled_back(state)
    assert condemned >= 4


def test_cohorts_are_given_in_order_and_only_when_mature() -> None:
    full, partly = Labels(100, 100, 7.5), Labels(100, 96, 5)
    cohorts = [
        Cohort(1, 0, 60, 0, full, full),
        Cohort(2, 60, 120, 0, full, partly),
        Cohort(3, 120, 180, 0, full, full),
    ]

    def ids(now: float, complete: float = 1.0) -> list[int]:
        found = windows(cohorts, METRIC, now, longest_delay_s=600, complete=complete)
        return [each.id for each in found]

    assert ids(200) == [1]
    assert ids(719) == [1]
    assert ids(720) == [1, 2, 3]
    assert ids(200, complete=0.95) == [1, 2, 3]
    first = next(windows(cohorts, METRIC, 200, longest_delay_s=600))
    assert (first.share, first.candidate.requests, first.candidate.events) == (None, 100, {METRIC: 7.5})


@pytest.mark.parametrize("burst", [2, 5, 10])
def test_sticky_clients_are_counted_once_per_window(burst: int) -> None:
    """A client keeps its arm, and all requests of a bad moment of its fail: counted per client the level holds."""
    rng = np.random.default_rng(burst)
    runs, alarms, per_request = 30, 0, 0
    policy = Policy(**{name: getattr(POLICY, name) for name in JudgeSpec.model_fields if name != "metrics"})
    policy = policy.model_copy(update={"errors": EventMetric(name="errors", weight=1.0)})
    for _ in range(runs):
        states = [start(policy), start(policy)]
        for k in range(40):
            clients = {"stable": int(rng.binomial(300, 0.8))}
            clients["candidate"] = 300 - clients["stable"]
            bad = {name: int(rng.binomial(count, 0.02)) for name, count in clients.items()}
            units = [arm(clients[name], bad[name], rejected=0) for name in clients]
            requests = [arm(burst * clients[name], burst * bad[name], rejected=0) for name in clients]
            for which, counts in enumerate((units, requests)):
                states[which] = observe(states[which], window(k, *counts, share=0.2))
        alarms += rolled_back(states[0])
        per_request += rolled_back(states[1])
    assert alarms <= binom.ppf(0.999, runs, policy.alpha)
    if burst >= 5:
        assert per_request > binom.ppf(0.999, runs, policy.alpha)
