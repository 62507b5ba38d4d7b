"""One controller of several acts; a dead one is replaced, a leaving one hands over."""

import copy
import threading
from typing import Any

import pytest

from serin.controller import leader as module
from serin.controller.leader import DURATION_S, Leader
from serin.errors import TryAgain
from serin.platforms.kserve.api import Conflict


class Leases:
    """The API server, as far as one Lease goes."""

    def __init__(self) -> None:
        self.held: dict[str, Any] | None = None
        self.down = False

    def get(self, path: str) -> dict[str, Any] | None:
        if self.down:
            raise TryAgain("the API server does not answer", delay_s=1)
        return copy.deepcopy(self.held)

    def create(self, path: str, document: dict[str, Any]) -> None:
        assert self.held is None
        self.held = copy.deepcopy(document)
        self.held["metadata"]["resourceVersion"] = "1"

    def replace(self, path: str, document: dict[str, Any]) -> None:
        assert self.held is not None
        version = self.held["metadata"]["resourceVersion"]
        if document["metadata"]["resourceVersion"] != version:
            raise Conflict("modified", delay_s=0)
        self.held = copy.deepcopy(document)
        self.held["metadata"]["resourceVersion"] = str(int(version) + 1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def acquires(leader: Leader) -> bool:
    """Whether one attempt makes it the leader."""
    stop = threading.Event()
    stop.wait = lambda timeout=None: stop.set() or True  # type: ignore[method-assign]
    leader.acquire(stop)
    return leader.leads


def test_the_second_waits_until_the_first_is_silent(clock: list[float]) -> None:
    leases = Leases()
    first, second = Leader(leases, "serin-system", "a"), Leader(leases, "serin-system", "b")  # type: ignore[arg-type]
    assert acquires(first)
    assert not acquires(second)
    clock[0] += DURATION_S - 1
    assert acquires(first)  # it renews
    assert not acquires(second)
    clock[0] += DURATION_S - 1
    assert not acquires(second)
    clock[0] += 2
    assert acquires(second)
    assert leases.held is not None
    assert leases.held["spec"]["holderIdentity"] == "b"
    assert leases.held["spec"]["leaseTransitions"] == 2


def test_leaving_hands_the_lease_over_at_once(clock: list[float]) -> None:
    leases = Leases()
    first, second = Leader(leases, "serin-system", "a"), Leader(leases, "serin-system", "b")  # type: ignore[arg-type]
    assert acquires(first)
    stop = threading.Event()
    stop.set()
    first.keep(stop)
    assert acquires(second)


def test_who_cannot_renew_stops_before_another_may_begin(clock: list[float]) -> None:
    leases = Leases()
    first = Leader(leases, "serin-system", "a")  # type: ignore[arg-type]
    assert acquires(first)
    leases.down = True
    stop = threading.Event()
    waited_s = 0.0

    def wait(timeout: float | None = None) -> bool:
        nonlocal waited_s
        waited_s += timeout or 0
        clock[0] += timeout or 0
        return stop.is_set()

    stop.wait = wait  # type: ignore[method-assign]
    first.keep(stop)
    assert stop.is_set()
    assert not first.leads
    assert waited_s < DURATION_S
