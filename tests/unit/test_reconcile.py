"""`reconcile`, phase by phase and policy by policy."""

from dataclasses import replace

import numpy as np
import pytest
from fake_platform import CANDIDATE, FAILED, STABLE, World, arm, spec

from serin import judge
from serin.judge import Action, EventMetric, JudgeSpec
from serin.plan import Bake, Checks, OnInconclusive, Plan, Stage
from serin.rollout.document import Approval, Phase
from serin.rollout.reconcile import (
    MAX_LOSSES,
    STABLE_DOWN,
    CreateCandidate,
    Discard,
    Promote,
    Revision,
    RunChecks,
    SetSplit,
    unwatched,
)

PLAN = Plan(
    stages=(
        Stage(traffic=5, min_seconds=10, margin=5),
        Stage(traffic=25, min_seconds=10, margin=3),
        Stage(traffic=50, min_seconds=10, margin=2),
    ),
    bake=Bake(traffic=99, seconds=20),
    deadline_seconds=300,
    start_seconds=30,
)


def world(**changes) -> World:
    plan = {name: changes.pop(name) for name in ("checks", "on_inconclusive", "deadline_seconds") if name in changes}
    return World(spec(plan=PLAN.model_copy(update=plan), **changes))


def steps(status) -> list[tuple[str, int]]:
    return [(entry.phase.value, entry.traffic) for entry in status.history]


def test_a_healthy_candidate_goes_through_every_stage_and_is_promoted():
    here = world()
    status = here.until(Phase.PROMOTED)
    assert steps(status) == [
        ("Dark", 0),
        ("Checking", 0),
        ("Progressing", 5),
        ("Progressing", 25),
        ("Progressing", 50),
        ("Baking", 99),
        ("Baking", 100),
        ("Promoted", 100),
    ]
    assert (here.stable, here.candidate, here.split) == (Revision(CANDIDATE, ready=True), None, 0)
    assert status.reason == "healthy at 99 % for 20 s"
    assert (status.stable_revision, status.candidate_revision) == (STABLE, CANDIDATE)
    entered = [entry.at for entry in status.history]
    at_least_s = (10, 10, 10, 20)
    for began, ended, least_s in zip(entered[2:], entered[3:], at_least_s, strict=False):
        assert (ended - began).total_seconds() >= least_s
    assert status.finished_at == entered[-1] and status.started_at == entered[0]


def test_requests_errors_and_the_observed_share_are_counted():
    here = world()
    here.error_rate = 0.1
    here.until(Phase.PROGRESSING)
    status = here.tick(10)
    assert status.requests.stable + status.requests.candidate == 20_000
    candidate = status.requests.candidate
    assert status.errors.candidate == round(candidate / 10) > 0
    assert status.observed_traffic == pytest.approx(100 * candidate / 20_000)


def test_answers_given_while_the_split_changed_do_not_blur_the_observed_share():
    here = world()
    status = here.until(Phase.BAKING)
    assert status.observed_traffic is None
    assert here.tick().observed_traffic == pytest.approx(99, abs=2)


def test_a_harmful_candidate_goes_back_to_stable_first_and_away_second():
    here = world()
    here.until(Phase.PROGRESSING)
    here.error_rate = 1.0
    asked = []
    while not here.status.phase.terminal:
        _, here.status, actions = here.decide()
        asked += actions
        for action in actions:
            here.apply(action)
        here.settle()
    assert asked == [SetSplit(STABLE, CANDIDATE, 0), Discard(CANDIDATE, STABLE)]
    assert here.status.phase is Phase.ROLLED_BACK and "errors" in here.status.reason
    assert here.status.history[-1].reason == here.status.history[-2].reason


def test_a_rollback_waits_until_the_gateway_confirms_it():
    here = world()
    here.until(Phase.PROGRESSING)
    here.confirms = False
    here.change(abort=True)
    for _ in range(5):
        assert here.tick().phase is Phase.ROLLING_BACK and here.candidate is not None
    here.confirms = True
    assert here.until(Phase.ROLLED_BACK, ticks=3).reason == "aborted by request"


@pytest.mark.parametrize(
    ("phase", "ends"),
    [
        (Phase.PENDING, Phase.ROLLED_BACK),
        (Phase.DARK, Phase.ROLLED_BACK),
        (Phase.CHECKING, Phase.ROLLED_BACK),
        (Phase.PROGRESSING, Phase.ROLLED_BACK),
        (Phase.BAKING, Phase.ROLLED_BACK),
    ],
)
@pytest.mark.parametrize("by", ["abort", "supersede"])
def test_in_every_phase_it_can_be_ended(phase, ends, by):
    here = world()
    if phase is not Phase.PENDING:
        here.until(phase)
    if by == "abort":
        here.change(abort=True)
    else:
        here.superseded_by = "churn-3"
    status = here.until(ends, ticks=4)
    assert status.reason == ("aborted by request" if by == "abort" else "superseded by rollout churn-3")
    assert here.candidate is None and here.split == 0 and here.stable.name == STABLE


# before traffic


def test_a_refusal_ends_it_before_anything_was_done():
    here = world()
    here.refusal = "storageUri /models/churn-2: there is no such folder"
    status = here.tick()
    assert status.phase is Phase.FAILED and status.reason == here.refusal
    assert here.candidate is None


def test_a_declared_metric_that_nobody_counts_is_refused_before_anything_is_done():
    here = world(judge=JudgeSpec(metrics=(EventMetric(name="refunds", weight=1),)))
    status = here.tick(1)
    assert (status.phase, here.candidate) == (Phase.FAILED, None)
    assert status.reason == (
        "judge.metrics: nothing counts refunds; give it a source, such as {counter: refunds_total}"
    )


def test_it_waits_for_an_older_rollout_of_the_service():
    here = world()
    here.waits_for = "churn-1"
    assert "churn-1" in here.tick().reason and here.status.phase is Phase.PENDING
    here.waits_for = None
    assert here.tick().phase is Phase.DARK


def test_paused_before_it_began():
    here = world(paused=True)
    assert here.tick().phase is Phase.PENDING and "paused" in here.status.reason
    here.change(paused=False)
    assert here.tick().phase is Phase.DARK


def test_the_candidate_is_asked_for_until_it_is_there():
    here = world()
    _, here.status, actions = here.decide()
    assert actions == (CreateCandidate(),)
    assert here.decide()[2] == (CreateCandidate(),)


def test_a_candidate_that_never_becomes_ready():
    here = world()
    here.starts = False
    status = here.until(Phase.ROLLED_BACK)
    assert status.reason == "candidate was not ready after 30 s" and here.candidate is None


def test_a_candidate_that_cannot_serve_is_given_up_at_once_and_says_why():
    here = world()
    here.until(Phase.DARK)
    here.candidate = Revision(CANDIDATE, ready=False, failure="file model.onnx does not match its digest")
    assert here.until(Phase.ROLLED_BACK, ticks=3).reason.endswith("file model.onnx does not match its digest")


def test_a_candidate_that_keeps_dying():
    here = world()
    here.until(Phase.PROGRESSING)
    here.candidate = replace(here.candidate, restarts=2)
    assert here.tick().phase is Phase.PROGRESSING
    here.candidate = replace(here.candidate, restarts=3)
    assert here.until(Phase.ROLLED_BACK, ticks=4).reason == "candidate died 3 times"


def test_failed_checks_refuse_it_at_0_percent():
    here = world()
    here.results = FAILED
    status = here.until(Phase.ROLLED_BACK)
    assert steps(status) == [("Dark", 0), ("Checking", 0), ("RollingBack", 0), ("RolledBack", 0)]
    assert status.reason.startswith("refused at 0 % traffic: answers: 21 of 21") and status.checks == FAILED
    assert status.requests.candidate == 0


def test_checks_that_do_not_end():
    here = world()
    here.results = None
    assert here.until(Phase.ROLLED_BACK).reason == "checks at 0 % traffic did not finish within 30 s"


def test_checks_are_asked_for_again_after_a_restart():
    here = world()
    here.until(Phase.CHECKING)
    here.checked = False
    assert here.decide()[2] == (RunChecks(CANDIDATE, STABLE),)


def test_a_candidate_that_died_after_its_checks_gets_no_traffic_before_it_is_back():
    here = world()
    here.until(Phase.CHECKING)
    here.candidate, here.starts = replace(here.candidate, ready=False), False
    status = here.tick()
    assert status.phase is Phase.CHECKING and "not ready" in status.reason and here.wanted == 0
    here.starts = True
    assert here.until(Phase.PROGRESSING, ticks=3).traffic == 5


def test_checks_can_be_switched_off():
    here = world(checks=Checks.NONE)
    status = here.until(Phase.PROGRESSING, ticks=4)
    assert status.checks == () and "checks at 0 % traffic are off" in status.reason


def test_a_split_nobody_asked_for_is_taken_back_before_the_first_stage():
    here = world()
    here.until(Phase.CHECKING)
    here.split = 25
    assert here.decide()[2] == (SetSplit(STABLE, CANDIDATE, 0),)


# the first model


def test_the_first_model_goes_live_after_its_checks_and_says_so():
    here = world()
    here.stable = None
    status = here.until(Phase.PROMOTED)
    assert "first model of this service, no baseline" in status.reason
    assert status.stage is None and here.stable.name == CANDIDATE


def test_the_first_model_is_checked_even_without_checks():
    here = world(checks=Checks.NONE)
    here.stable, here.results = None, FAILED
    status = here.until(Phase.ROLLED_BACK)
    assert "refused at 0 %" in status.reason and here.stable is None


def test_promotion_waits_for_the_gateway():
    here = world()
    here.until(Phase.BAKING)
    here.change(promote=True)
    here.confirms = False
    for _ in range(3):
        assert here.tick().phase is Phase.BAKING
    here.confirms = True
    here.tick()
    assert here.tick().phase is Phase.PROMOTED


# people


def test_approval_before_traffic():
    here = world(approval=Approval.BEFORE_TRAFFIC)
    status = here.until(Phase.WAITING)
    assert "waiting for approval before traffic" in status.reason and here.split == 0
    for _ in range(50):
        status = here.tick(100)
    assert status.phase is Phase.WAITING and len(status.history) == 3
    here.change(approved=True)
    assert here.until(Phase.PROGRESSING, ticks=2).reason == "approved"


def test_approval_before_full_traffic_comes_after_one_bake_not_two():
    here = world(approval=Approval.BEFORE_FULL)
    status = here.until(Phase.WAITING)
    assert status.reason == "healthy at 99 % for 20 s; waiting for approval before full traffic"
    assert here.split == 99 and here.tick().phase is Phase.WAITING
    here.change(approved=True)
    here.until(Phase.PROMOTED, ticks=3)


def test_an_approval_given_early_counts():
    here = world(approval=Approval.BEFORE_FULL, approved=True)
    assert Phase.WAITING not in [entry.phase for entry in here.until(Phase.PROMOTED).history]


def test_a_pause_holds_the_split_and_the_judge_goes_on_watching():
    here = world()
    here.until(Phase.PROGRESSING)
    here.change(paused=True)
    assert here.until(Phase.WAITING, ticks=3).reason == "paused by request"
    for _ in range(60):
        here.tick()
    assert (here.status.phase, here.status.traffic, here.split) == (Phase.WAITING, 5, 5)
    here.error_rate = 1.0
    assert "errors" in here.until(Phase.ROLLED_BACK).reason


def test_a_pause_before_traffic_gives_none():
    here = world()
    here.until(Phase.CHECKING)
    here.change(paused=True)
    assert "paused by request, before traffic" in here.until(Phase.WAITING, ticks=4).reason and here.split == 0
    here.change(paused=False)
    assert here.until(Phase.PROGRESSING, ticks=3).reason == "resumed"


def test_after_a_pause_it_goes_on_where_it_was():
    here = world()
    here.until(Phase.BAKING)
    entered = here.status.entered_at
    here.change(paused=True)
    here.until(Phase.WAITING)
    here.change(paused=False)
    status = here.until(Phase.BAKING, ticks=2)
    assert (status.traffic, status.entered_at, status.history[-1].reason) == (99, entered, "resumed")


def test_promote_skips_the_rest_of_the_plan_but_not_the_checks():
    here = world(promote=True, approval=Approval.BEFORE_TRAFFIC)
    status = here.until(Phase.PROMOTED)
    assert status.reason == "promoted by request, outside the judge's guarantee" and status.checks
    here = world(promote=True)
    here.results = FAILED
    here.until(Phase.ROLLED_BACK)


# a candidate in doubt


def test_traffic_is_with_stable_until_the_candidate_is_back():
    here = world()
    here.until(Phase.PROGRESSING)
    here.candidate, here.starts = replace(here.candidate, ready=False), False
    status = here.tick()
    assert (status.phase, status.traffic, here.split) == (Phase.PROGRESSING, 0, 0)
    here.starts = True
    here.settle()
    status = here.tick()
    assert (status.traffic, status.history[-1].reason) == (5, "candidate is ready again")


@pytest.mark.parametrize("paused", [False, True])
def test_a_candidate_that_comes_and_goes_does_not_do_so_for_ever(paused):
    """Each time its stage begins anew, so that no deadline would end it, and its history grows."""
    here = world()
    here.until(Phase.PROGRESSING)
    here.change(paused=paused)
    for _ in range(MAX_LOSSES + 1):
        assert not here.status.phase.terminal
        here.candidate, here.starts = replace(here.candidate, ready=False), False
        here.tick()
        here.starts = True
        here.settle()
        here.tick()
    assert here.until(Phase.ROLLED_BACK, ticks=4).reason == "candidate became unready 6 times"


@pytest.mark.parametrize("paused", [False, True])
def test_a_candidate_that_does_not_come_back(paused):
    here = world()
    here.until(Phase.PROGRESSING)
    here.change(paused=paused)
    here.tick()
    here.candidate, here.starts = replace(here.candidate, ready=False), False
    assert here.until(Phase.ROLLED_BACK).reason == "candidate became unready and did not recover"


def test_a_candidate_that_dies_at_promotion():
    here = world()
    here.until(Phase.BAKING)
    while here.status.traffic != 100:
        _, here.status, _ = here.decide()  # the promotion is asked for and lost
    here.candidate, here.starts = replace(here.candidate, ready=False), False
    assert here.until(Phase.ROLLED_BACK, ticks=4).reason == "candidate became unready at promotion"


def test_a_promotion_that_was_lost_is_asked_for_again():
    here = world()
    here.until(Phase.BAKING)
    while here.status.traffic != 100:
        _, here.status, _ = here.decide()
    assert here.decide()[2] == (Promote(CANDIDATE, STABLE),)


def test_while_the_gateway_does_not_confirm_it_says_so_and_asks_again():
    here = world()
    here.until(Phase.PROGRESSING)
    here.split = 0
    _, status, actions = here.decide()
    assert actions == (SetSplit(STABLE, CANDIDATE, 5),) and status.reason == "the gateway has not confirmed 5 % yet"


# no decision


def inconclusive(**changes) -> World:
    here = world(**changes)
    here.rate = 1  # far too little for any evidence
    return here


def test_a_deadline_holds_and_asks_for_a_person():
    here = inconclusive()
    status = here.until(Phase.WAITING)
    assert "no decision within 5 min" in status.reason and status.reason.endswith("promote or abort it")
    assert here.split == 5
    history = here.status.history
    for _ in range(20):
        assert here.tick().history == history
    here.change(promote=True)
    here.until(Phase.PROMOTED, ticks=3)


def test_a_deadline_that_held_goes_on_once_there_is_evidence():
    here = inconclusive()
    here.until(Phase.WAITING)
    here.rate = 2000
    status = here.until(Phase.PROMOTED)
    assert len(status.history) < 20


def test_a_deadline_may_roll_back():
    here = inconclusive(on_inconclusive=OnInconclusive.ROLLBACK)
    assert "no decision within 5 min" in here.until(Phase.ROLLED_BACK).reason


def test_a_deadline_may_promote():
    here = inconclusive(on_inconclusive=OnInconclusive.PROMOTE)
    assert "outside the judge's guarantee" in here.until(Phase.PROMOTED).reason


@pytest.mark.parametrize("stage", [0, 3])
def test_an_alert_holds_even_where_the_plan_would_promote(stage, monkeypatch):
    here = world(on_inconclusive=OnInconclusive.PROMOTE)
    here.until(Phase.PROGRESSING)
    while here.status.stage != stage:
        assert not here.tick().phase.terminal
    decide = judge.decide
    monkeypatch.setattr(
        judge,
        "decide",
        lambda state, now: replace(decide(state, now), action=Action.WAIT, alert="it gets too little"),
    )
    status = here.until(Phase.WAITING, seconds=10)
    assert status.alert is not None and "it gets too little" in status.reason
    history = status.history
    for _ in range(20):
        assert here.tick(10).history == history


# what must not change


def test_a_candidate_nobody_can_watch_goes_back():
    here = world()
    here.until(Phase.CHECKING)
    tried = unwatched(here.status, "OSError: disk full", here.now)
    assert (tried.phase, tried.reason, tried.history) == (
        Phase.CHECKING,
        "retrying after OSError: disk full",
        here.status.history,
    )
    here.until(Phase.PROGRESSING)
    here.status = unwatched(here.status, "OSError: disk full", here.now)
    assert (here.status.phase, here.status.traffic) == (Phase.ROLLING_BACK, 0)
    assert unwatched(here.status, "again", here.now).history == here.status.history
    assert here.until(Phase.ROLLED_BACK, ticks=4).reason == "stopped by OSError: disk full"


def test_an_edited_policy_stops_it():
    here = world()
    here.until(Phase.PROGRESSING)
    here.change(judge=JudgeSpec(alpha=0.2))
    assert "plan or judge changed" in here.until(Phase.ROLLED_BACK, ticks=4).reason


def test_a_foreign_change_stops_it():
    here = world()
    here.until(Phase.PROGRESSING)
    here.foreign_change = "traffic of churn was set by kubectl"
    assert here.until(Phase.ROLLED_BACK, ticks=4).reason == "stopped: traffic of churn was set by kubectl"


def test_a_judge_of_another_version_stops_it():
    here = world()
    here.until(Phase.PROGRESSING)
    here.tick()
    here.status = here.status.model_copy(update={"judge_state": {**here.status.judge_state, "version": 0}})
    assert "version 0" in here.until(Phase.ROLLED_BACK, ticks=4).reason


def test_a_dry_run_goes_by_time_alone_and_records_once_what_it_would_have_done():
    here = world(judge=JudgeSpec(dry_run=True))
    here.error_rate = 0.5
    status = here.until(Phase.PROMOTED)
    recorded = [entry for entry in status.history if entry.at == status.would_roll_back_at]
    assert [(entry.phase, entry.traffic) for entry in recorded] == [(Phase.PROGRESSING, 5)]
    assert recorded[0].reason.startswith("Dry run, would rollback: The candidate is harmful: errors")
    assert status.reason.startswith("Dry run, would rollback: The candidate is harmful: errors")
    began = next(entry.at for entry in status.history if entry.traffic == 5)
    passed = next(entry.at for entry in status.history if entry.traffic == 25)
    assert 10 <= (passed - began).total_seconds() <= 13


def test_a_dry_run_of_a_healthy_candidate_records_nothing_besides():
    here = world(judge=JudgeSpec(dry_run=True))
    status = here.until(Phase.PROMOTED)
    assert status.would_roll_back_at is None
    assert len(status.history) == 8
    assert status.reason.startswith("Dry run, would advance: No harm found")


def test_an_alert_about_the_split_does_not_hold_a_dry_run(monkeypatch):
    def half(requests):
        return arm(np.random.default_rng(1), requests // 2)

    here = world(judge=JudgeSpec(dry_run=True))
    traffic = here.traffic
    monkeypatch.setattr(
        here,
        "traffic",
        lambda seconds: (w := traffic(seconds)) and replace(w, candidate=half(w.candidate.requests)),
    )
    status = here.until(Phase.PROMOTED)
    assert status.alert is not None
    assert "does not get its planned traffic" in status.alert


def test_a_dry_run_still_takes_a_dying_candidate_back():
    here = world(judge=JudgeSpec(dry_run=True))
    here.until(Phase.PROGRESSING)
    here.candidate = replace(here.candidate, restarts=3)
    assert here.until(Phase.ROLLED_BACK).reason == "candidate died 3 times"


@pytest.mark.parametrize(
    ("down", "why"),
    [
        (Revision(STABLE, ready=False, restarts=3, failure="its model is gone"), "its model is gone"),
        (Revision(STABLE, ready=False, restarts=3), "it died; restart 3 is in progress"),
    ],
)
def test_a_stable_revision_that_is_down_is_said_once_and_is_no_reason_to_stop(down, why):
    here = world()
    here.until(Phase.PROGRESSING)
    up, here.stable = here.stable, down
    for _ in range(3):
        status = here.tick(1)
        assert status.phase is Phase.PROGRESSING
        assert status.reason.endswith(f"{STABLE_DOWN}: {why}") and status.reason.count(STABLE_DOWN) == 1
    here.stable = up
    assert STABLE_DOWN not in here.tick(1).reason
    here.stable = down
    assert STABLE_DOWN not in here.until(Phase.PROMOTED).reason
