"""What a machine does to a watched rollout: a large model beside it, a full disk, a clock that is set, long years."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from benchmarks.common import Row
from benchmarks.platform import QUICK, Bench
from serin import model, release
from serin.judge import JudgeSpec
from serin.plan import Checks, Plan, Stage
from serin.platforms.embedded import client, processes
from serin.rollout.document import Candidate, Phase, Spec

WATCHED: Final = Plan(
    stages=(Stage(traffic=5, min_seconds=3600),), checks=Checks.NONE, start_seconds=60, deadline_seconds=7200
)
WATCHING: Final = JudgeSpec(dry_run=True)
"""Nothing but what is measured is to end the rollout."""
MB: Final = 2**20
DISK_MB: Final = 256
STEPS_S: Final = (10.0, -10.0)
_SUPERVISOR: Final = """
import sys, time
from pathlib import Path
clock, home = Path(sys.argv[1]), Path(sys.argv[2])
true = time.time
time.time = lambda: true() + float(clock.read_text())
from serin.platforms.embedded import supervisor
sys.exit(supervisor.main(home, time.time))
"""


def takeover(bench: Bench, size_mb: int) -> list[Row]:
    """A model of `size_mb` is released for another service while a candidate has traffic."""
    large = bench.folder / "large"
    shutil.copytree(bench.new, large)
    with (large / "model" / "weights.bin").open("wb") as file:
        for _ in range(size_mb):
            file.write(secrets.token_bytes(MB))
    digest = model.seal(large)
    bench.reset()
    with bench.load(100):
        watched = _watched(bench)
        quiet_s = _gaps_s(bench, watched, lambda: time.sleep(10))
        spec = Spec(service="large", candidate=Candidate(storage_uri=str(large), digest=digest), plan=QUICK)
        name = release.request(bench.platform, spec, digest).metadata.name
        start = time.monotonic()
        busy_s = _gaps_s(
            bench, watched, lambda: bench.follow(name, lambda each: each.status.phase is not Phase.PENDING)
        )
        took_s = time.monotonic() - start
        assert bench.find(name).status.phase is not Phase.FAILED, bench.find(name).status.reason
        bench.platform.patch_spec(name, abort=True)
        _end(bench, watched)
    shutil.rmtree(large)
    what = f"{size_mb / 1000:g} GB model taken over beside a watched rollout"
    return [
        Row(f"{what}: took", took_s, "s"),
        Row(f"{what}: looks at the rollout meanwhile", len(busy_s), "", ">= 2"),
        Row(f"{what}: longest time between two looks", max(busy_s), "s", "<= 1"),
        Row("longest time between two looks in 10 s before that", max(quiet_s), "s"),
    ]


def disk_full(bench: Bench, times: int) -> list[Row]:
    """A candidate at 5 % fails every request, the judge is not asked, and the disk of the platform is full."""
    took_s, lost, back = [], 0, 0
    with _small_disk(bench) as disk:
        for number in range(times):
            with bench.load(100) as tally:
                name = bench.drill("errors", WATCHED, WATCHING)
                bench.follow(name, lambda each: each.status.requests.candidate > 0)
                with bench.route_changes() as changes:
                    time.sleep(0.2)
                    filled_s = _fill(disk)
                    deadline = time.monotonic() + 60
                    while not any(each > filled_s for each in changes) and time.monotonic() < deadline:
                        time.sleep(0.01)
                took_s.append(min((each for each in changes if each > filled_s), default=filled_s + 60) - filled_s)
                time.sleep(1.5)  # the load generator's count is a second old at most
                before = tally().of(bench.find(name).status.candidate_revision)
                time.sleep(3)
                back += tally().of(bench.find(name).status.candidate_revision) == before
                (disk / "filling").unlink()
                _end(bench, name)
                candidate = bench.find(name).status.candidate_revision
            lost += tally().lost(besides=candidate)
            print(f"  full disk {number + 1} of {times}: {took_s[-1]:.2f} s", flush=True)
    return [
        Row("disk full, candidate failing at 5 %: until all traffic is on stable, worst", max(took_s), "s", "<= 5"),
        Row("disk full: the candidate gets nothing while it lasts", back, f"of {times}", f"== {times}"),
        Row("disk full: requests lost besides the candidate's", lost, "requests", "== 0"),
    ]


def clock_steps(bench: Bench) -> list[Row]:
    """The supervisor's clock (not the machine's) is set by 10 s while a candidate has traffic."""
    rows = []
    stage = Stage(traffic=50, min_seconds=15, margin=5)
    plan = QUICK.model_copy(update={"stages": (stage,)})
    for step_s in STEPS_S:
        bench.reset()
        with _settable_clock(bench) as clock, bench.load(200) as tally:
            known = bench.platform.store.setting("gateway_pid")
            name = bench.release(bench.new, plan)
            bench.follow(name, lambda each: each.status.phase is Phase.PROGRESSING)
            start = time.monotonic()
            time.sleep(1)
            servers = _servers(bench)
            clock.write_text(str(step_s))
            bench.follow(name, lambda each: each.status.phase is not Phase.PROGRESSING)
            lasted_s = time.monotonic() - start
            same = known == bench.platform.store.setting("gateway_pid") and servers <= _servers(bench)
            ended = bench.follow(name)
            clock.write_text("0")
            drill = bench.drill("errors", WATCHED)
            bench.follow(drill, lambda each: each.status.phase is Phase.PROGRESSING)
            clock.write_text(str(step_s))
            bad = bench.follow(drill)
            time.sleep(1)
        what = f"clock set by {step_s:+.0f} s in a stage"
        rows += [
            Row(f"{what} of {stage.min_seconds:.0f} s: the stage lasted", lasted_s, "s", f">= {stage.min_seconds:g}"),
            Row(f"{what}: promoted in the end", float(ended.status.phase is Phase.PROMOTED), "", "== 1"),
            Row(f"{what}: gateway and servers are the same processes", float(same), "", "== 1"),
            Row(f"{what}: requests lost", tally().lost(besides=bad.status.candidate_revision), "requests", "== 0"),
            Row(f"{what}: failing candidate got", bad.status.requests.candidate, "requests", "<= 100"),
        ]
        print(f"  {what}: {ended.status.reason}; {bad.status.reason}", flush=True)
    return rows


def history(bench: Bench, rollouts: int) -> list[Row]:
    """Years of rollouts in the store."""
    bench.reset()
    store = bench.platform.store
    with store.transaction():
        store._run(
            "WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < ?)"
            " INSERT INTO rollout (namespace, name, created_at, spec, status)"
            " SELECT namespace, name || '-old-' || n, created_at, spec, status FROM rollout, counted LIMIT ?",
            (rollouts, rollouts),
        )
    command = processes.python("serin.cli.main", "--home", str(bench.home), "status")
    took_s, cpu_s = [], []
    for _ in range(5):
        start, before = time.monotonic(), os.times()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        took_s.append(time.monotonic() - start)
        cpu_s.append(after.children_user + after.children_system - before.children_user - before.children_system)
    pid = client.supervisor_pid(bench.home)
    supervisor = psutil.Process(pid)
    seconds = 20.0
    started = sum(supervisor.cpu_times()[:2])
    time.sleep(seconds)
    idle = 100 * (sum(supervisor.cpu_times()[:2]) - started) / seconds
    return [
        Row(f"`serin status` with {rollouts:,} rollouts, fastest of 5", min(took_s), "s", "<= 0.5"),
        Row(f"`serin status` with {rollouts:,} rollouts, processor time, least of 5", min(cpu_s), "s"),
        Row(f"idle supervisor with {rollouts:,} rollouts, of a core", idle, "%", "<= 2"),
    ]


def _watched(bench: Bench) -> str:
    name = bench.release(bench.new, WATCHED, WATCHING)
    bench.follow(name, lambda each: each.status.requests.candidate > 0)
    return name


def _end(bench: Bench, name: str) -> None:
    bench.platform.patch_spec(name, abort=True)
    bench.follow(name)


def _gaps_s(bench: Bench, name: str, happens: Callable[[], object]) -> list[float]:
    """The lengths of the windows that were open or opened while something happens: one from each look to the next."""
    found = bench.find(name)
    first = bench.platform.store.last_window(found)
    happens()
    time.sleep(0.5)
    windows = bench.platform.windows(name)
    return [each["endS"] - each["startS"] for each in windows if each["id"] > first]


def _servers(bench: Bench) -> set[int]:
    return {
        server.pid for each in bench.platform.store.revisions() for server in each.servers if server.pid is not None
    }


@contextmanager
def _settable_clock(bench: Bench) -> Iterator[Path]:
    """The platform with a supervisor whose time of day is off by what the file says."""
    clock = bench.folder / "clock"
    clock.write_text("0")
    pid = client.supervisor_pid(bench.home)
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    while client.supervisor_pid(bench.home) is not None:
        time.sleep(0.02)
    log = bench.home / "logs" / "supervisor.log"
    command = [sys.executable, "-P", "-c", _SUPERVISOR, str(clock), str(bench.home)]
    child, _ = processes.spawn(command, folder=bench.home, log=log)
    client.up(bench.home)
    try:
        yield clock
    finally:
        client.down(bench.home)
        child.wait(30)
        client.up(bench.home)


@contextmanager
def _small_disk(bench: Bench) -> Iterator[Path]:
    """The platform on a file system of its own; needs root."""
    disk = bench.folder / "small disk"
    disk.mkdir()
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "bench", str(disk)], check=True)
    usual = bench.home
    client.down(usual)
    bench.move(disk / "home")
    try:
        yield disk
    finally:
        client.down(bench.home)
        bench.platform.store.close()
        with contextlib.suppress(FileNotFoundError):
            (disk / "filling").unlink()
        subprocess.run(["/bin/umount", str(disk)], check=True)
        bench.move(usual)


def _fill(disk: Path) -> float:
    """Returns when nothing more could be written (epoch seconds)."""
    with (disk / "filling").open("wb", buffering=0) as file:
        for size in (MB, 4096):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return time.time()
