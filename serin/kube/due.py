"""Which thing is to be looked at next, and when."""

import heapq
import threading
import time
from collections.abc import Callable
from typing import Final

from serin.kube.informer import Key

_POLL_S: Final = 1.0
_Due = tuple[bool, float]
"""Whether it can wait for others, and the time."""


class DueTimes:
    """Keys with the time, on the monotonic clock, at which each is due. A key is with one worker at a time; one that
    becomes due meanwhile is handed out again after `done`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[Key, _Due] = {}
        self._heap: list[tuple[_Due, Key]] = []
        self._taken: dict[Key, float] = {}

    def put(self, key: Key, at_s: float, *, urgent: bool = False) -> None:
        """Due at `at_s`, or earlier if it was to be anyway. What is urgent goes before all that is not."""
        due = (not urgent, at_s)
        with self._changed:
            if key in self._due and self._due[key] <= due:
                return
            self._due[key] = due
            heapq.heappush(self._heap, (due, key))
            self._changed.notify()

    def take(self, until: Callable[[], bool]) -> tuple[Key, float] | None:
        """Wait for the first that is due, and since when it was; None once `until` holds, asked every second."""
        with self._changed:
            while not until():
                wait_s = _POLL_S
                if self._heap:
                    due, key = self._heap[0]
                    wait_s = min(due[1] - time.monotonic(), _POLL_S)
                    if key in self._taken or self._due.get(key) != due:  # `done` comes back to it; it was moved
                        heapq.heappop(self._heap)
                        continue
                    if wait_s <= 0:
                        heapq.heappop(self._heap)
                        _, self._taken[key] = self._due.pop(key)
                        return key, self._taken[key]
                self._changed.wait(wait_s)
        return None

    def done(self, key: Key) -> None:
        with self._changed:
            del self._taken[key]
            if key in self._due:
                heapq.heappush(self._heap, (self._due[key], key))
                self._changed.notify()

    def overdue_s(self) -> float:
        """How long the one that waits longest has been due, those being looked at included."""
        now_s = time.monotonic()
        with self._changed:
            waiting = [at_s for _, at_s in self._due.values()]
            return max(0.0, now_s - min((*waiting, *self._taken.values()), default=now_s))
