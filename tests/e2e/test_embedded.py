"""Releases on the embedded platform: real Envoy, real model servers, live traffic, kill -9."""

import http.client
import json
import math
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from embedded import (
    CHANGES,
    LENIENT,
    QUICK,
    SERVICE,
    Home,
    asked,
    by_revision,
    change_signature,
    home,
    shown,
    traffic,
    write_model,
)

from benchmarks.sockets import OnSocket, ask
from serin import model
from serin.cli import main as cli
from serin.errors import UserError
from serin.judge import JudgeSpec, policy, timeline
from serin.plan import Checks, OnInconclusive, Plan, Stage
from serin.platforms.embedded import client, gateway, processes
from serin.platforms.embedded.servers import REPLICAS
from serin.rollout.document import Phase

pytestmark = pytest.mark.xdist_group("embedded")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Model directories 1, 2, …: all alike, all with digests of their own."""
    folder = tmp_path_factory.mktemp("models")
    for number in range(1, 5):
        write_model(folder / str(number), intercept=2 + number / 1000)
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory, models) -> Iterator[Home]:
    """A platform on which the first model is live."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERIN_PORT", "0")
        too_long_for_sockets = tmp_path_factory.mktemp("a home") / "with spaces and umlauts".ljust(110, "ä")
        with home(too_long_for_sockets) as platform:
            first = platform.ended(platform.request(models / "1"))
            assert first.status.phase is Phase.PROMOTED, platform.story()
            yield platform


def test_but_for_the_gateways_port_nothing_of_it_can_be_reached_by_another_user(here):
    both_serve(here, here.platform.champion(SERVICE).revision)
    processes_of_it = [client.supervisor_pid(here.path), *processes.belonging_to(here.path)]
    listening = [
        each.laddr.port
        for pid in processes_of_it
        for each in psutil.Process(pid).connections("inet")
        if each.status == psutil.CONN_LISTEN
    ]
    assert [f"http://127.0.0.1:{port}" for port in listening] == [here.address]
    sockets = here.path / "sockets"
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in sockets.iterdir()} == {0o600}
    assert len(list(sockets.iterdir())) == len(processes_of_it) - 1


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_another_user_reads_and_changes_nothing_of_it(models, monkeypatch, request):
    """Not even where the home is open to everybody, and so is the folder it lies in. The umask is the commands'."""
    monkeypatch.setenv("SERIN_PORT", "0")
    umask = os.umask(0o077)
    request.addfinalizer(lambda: os.umask(umask))
    with tempfile.TemporaryDirectory() as name, home(Path(name) / "home") as platform:
        Path(name).chmod(0o755)
        platform.path.chmod(0o755)
        platform.ended(platform.request(models / "1"))
        both_serve(platform, platform.platform.champion(SERVICE).revision)
        files = [str(each) for each in platform.path.rglob("*")]
        sockets = [str(each) for each in (platform.path / "sockets").iterdir()]
        assert len(sockets) == 3
        command = [sys.executable, "-c", AS_ANOTHER_USER, json.dumps([files, sockets])]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (tried.stdout, tried.returncode) == ("[]\n", 0), tried.stderr


AS_ANOTHER_USER = """
import json, os, socket, sys
os.setgroups([]), os.setgid(65534), os.setuid(65534)
files, sockets = json.loads(sys.argv[1])
got = []
for path in files:
    for flags in (os.O_RDONLY, os.O_WRONLY):
        try:
            os.open(path, flags)
            got.append([path, flags])
        except OSError:
            pass
for path in sockets:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        got.append(path)
    except OSError:
        pass
print(got)
"""


def test_the_first_model_is_live_after_its_checks(here):
    status = here.platform.rollouts()[0].status
    assert "first model of this service" in status.reason
    assert [check.name for check in status.checks] == ["answers", "parity"]


@pytest.mark.parametrize(
    ("path", "told"),
    [("/", f"Models: {SERVICE}"), ("/metrics", "Nothing is served at this path"),
     ("/v1/models/another:predict", SERVICE), ("/v2/models/another/infer", SERVICE)],
)  # fmt: skip
def test_what_is_not_there_is_answered_with_what_is(here, path, told):
    status, answer = asked_as(here, path, {})
    assert status == 404 and told in answer["error"]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {"Content-Type": "application/json"}),
        (200, {"Content-Type": "application/json; charset=utf-8", "Host": "localhost:9999", "Origin": "http://x"}),
        (200, {"Content-Type": "application/x-www-form-urlencoded"}),  # curl, unless it is told better
        (200, {}),
        (415, {"Content-Type": "text/plain"}),
        (415, {"Content-Type": "multipart/form-data; boundary=x"}),
        (415, {"Content-Type": "application/x-www-form-urlencoded", "Origin": "null"}),
        (415, {"Content-Type": "application/jsonp", "Origin": "http://localhost:8888"}),
        (415, {"Origin": "https://evil.example"}),
        (421, {"Content-Type": "application/json", "Host": "evil.example"}),
        (421, {"Content-Type": "application/json", "Host": "localhost.evil.example:80"}),
        (421, {"Content-Type": "application/json", "Host": "127.0.0.1.evil.example"}),
        (421, {"Content-Type": "application/json", "Host": "0.0.0.0:80"}),
    ],
)
def test_no_page_in_a_browser_gets_a_prediction(here, status, headers):
    body = json.dumps({"instances": [{"tenure": 5}]}).encode()
    found, answer = asked_as(here, f"/v1/models/{SERVICE}:predict", headers, body)
    assert found == status, answer
    assert ("predictions" in answer) == (status == 200) and ("error" in answer) == (status != 200)


def asked_as(here: Home, path: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(here.address).netloc, timeout=10)
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        assert answer.headers["content-type"] == "application/json"
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


TRAFFIC = """
import sys, time
from pathlib import Path
from serin.cli import main
from serin.platforms.embedded.client import Embedded
with main._traffic(Embedded(Path(sys.argv[1])), sys.argv[2], 20, Path(sys.argv[3])):
    print("started", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_the_load_generator_of_a_release_ends_with_it(here, tmp_path, by):
    """And holds nobody's pipe open: this would wait for its end."""
    command = [sys.executable, "-c", TRAFFIC, str(here.path), SERVICE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as release:
        assert release.stdout.readline() == "started\n"
        (generator,) = psutil.Process(release.pid).children()
        release.send_signal(by)
        release.communicate(timeout=20)
    here.wait(lambda: not generator.is_running() or generator.status() == psutil.STATUS_ZOMBIE, "its end")


def test_clients_that_speak_http_1_0_are_answered(here):
    address = urllib.parse.urlsplit(here.address)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(f"GET /v2/models/{SERVICE}/ready HTTP/1.0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.split(b" ", 2)[1] == b"200", answer


def test_a_healthy_candidate_is_promoted_without_a_lost_request(here, models):
    with traffic(here, models / "1") as tally:
        ended = here.ended(here.request(models / "2"))
        here.settled()
    status = ended.status
    assert status.phase is Phase.PROMOTED, here.story()
    assert (tally.failed, sum(tally.answers.values())) == (0, tally.sent), shown(tally)
    assert set(by_revision(tally)) == {status.stable_revision, status.candidate_revision}
    assert here.platform.champion(SERVICE).revision == status.candidate_revision
    assert 0 < status.requests.candidate <= by_revision(tally)[status.candidate_revision]

    windows = [timeline.from_document(each) for each in here.platform.store.windows(ended.metadata.name, "default")]
    for stage, share in enumerate((0.2, 0.5, 0.99)):
        under = [window for window in windows if window.stage == stage and window.share == share]
        candidate = sum(window.candidate.requests for window in under)
        total = candidate + sum(window.stable.requests for window in under)
        assert total > 100
        assert abs(candidate - share * total) <= 5 * math.sqrt(total * share * (1 - share)) + 1
    assert here.request(models / "2") == ended, "a model that serves already is not released again"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("errors", "answers: 21 of 21 requests without a valid answer"),
        ("scores", "parity: served scores differ"),
        ("crash", "requests without a valid answer"),
        ("latency", "checks at 0 % traffic did not finish within 3 s"),
        ("slowstart", "candidate was not ready after 3 s"),
    ],
)
def test_a_bad_candidate_is_refused_before_any_user_meets_it(here, models, fault, why):
    start_s = 3 if fault in ("latency", "slowstart") else 15
    with traffic(here, models / "1", rate=50) as tally:
        ended = here.ended(here.drill(models / "2", fault, checks=Checks.FULL, start_seconds=start_s))
    assert ended.status.phase is Phase.ROLLED_BACK and why in ended.status.reason, here.story()
    assert (tally.failed, sum(tally.answers.values())) == (0, tally.sent), shown(tally)
    assert set(by_revision(tally)) == {ended.status.stable_revision}
    assert ended.status.requests.candidate == 0


@pytest.mark.parametrize("change", CHANGES)
def test_a_candidate_that_cannot_answer_what_clients_send_is_refused_before_any_user_meets_it(here, tmp_path, change):
    """Its own samples are answered: only what is sent to stable shows what happened to a column."""
    write_model(tmp_path / "model")
    change_signature(tmp_path / "model", change)
    ended = here.ended(here.request(tmp_path / "model"))
    assert ended.status.phase is Phase.ROLLED_BACK, here.story()
    assert [check.name for check in ended.status.checks if not check.passed] == ["requests"]
    assert "requests: 0 of 21 requests answered by stable were also answered" in ended.status.reason
    assert "'Contract'" in ended.status.reason
    assert ended.status.requests.candidate == 0


def test_a_change_of_the_signature_that_clients_know_of_passes_the_checks(here, tmp_path):
    write_model(tmp_path / "model", intercept=2.2)
    change_signature(tmp_path / "model", "renamed")
    rollout = here.request(tmp_path / "model", plan=QUICK.model_copy(update={"checks": Checks.OWN}))
    here.reached(rollout, Phase.PROGRESSING)
    here.platform.patch_spec(rollout.metadata.name, abort=True)
    assert here.ended(rollout).status.phase is Phase.ROLLED_BACK


def test_without_checks_live_traffic_finds_the_errors(here, models):
    with traffic(here, models / "1") as tally:
        ended = here.ended(here.drill(models / "2", "errors", checks=Checks.NONE))
    assert ended.status.phase is Phase.ROLLED_BACK and "errors" in ended.status.reason, here.story()
    counts = by_revision(tally)
    assert tally.failed == counts[ended.status.candidate_revision] == ended.status.errors.candidate, shown(tally)
    here.settled()


def test_what_is_not_a_prediction_is_no_evidence(here, models):
    """Monitors, scanners and metadata calls get good answers from a model that fails every prediction."""
    with asked(f"{here.address}/v2/models/{SERVICE}", rate=150) as answers:
        rollout = here.drill(models / "2", "errors", checks=Checks.NONE)
        here.reached(rollout, Phase.PROGRESSING)
        before = len(answers)
        here.wait(lambda: len(answers) > before + 500, "500 answers about metadata")
        seen = here.find(rollout).status
        assert (seen.phase, seen.stage) == (Phase.PROGRESSING, 0), here.story()
        assert (seen.requests.stable, seen.requests.candidate) == (0, 0)
        with traffic(here, models / "1", rate=50) as tally:
            ended = here.ended(rollout)
    assert ended.status.phase is Phase.ROLLED_BACK and "errors" in ended.status.reason, here.story()
    assert set(answers) == {200}
    assert ended.status.requests.stable <= sum(tally.answers.values())
    assert ended.status.requests.candidate == ended.status.errors.candidate > 0


def test_clients_that_gave_up_count_against_the_candidate(here, models):
    """Each waits 80 ms for an answer that takes 150 ms: the server never gets to give one."""
    with traffic(here, models / "1", rate=100, timeout_s=0.08) as tally:
        ended = here.ended(here.drill(models / "2", "latency", checks=Checks.NONE))
    status = ended.status
    assert status.phase is Phase.ROLLED_BACK and "errors" in status.reason, here.story()
    assert "Clients abandoned" in status.reason
    assert 0 < status.errors.candidate <= status.requests.candidate <= tally.answers["", 0]
    windows = [timeline.from_document(each) for each in here.platform.store.windows(ended.metadata.name, "default")]
    assert timeline.total(windows, timeline.Arm.CANDIDATE).events["abandoned"] > 0


CALLS = policy.EventMetric(name="calls", weight=0.3, source=policy.Source(counter="serin_score_sum"))
"""Each customer is called with the probability that the model gives."""
CALLING = LENIENT.model_copy(
    update={
        "metrics": (CALLS,),
        "require": ("calls",),
        "scores": policy.ScoreMetric(expected=policy.Scores.DIFFERENT),
    }
)


def test_a_declared_metric_that_rises_sends_the_candidate_back(here, models, tmp_path):
    write_model(tmp_path, intercept=5)
    with traffic(here, models / "1"):
        ended = here.ended(here.request(tmp_path, judge=CALLING))
    assert ended.status.phase is Phase.ROLLED_BACK, here.story()
    assert ended.status.reason.startswith("The candidate is harmful: calls in "), ended.status.reason


def test_a_declared_metric_that_does_not_rise_is_judged_and_passes(here, models):
    with traffic(here, models / "1"):
        ended = here.ended(here.request(models / "4", judge=CALLING))
    assert ended.status.phase is Phase.PROMOTED, here.story()
    [calls] = [each for each in ended.status.evidence if each.metric == "calls"]
    assert calls.judged and calls.ratio.low < 1 < calls.ratio.high


def test_a_declared_metric_that_nobody_counts_is_refused_at_the_start(here, models):
    judge = JudgeSpec(metrics=(CALLS.model_copy(update={"source": None}),))
    ended = here.ended(here.request(models / "3", judge=judge))
    assert (ended.status.phase, ended.status.candidate_revision) == (Phase.FAILED, None)
    assert ended.status.reason == (
        "judge.metrics: nothing counts calls; give it a source, such as {counter: calls_total}"
    )


def test_retries_hide_a_candidate_that_crashes_from_users_not_from_the_judge(here, models):
    with traffic(here, models / "1") as tally:
        ended = here.ended(here.drill(models / "2", "crash", checks=Checks.NONE))
        here.settled()
    assert ended.status.phase is Phase.ROLLED_BACK, here.story()
    assert ended.status.errors.candidate > 0, here.story()
    assert ended.status.errors.stable == 0
    assert tally.failed <= ended.status.errors.candidate, shown(tally)


def test_a_supervisor_killed_in_every_phase_changes_nothing(here, models):
    with traffic(here, models / "1") as tally:
        rollout = here.request(models / "3")
        for phase in (Phase.DARK, Phase.CHECKING, Phase.PROGRESSING, Phase.BAKING):
            here.reached(rollout, phase)
            here.kill_supervisor()
            assert client.up(here.path) == here.address
        ended = here.ended(rollout)
        here.settled()
    assert ended.status.phase is Phase.PROMOTED, here.story()
    assert (tally.failed, sum(tally.answers.values())) == (0, tally.sent), shown(tally)
    phases = [entry.phase for entry in ended.status.history]
    assert phases.count(Phase.DARK) == phases.count(Phase.CHECKING) == 1


def test_a_supervisor_killed_while_rolling_back_rolls_back(here, models):
    with traffic(here, models / "1", rate=100) as tally:
        rollout = here.drill(models / "2", "errors", checks=Checks.NONE)
        here.reached(rollout, Phase.ROLLING_BACK)
        here.kill_supervisor()
        client.up(here.path)
        ended = here.ended(rollout)
        here.settled()
    assert ended.status.phase is Phase.ROLLED_BACK and "errors" in ended.status.reason
    assert tally.failed == by_revision(tally)[ended.status.candidate_revision], shown(tally)


def test_a_supervisor_that_gets_nothing_done_is_told(here, monkeypatch):
    monkeypatch.setattr(client, "SILENT_S", 1.0)
    pid = client.supervisor_pid(here.path)
    here.wait(lambda: here.platform.problem() is None, "a look at the platform")
    os.kill(pid, signal.SIGSTOP)
    try:
        here.wait(here.platform.problem, "the problem")
        assert "makes no progress" in here.platform.problem()
    finally:
        os.kill(pid, signal.SIGCONT)
    here.wait(lambda: here.platform.problem() is None, "a look at the platform")


def test_gateway_and_stable_server_come_back_and_the_rollout_ends_right(here, models):
    with traffic(here, models / "1") as tally:
        rollout = here.request(models / "4", plan=QUICK.model_copy(update={"checks": Checks.NONE}))
        here.reached(rollout, Phase.PROGRESSING)
        gateway = here.platform.store.setting("gateway_pid")
        os.kill(gateway[0], signal.SIGKILL)
        here.wait(lambda: here.platform.store.setting("gateway_pid") != gateway, "another gateway")
        here.wait(lambda: "the gateway died" in (here.platform.problem() or ""), "that to be said")
        stable = here.find(rollout).status.stable_revision
        killed = here.servers(stable)
        assert killed
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        here.wait(lambda: here.servers(stable) and not {*killed} & {*here.servers(stable)}, "stable's servers")
        ended = here.ended(rollout)
        here.settled()
    assert ended.status.phase is Phase.PROMOTED, here.story()
    assert client.up(here.path) == here.address
    candidate = ended.status.candidate_revision
    assert tally.answers[candidate, 200] == by_revision(tally)[candidate], shown(tally)


def both_serve(here: Home, revision: str) -> None:
    here.wait(lambda: here.healthy(revision) == 2, f"both servers of {revision}")


@pytest.mark.parametrize(("victim", "number"), [("stable", "2"), ("candidate", "3")])
def test_the_end_of_one_model_server_costs_no_user_an_answer_and_is_held_against_it(here, models, victim, number):
    quiet = Plan(stages=(Stage(traffic=50, min_seconds=30),), checks=Checks.NONE, start_seconds=20)
    with traffic(here, models / "1", rate=200) as tally:
        rollout = here.request(models / number, plan=quiet, judge=JudgeSpec(dry_run=True))
        here.reached(rollout, Phase.PROGRESSING)
        status = here.find(rollout).status
        revisions = {"stable": status.stable_revision, "candidate": status.candidate_revision}
        for revision in revisions.values():
            both_serve(here, revision)
        for turn in range(2):  # the second at the moment at which the first one is back
            before = here.servers(revisions[victim])
            os.kill(before[turn], signal.SIGKILL)
            here.wait(
                lambda before=before: before != (now := here.servers(revisions[victim])) and len(now) == 2,
                "another server",
            )
            both_serve(here, revisions[victim])
        here.wait(lambda: getattr(here.find(rollout).status.errors, victim), "the retried requests as errors")
        here.platform.patch_spec(rollout.metadata.name, abort=True)
        here.ended(rollout)
        here.settled()
    assert (tally.failed, sum(tally.answers.values())) == (0, tally.sent), shown(tally)
    errors = here.find(rollout).status.errors
    assert getattr(errors, "candidate" if victim == "stable" else "stable") == 0


def test_a_gateway_that_lets_no_clients_in_is_replaced_and_that_is_said(here):
    before = here.platform.store.setting("gateway_pid")
    ask(OnSocket(here.path, gateway.ADMIN), "/drain_listeners", b"")
    here.wait(lambda: "did not accept clients" in (here.platform.problem() or ""), "the problem")
    here.wait(lambda: here.platform.store.setting("gateway_pid") != before, "another gateway")
    assert client.up(here.path) == here.address
    body = json.dumps({"instances": [{"tenure": 5}]}).encode()
    assert asked_as(here, f"/v1/models/{SERVICE}:predict", {}, body)[0] == 200


# the platform itself


@pytest.fixture
def any_port(monkeypatch) -> None:
    monkeypatch.setenv("SERIN_PORT", "0")


@pytest.mark.usefixtures("any_port")
def test_up_finds_what_runs_and_down_leaves_nothing(tmp_path, models):
    with home(tmp_path / "home") as platform:
        supervisor = client.supervisor_pid(platform.path)
        assert client.up(platform.path) == platform.address
        assert client.supervisor_pid(platform.path) == supervisor
        platform.ended(platform.request(models / "1"))
        revision = platform.platform.champion(SERVICE).revision
        platform.wait(lambda: platform.healthy(revision) == 2, "both its servers")
        assert client.down(platform.path) == 4
        assert processes.belonging_to(platform.path) == [] and client.supervisor_pid(platform.path) is None
        assert client.down(platform.path) == 0

        assert client.up(platform.path) == platform.address
        body = json.dumps({"instances": [{"tenure": 5}]}).encode()
        assert asked_as(platform, f"/v1/models/{SERVICE}:predict", {}, body)[0] == 200, "the first one after `up`"

        platform.platform.store.save_setting(REPLICAS, 3)
        platform.wait(lambda: platform.healthy(revision) == 3, "as many servers as were asked for")


@pytest.mark.usefixtures("any_port")
def test_a_stable_revision_that_cannot_start_is_tried_for_ever_said_and_replaced_all_the_same(tmp_path, models):
    with home(tmp_path / "home") as platform:
        platform.ended(platform.request(models / "1"))
        revision = platform.platform.champion(SERVICE).revision
        folder = platform.platform.champion(SERVICE).model
        away = folder.rename(folder.with_name("moved away"))
        for pid in platform.servers(revision):
            os.kill(pid, signal.SIGKILL)
        platform.wait(lambda: "is not a model directory" in (platform.platform.problem() or ""), "the problem")
        assert f"{revision}, the stable revision of {SERVICE}, is not serving" in platform.platform.problem()
        client.down(platform.path)
        client.up(platform.path)
        platform.wait(lambda: "is not a model directory" in (platform.platform.problem() or ""), "the problem again")
        away.rename(folder)
        platform.wait(lambda: platform.healthy(revision) > 0, "the model to be served again")
        platform.wait(lambda: platform.platform.problem() is None, "the end of the problem")

        (folder / model.MODEL_FILE).write_bytes(b"bit rot")
        for pid in platform.servers(revision):
            os.kill(pid, signal.SIGKILL)
        platform.wait(lambda: "does not match its digest" in (platform.platform.problem() or ""), "the problem")
        plan = QUICK.model_copy(update={"on_inconclusive": OnInconclusive.PROMOTE, "deadline_seconds": 20})
        with traffic(platform, models / "1", rate=100):
            rollout = platform.request(models / "2", plan=plan)
            platform.wait(
                lambda: "stable is not serving" in platform.find(rollout).status.reason, "the reason to say so"
            )
            ended = platform.ended(rollout)
        assert ended.status.phase is Phase.PROMOTED, platform.story()


def test_a_port_that_is_taken_is_refused_by_its_holders_name_and_two_homes_share_none(tmp_path, monkeypatch):
    with home_on(tmp_path / "one", "0", monkeypatch) as one:
        taken = one.address.rsplit(":", 1)[1]
        gateway_pid = one.platform.store.setting("gateway_pid")[0]
        monkeypatch.setenv("SERIN_PORT", taken)
        assert client.up(one.path) == one.address
        refusal = (
            f"Port {taken} is taken by envoy .process {gateway_pid}.; stop that, or choose another with SERIN_PORT"
        )
        with pytest.raises(UserError, match=refusal):
            client.up(tmp_path / "two")
        assert not (tmp_path / "two").exists()
        with home_on(tmp_path / "two", "0", monkeypatch) as two:
            assert two.address != one.address
            monkeypatch.setenv("SERIN_PORT", taken)
            with pytest.raises(UserError, match=rf"listens on port \d+, not on SERIN_PORT={taken}"):
                client.up(two.path)
            assert client.down(two.path) == 2
            with pytest.raises(UserError, match=f"Port {taken} is taken"):
                client.up(two.path)
            assert client.supervisor_pid(two.path) is None
            assert client.up(one.path) == one.address and client.supervisor_pid(one.path) is not None


def test_a_port_taken_while_the_gateway_was_dead_is_said_and_taken_back(tmp_path, monkeypatch):
    with home_on(tmp_path / "home", "0", monkeypatch) as platform:
        port = int(platform.address.rsplit(":", 1)[1])
        supervisor = client.supervisor_pid(platform.path)
        os.kill(supervisor, signal.SIGSTOP)
        psutil.Process(platform.platform.store.setting("gateway_pid")[0]).kill()
        platform.wait(lambda: processes.port_is_free(port), "the port to be free")
        with socket.create_server(("127.0.0.1", port)):
            os.kill(supervisor, signal.SIGCONT)
            told = f"the gateway cannot listen on port {port}: it is taken by "
            platform.wait(lambda: told in (platform.platform.problem() or ""), "the problem")
            assert f"(process {os.getpid()})" in platform.platform.problem()
        platform.wait(lambda: "cannot listen" not in (platform.platform.problem() or ""), "the end of it")
        assert client.up(platform.path) == platform.address


def home_on(path: Path, port: str, monkeypatch):
    monkeypatch.setenv("SERIN_PORT", port)
    return home(path)


def test_the_commands_tell_the_whole_story(tmp_path, models, monkeypatch, capsys):
    place = tmp_path / "home"
    plan = tmp_path / "plan.yaml"
    plan.write_text("{stages: [{traffic: 50, minSeconds: 1}], startSeconds: 20}", encoding="utf-8")

    def serin(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["serin", "--home", str(place), *arguments])
        ended = 0
        try:
            cli.main()
        except SystemExit as end:
            ended = end.code
        told = capsys.readouterr()
        assert ended == code, f"{arguments}: {told}"
        assert "\x1b" not in told.out
        return told.out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SERIN_PORT", "0")
    with home(place):
        released = serin("release", str(models / "1"), "--service", SERVICE, "--plan", str(plan))
        assert released.splitlines()[-1].startswith("Promoted: 2 checks passed")
        assert serin("up").startswith("serving at http://127.0.0.1:")
        assert "serving at http://127.0.0.1:" in (status := serin("status")) and "Promoted" in status
        counted = json.loads(serin("load", "--service", SERVICE, "--rate", "50", "--seconds", "0.5"))
        assert counted["failed"] == 0 and counted["answered"] == counted["sent"] > 0

        drilled = serin("drill", "errors", "--traffic", "50")
        assert "requests served by the bad candidate: 0; failed in total: 0 of " in drilled.splitlines()[-1]
        assert json.loads(next((tmp_path / "runs").glob("drill-errors-*/load.json")).read_text())["failed"] == 0
        assert "Refused at 0 % traffic" in serin("history")
        assert serin("watch", code=1).splitlines()[-1].startswith("RolledBack: Refused")
        assert serin("down").startswith("stopped ")
        assert serin("down") == "nothing was running\n"
