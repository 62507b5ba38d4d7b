"""The controller's process."""

import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from serin.controller import __main__ as module
from serin.errors import TryAgain


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Broken:
    """Fails once in a way that nobody foresaw; nothing can be listed."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._calls = 0

    def _fail(self, verb: str) -> None:
        if verb == self._verb and not self._calls:
            self._calls += 1
            raise OSError(24, "Too many open files")

    def get(self, path: str) -> dict[str, Any] | None:
        self._fail("get")
        return None

    def create(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        return document

    def list(self, path: str, labels: str = "") -> dict[str, Any]:
        self._fail("list")
        raise TryAgain("not now", delay_s=1)


@pytest.mark.parametrize("verb", ["get", "list"])
def test_a_watch_or_a_lease_that_nobody_keeps_any_more_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(module.Api, "connect", lambda: Broken(verb))
    monkeypatch.setattr(sys, "argv", ["serin.controller", "--port", "0", "--namespace", "serin-system"])
    monkeypatch.setattr(module, "POLL_S", 0.01)
    timer = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
        assert module.main() == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, timer)
