"""SIGKILL of each of a platform's processes, again and again, under live traffic: what do its users lose?"""

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Final

from benchmarks.common import Row
from benchmarks.platform import Bench
from serin import model
from serin.judge import JudgeSpec
from serin.plan import Checks, Plan, Stage
from serin.platforms.embedded import client, gateway, processes
from serin.rollout.document import Phase

RATE: Final = 200
HALF: Final = Plan(
    stages=(Stage(traffic=50, min_seconds=3600),), checks=Checks.NONE, start_seconds=60, deadline_seconds=7200
)
WATCHING: Final = JudgeSpec(dry_run=True)
"""The requests that retries save are not to end the rollout in which the next kill happens."""
PER_ROLLOUT: Final = 2
"""A candidate that died more often is rolled back."""
PROBE_S: Final = 0.005
SETTLE_S: Final = 1.0


def kills(bench: Bench, times: int) -> list[Row]:
    rows = []
    for what, kill, bound in (
        ("supervisor", _supervisor, "== 0"),
        ("command that watches", _command, "== 0"),
        ("model server of stable", _stable, "== 0"),
        ("model server of the candidate", _candidate, "== 0"),
    ):
        bench.reset()
        with bench.load(RATE) as tally:
            kill(bench, times)
            time.sleep(SETTLE_S)
        lost = tally().lost()
        print(f"  {what}: {lost} of {tally().sent} lost", flush=True)
        rows.append(Row(f"{times} kills of the {what} at {RATE}/s: requests lost", lost, "requests", bound))
    bench.reset()
    with bench.load(RATE) as tally:
        away_s = _gateway(bench, times)
        time.sleep(SETTLE_S)
    print(f"  gateway: {tally().lost()} of {tally().sent} lost, {max(away_s):.2f} s", flush=True)
    rows += [
        Row(f"{times} kills of the gateway at {RATE}/s: longest without an answer", max(away_s), "s", "<= 1"),
        Row(f"{times} kills of the gateway at {RATE}/s: requests lost", tally().lost(), "requests"),
    ]
    return rows


def _supervisor(bench: Bench, times: int) -> None:
    for _ in range(times):
        pid = client.supervisor_pid(bench.home)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        _until(lambda killed=pid: client.supervisor_pid(bench.home) != killed)  # type: ignore[misc]
        client.up(bench.home)
        time.sleep(0.5)


def _command(bench: Bench, times: int) -> None:
    name = bench.release(bench.new, HALF, WATCHING)
    bench.follow(name, lambda each: each.status.phase is Phase.PROGRESSING)
    for _ in range(times):
        command = processes.python("serin.cli.main", "--home", str(bench.home), "watch", name)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as watching:
            time.sleep(1)
            watching.kill()
    bench.platform.patch_spec(name, abort=True)
    bench.follow(name)


def _stable(bench: Bench, times: int) -> None:
    serving = bench.platform.champion(bench.config.service)
    assert serving is not None
    bench.await_servers(serving.revision)
    for number in range(times):
        _kill_one(bench, serving.revision, number)


def _candidate(bench: Bench, times: int) -> None:
    for first in range(0, times, PER_ROLLOUT):
        name = bench.release(bench.new, HALF, WATCHING)
        started = bench.follow(name, lambda each: each.status.phase is Phase.PROGRESSING).status
        bench.await_servers(started.stable_revision, started.candidate_revision)
        for number in range(min(PER_ROLLOUT, times - first)):
            assert started.candidate_revision is not None
            _kill_one(bench, started.candidate_revision, number)
        bench.platform.patch_spec(name, abort=True)
        bench.follow(name)


def _kill_one(bench: Bench, revision: str, number: int) -> None:
    servers = bench.servers(revision)
    os.kill(servers[number % len(servers)], signal.SIGKILL)
    _until(lambda: servers != bench.servers(revision) and len(bench.servers(revision)) == len(servers))
    bench.await_servers(revision)


def _gateway(bench: Bench, times: int) -> list[float]:
    """Seconds from each kill to the first answer after it."""
    serving = bench.platform.champion(bench.config.service)
    assert serving is not None
    bench.await_servers(serving.revision)
    path = f"/v1/models/{bench.config.service}:predict"
    body = json.dumps({"instances": list(model.samples(serving.model).records[:1])}).encode()
    away_s = []
    for _ in range(times):
        pid, _ = bench.platform.store.setting("gateway_pid") or (None, None)
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        _until(lambda: _answers(bench.platform.store.setting("port"), path, body))
        away_s.append(time.monotonic() - start)
        bench.await_servers(serving.revision)
        time.sleep(SETTLE_S)
    return away_s


def _answers(port: int, path: str, body: bytes) -> bool:
    connection = http.client.HTTPConnection(gateway.LOCAL, port, timeout=5)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit("a process that was killed is not back after a minute")
        time.sleep(PROBE_S)
