"""Whole rollouts on the fake KServe: the real reconcile and the real choreography, through restarts and surprises."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serin.judge import JudgeSpec
from serin.measure.tally import Counts
from serin.plan import Bake, Checks, Plan, Stage
from serin.platforms.kserve.choreography import Create, Delete, Patch, Predictors, next_change
from serin.platforms.kserve.service import PERCENT, read
from serin.platforms.kserve.step import Seen, memory, step
from serin.rollout.document import Candidate, Check, Counted, Metadata, ModelRollout, Phase, Requests, Spec, Status
from serin.rollout.reconcile import UNPROVEN, RunChecks
from tests.unit.kserve_fake import NEVER, FakeKServe, base, promoted

START = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
TICK_S = 4
PLAN = Plan(
    stages=(Stage(traffic=10, min_seconds=20), Stage(traffic=50, min_seconds=20)),
    bake=Bake(traffic=99, seconds=20),
    start_seconds=120,
    deadline_seconds=3600,
)
GOOD = (Check(name="answers", passed=True, detail="0 of 20 requests without a valid answer"),)
BAD = (Check(name="answers", passed=False, detail="20 of 20 requests without a valid answer"),)
RATE = 40


def rollout(model: str = "v3", *, plan: Plan = PLAN, **spec: Any) -> ModelRollout:
    wanted = Spec(service="churn", candidate=Candidate(storage_uri=model), plan=plan, judge={"dryRun": True}, **spec)
    return ModelRollout(metadata=Metadata(name="churn-3"), spec=wanted)


@dataclasses.dataclass
class Cluster:
    """The fake, the stored rollout, and a controller that may die between any two of its steps."""

    fake: FakeKServe
    rollout: ModelRollout
    checks: tuple[Check, ...] = GOOD
    now: datetime = START
    counts: dict[str, dict[int, int]] = dataclasses.field(default_factory=dict)
    last_checks: tuple[Check, ...] | None = None
    shares: list[tuple[Phase, dict[str, int]]] = dataclasses.field(default_factory=list)
    blind: bool = False
    rate: int = RATE
    monitored: int = 0
    tells: bool = True
    fails: str | None = None

    @property
    def status(self) -> Status:
        return self.rollout.status

    def traffic(self) -> None:
        """`rate` predictions and `monitored` other requests per tick and percent; `fails` is a model that fails all
        predictions and answers everything else."""
        for name, percent in self.fake.traffic().items():
            codes = self.counts.setdefault(f"{name} codes", {200: 0})
            predictions = self.counts.setdefault(f"{name} predictions", {200: 0})
            code = 500 if self.fake.models[name] == self.fails else 200
            for counted in (codes, predictions):
                counted[code] = counted.get(code, 0) + self.rate * percent
            codes[200] += self.monitored * percent
        self.shares.append((self.status.phase, self.fake.traffic()))

    def look(self, *, dies_before_writing: bool = False, dies_before_acting: bool = False) -> None:
        service = read(self.fake.read()) if self.fake.exists else None
        counted = {"kourier": {name: dict(codes) for name, codes in self.counts.items() if name.endswith("codes")}}
        if self.tells:
            told = {name: dict(codes) for name, codes in self.counts.items() if name.endswith("predictions")}
            counted["servers"] = told
        counts = None if self.blind else Counts(self.now.timestamp(), counted)
        seen = Seen(service, counts, "the counters cannot be read" if self.blind else None, self.last_checks)
        status, actions = step(self.rollout, seen, self.now)
        if dies_before_writing:
            self.last_checks = None
            return
        self.rollout = self.rollout.model_copy(
            update={"status": Status.model_validate_json(status.model_dump_json(by_alias=True))}
        )
        if dies_before_acting:
            self.last_checks = None
            return
        for action in actions:
            if isinstance(action, RunChecks):
                self.last_checks = self.checks
                continue
            kept = memory(status).predictors
            assert kept is not None
            self.carry_out(next_change(action, service, status, kept))

    def carry_out(self, change: object) -> None:
        match change:
            case Patch(document=document, resource_version=version):
                assert version == str(self.fake.version), "a patch for what is no longer there"
                assert set(document) == {"spec"}
                self.fake.patch(document)
            case Create(predictor=predictor):
                percent = predictor.pop(PERCENT)
                self.fake.predictor, self.fake.percent, self.fake.exists = predictor, percent, True
            case Delete():
                self.fake.exists = False

    def tick(self, *, kserve_works: bool = True, **deaths: bool) -> None:
        self.traffic()
        if kserve_works and self.fake.exists and self.fake.predictor:
            self.fake.tick()
        self.look(**deaths)
        self.now += timedelta(seconds=TICK_S)

    def run(self, until: Callable[[Status], bool] = lambda status: status.phase.terminal, ticks: int = 200) -> Status:
        for _ in range(ticks):
            if until(self.status):
                return self.status
            self.tick()
        raise AssertionError(f"still {self.status.phase} ({self.status.reason}); traffic {self.fake.traffic()}")

    def served(self, phase: Phase | None = None) -> set[str]:
        """Revisions that got requests, at all or in a phase."""
        return {name for at, shares in self.shares if phase in (None, at) for name in shares}

    def serving(self) -> dict[str, int]:
        self.fake.settle()
        return self.fake.traffic()

    def model(self) -> set[str]:
        return {self.fake.models[name] for name in self.serving()}


def in_stage(number: int) -> Callable[[Status], bool]:
    return lambda status: status.stage == number or status.phase.terminal


def test_a_good_candidate_is_promoted_and_leaves_no_trap() -> None:
    cluster = Cluster(promoted(), rollout())
    status = cluster.run()
    assert status.phase is Phase.PROMOTED, status.reason
    assert (cluster.serving(), cluster.fake.percent) == ({"r3": 100}, None)
    assert cluster.served() == {"r2", "r3"}
    assert cluster.served(Phase.DARK) | cluster.served(Phase.CHECKING) == {"r2"}
    assert status.requests.candidate > 0
    assert [entry.traffic for entry in status.history] == [0, 0, 10, 50, 99, 100, 100]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_going_back_ends_with_stable_content_on_a_new_revision(stage: int) -> None:
    cluster = Cluster(promoted(), rollout())
    cluster.run(in_stage(stage))
    cluster.run(lambda status: status.requests.candidate > 0)
    cluster.fake.delay = lambda model: 6 if model == "v2" else 0
    cluster.fake.born["r2"] = -10
    cluster.rollout = rollout(abort=True).model_copy(update={"status": cluster.status})
    status = cluster.run()
    assert (status.phase, status.reason) == (Phase.ROLLED_BACK, "aborted by request")
    assert (cluster.serving(), cluster.fake.percent) == ({"r4": 100}, None)
    assert cluster.fake.models["r4"] == "v2"
    assert_gone_for_good("r3", [shares for phase, shares in cluster.shares if phase is Phase.ROLLING_BACK])
    # traps C and D are gone: neither a next candidate nor a removed field brings the rejected one back
    cluster.fake.delay = lambda model: NEVER if model == "v9" else 0
    cluster.fake.ask("v9", percent=20)
    assert cluster.serving() == {"r4": 100}


def assert_gone_for_good(revision: str, shares: list[dict[str, int]]) -> None:
    """Once it lost its traffic it never got any again."""
    without = next(place for place, share in enumerate(shares) if revision not in share)
    assert all(revision not in share for share in shares[without:]), shares


def test_aborting_before_kserve_has_seen_the_candidate_waits_for_it() -> None:
    """Trap B: putting the model back at once would leave a P of 0 without a new revision, and go to r1."""
    cluster = Cluster(promoted(), rollout())
    cluster.run(lambda status: status.phase is Phase.DARK)
    assert cluster.fake.percent == 0
    cluster.rollout = rollout(abort=True).model_copy(update={"status": cluster.status})
    for _ in range(5):
        cluster.tick(kserve_works=False)
    status = cluster.run()
    assert (status.phase, cluster.model()) == (Phase.ROLLED_BACK, {"v2"})
    assert cluster.served() == {"r2", "r4"}


def test_after_full_traffic_the_way_back_is_zero_first() -> None:
    """Row L: putting the model back at once would leave the bad candidate with everything."""
    cluster = Cluster(promoted(), rollout())
    cluster.run(lambda status: status.traffic == 100)
    cluster.fake.settle()
    assert cluster.fake.traffic() == {"r3": 100}
    cluster.rollout = rollout(abort=True).model_copy(update={"status": cluster.status})
    for _ in range(4):
        cluster.tick()
    assert cluster.fake.traffic() == {"r2": 100}
    status = cluster.run()
    assert (status.phase, cluster.model()) == (Phase.ROLLED_BACK, {"v2"})


def test_a_candidate_that_never_starts_is_taken_back_without_a_request() -> None:
    cluster = Cluster(promoted(delay=lambda model: NEVER if model == "v3" else 0), rollout())
    status = cluster.run()
    assert (status.phase, status.reason) == (Phase.ROLLED_BACK, "candidate was not ready after 2 min")
    assert (cluster.served(), cluster.model()) == ({"r2", "r4"}, {"v2"})


OWN_SERVER = {"containers": [{"name": "kserve-container", "image": "registry.example/scorer:2"}]}


def whole_predictor(**switches: Any) -> ModelRollout:
    candidate = Candidate(predictor=OWN_SERVER)
    spec = Spec(service="churn", candidate=candidate, plan=PLAN, judge={"dryRun": True}, **switches)
    return ModelRollout(metadata=Metadata(name="churn-3"), spec=spec)


def test_a_candidate_that_is_a_whole_predictor_takes_the_place_of_the_model() -> None:
    cluster = Cluster(promoted(), whole_predictor())
    assert cluster.run().phase is Phase.PROMOTED
    assert cluster.fake.predictor == {"minReplicas": 1, **OWN_SERVER}
    assert cluster.served() == {"r2", "r3"}


def test_the_way_back_from_a_whole_predictor_brings_the_model_back() -> None:
    cluster = Cluster(promoted(), whole_predictor())
    before = cluster.fake.predictor
    cluster.run(in_stage(1))
    cluster.rollout = whole_predictor(abort=True).model_copy(update={"status": cluster.status})
    assert cluster.run().phase is Phase.ROLLED_BACK
    assert (cluster.fake.predictor, cluster.model()) == (before, {"v2"})


def test_a_whole_predictor_without_pods_is_refused() -> None:
    spec = Spec(service="churn", candidate=Candidate(predictor={"minReplicas": 0, **OWN_SERVER}), plan=PLAN)
    status = Cluster(promoted(), ModelRollout(metadata=Metadata(name="churn-3"), spec=spec)).run(ticks=20)
    assert (status.phase, "minReplicas 0" in status.reason) == (Phase.FAILED, True)


@pytest.mark.parametrize(
    "candidate",
    [
        {},
        {"storageUri": "v3", "predictor": OWN_SERVER},
        {"predictor": OWN_SERVER, "digest": "sha256:0"},
        {"predictor": {**OWN_SERVER, "canaryTrafficPercent": 10}},
    ],
)
def test_a_candidate_is_a_model_or_a_predictor(candidate: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Candidate.model_validate(candidate)


def test_a_candidate_that_kserve_refuses_ends_at_once_and_leaves_no_trap() -> None:
    """As seen: no revision is made of it, so the model goes back together with P; P=0 would be trap B."""
    cluster = Cluster(promoted(refuses=lambda model: model == "v3"), rollout())
    status = cluster.run(ticks=20)
    assert (status.phase, status.reason) == (Phase.ROLLED_BACK, "candidate cannot serve: no runtime for it")
    assert (cluster.served(), cluster.serving(), cluster.fake.percent) == ({"r2"}, {"r2": 100}, None)


def test_a_service_that_kserve_refuses_is_not_released() -> None:
    fake = promoted()
    fake.refuses = lambda _model: True
    cluster = Cluster(fake.settle(), rollout())
    status = cluster.run(ticks=20)
    assert status.phase is Phase.FAILED
    assert "fix it first" in status.reason


def test_a_candidate_that_fails_its_checks_gets_no_request() -> None:
    cluster = Cluster(promoted(), rollout(), checks=BAD)
    status = cluster.run()
    assert status.phase is Phase.ROLLED_BACK
    assert "refused at 0 % traffic" in status.reason
    assert (cluster.served(), cluster.model()) == ({"r2", "r4"}, {"v2"})


def test_the_race_that_sends_everything_to_an_older_model_is_seen_and_ended() -> None:
    """Row H."""
    cluster = Cluster(promoted(), rollout())
    cluster.fake.race = True
    status = cluster.run()
    assert status.phase is Phase.ROLLED_BACK
    assert "KServe rolled back to r1 instead of r2" in status.reason
    assert cluster.model() == {"v2"}
    assert "r3" not in cluster.served()


class Defaulting(FakeKServe):
    """Fills in what a predictor leaves out and drops what it does not know, as webhook and schema do."""

    def patch(self, document: dict[str, Any]) -> None:
        super().patch(document)
        known = {key: value for key, value in self.predictor.items() if key in ("minReplicas", "model")}
        self.predictor = {**known, "model": {"protocolVersion": "v1", **known["model"]}}


def same_again(**more: Any) -> Cluster:
    """v3 serves, after v2; the candidate is the predictor of v3, as its author wrote it."""
    fake = Defaulting(predictor={"minReplicas": 1, "model": {"storageUri": "v1", "runtime": "toy"}}).settle()
    for model in ("v2", "v3"):
        fake.ask(model, percent=10).settle().ask(percent=100).settle().ask(percent=None).settle()
    same = Candidate(predictor={"minReplicas": 1, "model": {"storageUri": "v3", "runtime": "toy"}, **more})
    wanted = Spec(service="churn", candidate=same, plan=PLAN)
    return Cluster(fake, ModelRollout(metadata=Metadata(name="churn-4"), spec=wanted))


def test_a_candidate_that_is_stable_but_for_what_a_webhook_fills_in_is_refused() -> None:
    cluster = same_again()
    status = cluster.run()
    assert (status.phase, cluster.fake.percent) == (Phase.FAILED, None)
    assert "already serves this candidate" in status.reason
    assert {cluster.fake.models[name] for name in cluster.served()} == {"v3"}


def test_a_candidate_of_which_no_revision_comes_leaves_users_with_an_older_model_for_moments_only() -> None:
    """KServe takes a P of 0 without a new revision for a step back; here the only change is a misspelt field."""
    cluster = same_again(contianerConcurrency=5)
    status = cluster.run()
    assert status.phase is Phase.ROLLED_BACK
    assert "KServe rolled back to" in status.reason
    assert cluster.model() == {"v3"}
    elsewhere = [shares for _, shares in cluster.shares if {cluster.fake.models[name] for name in shares} != {"v3"}]
    assert len(elsewhere) <= 3


def label(cluster: Cluster) -> None:
    cluster.fake.patch({"metadata": {"labels": {"team": "blue"}}})


def old_manifest(cluster: Cluster) -> None:
    cluster.fake.ask(memory(cluster.status).predictors.stable["model"]["storageUri"], percent=None)


def removed_percent(cluster: Cluster) -> None:
    cluster.fake.ask(percent=None)


def other_percent(cluster: Cluster) -> None:
    cluster.fake.ask(percent=77)


def other_model(cluster: Cluster) -> None:
    cluster.fake.ask("v7")


def test_a_percent_set_before_the_candidates_patch_ends_the_rollout_and_is_taken_away() -> None:
    """Nothing of the candidate is there to go back from: with P at 0 the way back would wait for ever."""
    for fake in (base(), promoted()):
        cluster = Cluster(fake, rollout())
        cluster.tick(dies_before_acting=True)
        assert cluster.status.phase is Phase.DARK
        other_percent(cluster)
        status = cluster.run()
        assert (status.phase, fake.percent) == (Phase.ROLLED_BACK, None)
        assert "canaryTrafficPercent was set to 77" in status.reason
        assert cluster.model() == {fake.models[status.stable_revision]}


FOREIGN = [label, old_manifest, removed_percent, other_percent, other_model]


@pytest.mark.parametrize("change", FOREIGN)
@pytest.mark.parametrize("when", ["dark", "stage"])
def test_a_foreign_change_stops_the_rollout_with_traffic_on_stable(
    change: Callable[[Cluster], None], when: str
) -> None:
    cluster = Cluster(promoted(delay=lambda model: 5 if when == "dark" and model == "v3" else 0), rollout())
    cluster.run(in_stage(1) if when == "stage" else lambda status: bool(status.candidate_revision))
    change(cluster)
    status = cluster.run()
    assert status.phase is Phase.ROLLED_BACK
    assert status.reason.startswith("stopped: ")
    assert (cluster.model(), cluster.fake.percent) == ({"v2"}, None)


@pytest.mark.parametrize("ticks", range(5))
def test_a_label_that_comes_with_the_last_steps_does_not_make_the_end_untrue(ticks: int) -> None:
    """One more revision of the candidate's model may have all traffic then; that is not rolled back."""
    cluster = Cluster(promoted(), rollout())
    cluster.run(lambda status: status.traffic == 100)
    for _ in range(ticks):
        cluster.tick()
    label(cluster)
    status = cluster.run()
    assert cluster.model() == ({"v3"} if status.phase is Phase.PROMOTED else {"v2"})


def test_a_deleted_service_ends_the_rollout() -> None:
    cluster = Cluster(promoted(), rollout())
    cluster.run(in_stage(0))
    cluster.fake.exists = False
    status = cluster.run()
    assert (status.phase, status.reason) == (Phase.ROLLED_BACK, "stopped: the InferenceService was deleted")


def test_nobody_watching_is_a_reason_to_go_back() -> None:
    cluster = Cluster(promoted(), rollout())
    cluster.run(in_stage(1))
    cluster.blind = True
    status = cluster.run()
    assert status.phase is Phase.ROLLED_BACK
    assert "counters could not be read" in status.reason


def test_a_clock_set_back_hides_nobody_who_does_not_watch() -> None:
    cluster = Cluster(promoted(), rollout())
    cluster.run(in_stage(1))
    cluster.blind = True
    cluster.now -= timedelta(hours=1)
    assert "counters could not be read" in cluster.run(ticks=40).reason


def test_a_clock_set_back_ends_no_rollout() -> None:
    cluster = Cluster(promoted(), rollout())
    cluster.run(in_stage(1))
    cluster.now -= timedelta(minutes=3)
    cluster.run(in_stage(2))
    cluster.now += timedelta(minutes=3)
    assert cluster.run().phase is Phase.PROMOTED


def test_blind_from_the_start_nothing_begins() -> None:
    cluster = Cluster(promoted(), rollout(), blind=True)
    cluster.tick()
    assert (cluster.status.phase, cluster.fake.percent) == (Phase.PENDING, None)
    assert "counters" in cluster.status.reason


def test_a_service_that_is_changing_is_waited_for() -> None:
    fake = promoted()
    fake.delay = lambda model: 8 if model == "v8" else 0
    cluster = Cluster(fake.ask("v8").settle(2), rollout())
    for _ in range(4):
        cluster.tick()
    assert cluster.status.phase is Phase.PENDING
    assert "waiting until InferenceService churn is settled" in cluster.status.reason
    assert cluster.run().phase is Phase.PROMOTED


def test_the_first_model_goes_live_after_its_checks() -> None:
    cluster = Cluster(FakeKServe(exists=False), rollout("v1"))
    status = cluster.run()
    assert status.phase is Phase.PROMOTED, status.reason
    assert (cluster.serving(), cluster.fake.percent) == ({"r1": 100}, None)
    assert "first model" in status.reason


def test_a_first_model_that_fails_its_checks_is_removed() -> None:
    cluster = Cluster(FakeKServe(exists=False), rollout("v1"), checks=BAD)
    assert cluster.run().phase is Phase.ROLLED_BACK
    assert not cluster.fake.exists


@pytest.mark.parametrize("model", ["v1", "v9"], ids=["the same", "another"])
@pytest.mark.parametrize("phase", [Phase.DARK, Phase.CHECKING])
def test_a_service_that_somebody_else_makes_or_takes_over_is_never_deleted(phase: Phase, model: str) -> None:
    """As by an apply of both in one go: the rollout came first and took its model for the first one."""
    cluster = Cluster(FakeKServe(exists=False), rollout("v1"))
    cluster.run(lambda status: status.phase is phase)
    predictor = {"minReplicas": 1, "model": {"modelFormat": {"name": "serin-onnx"}, "runtime": "serin-onnx"}}
    predictor["model"] |= {"storageUri": model}  # type: ignore[operator]
    cluster.fake.exists, cluster.fake.predictor, cluster.fake.percent = True, predictor, None
    status = cluster.run(ticks=30)
    assert status.phase is Phase.ROLLED_BACK
    assert "somebody else" in status.reason
    assert cluster.fake.exists
    assert cluster.model() == {model}


@pytest.mark.parametrize("model", ["v1", "v2", "v9"])
@pytest.mark.parametrize("stage", [0, 2])
def test_a_service_that_was_deleted_and_made_anew_is_left_alone(stage: int, model: str) -> None:
    """Its revisions have the names of the old ones, whatever is in them."""
    cluster = Cluster(base(), rollout("v2"))
    cluster.run(in_stage(stage))
    cluster.fake = FakeKServe(predictor={"minReplicas": 1, "model": {"storageUri": model, "runtime": "toy"}})
    cluster.fake.uid = "second"
    version = cluster.fake.settle().version
    status = cluster.run(ticks=10)
    assert (status.phase, status.reason) == (
        Phase.ROLLED_BACK,
        "stopped: the InferenceService was deleted and created again",
    )
    assert (cluster.fake.version, cluster.model()) == (version, {model})


REFUSED: list[tuple[str, Callable[[FakeKServe], object]]] = [
    ("already serves this candidate", lambda fake: fake.ask("v3", percent=100).settle().ask(percent=None).settle()),
    ("canaryTrafficPercent 10", lambda fake: fake.ask("v8", percent=10).settle()),
    ("minReplicas 0", lambda fake: fake.predictor.update(minReplicas=0)),
    ("disable-auto-update", lambda fake: fake.annotations.update({"serving.kserve.io/disable-auto-update": "true"})),
    ("enable-tag-routing", lambda fake: fake.annotations.clear()),
    ("no spec.predictor.model", lambda fake: fake.predictor.update(containers=[]) or fake.predictor.pop("model")),
]


@pytest.mark.parametrize(("why", "prepare"), REFUSED, ids=[why for why, _ in REFUSED])
def test_refuses_where_the_order_cannot_hold(why: str, prepare: Callable[[FakeKServe], object]) -> None:
    fake = promoted()
    prepare(fake)
    version = fake.version
    cluster = Cluster(fake, rollout())
    status = cluster.run()
    assert (status.phase, fake.version) == (Phase.FAILED, version)
    assert why in status.reason


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_history_gives_a_revision_requests_it_should_not_have(data: st.DataObject) -> None:
    """Random restarts, delays, verdicts and steering; then nobody but stable, candidate and the restored model
    served, a candidate served only where it was allowed to, and the end is the right one."""
    delay = data.draw(st.sampled_from([0, 1, 6, NEVER]))
    fake = data.draw(st.sampled_from([base, promoted]))(delay=lambda model: delay if model == "v3" else 1)
    stable = next(iter(fake.traffic()))
    content = fake.models[stable]
    good = data.draw(st.booleans())
    cluster = Cluster(fake, rollout(), checks=GOOD if good else BAD)
    fake.race = data.draw(st.booleans()) and stable == "r2"
    race = fake.race
    random = data.draw(st.randoms())
    abort_at = data.draw(st.one_of(st.none(), st.integers(0, 80)))
    for tick in range(300):
        if tick == abort_at:
            cluster.rollout = rollout(abort=True).model_copy(update={"status": cluster.status})
        cluster.tick(
            kserve_works=tick > 100 or random.random() < 0.7,
            dies_before_writing=tick < 100 and random.random() < 0.1,
            dies_before_acting=tick < 100 and random.random() < 0.1,
        )
        if cluster.status.phase.terminal:
            break
    assert cluster.status.phase.terminal, cluster.status.reason
    candidate = cluster.status.candidate_revision
    for phase, shares in cluster.shares:
        wrong = {name for name in shares if cluster.fake.models[name] not in (content, "v3")}
        assert not wrong or race, f"{phase}: {shares}"
        if phase in (Phase.PENDING, Phase.DARK, Phase.CHECKING):
            assert candidate not in shares or not candidate
    back = [shares for phase, shares in cluster.shares if phase is Phase.ROLLING_BACK]
    # from 100 % KServe itself goes through the candidate once more, for a second or two, until it remembers stable
    asked_for_all = any(entry.traffic == 100 for entry in cluster.status.history)
    if back and candidate and not asked_for_all and any(candidate not in shares for shares in back):
        assert_gone_for_good(candidate, back)
    promoted_end = cluster.status.phase is Phase.PROMOTED
    assert cluster.model() == ({"v3"} if promoted_end else {content})
    assert cluster.fake.percent is None
    if abort_at is None and good and not race and delay != NEVER:
        assert promoted_end, cluster.status.reason
    if not good or delay == NEVER:
        assert not promoted_end


def test_the_way_back_is_kept_in_the_status() -> None:
    cluster = Cluster(promoted(), rollout())
    cluster.run(lambda status: status.phase is Phase.DARK)
    assert memory(cluster.status).predictors == Predictors(
        stable={"minReplicas": 1, "model": {"storageUri": "v2", "runtime": "toy"}},
        candidate={"minReplicas": 1, "model": {"storageUri": "v3", "runtime": "toy"}},
        uid="first",
    )


def test_checks_off_goes_straight_to_traffic() -> None:
    cluster = Cluster(promoted(), rollout(plan=PLAN.model_copy(update={"checks": Checks.NONE})), checks=BAD)
    assert cluster.run().phase is Phase.PROMOTED


def judged(**changes: Any) -> Cluster:
    """A rollout that is not a dry run."""
    wanted = rollout(plan=PLAN.model_copy(update={"checks": Checks.NONE}))
    spec = wanted.spec.model_copy(update={"judge": JudgeSpec()})
    return Cluster(promoted(), wanted.model_copy(update={"spec": spec}), **changes)


def test_no_stage_passes_on_what_is_no_prediction() -> None:
    cluster = judged(rate=0, monitored=RATE)
    for _ in range(150):
        cluster.tick()
    assert (cluster.status.phase, cluster.status.stage) == (Phase.PROGRESSING, 0)
    assert cluster.status.requests == Requests()
    assert cluster.status.counted is Counted.PREDICTIONS


def test_a_candidate_that_fails_every_prediction_and_answers_all_else_goes_back() -> None:
    """1 prediction to 150 questions about metadata."""
    cluster = judged(rate=1, monitored=150, fails="v3")
    status = cluster.run()
    assert status.phase is Phase.ROLLED_BACK
    assert "errors" in status.reason
    assert status.requests.candidate == status.errors.candidate > 0
    assert cluster.model() == {"v2"}


def test_predictions_among_other_requests_promote_a_good_candidate() -> None:
    status = judged(monitored=3 * RATE).run()
    assert status.phase is Phase.PROMOTED
    assert status.requests.stable + status.requests.candidate <= RATE * 100 * 200


def test_who_does_not_count_predictions_is_promoted_only_if_it_answered_recorded_ones() -> None:
    cluster = Cluster(
        promoted(), rollout(), checks=(Check(name="ready", passed=True, detail="20 of 20"),), tells=False
    )
    cluster.run(lambda status: status.reason == UNPROVEN)
    for _ in range(50):
        cluster.tick()
    assert (cluster.status.phase, cluster.status.stage) == (Phase.PROGRESSING, 0)
    assert cluster.status.counted is Counted.REQUESTS

    assert Cluster(promoted(), rollout(), checks=GOOD, tells=False).run().phase is Phase.PROMOTED


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_others_do_the_end_is_one_model_with_everything(data: st.DataObject) -> None:
    delay = data.draw(st.sampled_from([0, 1, 4]))
    fake = data.draw(st.sampled_from([base, promoted]))(delay=lambda _model: delay)
    content = fake.models[next(iter(fake.traffic()))]
    cluster = Cluster(fake, rollout())
    random = data.draw(st.randoms())
    changes = data.draw(st.dictionaries(st.integers(1, 60), st.sampled_from(FOREIGN), max_size=2))
    for tick in range(300):
        if tick in changes and cluster.status.phase is not Phase.PENDING:
            changes[tick](cluster)
        cluster.tick(
            kserve_works=tick > 100 or random.random() < 0.7,
            dies_before_acting=tick < 100 and random.random() < 0.1,
        )
        if cluster.status.phase.terminal:
            break
    assert cluster.status.phase.terminal, f"{cluster.status.reason}: {read(cluster.fake.read())}"
    assert cluster.fake.percent is None
    assert cluster.model() == ({"v3"} if cluster.status.phase is Phase.PROMOTED else {content})
