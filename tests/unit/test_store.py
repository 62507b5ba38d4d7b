"""The embedded platform's state: whole transactions, two sides writing at once, nothing misread."""

import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serin.errors import TryAgain, UserError
from serin.platforms.embedded.store import _MIGRATIONS, RevisionRecord, Server, Service, Store
from serin.rollout.document import Candidate, Metadata, ModelRollout, Phase, Spec, Status

BEGAN = datetime(2026, 11, 22, tzinfo=UTC)


def rollout(name: str, *, minutes: int = 0, namespace: str = "default", **status: object) -> ModelRollout:
    return ModelRollout(
        metadata=Metadata(name=name, namespace=namespace, creation_timestamp=BEGAN + timedelta(minutes=minutes)),
        spec=Spec(service="churn", candidate=Candidate(storage_uri="/models/2")),
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


def test_rollouts_are_listed_oldest_first_by_namespace_and_by_whether_they_ended(store):
    for number, phase in ((2, Phase.PROMOTED), (0, Phase.PENDING), (1, Phase.BAKING)):
        store.create_rollout(rollout(f"churn-{number}", minutes=number, phase=phase))
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
    service = Service("default", "churn", "churn-1", "churn-2", "rollout-2", 25, 2)
    store.save_service(service)
    assert store.service("churn", "default") == service and store.services() == [service]
    assert store.service("churn", "other") is None
    servers = (Server(12, 1.5, 2), Server())
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


def test_a_home_of_the_first_version_goes_on_with_its_model(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    with sqlite3.connect(home / "serin.db") as connection:
        connection.executescript(_MIGRATIONS[0] + "PRAGMA user_version = 1;")
        connection.execute(
            "INSERT INTO revision VALUES"
            " ('default', 'churn-1', 'churn', '/models/1', 'sha256:ab', 'serin-onnx', '{}', 21001, 99, 1.5, 3, NULL)"
        )
        connection.execute("INSERT INTO setting VALUES ('gateway_pid', '[98, 1.5]'), ('port', '8080')")
    connection.close()
    opened = Store(home)
    assert opened.revisions() == [
        RevisionRecord("default", "churn-1", "churn", Path("/models/1"), "sha256:ab", "serin-onnx", {})
    ]
    assert (opened.setting("gateway_pid"), opened.setting("port")) == (None, 8080)
    opened.close()


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
    with pytest.raises(UserError, match=r"disk of .* is full; make room"), store.transaction():
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
    with pytest.raises(UserError, match=r"serin\.db is damaged .* run `serin up` and release the model again"):
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
