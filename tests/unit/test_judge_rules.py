"""What the judge says, and why: every action, alert and excuse."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from serin.judge import (
    Action,
    ArmCounts,
    Decision,
    EventMetric,
    JudgeSpec,
    LatencyMetric,
    Policy,
    ScoreMetric,
    Scores,
    State,
    decide,
    observe,
    policy_for,
)
from serin.judge.policy import SPLIT, StagePolicy
from serin.plan import PROFILES
from tests.unit.judging import LATENCY, SCORES, arm, draw, taught, window

RATES = {"errors": 0.01, "rejected": 0.0}


def feed(
    state: State, windows: int, *, rate: float = 0.01, rps: int = 200, share: float = 0.05, seed: int = 1, **worse
) -> State:
    """Seconds of traffic in the first stage, from the window after the state's last one."""
    rng = np.random.default_rng(seed)
    for _ in range(windows):
        stable = draw(rng, rps - round(rps * share), RATES)
        candidate = draw(rng, round(rps * share), {**RATES, "errors": rate}, **worse)
        state = observe(state, window(state.last_id + 1, stable, candidate, share=share))
    return state


def said(state: State) -> Decision:
    return decide(state, state.last_id + 1.0)


def slower(buckets: int) -> np.ndarray:
    return np.append(np.zeros(buckets), LATENCY[:-buckets])


def test_a_candidate_like_stable_advances_when_every_claim_is_shown() -> None:
    early = feed(taught(), 3)
    first = said(early)
    assert first.action is Action.WAIT
    assert first.needs_requests is not None
    assert first.needs_s is not None
    assert first.reason.startswith("Not ruled out yet: 5 times stable's rate of latency above p99; needs about")
    done = said(feed(early, 400, seed=2))
    assert done.action is Action.ADVANCE, done.reason
    assert "Harm of 5 times or more is ruled out" in done.reason
    assert all(each.safe for each in done.evidence)


def test_a_stage_lasts_its_minimum_even_when_everything_is_shown() -> None:
    state = feed(taught(), 30, rps=4000)
    waiting = said(state)
    assert waiting.action is Action.WAIT
    assert "No sign of harm" in waiting.reason
    assert waiting.needs_s == pytest.approx(60 - 30, abs=1)
    assert decide(state, 61.0).action is Action.ADVANCE


def test_total_failure_is_seen_within_ten_requests() -> None:
    state = taught()
    exposed = 0
    while said(state).action is not Action.ROLLBACK:
        exposed += 1
        state = observe(state, window(state.last_id + 1, arm(19), arm(1, 1)))
    assert exposed <= 10
    assert said(state).blamed == "errors"
    assert f"errors in {exposed:,} of {exposed:,} requests on the candidate" in said(state).reason


@pytest.mark.parametrize(
    ("worse", "blamed"),
    [
        ({"rate": 0.10}, "errors"),
        ({"latency": slower(8)}, "latency"),
        ({"score": np.eye(100)[50]}, "scores"),
        ({"score": np.append(np.zeros(10), SCORES[:-10])}, "scores"),
    ],
)
def test_harm_is_found_and_named(worse: dict[str, object], blamed: str) -> None:
    decision = said(feed(taught(), 200, **worse))
    assert (decision.action, decision.blamed) == (Action.ROLLBACK, blamed)
    assert decision.log10_e > 0


def test_a_rollback_stands_whatever_comes_after() -> None:
    state = feed(taught(), 4, rate=0.3)
    assert said(state).action is Action.ROLLBACK
    better = feed(state, 300, rate=0.0, rps=2000)
    assert said(better).log10_e < 2
    assert said(better).action is Action.ROLLBACK


def test_harm_below_the_floor_is_no_harm() -> None:
    """Twenty times stable's rate, and still fewer than one error in a thousand requests."""
    state = taught()
    for k in range(40):
        state = observe(state, window(k + 1, arm(95_000, 4, rejected=0), arm(5_000, 4, rejected=0)))
    assert said(state).action is not Action.ROLLBACK
    assert next(each for each in said(state).evidence if each.metric == "errors").log10_e < 0


def test_a_service_without_errors_is_shown_safe() -> None:
    state = feed(taught(), 70, rate=0.0, rps=600)
    errors = next(each for each in said(state).evidence if each.metric == "errors")
    assert errors.safe


def test_a_missing_share_of_requests_holds_and_alerts() -> None:
    state = taught()
    for k in range(60):
        state = observe(state, window(k + 1, arm(200, 2), arm(2), share=0.05))
    decision = decide(state, 1000.0)
    assert decision.action is Action.WAIT
    assert decision.alert is not None
    assert "120 of 12,120 requests" in decision.alert
    observed = taught()
    for k in range(60):
        observed = observe(observed, window(k + 1, arm(200, 2), arm(2), share=None))
    assert decide(observed, 1000.0).alert is None


def test_a_colder_twin_of_a_fast_service_does_no_harm() -> None:
    """Two milliseconds in place of one: twice the time, within the tolerance; ten in place of one is not."""
    one, two, ten = (np.eye(240)[k] for k in (47, 61, 93))
    policy = Policy()
    for latency, harm in ((two, False), (ten, True)):
        state = taught(policy)
        rng = np.random.default_rng(3)
        for k in range(1, 60):
            stable = draw(rng, 190, RATES, latency=one)
            state = observe(state, window(k, stable, draw(rng, 10, RATES, latency=latency)))
        assert (said(state).action is Action.ROLLBACK) is harm


def test_another_kind_of_model_is_not_held_against_stables_scores() -> None:
    elsewhere = {"score": np.eye(100)[90]}
    policy = Policy(scores=ScoreMetric(expected=Scores.DIFFERENT))
    state = feed(taught(policy), 400, **elsewhere)
    assert "scores" not in said(feed(taught(policy), 59, rps=4000, **elsewhere)).reason
    done = said(state)
    assert done.action is Action.ADVANCE, done.reason
    assert done.reason.endswith("not judged: scores.")
    assert said(feed(taught(), 150, **elsewhere)).blamed == "scores"


def test_what_is_not_reported_never_blocks_unless_it_is_required() -> None:
    """Only errors are counted: nothing else is waited for, not even as a suspicion."""
    state, required = (taught(policy) for policy in (Policy(), Policy(require=("latency",))))
    for k in range(1, 130):
        counts = arm(190, 2), arm(10, 0 if k % 10 else 1)
        state = observe(state, window(k, *counts))
        required = observe(required, window(k, *counts))
        if said(state).action is Action.ADVANCE:
            break
    decision = said(state)
    assert decision.action is Action.ADVANCE, decision.reason
    assert "not judged: client errors, latency, scores" in decision.reason
    assert [each.metric for each in decision.evidence if each.judged] == ["errors", "split"]
    held = decide(required, 5000.0)
    assert (held.action, held.reason) == (
        Action.WAIT,
        "The policy requires latency, which is not reported by both revisions.",
    )


def test_a_slow_candidate_is_called_slower_than_stable() -> None:
    suspected = feed(taught(), 12, latency=slower(3))
    while said(suspected).log10_e < 0.6:
        suspected = feed(suspected, 1, latency=slower(3))
    assert said(suspected).reason.startswith("The candidate looks slower than stable, but"), said(suspected).reason
    proven = said(feed(suspected, 60, latency=slower(8)))
    assert proven.action is Action.ROLLBACK
    assert proven.reason.startswith("The candidate is harmful, slower than stable: latency above p"), proven.reason


def test_unreported_metrics_are_never_looked_at_for_longer() -> None:
    state = feed(taught(Policy(scores=ScoreMetric(expected=Scores.DIFFERENT))), 59, rps=6000, seed=9)
    assert "Extending the stage" not in decide(state, 61.0).reason


def test_suspicion_waits_and_patience_ends() -> None:
    state = feed(taught(), 60, rps=2000, rate=0.0118, seed=4)
    waiting = decide(state, 61.0)
    assert waiting.action is Action.WAIT
    assert "may be worse: errors" in waiting.reason
    assert decide(state, 301.0).action is Action.ADVANCE
    worse = feed(state, 40, rps=2000, rate=0.016, seed=5)
    suspected = decide(worse, 301.0)
    assert (suspected.action, "not proven" in suspected.reason) == (Action.WAIT, True)


@pytest.mark.parametrize("silent_from", [1, 30])
def test_a_candidate_that_reports_no_latencies_and_scores_is_not_condemned_for_it(silent_from: int) -> None:
    """As stable's alone say nothing about the candidate's, whatever share of the requests was the candidate's."""
    state, rng = taught(), np.random.default_rng(8)
    for k in range(1, 120):
        stable, candidate = draw(rng, 300, {"errors": 0.01}), draw(rng, 300, {"errors": 0.01})
        if k >= silent_from:
            candidate = ArmCounts(candidate.requests, candidate.events)
        state = observe(state, window(k, stable, candidate, share=0.5))
    assert state.peak < 5


def test_stables_latencies_alone_do_not_show_that_the_candidate_is_fast_enough() -> None:
    """As of a candidate that is so busy that it does not even tell its counts."""
    state, rng = taught(), np.random.default_rng(8)
    for k in range(1, 200):
        stable, candidate = draw(rng, 190, {"errors": 0.0}), draw(rng, 10, {"errors": 0.0})
        if k > 2:
            candidate = ArmCounts(candidate.requests, candidate.events)
        state = observe(state, window(k, stable, candidate))
    decision = decide(state, 200.0)
    safe = {each.metric: each.safe for each in decision.evidence}
    assert (decision.action, safe["errors"], safe["latency"]) == (Action.WAIT, True, False)
    assert decision.reason == "Harm is not ruled out yet: one revision is not reporting latency."


@pytest.mark.parametrize("shares", [0.05, 0.5])
def test_a_candidate_is_not_condemned_while_stable_reports_no_latencies_and_scores(shares: float) -> None:
    state, rng = taught(), np.random.default_rng(8)
    ours = round(200 * shares)
    for k in range(1, 200):
        stable, candidate = draw(rng, 200 - ours, {"errors": 0.0}), draw(rng, ours, {"errors": 0.0})
        if 10 < k < 190:
            stable = ArmCounts(stable.requests, stable.events)
        state = observe(state, window(k, stable, candidate, share=shares))
    assert state.peak < 5


def test_a_dry_run_only_says_what_it_would_do() -> None:
    policy = Policy(dry_run=True)
    state = feed(taught(policy), 20, rate=1.0)
    decision = decide(state, 21.0)
    assert decision.action is Action.WAIT
    assert decision.reason.startswith("Dry run, would rollback: The candidate is harmful: errors")
    assert decision.blamed == "errors"
    assert decide(state, 61.0).action is Action.ADVANCE


def test_the_bake_passes_by_time_alone_and_still_rolls_back() -> None:
    policy = Policy(stages=(StagePolicy(min_s=30, margin=None),))
    quiet = observe(taught(policy), window(1, arm(1), arm(99, 1), share=0.99))
    assert decide(quiet, 20.0).action is Action.WAIT
    done = decide(quiet, 5 * 30 + 2.0)
    assert (done.action, done.reason.startswith("No harm found")) == (Action.ADVANCE, True)
    burning = quiet
    for k in range(2, 30):
        burning = observe(burning, window(k, arm(10), arm(990, 300), share=0.99))
    assert decide(burning, 152.0).action is Action.ROLLBACK


def test_before_any_traffic_it_waits() -> None:
    assert decide(taught(), 1.0).reason == "No traffic has been split yet."


def test_a_users_own_event_is_judged_like_any_other() -> None:
    refunds = EventMetric(name="refunds", weight=0.3, floor=0.005)
    state = taught(Policy(metrics=(refunds,)))
    for k in range(1, 100):
        state = observe(state, window(k, arm(950, 5, refunds=20), arm(50, 0, refunds=6)))
    decision = said(state)
    assert (decision.action, decision.blamed) == (Action.ROLLBACK, "refunds")
    assert "refunds in 594 of 4,950 requests on the candidate" in decision.reason


def test_what_one_revision_does_not_tell_of_an_event_is_evidence_of_nothing() -> None:
    """Of the other's events alone it would be proof, for harm or for safety."""
    policy = Policy(metrics=(EventMetric(name="refunds", weight=0.3, floor=0.005),))
    quiet = {"refunds": 0}
    for stable, candidate in (({}, {"refunds": 6}), ({"refunds": 200}, {})):
        state = observe(taught(policy), window(1, arm(950, 5, **quiet), arm(50, 0, **quiet)))
        for k in range(2, 100):
            state = observe(state, window(k, arm(950, 5, **stable), arm(50, 0, **candidate)))
        [found] = [each for each in said(state).evidence if each.metric == "refunds"]
        assert found.log10_e < 0.01 and not found.safe


def test_a_stage_in_which_an_event_is_no_longer_told_says_so() -> None:
    state = taught(Policy(metrics=(EventMetric(name="refunds", weight=0.3, floor=0.005),)))
    state = observe(state, window(1, arm(950, 5, refunds=9), arm(50, 0, refunds=0)))
    for k in range(2, 400):
        state = observe(state, replace(window(k, arm(950, 5, refunds=9), arm(50)), stage=1))
    reason = decide(state, 1e6).reason
    assert reason == "Harm is not ruled out yet: one revision is not reporting refunds."


@pytest.mark.parametrize(
    "bad",
    [
        {"metrics": [{"name": "latency", "weight": 1}]},
        {"metrics": [{"name": "refunds", "weight": 1}] * 2},
        {"require": ["refunds"]},
        {"errors": {"name": "errors", "weight": 1, "source": {"counter": "failures_total"}}},
        {"metrics": [{"name": "refunds", "weight": 1, "source": {"counter": "no counter"}}]},
        {"alpha": 0.7},
        {"nonsense": 1},
        {"latency": {"margin": 0.9}},
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        JudgeSpec.model_validate(bad)


def test_a_policy_has_a_name_that_changes_with_it() -> None:
    policy = policy_for(PROFILES["fast"], JudgeSpec())
    assert policy.hash() == Policy().hash() == Policy.model_validate_json(policy.model_dump_json()).hash()
    others = (
        policy_for(PROFILES["careful"], JudgeSpec()),
        Policy(alpha=0.02),
        Policy(latency=LatencyMetric(margin=1.2)),
    )
    assert len({policy.hash(), *(other.hash() for other in others)}) == 4


def test_weights_are_relative() -> None:
    shares = JudgeSpec(errors=EventMetric(name="errors", weight=3), latency=LatencyMetric(weight=1)).shares
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["errors"] == pytest.approx(3 * shares["latency"])
    different = JudgeSpec(scores=ScoreMetric(expected=Scores.DIFFERENT)).shares
    assert different["scores"] == 0
    assert sum(different.values()) == pytest.approx(1)


@pytest.mark.parametrize("apart", [True, False])
def test_the_split_is_not_judged_by_counts_of_different_moments(*, apart: bool) -> None:
    """Three times its share is no wrong split when the two were not counted together."""
    state = taught()
    for number in range(1, 20):
        state = observe(state, replace(window(number, arm(850), arm(150)), counted_apart=apart))
    decision = decide(state, 21.0)
    (split,) = [each for each in decision.evidence if each.metric == SPLIT]
    assert (split.judged, decision.alert is None) == (not apart, apart)
