"""The fake against what was seen on a live cluster: the traps of canaryTrafficPercent, row by row."""

from collections.abc import Callable

import pytest

from serin.platforms.kserve.service import read
from tests.unit.kserve_fake import NEVER, FakeKServe, base, promoted, rejected


def slow(*models: str) -> Callable[[str], int]:
    """These models are not ready within the test."""
    return lambda model: NEVER if model in models else 0


def wake(fake: FakeKServe) -> FakeKServe:
    """Whatever was slow to start is ready now."""
    fake.delay = lambda _model: 0
    return fake.settle()


def f1() -> FakeKServe:
    fake = base().ask("v2", percent=10).settle()
    fake.delay = lambda model: NEVER if model == "v1" and len(fake.models) > 2 else 0
    fake.born["r1"] = -NEVER
    return fake.ask("v1", percent=None).settle()


def g1() -> FakeKServe:
    return promoted(delay=slow("v3")).ask("v3", percent=0).settle()


def g3() -> FakeKServe:
    return wake(g1()).ask(percent=50).settle()


def g4() -> FakeKServe:
    fake = g3().ask(percent=0).settle()
    fake.delay = slow("v2")
    fake.born["r2"] = -2 * NEVER
    return fake.ask("v2", percent=0).settle()


def k1() -> FakeKServe:
    return wake(g1()).ask(percent=100).settle()


def k2() -> FakeKServe:
    return k1().ask(percent=0).settle()


def n() -> FakeKServe:
    fake = promoted(delay=slow("v3")).ask("v3", percent=0).settle().ask("v2", percent=0).settle()
    return fake.ask(percent=None).settle()


def x() -> FakeKServe:
    fake = wake(g1()).ask(percent=20).settle()
    fake.patch({"metadata": {"labels": {"team": "blue"}}})
    return fake.settle()


def h(*, ready: bool) -> FakeKServe:
    fake = promoted(delay=slow("v3"))
    fake.race = True
    fake.ask("v3", percent=0).settle()
    return wake(fake) if ready else fake


ROWS: dict[str, tuple[Callable[[], FakeKServe], dict[str, int], str, str]] = {
    "A1": (lambda: base(delay=slow("v2")).ask("v2", percent=10).settle(), {"r1": 100}, "r1", ""),
    "A2": (lambda: base().ask("v2", percent=10).settle(), {"r2": 10, "r1": 90}, "r1", ""),
    "A3": (lambda: base().ask("v2", percent=10).settle().ask(percent=None).settle(), {"r2": 100}, "r2", "r1"),
    "B": (lambda: promoted().ask(percent=10).settle(), {"r2": 10, "r1": 90}, "r1", "r1"),
    "C1": (lambda: rejected(delay=slow("v3")).ask("v3", percent=20).settle(), {"r2": 20, "r1": 80}, "r1", ""),
    "C2": (
        lambda: wake(rejected(delay=slow("v3")).ask("v3", percent=20).settle()),
        {"r3": 20, "r1": 80},
        "r1",
        "",
    ),
    "D": (lambda: rejected().ask(percent=None).settle(), {"r2": 100}, "r2", "r1"),
    "E": (
        lambda: promoted().ask("v3", percent=10).settle().ask(percent=None).settle().ask(percent=0).settle(),
        {"r2": 100},
        "r2",
        "r2",
    ),
    "F1": (f1, {"r2": 100}, "r2", "r1"),
    "F2": (lambda: wake(f1()), {"r3": 100}, "r3", "r2"),
    "G1": (g1, {"r2": 100}, "r2", "r1"),
    "G2": (lambda: wake(g1()), {"r2": 100}, "r2", "r1"),
    "G3": (g3, {"r3": 50, "r2": 50}, "r2", "r1"),
    "G4": (g4, {"r2": 100}, "r2", "r1"),
    "G5": (lambda: wake(g4()), {"r2": 100}, "r2", "r1"),
    "G6": (lambda: wake(g4()).ask(percent=None).settle(), {"r4": 100}, "r4", "r2"),
    "K1": (k1, {"r3": 100}, "r3", "r2"),
    "K2": (k2, {"r2": 100}, "r2", "r2"),
    "K3": (lambda: k2().ask("v2", percent=0).settle().ask(percent=None).settle(), {"r4": 100}, "r4", "r2"),
    "L": (lambda: k1().ask("v2", percent=0).settle(), {"r3": 100}, "r3", "r2"),
    "N": (n, {"r4": 100}, "r4", "r2"),
    "X": (x, {"r4": 20, "r2": 80}, "r2", "r1"),
    "H, not ready": (lambda: h(ready=False), {"r1": 100}, "r1", "r1"),
    "H, ready": (lambda: h(ready=True), {"r1": 100}, "r1", "r1"),
}


@pytest.mark.parametrize("row", ROWS)
def test_traps_are_as_they_were_seen(row: str) -> None:
    steps, traffic, rolled_out, previous = ROWS[row]
    fake = steps()
    seen = read(fake.read())
    assert fake.traffic() == traffic
    assert (seen.rolled_out, seen.previous) == (rolled_out, previous)


def test_the_status_lags_behind_the_traffic() -> None:
    fake = base().ask("v2", percent=10).settle().ask(percent=50)
    fake.tick()
    assert fake.traffic() == {"r2": 50, "r1": 50}
    assert read(fake.read()).share("r2") == 10


def test_percent_alone_makes_no_revision() -> None:
    assert list(promoted().ask(percent=0).settle().models) == ["r1", "r2"]
