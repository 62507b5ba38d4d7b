"""Things are handed out when they are due, the earliest first, to one worker at a time."""

import itertools
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serin.kube import due as module
from serin.kube.due import DueTimes

A, B = ("serving", "a"), ("serving", "b")


def never() -> bool:
    return False


def at_once(due: DueTimes) -> tuple[tuple[str, str], float] | None:
    """What is due now; None when nothing is."""
    asked = itertools.count()
    return due.take(lambda: next(asked) > 50)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.threading.Condition, "wait", lambda self, timeout=None: True)
    return now


def test_the_earliest_first_and_nothing_before_its_time(clock: list[float]) -> None:
    due = DueTimes()
    due.put(A, 1002)
    due.put(B, 1001)
    assert at_once(due) is None
    clock[0] = 1003
    assert due.overdue_s() == 2
    assert due.take(never) == (B, 1001)
    assert due.take(never) == (A, 1002)
    due.done(B)
    due.done(A)
    assert (at_once(due), due.overdue_s()) == (None, 0)


def test_it_is_due_at_the_earlier_of_two_times(clock: list[float]) -> None:
    due = DueTimes()
    due.put(A, 1010)
    due.put(A, 1000)
    due.put(A, 1005)
    assert due.take(never) == (A, 1000)
    due.done(A)
    clock[0] = 2000
    assert at_once(due) is None


def test_what_somebody_changed_does_not_wait_for_what_is_late(clock: list[float]) -> None:
    due = DueTimes()
    due.put(A, 900)
    due.put(B, 950)
    due.put(B, 1000, urgent=True)
    due.put(B, 940)
    assert due.overdue_s() == 100
    assert due.take(never) == (B, 1000)
    assert due.take(never) == (A, 900)


def test_what_is_with_a_worker_is_handed_out_again_only_afterwards(clock: list[float]) -> None:
    due = DueTimes()
    due.put(A, 1000)
    due.take(never)
    due.put(A, 1000)
    assert at_once(due) is None
    clock[0] = 1007
    assert due.overdue_s() == 7
    due.done(A)
    assert due.take(never) == (A, 1000)


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 5)), min_size=1, max_size=20))
def test_nothing_is_lost_or_with_two_workers(puts: list[tuple[tuple[str, str], int]]) -> None:
    due = DueTimes()
    taken: list[tuple[str, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_POLL_S", 0.0)
        for key, back_s in puts:
            due.put(key, time.monotonic() - back_s)
            if back_s % 2 and (found := at_once(due)) is not None:
                assert found[0] not in taken
                taken.append(found[0])
            elif taken:
                due.done(taken.pop())
        last = puts[-1][0]
        for key in taken:
            due.done(key)
        rest = [found[0] for _ in range(3) if (found := at_once(due)) is not None]
    assert len(rest) == len(set(rest))
    assert last in rest or last in taken


def test_a_worker_that_waits_is_woken() -> None:
    due = DueTimes()
    found: list[object] = []
    worker = threading.Thread(target=lambda: found.append(due.take(never)))
    worker.start()
    due.put(A, 0.0)
    worker.join(20)
    assert found == [(A, 0.0)]
