"""The embedded platform's state: whole transactions, two sides writing at once, nothing misread."""

import fcntl
import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serin.errors import TryAgain, UserError
from serin.judge import timeline
from serin.platforms.embedded import processes
from serin.platforms.embedded import store as store_module
from serin.platforms.embedded.store import SCHEMA_VERSION, RevisionRecord, Server, Service, Store
from serin.platforms.ports import Which
from serin.rollout.document import Candidate, Metadata, ModelRollout, Phase, Spec, Status
from serin.rollout.reconcile import Observation, Revision, reconcile

BEGAN = datetime(2026, 11, 22, tzinfo=UTC)


def rollout(
    name: str, *, minutes: int = 0, namespace: str = "default", service: str = "churn", **status: object
) -> ModelRollout:
    return ModelRollout(
        metadata=Metadata(name=name, namespace=namespace, creation_timestamp=BEGAN + timedelta(minutes=minutes)),
        spec=Spec(service=service, candidate=Candidate(storage_uri="/models/2")),
        status=Status(**status),
    )


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()


def test_a_rollout_comes_back_as_it_was(store):
    wanted = rollout("churn-2", phase=Phase.PROGRESSING, stage=1, judge_state={"version": 1, "harm": [0.5]})
    store.create_rollout(wanted)
    assert store.rollout("churn-2", "default") == wanted
    assert Store(store.home).rollouts() == [wanted]


def test_rollouts_are_listed_as_they_were_made_whatever_the_clock_said(store):
    for number, phase, minutes in ((0, Phase.PENDING, 5), (1, Phase.BAKING, 6), (2, Phase.PROMOTED, 0)):
        store.create_rollout(rollout(f"churn-{number}", minutes=minutes, phase=phase))
    store.create_rollout(rollout("churn-1", minutes=9, namespace="other"))
    assert [each.metadata.name for each in store.rollouts("default")] == ["churn-0", "churn-1", "churn-2"]
    assert [each.metadata.namespace for each in store.rollouts()] == ["default"] * 3 + ["other"]
    assert [each.metadata.name for each in store.unfinished()] == ["churn-0", "churn-1", "churn-1"]


def test_a_taken_name_is_refused_and_changes_nothing(store):
    store.create_rollout(rollout("churn-2", phase=Phase.BAKING))
    with pytest.raises(UserError, match="churn-2 exists; choose another name"):
        store.create_rollout(rollout("churn-2"))
    assert store.rollout("churn-2", "default").status.phase is Phase.BAKING


def test_an_unknown_rollout_is_named_with_those_that_are_known(store):
    with pytest.raises(UserError, match="no rollout churn-9; known: none yet"):
        store.rollout("churn-9", "default")
    store.create_rollout(rollout("churn-2"))
    with pytest.raises(UserError, match="no rollout churn-9; known: churn-2"):
        store.patch_spec("churn-9", "default", abort=True)
    assert store.find_rollout("churn-2", "elsewhere") is None


def test_a_command_and_the_supervisor_write_at_once_and_neither_loses(store, tmp_path):
    store.create_rollout(rollout("churn-2"))
    rounds = 100

    def supervise() -> None:
        mine = Store(tmp_path / "home")
        for number in range(rounds):
            current = mine.rollout("churn-2", "default")
            with mine.transaction():
                mine.save_status(current, current.status.model_copy(update={"stage": number}))
        mine.close()

    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    for number in range(rounds):
        store.patch_spec("churn-2", "default", paused=bool(number % 2))
    supervisor.join()
    found = store.rollout("churn-2", "default")
    assert found.status.stage == rounds - 1
    assert found.spec.paused


def test_a_transaction_is_all_or_nothing(store):
    store.create_rollout(rollout("churn-2"))
    with pytest.raises(RuntimeError), store.transaction():
        store.save_service(Service("default", "churn", None, None, None, 0, 0))
        store.save_status(store.rollout("churn-2", "default"), Status(phase=Phase.DARK))
        raise RuntimeError
    assert store.services() == []
    assert store.rollout("churn-2", "default").status.phase is Phase.PENDING


def test_services_revisions_settings_windows_and_documents_come_back(store):
    service = Service("default", "churn", "churn-1", "churn-2", "rollout-2", 25, 2, "sha256:cd")
    store.save_service(service)
    assert store.service("churn", "default") == service and store.services() == [service]
    assert store.service("churn", "other") is None
    servers = (Server(12, "boot:15", 2), Server())
    record = RevisionRecord(
        "default", "churn-2", "churn", Path("/models/2"), "sha256:ab", "serin-onnx", {"A": "b"}, "why", servers
    )
    store.save_revision(record)
    assert store.revision("churn-2", "default") == record and store.revisions() == [record]
    assert record.cluster == "default/churn-2"
    store.delete_revision(record)
    assert store.revision("churn-2", "default") is None
    store.save_setting("port", 8080)
    store.save_setting("port", [8080, {"a": None}])
    assert store.setting("port") == [8080, {"a": None}] and store.setting("nothing") is None

    wanted = rollout("churn-2")
    store.create_rollout(wanted)
    assert store.counters(wanted) is None and store.checks(wanted) is None
    store.save_counters(wanted, {"atS": 1.5})
    store.save_checks(wanted, {"checks": []})
    assert store.counters(wanted) == {"atS": 1.5} and store.checks(wanted) == {"checks": []}
    for number in (2, 1, 3):
        store.add_window(wanted, number, {"id": number})
    store.add_window(wanted, 3, {"id": "again"})
    assert [each["id"] for each in store.windows("churn-2", "default")] == [1, 2, 3]
    assert [each["id"] for each in store.windows("churn-2", "default", last=2)] == [2, 3]


def test_a_home_of_another_version_is_refused(store):
    store.close()
    with sqlite3.connect(store.home / "serin.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match=r"a later version of serin \(state 99, this one reads \d+\)"):
        Store(store.home)


RECORDED = Path(__file__).parents[1] / "data"
"""`store-N.sql`: what version N wrote of a promoted, a second promoted and a third, unfinished rollout."""


def restored(version: int, home: Path) -> Path:
    home.mkdir()
    with sqlite3.connect(home / "serin.db") as connection:
        connection.executescript((RECORDED / f"store-{version}.sql").read_text(encoding="utf-8"))
    connection.close()
    return home


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_home_of_every_released_version_goes_on_with_its_models_and_rollouts(version, tmp_path):
    home = restored(version, tmp_path / "home")
    opened = Store(home)
    rollouts = opened.rollouts("default")
    assert [each.status.phase for each in rollouts] == [Phase.PROMOTED, Phase.PROMOTED, Phase.PROGRESSING]
    assert all(each.status.history for each in rollouts) and rollouts[2].status.judge_state is not None
    assert [each.metadata.name for each in opened.unfinished()] == [rollouts[2].metadata.name]
    service = opened.service("churn", "default")
    assert (service.stable, service.candidate) == ("churn-predictor-00002", "churn-predictor-00003")
    assert {each.name for each in opened.revisions()} == {service.stable, service.candidate}
    assert all(each.servers == () and each.model.is_absolute() for each in opened.revisions()), "started anew"
    assert opened.setting("gateway_pid") is None and opened.setting("port")
    assert version > 1 or opened.setting("wanted_port") == 0, "the port that clients know, if it is free"
    windows = opened.windows(rollouts[2].metadata.name, "default")
    assert opened.last_window(rollouts[2]) == windows[-1]["id"] > 3
    assert timeline.from_document(windows[-1]).stable.requests > 0
    opened.create_rollout(rollout("later"))
    assert opened.rollouts("default")[-1].metadata.name == "later"
    opened.close()
    with sqlite3.connect(home / "serin.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    connection.close()


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_rollout_that_another_version_began_is_judged_further(version, tmp_path):
    """Or rolled back with a reason; never watched without its windows being counted."""
    opened = Store(restored(version, tmp_path / "home"))
    unfinished = opened.unfinished()[0]
    document = opened.windows(unfinished.metadata.name, "default")[-1]
    next_one = timeline.from_document({**document, "id": opened.last_window(unfinished) + 1})
    revisions = (unfinished.status.stable_revision, unfinished.status.candidate_revision)
    stable, candidate = (Revision(name or "", ready=True) for name in revisions)
    seen = Observation(stable=stable, candidate=candidate, split=unfinished.status.traffic, windows=(next_one,))
    status, _ = reconcile(unfinished.spec, unfinished.status, seen, datetime.now(UTC))
    before = unfinished.status.requests
    assert status.requests.stable > before.stable
    assert status.phase is Phase.ROLLING_BACK or status.evidence != unfinished.status.evidence
    opened.close()


def test_before_a_change_of_the_store_a_copy_is_kept_and_a_failed_one_changes_nothing(tmp_path, monkeypatch):
    home = restored(1, tmp_path / "home")
    broken = (*store_module._MIGRATIONS[:2], "CREATE TABLE more (a); CREATE TABLE more (a);")
    monkeypatch.setattr(store_module, "_MIGRATIONS", broken)
    with pytest.raises(UserError, match="more already exists"):
        Store(home)
    with sqlite3.connect(home / "serin.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 2, "each step by itself"
        assert connection.execute("SELECT COUNT(*) FROM rollout").fetchone()[0] == 3
    connection.close()
    monkeypatch.undo()
    Store(home).close()
    with sqlite3.connect(home / "serin.db.version-1") as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 1
        assert connection.execute("SELECT COUNT(*) FROM rollout").fetchone()[0] == 3
    connection.close()


def test_the_store_is_not_changed_under_a_supervisor_of_an_earlier_version(tmp_path):
    home = restored(1, tmp_path / "home")
    with (home / processes.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("1")
        lock.flush()
        with pytest.raises(UserError, match="earlier version of serin; restart it"):
            Store(home)
    Store(home).close()


def test_rollouts_are_found_by_service_name_time_and_end_the_latest_ones_only_if_wished(store):
    made = [
        ("churn-a", {"minutes": 0, "phase": Phase.PROMOTED}),
        ("churn-a-2", {"minutes": 1, "phase": Phase.BAKING}),
        ("churn-a-10", {"minutes": 2, "phase": Phase.PENDING}),
        ("churn-a-2x", {"minutes": 3, "phase": Phase.PENDING}),
        ("churn-ab", {"minutes": 4, "phase": Phase.FAILED}),
        ("fraud-1", {"minutes": 5, "phase": Phase.ROLLED_BACK, "service": "fraud"}),
    ]
    rollouts = [rollout(name, **how) for name, how in made]
    for each in rollouts:
        store.create_rollout(each)
    since = rollouts[3].metadata.creation_timestamp
    for which, numbers in (
        (Which(), [0, 1, 2, 3, 4, 5]),
        (Which(last=2), [4, 5]),
        (Which(service="fraud"), [5]),
        (Which(name="churn-a"), [0, 1, 2]),
        (Which(since=since), [3, 4, 5]),
        (Which(unfinished=True), [1, 2, 3]),
        (Which(service="churn", unfinished=True, last=2, since=rollouts[1].metadata.creation_timestamp), [2, 3]),
        (Which(last=0), []),
    ):
        wanted = [rollouts[number].metadata.name for number in numbers]
        assert [each.metadata.name for each in store.rollouts("default", which)] == wanted, which
        assert [each.metadata.name for each in which.of(rollouts)] == wanted, which


def test_the_ended_rollouts_are_not_read_to_find_those_under_way(store):
    plan = store._rows(
        "EXPLAIN QUERY PLAN SELECT * FROM rollout WHERE phase IN ('Pending', 'Dark') ORDER BY id DESC LIMIT -1"
    )
    assert any("USING INDEX rollout_by_phase" in row["detail"] for row in plan), [row["detail"] for row in plan]


def test_many_may_open_a_new_home_at_once(tmp_path):
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def opens() -> None:
        start.wait()
        try:
            Store(tmp_path / "home").close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=opens) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_the_home_is_for_its_owner_only(store):
    assert store.home.stat().st_mode & 0o077 == 0


def test_a_full_disk_is_one_sentence_and_the_store_goes_on_when_there_is_room(store):
    store.create_rollout(rollout("churn-2"))
    full = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {full}")
    with pytest.raises(UserError, match=r"disk of .* is full; free some space"), store.transaction():
        store.save_setting("large", "x" * 100_000)
    store._db.execute("PRAGMA max_page_count = 1000000")
    with store.transaction():
        store.save_setting("large", "x" * 100_000)
    assert store.setting("large") == "x" * 100_000


def test_a_locked_store_is_tried_again_and_nothing_is_left_begun(store):
    impatient = Store(store.home, patience_s=0.01)
    with store.transaction():
        for _ in range(2):
            with pytest.raises(TryAgain, match="locked by another program"), impatient.transaction():
                pytest.fail("it has the store to itself")
    with impatient.transaction():
        impatient.save_setting("a", 1)
    impatient.close()


def test_a_damaged_store_is_one_sentence_with_the_fix(store):
    for number in range(200):
        store.save_setting(f"key {number}", "x" * 1000)
    store.close()
    file = store.home / "serin.db"
    content = bytearray(file.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"serin\.db is damaged .* run `.*serin up` and release the model again"):
        damaged = Store(store.home)
        damaged.rollouts()


def test_a_commit_that_fails_leaves_no_transaction_open(store, monkeypatch):
    """Else every later one would fail, too."""
    run = Store._run

    def fails(self: Store, query: str, values: object = ()) -> object:
        if query == "COMMIT":
            raise UserError("the disk is full")
        return run(self, query, values)

    monkeypatch.setattr(Store, "_run", fails)
    with pytest.raises(UserError), store.transaction():
        store.save_setting("a", 1)
    monkeypatch.undo()
    assert store.setting("a") is None
    with store.transaction():
        store.save_setting("a", 2)
    assert store.setting("a") == 2
