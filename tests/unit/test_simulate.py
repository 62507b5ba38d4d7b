"""Simulated rollouts: the contract (keys, shapes, units), every way to end, and no healthy candidate sent back."""

from dataclasses import fields, replace

import numpy as np
import pytest

from benchmarks import scenarios
from serin.errors import UserError
from serin.judge import Action, Policy, ScoreMetric, decide, observe, policy_for, start
from serin.judge.simulate import Outcome, Phase, Stream, run
from serin.judge.state import BEFORE
from serin.plan import PROFILES, Bake, OnInconclusive, Plan, Stage
from tests.unit.judging import arm, window

QUICK = Plan(
    stages=(Stage(traffic=20, min_seconds=10, margin=4), Stage(traffic=50, min_seconds=10, margin=3)),
    bake=Bake(seconds=10),
    deadline_seconds=60,
)


def stream(scenario: scenarios.Scenario = scenarios.healthy, *, seed: int = 1, rps: float = 100, s: float = 240):
    return scenarios.stream(np.random.default_rng(seed), rps, s, scenario)


def test_the_stream_may_be_a_mapping_of_the_documented_arrays() -> None:
    requests = stream(s=500)
    keys = [f"{what}_{arm}" for what in ("err", "lat", "score") for arm in ("stable", "candidate")]
    keys = ["t", "u", *keys]
    assert [field.name for field in fields(Stream)] == keys
    mapping = {key: getattr(requests, key) for key in keys}
    outcome = run(mapping, "fast", Policy())
    assert outcome == run(requests, PROFILES["fast"], Policy())
    names = {field.name for field in fields(Outcome)}
    assert names == {"phase", "t", "candidate_requests", "harmed_requests", "blamed"}
    assert outcome.phase == "Promoted"
    assert outcome.candidate_requests == sum(
        np.sum((requests.t >= start_s) & (requests.t < end_s) & (requests.u < share))
        for start_s, end_s, share in stages_of(outcome, requests)
    )


def stages_of(outcome: Outcome, requests: Stream) -> list[tuple[float, float, float]]:
    """When each stage of the fast plan began and ended, told by shorter and shorter plans."""
    plan = PROFILES["fast"]
    ends = [run(requests, plan.model_copy(update={"stages": plan.stages[:k]}), Policy()).t for k in (1, 2, 3)]
    assert ends[-1] == outcome.t
    return [
        (begin, end, stage.traffic / 100) for begin, end, stage in zip([0, *ends], ends, plan.stages, strict=False)
    ]


def test_total_failure_exposes_a_handful_of_requests() -> None:
    outcomes = [run(stream(scenarios.errors(1.0), seed=seed, s=60), "fast", Policy()) for seed in range(9)]
    assert {outcome.phase for outcome in outcomes} == {Phase.ROLLED_BACK}
    assert {outcome.blamed for outcome in outcomes} == {"errors"}
    assert np.median([outcome.candidate_requests for outcome in outcomes]) <= 10
    first = outcomes[0]
    assert 0 < first.harmed_requests <= first.candidate_requests
    assert first.t == int(first.t)


@pytest.mark.parametrize(
    ("scenario", "blamed", "most"),
    [
        (scenarios.collapsed_scores, "scores", 40),
        (scenarios.errors(0.05), "errors", 900),
        (scenarios.slower(1.6), "latency", 400),
        (scenarios.heavier_tail(1.0), "latency", 2500),
    ],
)
def test_faults_are_found_and_blamed(scenario: scenarios.Scenario, blamed: str, most: int) -> None:
    outcomes = [run(stream(scenario, seed=seed), "balanced", Policy()) for seed in range(5)]
    assert {(outcome.phase, outcome.blamed) for outcome in outcomes} == {(Phase.ROLLED_BACK, blamed)}
    assert np.median([outcome.candidate_requests for outcome in outcomes]) <= most


@pytest.mark.parametrize("scenario", [scenarios.healthy, scenarios.incident, scenarios.diurnal])
def test_what_happens_to_both_arms_is_not_held_against_the_candidate(scenario: scenarios.Scenario) -> None:
    outcomes = [run(stream(scenario, seed=seed, s=400), QUICK, Policy()) for seed in range(25)]
    assert sum(outcome.phase is Phase.ROLLED_BACK for outcome in outcomes) <= 1
    assert all(outcome.harmed_requests == 0 for outcome in outcomes)


@pytest.mark.parametrize(
    ("policy", "phase"),
    [
        (OnInconclusive.HOLD, Phase.HELD),
        (OnInconclusive.ROLLBACK, Phase.ROLLED_BACK),
        (OnInconclusive.PROMOTE, Phase.PROMOTED),
    ],
)
def test_the_deadline_ends_it_as_the_plan_says(policy: OnInconclusive, phase: Phase) -> None:
    plan = QUICK.model_copy(update={"on_inconclusive": policy})
    outcome = run(stream(rps=2, s=120), plan, Policy())
    assert (outcome.phase, outcome.t, outcome.blamed) == (phase, 60.0, None)


def test_a_stream_that_ends_first_is_held() -> None:
    outcome = run(stream(s=5), "fast", Policy())
    assert (outcome.phase, outcome.t) == (Phase.HELD, 5.0)
    nothing = Stream(*(np.zeros(0, dtype=bool if "err" in field.name else float) for field in fields(Stream)))
    assert run(nothing, "fast", Policy()) == Outcome(Phase.HELD, 0.0, 0, 0, None)


def test_history_teaches_and_counts_as_nothing_else() -> None:
    requests = stream(scenarios.shifted_scores(1.0), s=120)
    during = requests.t >= 0
    untaught = Stream(**{field.name: getattr(requests, field.name)[during] for field in fields(Stream)})
    broken = replace(requests, err_candidate=requests.err_candidate | (requests.t < 0))
    assert run(broken, "fast", Policy()) == run(requests, "fast", Policy())
    assert run(requests, "fast", Policy()).t <= run(untaught, "fast", Policy()).t
    none_before = Stream(**{field.name: getattr(requests, field.name)[requests.t < 0] for field in fields(Stream)})
    assert run(none_before, "fast", Policy()).candidate_requests == 0


def test_a_score_that_is_no_number_is_an_error() -> None:
    requests = stream(s=60)
    outcome = run(replace(requests, score_candidate=np.full_like(requests.t, np.nan)), "fast", Policy())
    assert (outcome.phase, outcome.blamed) == (Phase.ROLLED_BACK, "errors")


def test_harmed_are_those_stable_would_have_served_better() -> None:
    requests = stream(s=20)
    slow = replace(requests, lat_candidate=1.6 * requests.lat_stable)
    slight = replace(requests, lat_candidate=1.4 * requests.lat_stable, score_candidate=requests.score_stable + 0.09)
    everywhere = run(slow, "fast", Policy(dry_run=True))
    assert everywhere.harmed_requests == everywhere.candidate_requests > 0
    assert run(slight, "fast", Policy(dry_run=True)).harmed_requests == 0


def test_simulation_and_the_fold_say_the_same() -> None:
    """The windows of a simulated stage, given to `observe` as production would, lead to the same second."""
    requests = stream(scenarios.errors(0.2), seed=3, s=60)
    outcome = run(requests, "fast", Policy(scores=ScoreMetric(tolerance=0.03)))
    state = start(policy_for(PROFILES["fast"], Policy(scores=ScoreMetric(tolerance=0.03))))
    for k in range(-1, 60):
        now = (requests.t < 0) if k < 0 else (requests.t >= k) & (requests.t < k + 1)
        ours = now & (requests.u < 0.05) & (k >= 0)
        arms = [
            arm(
                int(which.sum()),
                int(failed[which].sum()),
                latency_s=latency[which & ~failed] / 1000,
                score=score[which & ~failed],
            )
            for which, failed, latency, score in (
                (now & ~ours, requests.err_stable, requests.lat_stable, requests.score_stable),
                (ours, requests.err_candidate, requests.lat_candidate, requests.score_candidate),
            )
        ]
        state = observe(state, replace(window(k + 1, *arms, stage=BEFORE if k < 0 else 0), start_s=k, end_s=k + 1))
        if decide(state, k + 1).action is Action.ROLLBACK:
            break
    assert (outcome.phase, outcome.t, outcome.blamed) == (Phase.ROLLED_BACK, k + 1, "errors")


def test_the_window_may_be_as_long_as_a_scrape() -> None:
    broken = stream(scenarios.errors(1.0), s=60)
    assert run(broken, "fast", Policy(), window_s=15.0).t == 15.0


@pytest.mark.parametrize(
    ("change", "named"),
    [({"u": np.zeros(3)}, "one length"), ({"t": None}, "order of time")],
)
def test_a_stream_that_cannot_be_is_refused(change: dict[str, np.ndarray | None], named: str) -> None:
    requests = stream(s=5)
    changed = {key: requests.t[::-1] if value is None else value for key, value in change.items()}
    with pytest.raises(UserError, match=named):
        replace(requests, **changed)


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(UserError, match="'warp'; choose one of fast, balanced, careful"):
        run(stream(s=5), "warp", Policy())
