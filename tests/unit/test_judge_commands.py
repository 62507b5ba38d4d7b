"""`serin plan`, `explain`, `replay`, `aa`: pure functions, and the commands over a store."""

import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from serin import judge
from serin.cli.judge import _same_model, told
from serin.cli.main import cli
from serin.errors import UserError
from serin.judge import Action, ArmCounts, JudgeSpec, Policy, Window, policy_for
from serin.judge.forecast import Traffic, forecast
from serin.judge.replay import read, replay, twins
from serin.judge.state import BEFORE
from serin.measure.windows import to_document
from serin.plan import PROFILES, Bake, Plan, Stage
from serin.platforms.embedded.store import Store
from serin.rollout import reconcile
from serin.rollout.document import Candidate, HistoryEntry, Metadata, ModelRollout, Phase, Requests, Spec, Status
from tests.unit.judging import LATENCY, LATENCY_S, SCORE, arm, draw, window

RATES = {"errors": 0.01, "rejected": 0.0}
PLAN = Plan(stages=(Stage(traffic=20, min_seconds=20, margin=5),), bake=Bake(seconds=20))


def record(count: int = 80, *, rate: float = 0.01, slower: int = 0, seed: int = 1) -> list[Window]:
    rng = np.random.default_rng(seed)
    history = arm(len(SCORE), 40, latency_s=LATENCY_S, score=SCORE)
    windows = [window(0, history, arm(0), share=0.0, stage=BEFORE)]
    moved = np.roll(LATENCY, slower)
    for k in range(1, count):
        stable, candidate = draw(rng, 400, RATES), draw(rng, 100, {**RATES, "errors": rate}, moved)
        windows.append(window(k, stable, candidate, share=0.2))
    return windows


def run(home: Path, name: str, *options: str) -> Result:
    return CliRunner().invoke(cli, ["--home", str(home), name, *options])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A store with one rollout that was rolled back, judged as in production."""
    windows = record(40, rate=0.3)
    spec = Spec(service="churn", candidate=Candidate(storage_uri="m"), plan=PLAN)
    status = Status(phase=Phase.PROGRESSING, stage=0, traffic=20, started_at=datetime.fromtimestamp(1, UTC))
    ended = datetime.fromtimestamp(40, UTC)
    status, decision = reconcile._judged(spec, status, tuple(windows), ended)
    status = status.model_copy(
        update={
            "phase": Phase.ROLLED_BACK,
            "reason": decision.reason,
            "finished_at": ended,
            "requests": Requests(stable=15600, candidate=3900),
            "stable_revision": "churn-00001",
            "history": (HistoryEntry(at=ended, phase=Phase.PROGRESSING, stage=0, traffic=20, reason="begun"),),
        }
    )
    rollout = ModelRollout(metadata=Metadata(name="churn-2"), spec=spec, status=status)
    store = Store(tmp_path / "home")
    store.create_rollout(rollout)
    for each in windows:
        store.add_window(rollout, each.id, to_document(each))
    store.close()
    return tmp_path / "home"


def test_a_replay_says_what_the_same_policy_said_and_what_another_would_have() -> None:
    windows = record(60, slower=4)
    strict, lenient = Policy(), Policy(latency=judge.LatencyMetric(margin=1.5))
    assert replay(windows, strict)[-1].action is Action.ROLLBACK
    steps = replay(windows, lenient.model_copy(update={"stages": policy_for(PLAN, JudgeSpec()).stages}))
    assert Action.ROLLBACK not in {step.action for step in steps}
    first, last = steps[0], steps[-1]
    assert (first.stage, first.action, first.candidate_requests) == (0, Action.WAIT, 100)
    assert last.action is Action.ADVANCE
    assert last.candidate_requests == 100 * (last.at_s - 1)
    assert replay([], strict) == []


def test_a_timeline_comes_back_from_parquet_and_csv(tmp_path: Path) -> None:
    windows = record(6)
    rows = pd.json_normalize([to_document(each) for each in windows], max_level=1)
    for column in rows.columns:
        if rows[column].map(lambda value: isinstance(value, dict)).any():
            rows[column] = rows[column].map(json.dumps)
    parquet, csv = tmp_path / "timeline.parquet", tmp_path / "timeline.csv"
    rows.to_csv(csv, index=False)
    with duckdb.connect() as connection:
        connection.register("timeline", rows)
        connection.table("timeline").write_parquet(str(parquet))
    assert read(parquet) == windows
    assert read(csv) == windows


def test_a_plain_table_of_counts_is_a_timeline_too(tmp_path: Path) -> None:
    file = tmp_path / "prometheus.csv"
    names = "id,startS,endS,stage,share,stable.requests,candidate.requests,stable.errors,candidate.errors"
    file.write_text(f"{names}\n1,0,15,0,0.05,1425,75,14,60\n2,15,30,0,,1425,75,14,60\n")
    first, second = read(file)
    assert (first.share, second.share) == (0.05, None)
    assert (first.candidate.requests, first.candidate.events) == (75, {"errors": 60})
    assert replay([first, second], Policy())[-1].action is Action.ROLLBACK


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "id,startS,endS,stage,share\n1,0,1,0,0.5\n"])
def test_a_file_that_is_no_timeline_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "x.csv"
    file.write_text(content)
    with pytest.raises(UserError, match=r"Timeline .*x\.csv"):
        read(file)


def test_twins_find_the_margin_a_pod_needs() -> None:
    """The candidate's pod is 22 % slower (4 buckets) with the same model."""
    same = twins(record(161), Policy())
    assert (same.rollouts, same.rolled_back, same.latency_margin, same.score_tolerance) == (4, 0, 1.0, 0.0)
    slower = twins(record(161, slower=4), Policy())
    assert slower.rolled_back == 4
    assert slower.latency_margin == 1.22
    with pytest.raises(UserError, match="at least 40 windows"):
        twins(record(20), Policy())


def test_a_forecast_knows_what_traffic_buys() -> None:
    rng = np.random.default_rng(2)
    plan = PROFILES["fast"].model_copy(update={"deadline_seconds": 300})
    busy = forecast(plan, JudgeSpec(), Traffic(rps=200), rng)
    assert busy.healthy_s is not None
    assert 180 <= busy.healthy_s <= 300
    assert busy.exposed is not None
    assert busy.exposed_s is not None
    assert [need.traffic for need in busy.stages] == [5, 25, 50]
    idle = forecast(plan, JudgeSpec(), Traffic(rps=0.2), rng)
    assert (idle.healthy_s, idle.exposed) == (None, None)
    assert idle.stages[0].requests == busy.stages[0].requests
    assert idle.stages[0].seconds == 1000 * busy.stages[0].seconds


def test_plan_says_what_cannot_be_judged(tmp_path: Path) -> None:
    told = run(tmp_path, "plan", "--rps", "0.2", "--profile", "fast").output
    assert "Cannot be judged at this request rate: errors at 5 %" in told
    assert "reaches the bake not within the deadline" in told


def test_explain_says_what_is_not_judged() -> None:
    """Latencies and scores of servers that report none."""
    windows = [window(k, arm(380, 4, rejected=0), arm(20, 0, rejected=0), share=0.05) for k in range(1, 30)]
    spec = Spec(service="churn", candidate=Candidate(storage_uri="m"), plan=PLAN)
    status, _ = reconcile._judged(spec, Status(phase=Phase.PROGRESSING, stage=0), tuple(windows), datetime.now(UTC))
    rollout = ModelRollout(metadata=Metadata(name="churn-1"), spec=spec, status=status)
    lines = [re.split(r" {2,}", line.strip()) for line in told(rollout, datetime.now(UTC)) if line.startswith("  ")]
    states = {name: state for name, state, *_ in lines}
    assert states["latency"] == states["scores"] == "not judged"
    assert states["client errors"] in ("watching", "safe")


def test_explain_gives_reason_and_intervals(home: Path) -> None:
    told = run(home, "explain").output
    assert told.startswith("churn-2 of churn: Rolled back")
    assert "The candidate is harmful: errors" in told
    line = next(line for line in told.splitlines() if line.split()[:1] == ["errors"])
    assert "× stable" in line
    assert "harm" in line
    assert "probability 0.99" in told
    assert "e-value" not in told


def test_replay_of_a_stored_rollout_under_another_policy(home: Path, tmp_path: Path) -> None:
    assert "rollback" in run(home, "replay", "churn-2").output
    policy = tmp_path / "policy.yaml"
    policy.write_text("judge: {dryRun: true}\n")
    told = run(home, "replay", "--policy", str(policy)).output
    assert "Dry run, would rollback" in told
    assert "Never rolled back" in told


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ({"storage_uri": "m"}, "at least 40 windows"),
        ({"storage_uri": "another"}, "churn-2 the candidate is another model than stable, which churn-1 released"),
        (None, "no rollout is left that says which one was stable in churn-2"),
    ],
)
def test_aa_of_a_stored_rollout_needs_one_model(home: Path, before: dict[str, str] | None, told: str) -> None:
    if before is not None:
        store = Store(home)
        spec = Spec(service="churn", candidate=Candidate(**before), plan=PLAN)
        status = Status(phase=Phase.PROMOTED, candidate_revision="churn-00001")
        made = Metadata(name="churn-1", creation_timestamp=datetime.fromtimestamp(0, UTC))
        store.create_rollout(ModelRollout(metadata=made, spec=spec, status=status))
        store.close()
    refused = run(home, "aa", "churn-2").exception
    assert isinstance(refused, UserError)
    assert told in str(refused)


def test_two_releases_of_one_model_are_told_by_their_digests() -> None:
    one, other = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    here, there = Candidate(storage_uri="here", digest=one), Candidate(storage_uri="there", digest=one)
    assert _same_model(here, there)
    assert not _same_model(here, Candidate(storage_uri="here", digest=other))
    assert not _same_model(Candidate(predictor={"model": 1}), Candidate(predictor={"model": 2}))


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("stable.requests", "inf", "requests is inf, not a count"),
        ("candidate.requests", "nan", "requests is nan, not a count"),
        ("stable.errors", "nan", "errors is nan, not a count"),
        ("candidate.errors", "-1", "errors is -1, not a count"),
        ("startS", "nan", "it lasts from nan to 2"),
        ("share", "7", "share is 7, not from 0 to 1"),
    ],
)
def test_counts_that_cannot_be_are_refused_in_one_sentence(
    tmp_path: Path, column: str, value: str, told: str
) -> None:
    counts = ["stable.requests", "candidate.requests", "stable.errors", "candidate.errors"]
    names = ["id", "startS", "endS", "stage", "share", *counts]
    good = dict(zip(names, ["2", "1", "2", "0", "0.5", "10", "10", "0", "0"], strict=True))
    rows = [good | {"id": "1", "startS": "0", "endS": "1"}, good | {column: value}]
    file = tmp_path / "x.csv"
    file.write_text("\n".join([",".join(names), *(",".join(row.values()) for row in rows)]), encoding="utf-8")
    refused = CliRunner().invoke(cli, ["replay", str(file)]).exception
    assert isinstance(refused, UserError)
    assert told in str(refused).replace(".0,", ",").replace(".0.", ".") and "row 2" in str(refused)


@pytest.mark.parametrize("count", [math.nan, math.inf, -1])
def test_the_judge_never_sees_counts_that_cannot_be(count: float) -> None:
    for counts in (
        {"requests": count},
        {"events": {"errors": count}},
        {"latency": {3: count}},
        {"score": {3: count}},
    ):
        with pytest.raises(ValueError, match="not a count"):
            ArmCounts(**counts)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("judge: {alpha: 7}", "judge.alpha"),
        ("nonsense: 1", "nonsense"),
        ("a: [", "not YAML"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_policy_file_is_refused_in_one_sentence(tmp_path: Path, content: str | None, named: str) -> None:
    file = tmp_path / "policy.yaml"
    if content is not None:
        file.write_text(content)
    error = run(tmp_path, "plan", "--policy", str(file)).exception
    assert isinstance(error, UserError)
    assert named in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["explain", "replay", "aa"])
def test_without_a_platform_they_say_so(tmp_path: Path, name: str) -> None:
    refused = run(tmp_path / "nowhere", name).exception
    assert isinstance(refused, UserError)
    assert "There is no platform" in str(refused)
    assert not (tmp_path / "nowhere").exists()
