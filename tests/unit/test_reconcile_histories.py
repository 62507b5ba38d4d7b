"""`reconcile` through random histories: whatever the world does, these hold."""

import itertools
from dataclasses import replace

import hypothesis.strategies as st
from fake_platform import CANDIDATE, FAILED, PASSED, STABLE, World, spec
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serin.plan import Bake, Checks, OnInconclusive, Plan, Stage
from serin.rollout.document import Approval, Phase, Spec, Status
from serin.rollout.reconcile import MAX_RESTARTS, Discard, Promote, Revision, RunChecks, SetSplit, reconcile

PLAN = Plan(
    stages=(
        Stage(traffic=5, min_seconds=10, margin=5),
        Stage(traffic=25, min_seconds=10, margin=3),
        Stage(traffic=50, min_seconds=10, margin=2),
    ),
    bake=Bake(traffic=99, seconds=10),
    deadline_seconds=300,
    start_seconds=30,
)
SHARES = {0, 5, 25, 50, 99}
PATIENCE = 100
"""Ticks in which a friendly world brings any rollout to its end, or to a person."""


class Histories(RuleBasedStateMachine):
    @initialize(
        first=st.booleans(),
        checks=st.sampled_from(Checks),
        approval=st.sampled_from(Approval),
        inconclusive=st.sampled_from(OnInconclusive),
        paused=st.booleans(),
    )
    def start(self, first, checks, approval, inconclusive, paused):
        plan = PLAN.model_copy(update={"checks": checks, "on_inconclusive": inconclusive})
        self.world = World(spec(plan=plan, approval=approval, paused=paused))
        if first:
            self.world.stable = None
        self.ended: Status | None = None

    # what reconcile does

    @rule(seconds=st.sampled_from((0.2, 1, 5, 40)), lost=st.sampled_from(("nothing", "actions", "everything")))
    def tick(self, seconds, lost):
        world = self.world
        before = world.status
        seen, status, actions = world.decide(seconds)
        self.check(seen, before, status, actions)
        if lost == "everything":
            return
        world.status = status
        if lost == "nothing":
            for action in actions:
                world.apply(action)
                once = replace(world)
                world.apply(action)
                assert world == once, f"{action} twice is not the same as once"

    def check(self, seen, before, status, actions):
        world = self.world
        again = reconcile(world.spec, before, seen, world.now)
        assert again == (status, actions), "the same inputs, another output"
        assert Status.model_validate_json(status.model_dump_json(by_alias=True)) == status
        restarted = Status.model_validate_json(before.model_dump_json(by_alias=True))
        assert reconcile(world.spec, restarted, seen, world.now) == (status, actions), "a restart changed the course"

        for action in actions:
            in_place = seen.candidate is not None and seen.candidate.name == getattr(action, "candidate", CANDIDATE)
            stable = seen.stable.name if seen.stable else None
            match action:
                case SetSplit(percent=percent):
                    assert in_place and action.stable == stable
                    assert percent in SHARES
                    assert percent == 0 or seen.candidate.ready, "traffic for a revision that is not ready"
                case Promote():
                    assert in_place and action.stable == stable
                    assert seen.candidate.ready, "promoted what is not ready"
                case Discard():
                    assert in_place and seen.split == 0, "discarded a candidate that has traffic"
                case RunChecks():
                    assert in_place and seen.candidate.ready
        doubtful = seen.candidate is not None and (
            not seen.candidate.ready or seen.candidate.failure or seen.candidate.restarts > MAX_RESTARTS
        )
        promoted = seen.stable is not None and seen.stable.name == CANDIDATE
        if doubtful and not promoted:
            assert status.traffic == 0, "a candidate in doubt keeps traffic"
            asked = [action.percent for action in actions if isinstance(action, SetSplit)]
            assert seen.split == 0 or asked == [0]
        if world.spec.abort and not promoted:
            assert status.phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK) or before.phase.terminal

        assert status.traffic in SHARES | {100}
        assert status.reason.strip() and status.reason != Status().reason
        keys = [(each.phase, each.stage, each.traffic, each.reason) for each in status.history]
        assert all(one != other for one, other in itertools.pairwise(keys)), "an entry of history twice"
        assert len(status.history) - len(before.history) <= 2
        if status.history:
            assert status.history[-1].phase is status.phase
        if before.phase.terminal:
            assert (status, actions) == (before, ())
        elif status.phase.terminal:
            assert actions == () and status.finished_at == world.now
            assert seen.split == 0, "the gateway still splits"
            assert seen.candidate is None or before.phase is Phase.PENDING
            if status.phase is Phase.PROMOTED:
                assert seen.stable.name == CANDIDATE
            else:
                assert seen.stable is None or seen.stable.name == STABLE

    @invariant()
    def terminal_phases_are_absorbing(self):
        if not hasattr(self, "world"):
            return
        if self.ended is not None:
            assert self.world.status == self.ended
        elif self.world.status.phase.terminal:
            self.ended = self.world.status

    # what the world does

    @rule()
    def gateway_follows(self):
        self.world.split = self.world.wanted

    @rule(percent=st.sampled_from(sorted(SHARES)))
    @precondition(lambda self: self.world.candidate is not None and self.world.stable is not None)
    def gateway_forgets(self, percent):
        self.world.split = percent

    @rule()
    def candidate_is_ready(self):
        if self.world.candidate is not None:
            self.world.candidate = replace(self.world.candidate, ready=True)

    @rule(died=st.booleans())
    def candidate_is_not_ready(self, died):
        seen = self.world.candidate
        if seen is not None:
            self.world.candidate = replace(seen, ready=False, restarts=seen.restarts + died)

    @rule()
    def candidate_dies_for_good(self):
        if self.world.candidate is not None:
            self.world.candidate = replace(self.world.candidate, ready=False, failure="its model is broken")

    @rule(results=st.sampled_from((None, PASSED, PASSED, PASSED, FAILED)))
    def checks_find(self, results):
        self.world.results = results

    @rule(rate=st.sampled_from((0, 20, 1000)), error_rate=st.sampled_from((0.0, 0.0, 0.02, 1.0)))
    def traffic_is(self, rate, error_rate):
        self.world.rate, self.world.error_rate = rate, error_rate

    # what people do

    @rule(change=st.sampled_from(("paused", "approved", "promote")), on=st.booleans())
    def switch(self, change, on):
        self.world.change(**{change: on})

    @rule(what=st.sampled_from(("abort", "edit", "supersede", "foreign change", "refusal")), really=st.integers(0, 5))
    def interfere(self, what, really):
        world = self.world
        if really:  # rarely, or nothing else would ever happen
            return
        match what:
            case "abort":
                world.change(abort=True)
            case "edit":
                world.change(plan=world.spec.effective_plan.model_copy(update={"bake": Bake(traffic=99, seconds=1)}))
            case "supersede":
                world.superseded_by = "churn-3"
            case "foreign change":
                world.foreign_change = "somebody changed the service"
            case "refusal":
                world.refusal = "storageUri /models/churn-2: there is no such folder"

    @rule(other=st.sampled_from((None, "churn-1")))
    def queue(self, other):
        self.world.waits_for = other

    def teardown(self):
        """In a friendly world every rollout ends, or waits for a person, who can always end it."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.change(paused=False, approved=True)
        world.rate, world.error_rate, world.waits_for, world.confirms, world.starts = 2000, 0.0, None, True, True
        world.results = world.results or PASSED
        for _ in range(PATIENCE):
            before = world.status
            seen, status, actions = world.decide(5.0)
            self.check(seen, before, status, actions)
            world.status = status
            for action in actions:
                world.apply(action)
            world.settle()
            if status.phase.terminal:
                return
        assert world.status.phase is Phase.WAITING, f"{world.status.phase}: {world.status.reason}"
        assert "promote or abort" in world.status.reason
        world.change(abort=True)
        world.until(Phase.ROLLED_BACK, ticks=4)


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_revision_of_another_name_before_traffic_is_taken_as_the_candidate():
    world = World(spec(plan=PLAN))
    world.until(Phase.CHECKING)
    world.candidate = Revision("churn-00003", ready=True)
    assert world.tick().candidate_revision == "churn-00003"


def test_a_spec_survives_the_way_through_json():
    wanted = spec(plan=PLAN)
    assert Spec.model_validate_json(wanted.model_dump_json(by_alias=True)) == wanted
