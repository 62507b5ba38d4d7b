"""What a clock that is set, forward or back, must not do to processes and rollouts."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from serin.platforms.embedded import client, processes
from serin.platforms.embedded.clock import Clock
from serin.platforms.embedded.store import Store

BEGAN_S = 1_795_000_000.0


class Machine:
    def __init__(self) -> None:
        self.wall_s, self.up_s, self.name = BEGAN_S, 50.0, "first boot"

    def passes(self, seconds: float) -> None:
        self.wall_s += seconds
        self.up_s += seconds

    def clock(self, store: Store) -> Clock:
        return Clock(store, wall=lambda: self.wall_s, steady=lambda: self.up_s, boot=lambda: self.name)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "home")
    yield opened
    opened.close()


def after_s(clock: Clock) -> float:
    return clock.now().timestamp() - BEGAN_S


@pytest.mark.parametrize("step_s", [10.0, -10.0, 86400.0, -86400.0])
def test_a_rollouts_time_goes_on_evenly_also_over_a_restart(store, step_s):
    machine = Machine()
    clock = machine.clock(store)
    assert after_s(clock) == pytest.approx(0)
    machine.passes(5)
    machine.wall_s += step_s
    assert after_s(clock) == pytest.approx(5)
    machine.passes(1)
    assert after_s(machine.clock(store)) == pytest.approx(6), "the next supervisor goes on with it"
    machine.clock(store).follow()
    assert after_s(machine.clock(store)) == pytest.approx(6 + step_s), "no rollout is under way"


def test_after_a_boot_the_machines_time_is_all_there_is(store):
    machine = Machine()
    assert after_s(machine.clock(store)) == pytest.approx(0)
    machine.passes(100)
    machine.name, machine.up_s = "second boot", 1.0
    assert after_s(machine.clock(store)) == pytest.approx(100)


def test_a_process_is_known_by_more_than_the_time_of_day(monkeypatch):
    known = processes.started(os.getpid())
    assert processes.alive(os.getpid(), known)
    before = psutil.Process(os.getpid()).create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: before + 10)  # as psutil tells after a step
    assert processes.started(os.getpid()) == known
    assert processes.alive(os.getpid(), known)


def test_a_process_that_ended_or_another_of_that_pid_is_not_it():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        known = processes.started(process.pid)
        assert processes.alive(process.pid, known)
        assert not processes.alive(os.getpid(), known)
        process.kill()
        deadline = time.monotonic() + 10
        while processes.alive(process.pid, known) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not processes.alive(process.pid, known), "a zombie is dead"
    assert not processes.alive(process.pid, known) and processes.started(process.pid) is None
    assert not processes.alive(None, known) and not processes.alive(os.getpid(), None)


def test_a_clock_that_was_set_forward_makes_no_supervisor_silent(store, monkeypatch):
    (store.home / processes.LOCK).touch()
    touched_ns = time.monotonic_ns()
    os.utime(store.home / processes.LOCK, ns=(touched_ns, touched_ns))
    monkeypatch.setattr(processes, "supervisor_pid", lambda _: os.getpid())
    monkeypatch.setattr(client, "supervisor_pid", lambda _: os.getpid())
    monkeypatch.setattr(time, "time", lambda: BEGAN_S * 2)
    assert client.Embedded(store.home).problem() is None
    monkeypatch.setattr(time, "monotonic", lambda: touched_ns / 1e9 + client.SILENT_S + 1)
    assert "makes no progress" in client.Embedded(store.home).problem()
