"""What a machine does to a platform while a candidate has traffic: full disk, locked or damaged store."""

import os
import resource
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from embedded import DEADLINE_S, LENIENT, QUICK, Home, by_revision, home, shown, traffic, write_model

from serin import load
from serin.errors import UserError
from serin.plan import Plan, Stage
from serin.platforms.embedded import client
from serin.platforms.embedded.routes import FOLDER, WAY_BACK
from serin.rollout.document import ModelRollout, Phase

pytestmark = pytest.mark.xdist_group("embedded")
LONG: Plan = QUICK.model_copy(update={"stages": (Stage(traffic=50, min_seconds=600),), "deadline_seconds": 3600})


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for number in range(1, 5):
        write_model(folder / str(number), intercept=2 + number / 1000)
    return folder


@pytest.fixture
def here(tmp_path, models, monkeypatch) -> Iterator[Home]:
    monkeypatch.setenv("SERIN_PORT", "0")
    with home(tmp_path / "home") as platform:
        assert platform.ended(platform.request(models / "1")).status.phase is Phase.PROMOTED, platform.story()
        yield platform


def half_way(here: Home, folder: Path) -> ModelRollout:
    """A rollout whose candidate has half the traffic, and keeps it."""
    rollout = here.request(folder, plan=LONG, judge=LENIENT)
    here.reached(rollout, Phase.PROGRESSING)
    return here.find(rollout)


def answers(tally: load.Tally, rollout: ModelRollout) -> int:
    return by_revision(tally).get(rollout.status.candidate_revision or "", 0)


def without_traffic(here: Home, tally: load.Tally, rollout: ModelRollout) -> None:
    """Wait until the candidate gets nothing any more."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        before = answers(tally, rollout)
        time.sleep(1)
        if answers(tally, rollout) == before:
            return
        assert time.monotonic() < deadline, f"the candidate keeps its traffic\n{here.story()}"


@contextmanager
def full_disk(here: Home) -> Iterator[None]:
    """The supervisor cannot write into a file beyond 4 KB, and its store is larger than that."""
    pid = client.supervisor_pid(here.path)
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(here: Home) -> Iterator[None]:
    """Not even a rename is possible: the way back is no file that could be put in the routes' place."""
    way_back = here.path / FOLDER / WAY_BACK
    with full_disk(here):
        way_back.unlink()
        way_back.mkdir()
        try:
            yield
        finally:
            way_back.rmdir()


@contextmanager
def locked(here: Home) -> Iterator[None]:
    other = sqlite3.connect(here.path / "serin.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.close()


@pytest.mark.parametrize("trouble", [full_disk, locked, read_only])
def test_a_candidate_has_no_traffic_while_nothing_can_be_written_down(here, models, trouble):
    with traffic(here, models / "1", rate=100) as tally:
        rollout = half_way(here, models / "2")
        here.wait(lambda: answers(tally, rollout), "answers of the candidate")
        with trouble(here):
            without_traffic(here, tally, rollout)
        before = answers(tally, rollout)
        here.wait(lambda: answers(tally, rollout) > before, "traffic again, as the rollout goes on")
        here.platform.patch_spec(rollout.metadata.name, abort=True)
        assert here.ended(rollout).status.phase is Phase.ROLLED_BACK
    assert tally.failed == 0, shown(tally)


def test_a_damaged_store_is_said_and_stable_serves_on(here, models):
    with traffic(here, models / "1", rate=100) as tally:
        rollout = half_way(here, models / "2")
        here.wait(lambda: answers(tally, rollout), "answers of the candidate")
        os.kill(client.supervisor_pid(here.path), signal.SIGKILL)
        here.wait(lambda: client.supervisor_pid(here.path) is None, "its end")
        for name in ("serin.db-wal", "serin.db-shm"):
            (here.path / name).unlink(missing_ok=True)
        (here.path / "serin.db").write_bytes(b"bit rot " * 4096)
        with pytest.raises(UserError, match=r"serin\.db is damaged"):
            client.up(here.path)
        without_traffic(here, tally, rollout)
    assert tally.failed == 0, shown(tally)
