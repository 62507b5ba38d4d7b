"""One controller of several acts; a dead one is replaced, a leaving one hands over."""

import copy
import threading
from typing import Any

import pytest

from serin.errors import TryAgain
from serin.kube import leader as module
from serin.kube.api import Conflict
from serin.kube.leader import DURATION_S, GIVE_UP_S, RENEW_S, Leader


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


def tries(leader: Leader, clock: list[float], for_s: float = 0.0) -> bool:
    """Whether it leads after having tried, and renewed, for some time."""
    stop = threading.Event()
    end_s = clock[0] + for_s

    def wait(timeout: float | None = None) -> bool:
        if clock[0] + (timeout or 0) > end_s:
            stop.set()
        else:
            clock[0] += timeout or 0
        return stop.is_set()

    stop.wait = wait  # type: ignore[method-assign]
    leader.keep(stop)
    return leader.leads


def leader(leases: Leases, identity: str) -> Leader:
    api: Any = leases
    return Leader(api, "serin-system", identity)


def test_the_second_waits_until_the_first_is_silent(clock: list[float]) -> None:
    leases = Leases()
    first, second = leader(leases, "a"), leader(leases, "b")
    assert tries(first, clock)
    assert not tries(second, clock)
    clock[0] += DURATION_S - 1
    assert tries(first, clock)  # it renews
    assert not tries(second, clock)
    clock[0] += DURATION_S - 1
    assert not tries(second, clock)
    clock[0] += 2
    assert tries(second, clock)
    assert leases.held is not None
    assert leases.held["spec"]["holderIdentity"] == "b"
    assert leases.held["spec"]["leaseTransitions"] == 2


def test_whoever_sees_another_hold_it_stops_at_once(clock: list[float]) -> None:
    leases = Leases()
    first = leader(leases, "a")
    assert tries(first, clock)
    assert leases.held is not None
    leases.held["spec"]["holderIdentity"] = "b"
    leases.held["metadata"]["resourceVersion"] = "77"
    assert not tries(first, clock)


def test_leaving_hands_the_lease_over_at_once(clock: list[float]) -> None:
    leases = Leases()
    first, second = leader(leases, "a"), leader(leases, "b")
    assert tries(first, clock)
    first.hand_over()
    assert not first.leads
    assert tries(second, clock)
    first.hand_over()
    assert leases.held is not None
    assert leases.held["spec"]["holderIdentity"] == "b"


def test_who_cannot_renew_stops_before_another_may_begin_and_goes_on_by_itself(clock: list[float]) -> None:
    leases = Leases()
    first, second = leader(leases, "a"), leader(leases, "b")
    assert tries(first, clock)
    leases.down = True
    start_s = clock[0]
    assert tries(first, clock, for_s=GIVE_UP_S - RENEW_S)
    assert not tries(first, clock, for_s=2 * RENEW_S)
    assert clock[0] - start_s < DURATION_S
    clock[0] += 50
    leases.down = False
    assert tries(first, clock, for_s=RENEW_S)
    assert not tries(second, clock)


def test_who_was_stopped_for_a_while_does_not_act_when_it_wakes_up(clock: list[float]) -> None:
    first = leader(Leases(), "a")
    assert tries(first, clock)
    clock[0] += GIVE_UP_S + 1
    assert not first.leads
