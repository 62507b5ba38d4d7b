"""What is forgotten in time, and what never is."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serin.platforms.embedded import retention
from serin.platforms.embedded.retention import Keep
from serin.platforms.embedded.store import RevisionRecord, Service, Store
from serin.platforms.embedded.takeover import model_folder
from serin.rollout.document import Candidate, Metadata, ModelRollout, Phase, Spec, Status

NOW = datetime(2026, 11, 22, tzinfo=UTC)
KEEP = Keep(timelines=2, timeline_days=7, rollouts=4, rollout_days=90, model_days=7, log_days=14, log_bytes=1000)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    (opened.home / "logs").mkdir()
    yield opened
    opened.close()


def digest(number: int) -> str:
    return f"sha256:{number:016d}"


def add(store: Store, number: int, *, days: float, phase: Phase = Phase.PROMOTED, service: str = "churn") -> None:
    """A rollout of the model `number`, so many days old, with a timeline."""
    rollout = ModelRollout(
        metadata=Metadata(name=f"{service}-{number}", creation_timestamp=NOW - timedelta(days=days)),
        spec=Spec(service=service, candidate=Candidate(storage_uri=f"/trained/{number}", digest=digest(number))),
        status=Status(phase=phase),
    )
    store.create_rollout(rollout)
    store.add_window(rollout, 1, {"id": 1})


def old(path: Path, days: float) -> Path:
    os.utime(path, ((NOW - timedelta(days=days)).timestamp(),) * 2)
    return path


def add_model(store: Store, number: int, *, days: float = 100) -> Path:
    folder = model_folder(store.home, digest(number))
    (folder / "model").mkdir(parents=True)
    return old(folder, days)


def pruned(store: Store) -> retention.Pruning:
    """What was to go, and is gone."""
    pruning = retention.plan(store, KEEP, NOW)
    retention.carry_out(store, pruning, KEEP, NOW)
    assert retention.plan(store, KEEP, NOW).empty
    return pruning


def test_timelines_and_rollouts_go_when_they_are_both_old_and_many(store):
    for number, days in enumerate((400, 300, 200, 100, 50, 40, 6, 5)):
        add(store, number, days=days)
    add(store, 99, days=500, service="fraud")
    pruning = pruned(store)
    assert [name for _, name in pruning.rollouts] == ["churn-0", "churn-1", "churn-2", "churn-3"]
    assert "fraud-99" not in str(pruning), "the only one of its service"
    left = [each.metadata.name for each in store.rollouts()]
    assert left == ["churn-4", "churn-5", "churn-6", "churn-7", "fraud-99"]
    assert [name for name in left if store.windows(name, "default")] == ["churn-6", "churn-7", "fraud-99"]


def test_the_rollout_that_brought_what_serves_and_those_under_way_stay(store):
    add(store, 0, days=400)
    for number in range(1, 9):
        add(store, number, days=300 - number, phase=Phase.ROLLED_BACK)
    add(store, 9, days=350, phase=Phase.WAITING)
    pruned(store)
    names = {each.metadata.name for each in store.rollouts()}
    assert {"churn-0", "churn-9"} <= names and "churn-1" not in names
    assert store.windows("churn-0", "default") and store.windows("churn-9", "default")


def test_a_model_goes_only_when_nothing_serves_it_served_it_last_or_wants_it(store):
    folders = {number: add_model(store, number) for number in range(8)}
    young = add_model(store, 20, days=2)
    half = store.home / "models" / "0123.partial"
    half.mkdir()
    for number in (0, 1, 2, 3):
        add(store, number, days=50 - number)
    add(store, 4, days=3, phase=Phase.PENDING)
    add(store, 7, days=30, phase=Phase.ROLLED_BACK)
    record = RevisionRecord("default", "churn-5", "churn", folders[5], digest(5), "serin-onnx", {})
    store.save_revision(record)
    store.save_service(Service("default", "churn", "churn-5", None, None, 0, 5, previous=digest(6)))
    pruning = pruned(store)
    assert set(pruning.models) == {folders[0], folders[1], folders[7]}
    left = set((store.home / "models").iterdir())
    assert left == {folders[number] for number in (2, 3, 4, 5, 6)} | {young, half}


def test_a_model_that_is_wanted_again_meanwhile_stays(store):
    folder = add_model(store, 1)
    pruning = retention.plan(store, KEEP, NOW)
    assert pruning.models == (folder,)
    add(store, 1, days=0, phase=Phase.PENDING)
    retention.carry_out(store, pruning, KEEP, NOW)
    assert folder.exists()


def test_while_a_rollout_without_a_digest_is_unfinished_every_model_stays(store):
    add_model(store, 1)
    spec = Spec(service="churn", candidate=Candidate(storage_uri="/trained/1"))
    store.create_rollout(ModelRollout(metadata=Metadata(name="r"), spec=spec))
    assert retention.plan(store, KEEP, NOW).models == ()


def test_old_logs_go_and_long_ones_lose_their_beginning(store):
    logs = store.home / "logs"
    for name, days in (("churn-1.log", 20), ("churn-2.log", 3), ("gateway.log", 20), ("supervisor.log", 20)):
        (logs / name).write_text("".join(f"line {number}\n" for number in range(200)))
        old(logs / name, days)
    with (logs / "gateway.log").open("a") as held:
        pruning = pruned(store)
        held.write("after\n")
    assert pruning.logs == (logs / "churn-1.log",)
    assert set(pruning.long_logs) == {logs / "churn-2.log", logs / "gateway.log", logs / "supervisor.log"}
    lines = (logs / "gateway.log").read_text().splitlines()
    assert lines[0].startswith("line ") and lines[-2:] == ["line 199", "after"] and len(lines) < 50


def test_of_runs_the_latest_and_the_one_that_is_linked_stay(tmp_path):
    runs = tmp_path / "runs"
    for number in range(6):
        (runs / str(number)).mkdir(parents=True)
        old(runs / str(number), 100 - number)
    (runs / "latest").symlink_to("0")
    assert retention.old_runs(runs, NOW, count=2, days=30) == [runs / "1", runs / "2", runs / "3"]
    assert retention.old_runs(runs, NOW, count=2, days=97.5) == [runs / "1", runs / "2"]
    assert retention.old_runs(tmp_path / "none", NOW) == []
