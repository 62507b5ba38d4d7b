"""The `serin` command: what it says, what it refuses, what it leaves alone. Releases are in tests/e2e."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import embedded
import pytest
from click.testing import CliRunner

from serin.cli import main as cli
from serin.cli import view
from serin.errors import TryAgain
from serin.load import Losses
from serin.platforms.embedded import client
from serin.platforms.embedded.store import Store
from serin.platforms.kserve import objects
from serin.platforms.kserve.client import KServe
from serin.rollout.document import Candidate, Metadata, ModelRollout, Phase, Spec, Status
from tests.unit.kserve_fake import promoted
from tests.unit.test_kserve_client import FakeApi


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
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    for command in (name for name, each in cli.cli.commands.items() if not each.hidden):
        assert any(line.startswith(f"  {command} ") or command in cli.SWITCHES for line in lines), command
    assert all(switch in said.out for switch in cli.SWITCHES)


@pytest.mark.parametrize("group", [cli.cli, cli.plugin], ids=["serin", "kubectl serin"])
def test_help_lists_every_command_on_one_whole_line_of_80_columns(group):
    said = CliRunner().invoke(group, ["--help"], terminal_width=80, prog_name=group.name).output
    assert max(map(len, said.splitlines())) <= 80 and "--version" in said
    listed = said.split("Commands:\n")[1]
    assert "..." not in listed and "…" not in listed
    assert all(line[:3].strip() and line.endswith(".") for line in listed.splitlines()), listed


@pytest.mark.parametrize("name", sorted(cli.cli.commands))
def test_a_summary_is_never_cut(name):
    summary = cli.cli.commands[name].get_short_help_str()
    assert summary and summary.endswith(".") and not summary.endswith(".."), summary


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
    assert "Choose a service with --service; there are none." in refused(serin("drill", "errors"))
    assert "churn has no model yet" in refused(serin("drill", "errors", "--service", "churn"))
    assert "churn has no model yet" in refused(serin("load", "--service", "churn"))
    assert store.rollouts() == []


# release


@pytest.fixture
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models") / "1"
    embedded.write_model(root)
    return root


PLANS = {
    "typo.yaml": ("stages: [{traffic: 5, minutes: 1}]", "ModelRollout: spec.plan.stages.0.minutes: Extra inputs"),
    "falling.yaml": (
        "stages: [{traffic: 50}, {traffic: 5}]",
        "traffic must increase from stage to stage, got [50, 5]",
    ),
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
    create(store, "churn-2", phase=Phase.WAITING)
    store.patch_spec("churn-2", "default", **{field: not value})
    said = serin(command)
    assert said.code == 0 and said.out.startswith("churn-2: ")
    assert getattr(store.rollout("churn-2", "default").spec, field) is value
    assert getattr(store.rollout("churn-1", "default").spec, field) is False


def test_what_waits_for_no_approval_is_not_approved(serin, store):
    create(store, "churn-1", phase=Phase.PROGRESSING)
    assert "Rollout churn-1 waits for no approval; nothing was changed." in refused(serin("approve"))
    assert not store.rollout("churn-1", "default").spec.approved


def test_the_version_is_told(serin):
    said = serin("--version")
    assert said.code == 0 and said.out == f"serin {version('serin')}\n"


@pytest.mark.parametrize("command", ["pause", "resume", "approve", "promote", "abort"])
def test_a_rollout_that_has_ended_is_left_alone(serin, store, command):
    create(store, "churn-1", phase=Phase.ROLLED_BACK)
    before = store.rollouts()
    assert "Rollout churn-1 has ended (RolledBack); nothing was changed." in refused(serin(command))
    assert store.rollouts() == before


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/root/data.csv"), "/root/data.csv: Permission denied."),
        (OSError(errno.ENOSPC, "No space left on device"), "a file: No space left on device."),
    ],
)
def test_what_the_machine_refuses_ends_in_one_sentence(error, told, serin, store, monkeypatch):
    def refuses(_: object, which: object = None) -> list[str]:
        raise error

    monkeypatch.setattr(client.Embedded, "rollouts", refuses)
    assert told in refused(serin("status"))


def test_an_error_of_our_own_keeps_its_traceback(serin, store, monkeypatch):
    def broken(_: object, which: object = None) -> list[str]:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "clusters.json")

    monkeypatch.setattr(client.Embedded, "rollouts", broken)
    with pytest.raises(FileNotFoundError):
        serin("status")


def test_a_supervisor_that_ends_at_once_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(client.processes, "python", lambda *_: [sys.executable, "-c", "exit(1)"])
    with pytest.raises(TryAgain, match=r"exited at once; see .*supervisor\.log"):
        client.up(tmp_path)


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
    assert said.code == 0 and "no supervisor is running for" in said.out and "RolledBack" in said.out
    said = serin("history", "churn-1")
    assert said.out.splitlines()[0] == "churn-1 of churn"
    assert "2026-11-22 09:30:00Z  RolledBack     0 %  Aborted by request." in said.out
    said = serin("watch")
    assert said.code == 1 and said.out.endswith("RolledBack: Aborted by request.\n")
    assert "\x1b" not in said.out


def test_a_platform_without_rollouts_says_so(serin, store):
    assert serin("status").out.splitlines()[-1] == "no rollouts yet"


def test_what_gets_no_answer_is_shown_beside_the_rollout_and_what_ails_the_platform(
    store, tmp_path, monkeypatch, capsys
):
    create(store, "churn-1", phase=Phase.PROGRESSING, stage=0, reason="healthy")
    file, looks = tmp_path / "load.json", iter((0, 70, 70))

    def sleep(_: float) -> None:
        lost = next(looks, None)
        if lost is None:
            found = store.rollout("churn-1", "default")
            store.save_status(found, found.status.model_copy(update={"phase": Phase.PROMOTED}))
            return
        answers = [{"revision": "churn-1", "status": 200, "count": 100}, {"revision": "", "status": 0, "count": lost}]
        file.write_text(json.dumps({"answered": 100 + lost, "answers": answers}))

    monkeypatch.setattr(cli.time, "sleep", sleep)
    monkeypatch.setattr(view, "PLAIN_S", 0)
    monkeypatch.setattr(client.Embedded, "problem", lambda self: "the gateway died")
    cli._watched(client.Embedded(store.home), "churn-1", Losses(file))
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == "  The gateway died."
    assert shown[2].startswith("  The gateway died; 70 of the load generator's last 70 requests")


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
    assert "serin.db is damaged (file is not a database); restore a backup" in refused(serin("status"))


def test_a_home_of_another_version(serin, store):
    with sqlite3.connect(store.home / "serin.db") as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    assert "a later version of serin" in refused(serin("status"))


@pytest.mark.parametrize("port", ["http", "-1", "65536", "8080.5"])
def test_a_port_that_is_none(tmp_path, monkeypatch, capsys, port):
    monkeypatch.setenv("SERIN_PORT", port)
    monkeypatch.setattr(sys, "argv", ["serin", "--home", str(tmp_path / "home"), "up"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and f"SERIN_PORT={port} is not a port" in capsys.readouterr().err
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
    assert said.code == 130 and "a running rollout continues" in said.err


# kubectl serin


@pytest.fixture
def kubectl(monkeypatch, capsys):
    """The plugin, in front of an API server in memory; gives what it was told to connect to as well."""
    api = FakeApi(promoted())
    asked = []

    def connect(namespace: str | None, context: str | None) -> KServe:
        asked.append((namespace, context))
        return KServe(namespace or "serving", api)

    monkeypatch.setattr(KServe, "connect", connect)

    def run(*arguments: str, entry=cli.kubectl) -> Said:
        monkeypatch.setattr(sys, "argv", ["kubectl-serin", *arguments])
        code = 0
        try:
            entry()
        except SystemExit as ended:
            code = int(ended.code or 0)
        told = capsys.readouterr()
        return Said(code, told.out, told.err)

    run.api, run.asked = api, asked
    KServe("serving", api).create(
        ModelRollout(
            metadata=Metadata(name="churn-1"), spec=Spec(service="churn", candidate=Candidate(storage_uri="v3"))
        )
    )
    return run


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("status",), (None, None)),
        (("-n", "serving", "status"), ("serving", None)),
        (("status", "-n", "serving", "--context", "prod"), ("serving", "prod")),
        (("--namespace", "other", "status", "-n", "serving"), ("serving", None)),
    ],
)
def test_the_namespace_may_stand_before_or_after_the_command(kubectl, arguments, asked):
    said = kubectl(*arguments)
    assert said.code == 0 and "churn-1" in said.out and "no controller is running" in said.out
    assert kubectl.asked == [asked]


def test_the_plugin_steers_a_rollout_on_a_cluster(kubectl):
    assert kubectl("pause").out == "churn-1: paused; the judge keeps watching\n"
    assert kubectl("abort", "churn-1", "-n", "serving").code == 0
    spec = kubectl.api.objects[objects.rollouts("serving", "churn-1")]["spec"]
    assert (spec["paused"], spec["abort"]) == (True, True)
    kubectl.api.end("churn-1", phase="RolledBack", reason="aborted by request")
    assert "has ended (RolledBack)" in refused(kubectl("promote"))
    watched = kubectl("watch")
    assert watched.code == 1 and watched.out.endswith("RolledBack: Aborted by request.\n")
    assert "churn-1 of churn" in kubectl("explain").out and "churn-1 of churn" in kubectl("history").out
    assert "There is no rollout churn-9; known: churn-1." in refused(kubectl("watch", "churn-9"))


@pytest.mark.parametrize(("away_s", "code"), [(1, 1), (1000, 3)])
def test_a_watch_goes_on_through_an_api_server_that_is_away_for_a_moment(kubectl, monkeypatch, away_s, code):
    now_s = [0.0]

    def sleep(_: float) -> None:
        now_s[0] += away_s
        kubectl.api.raises = None if kubectl.api.raises else TryAgain("the API server does not answer", delay_s=1)
        if kubectl.api.raises is None:
            kubectl.api.end("churn-1", phase="RolledBack", reason="aborted by request")

    monkeypatch.setattr(cli.time, "sleep", sleep)
    monkeypatch.setattr(cli.time, "monotonic", lambda: now_s[0])
    assert kubectl("watch").code == code


def test_the_plugin_has_no_commands_of_the_embedded_platform(kubectl):
    assert kubectl("up").code == 2 and kubectl("release").code == 2
    said = kubectl("--help")
    assert said.out.startswith("Usage: kubectl serin ") and "--platform" not in said.out


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("rele",), [":4"]),
        (("doc",), ["doctor\tShow what a cluster is missing for releases, with fixes.", ":4"]),
        (("ab",), ["abort\tRoll back: all traffic to stable.", ":4"]),
        (("abort", ""), ["churn-1", ":4"]),
        (("abort", "-n", "serving", "ch"), ["churn-1", ":4"]),
        (("abort", "x"), [":4"]),
    ],
)
def test_kubectl_completes_commands_and_rollouts(kubectl, typed, offered):
    assert kubectl(*typed, entry=cli.kubectl_complete).out.splitlines() == offered


def test_completion_is_silent_about_a_cluster_that_is_away(kubectl):
    kubectl.api.raises = TryAgain("the API server does not answer", delay_s=1)
    said = kubectl("abort", "", entry=cli.kubectl_complete)
    assert (said.out, said.err) == (":4\n", "")


def test_a_platform_may_be_named_before_or_after_the_command(serin, store, monkeypatch):
    create(store, "churn-1")
    named = f"embedded:{store.home}"
    assert "churn-1" in serin("--platform", named, "status").out == serin("status", "--platform", named).out
    monkeypatch.setattr(KServe, "connect", lambda namespace: KServe(namespace, FakeApi()))
    assert "There is no rollout yet" in refused(serin("watch", "--platform", "kserve:serving"))
    assert "`serin up` works only on the embedded platform" in refused(serin("up", "--platform", "kserve:serving"))
    assert "There is no platform 'swarm'" in refused(serin("status", "--platform", "swarm"))


def test_the_command_needs_nothing_of_the_pipeline():
    program = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(name, *_):\n"
        "        if name.split('.')[0] in ('kfp', 'sklearn', 'xgboost', 'pandas', 'kserve', 'onnxruntime'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Stop)\n"
        "import serin.cli.main, serin.platforms.kserve.client\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


# doctor


def test_doctor_names_what_is_missing_and_ends_with_1(kubectl, monkeypatch):
    monkeypatch.setattr(FakeApi, "text", lambda api, path: None, raising=False)
    monkeypatch.setattr(FakeApi, "create", lambda api, path, document: {"status": {"allowed": True}})
    kubectl.api.objects["/version"] = {"gitVersion": "v1.34.4"}
    said = kubectl("doctor")
    assert said.code == 1 and "ok   Kubernetes: v1.34.4\n" in said.out
    assert (
        "fix  ModelRollout: is missing; create it with `kubectl apply --server-side -k manifests/crd`.\n" in said.out
    )


def test_doctor_looks_at_clusters_only(serin, store):
    assert "checks clusters" in refused(serin("doctor", "--platform", "embedded:.serin"))


def test_status_lists_the_latest_and_all_under_way_and_the_rest_when_asked(serin, store):
    made = datetime.now(UTC) - timedelta(days=40)
    for number in range(30):
        each = ModelRollout(
            metadata=Metadata(name=f"churn-{number}", creation_timestamp=made + timedelta(days=number)),
            spec=Spec(service="churn", candidate=Candidate(storage_uri="/models/2")),
            status=Status(phase=Phase.WAITING if number == 3 else Phase.FAILED),
        )
        store.create_rollout(each)

    def listed(*options: str) -> list[str]:
        lines = serin("status", *options).out.splitlines()
        return [line.split()[0] for line in lines if line.startswith("churn-")]

    assert listed() == ["churn-3", *(f"churn-{number}" for number in range(10, 30))]
    assert "for older ones use `serin status --all`" in serin("status").out
    assert len(listed("--all")) == 30 and "older ones" not in serin("status", "--all").out
    assert listed("--since", "13.5d") == ["churn-27", "churn-28", "churn-29"]
    assert listed("--since", (made + timedelta(days=28)).date().isoformat()) == ["churn-28", "churn-29"]
    assert listed("--service", "fraud") == [] and "no such rollouts" in serin("status", "--service", "fraud").out
    assert "--since yesterday: give a span" in refused(serin("status", "--since", "yesterday"))


def test_prune_lists_first_and_deletes_then(serin, store, tmp_path):
    folder = store.home / "models" / "0123"
    run = tmp_path / "runs" / "old"
    for each in (folder, run, *(tmp_path / "runs" / str(number) for number in range(20))):
        each.mkdir(parents=True)
    for each in (folder, run):
        os.utime(each, (0, 0))
    told = serin("prune", "--dry-run").out
    assert f"would delete model {folder}" in told and "would delete run runs/old" in told and "2 in total" in told
    assert folder.exists() and run.exists()
    assert f"deleting model {folder}" in serin("prune").out
    assert not folder.exists() and not run.exists()
    assert serin("prune").out == "nothing to delete\n"
