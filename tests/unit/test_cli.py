"""The `serin` command: what it says, what it refuses, what it leaves alone. Releases are in tests/e2e."""

import sqlite3
import sys
from pathlib import Path

import embedded
import pytest

from serin import cli
from serin.errors import TryAgain
from serin.platforms.embedded import client
from serin.rollout import Candidate, Metadata, ModelRollout, Phase, Spec, Status
from serin.store import Store


class Said:
    """How a command ended, and what it said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def serin(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SERIN_HOME", raising=False)
    monkeypatch.setattr(client, "up", lambda home: pytest.fail("the platform was started"))

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["serin", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        told = capsys.readouterr()
        return Said(code, told.out, told.err)

    return run


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / ".serin")
    yield opened
    opened.close()


def create(store: Store, name: str, **status: object) -> None:
    spec = Spec(service="churn", candidate=Candidate(storage_uri="/models/2"))
    store.create_rollout(ModelRollout(metadata=Metadata(name=name), spec=spec, status=Status(**status)))


def refused(said: Said) -> str:
    """The one sentence of a user's mistake."""
    assert said.code == 2 and said.out == "", said.out
    lines = said.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("serin: ") and lines[0].endswith("."), said.err
    return lines[0]


def test_help_fits_on_a_small_screen(serin, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    said = serin("--help")
    assert said.code == 0
    lines = said.out.splitlines()
    assert len(lines) <= 25 and max(map(len, lines)) <= 100
    for command in (name for name, each in cli.cli.commands.items() if not each.hidden):
        assert any(line.startswith(f"  {command} ") and len(line.split()) > 1 for line in lines), command


@pytest.mark.parametrize("command", sorted(cli.cli.commands))
def test_every_command_has_help(serin, command):
    said = serin(command, "--help")
    assert said.code == 0 and said.out.startswith("Usage: ")


# where there is nothing


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("watch",),
        ("history",),
        ("pause",),
        ("resume",),
        ("approve",),
        ("promote",),
        ("abort",),
        ("drill", "errors"),
        ("load", "--service", "churn"),
    ],
)
def test_without_a_platform_it_says_how_to_start_one(serin, tmp_path, command):
    sentence = refused(serin(*command))
    assert f"no platform in {tmp_path / '.serin'}; start one with `serin up`" in sentence
    assert list(tmp_path.iterdir()) == []


def test_down_without_a_platform(serin, tmp_path):
    assert serin("down").out == "nothing was running\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["watch", "history", "abort"])
def test_without_a_rollout_it_says_how_to_start_one(serin, store, command):
    assert "There is no rollout yet; start one with" in refused(serin(command))


@pytest.mark.parametrize("command", ["watch", "history", "pause", "abort"])
def test_an_unknown_rollout_is_named(serin, store, command):
    create(store, "churn-1")
    assert "There is no rollout churn-9; known: churn-1." in refused(serin(command, "churn-9"))


def test_a_drill_needs_a_service_that_serves(serin, store):
    assert "Say which service with --service; there are none." in refused(serin("drill", "errors"))
    assert "churn serves nothing yet" in refused(serin("drill", "errors", "--service", "churn"))
    assert "churn serves nothing yet" in refused(serin("load", "--service", "churn"))
    assert store.rollouts() == []


# release


@pytest.fixture
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models") / "1"
    embedded.write_model(root)
    return root


PLANS = {
    "typo.yaml": ("stages: [{traffic: 5, minutes: 1}]", "ModelRollout: spec.plan.stages.0.minutes: Extra inputs"),
    "falling.yaml": ("stages: [{traffic: 50}, {traffic: 5}]", "traffic must rise from stage to stage, got [50, 5]"),
    "broken.yaml": ("stages: [", "broken.yaml is not YAML"),
    "binary.yaml": (b"\xff\xfe\x00", "binary.yaml is not YAML"),
    "list.yaml": ("- 1", "spec.plan"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_that_is_none_is_refused_before_anything_starts(serin, folder, tmp_path, name):
    text, why = PLANS[name]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert why in refused(serin("release", str(folder), "--service", "churn", "--plan", name))
    assert not (tmp_path / ".serin").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--plan", "nothing.yaml"), "Plan nothing.yaml cannot be read: No such file or directory."),
        (("--service", "Churn!"), "spec.service: String should match pattern"),
        (("--traffic", "lots"), "--traffic lots: give requests per second, or none."),
        (("--traffic", "-5"), "--traffic -5: give requests per second, or none."),
        (("--traffic", "nan"), "--traffic nan: give requests per second, or none."),
    ],
)
def test_a_mistake_is_refused_before_anything_starts(serin, folder, tmp_path, arguments, why):
    assert why in refused(serin("release", str(folder), "--service", "churn", *arguments))
    assert not (tmp_path / ".serin").exists()


def test_plan_and_profile_exclude_each_other(serin, folder, tmp_path):
    (tmp_path / "plan.yaml").write_text("stages: [{traffic: 5}]")
    said = serin("release", str(folder), "--service", "churn", "--plan", "plan.yaml", "--profile", "fast")
    assert "give plan or profile, not both" in refused(said)


def test_what_is_no_model_is_refused(serin, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is not a model directory" in refused(serin("release", "empty", "--service", "churn"))
    assert "is not a model directory" in refused(serin("release", "nothing", "--service", "churn"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("release",),
        ("release", "folder"),
        ("drill", "fire"),
        ("drill", "errors", "--rate", "2"),
        ("drill", "errors", "--first-stage", "0"),
        ("load", "--service", "churn", "--rate", "0"),
        ("load", "--service", "churn", "--seconds", "-1"),
        ("--home",),
        (),
    ],
)
def test_wrong_arguments_end_with_2(serin, tmp_path, arguments):
    said = serin(*arguments)
    assert said.code == 2 and ("Usage: " in said.err or "Error: " in said.err)
    assert list(tmp_path.iterdir()) == []


# switches


@pytest.mark.parametrize(
    ("command", "field", "value"),
    [
        ("pause", "paused", True),
        ("resume", "paused", False),
        ("approve", "approved", True),
        ("promote", "promote", True),
        ("abort", "abort", True),
    ],
)
def test_a_switch_is_written_into_the_spec_of_the_latest_rollout(serin, store, command, field, value):
    create(store, "churn-1", phase=Phase.PROMOTED)
    create(store, "churn-2", phase=Phase.PROGRESSING)
    store.patch_spec("churn-2", "default", **{field: not value})
    said = serin(command)
    assert said.code == 0 and said.out.startswith("churn-2: ")
    assert getattr(store.rollout("churn-2", "default").spec, field) is value
    assert getattr(store.rollout("churn-1", "default").spec, field) is False


@pytest.mark.parametrize("command", ["pause", "resume", "approve", "promote", "abort"])
def test_a_rollout_that_has_ended_is_left_alone(serin, store, command):
    create(store, "churn-1", phase=Phase.ROLLED_BACK)
    before = store.rollouts()
    assert "Rollout churn-1 has ended (RolledBack); nothing was changed." in refused(serin(command))
    assert store.rollouts() == before


# looking


def test_status_history_and_watch_need_no_terminal(serin, store):
    entry = {"at": "2026-11-22T09:30:00Z", "stage": None, "traffic": 0, "reason": "aborted by request"}
    create(
        store,
        "churn-1",
        phase=Phase.ROLLED_BACK,
        reason="aborted by request",
        history=[{**entry, "phase": "RollingBack"}, {**entry, "phase": "RolledBack"}],
    )
    said = serin("status")
    assert said.code == 0 and "no supervisor works on" in said.out and "RolledBack" in said.out
    said = serin("history", "churn-1")
    assert said.out.splitlines()[0] == "churn-1 of churn"
    assert "2026-11-22 09:30:00Z  RolledBack     0 %  aborted by request" in said.out
    said = serin("watch")
    assert said.code == 1 and said.out.endswith("RolledBack: aborted by request\n")
    assert "\x1b" not in said.out


def test_watching_a_promoted_rollout_ends_well(serin, store):
    create(store, "churn-1", phase=Phase.PROMOTED, reason="healthy")
    assert serin("watch").code == 0


# homes


def test_a_home_that_cannot_be_one(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["serin", "--home", str(tmp_path / "file" / "home"), "up"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "cannot hold a platform" in capsys.readouterr().err


def test_a_home_with_a_broken_database(serin, tmp_path):
    (tmp_path / ".serin").mkdir()
    (tmp_path / ".serin" / "serin.db").write_text("this is no database " * 50)
    assert "cannot hold a platform (file is not a database)" in refused(serin("status"))


def test_a_home_of_another_version(serin, store):
    with sqlite3.connect(store.home / "serin.db") as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    assert "another version of serin" in refused(serin("status"))


@pytest.mark.parametrize("port", ["http", "-1", "65536", "8080.5"])
def test_a_port_that_is_none(tmp_path, monkeypatch, capsys, port):
    monkeypatch.setenv("SERIN_PORT", port)
    monkeypatch.setattr(sys, "argv", ["serin", "--home", str(tmp_path / "home"), "up"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and f"SERIN_PORT={port} is no port" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_try_again_ends_with_3_and_says_when(serin, store, monkeypatch):
    def hopeless(home: Path) -> None:
        raise TryAgain("The gateway did not answer within 30 s.", delay_s=5)

    monkeypatch.setattr(client, "up", hopeless)
    said = serin("up")
    assert said.code == 3 and said.err == "serin: The gateway did not answer within 30 s. Try again in 5 s.\n"


def test_an_interrupt_is_no_crash(serin, monkeypatch):
    def interrupted(home: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "up", interrupted)
    said = serin("up")
    assert said.code == 130 and "the rollout goes on" in said.err
