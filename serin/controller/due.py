"""Which thing is to be looked at next, and when."""

import heapq
import threading
import time
from collections.abc import Callable
from typing import Final

from serin.controller.cache import Key

_POLL_S: Final = 1.0


class DueTimes:
    """Keys with the time, on the monotonic clock, at which each is due. A key is with one worker at a time; one that
    becomes due meanwhile is handed out again after `done`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due_s: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._taken: dict[Key, float] = {}

    def put(self, key: Key, at_s: float) -> None:
        """Due at `at_s`, or earlier if it was to be anyway."""
        with self._changed:
            if self._due_s.get(key, at_s + 1) <= at_s:
                return
            self._due_s[key] = at_s
            heapq.heappush(self._heap, (at_s, key))
            self._changed.notify()

    def take(self, until: Callable[[], bool]) -> tuple[Key, float] | None:
        """Wait for the first that is due, and since when it was; None once `until` holds, asked every second."""
        with self._changed:
            while not until():
                wait_s = _POLL_S
                if self._heap:
                    at_s, key = self._heap[0]
                    wait_s = min(at_s - time.monotonic(), _POLL_S)
                    if key in self._taken or self._due_s.get(key) != at_s:  # `done` comes back to it; it was moved
                        heapq.heappop(self._heap)
                        continue
                    if wait_s <= 0:
                        heapq.heappop(self._heap)
                        self._taken[key] = self._due_s.pop(key)
                        return key, at_s
                self._changed.wait(wait_s)
        return None

    def done(self, key: Key) -> None:
        with self._changed:
            del self._taken[key]
            if key in self._due_s:
                heapq.heappush(self._heap, (self._due_s[key], key))
                self._changed.notify()

    def overdue_s(self) -> float:
        """How long the one that waits longest has been due, those being looked at included."""
        with self._changed:
            first_s = min((*self._due_s.values(), *self._taken.values()), default=time.monotonic())
        return max(0.0, time.monotonic() - first_s)
