"""The time of day as rollouts count it."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from serin.platforms.embedded import processes
from serin.platforms.embedded.store import Store

CLOCK: Final = "clock"
STEP_S: Final = 0.5


class Clock:
    """Goes on evenly while a rollout is under way, also over a restart of the supervisor, whatever is done to the
    machine's clock: because somebody set it, no stage is over sooner, no deadline passed, no window negative.
    Between rollouts it follows the machine's clock.

    `wall` and `steady`: seconds since the epoch, and since any moment of this boot.
    """

    def __init__(
        self,
        store: Store,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        boot: Callable[[], str] = processes.boot,
    ) -> None:
        self._store, self._wall, self._steady, self._boot = store, wall, steady, boot()
        known_boot, offset_s = store.setting(CLOCK) or (None, 0.0)
        self._offset_s: float | None = offset_s if known_boot == self._boot else None

    def now(self) -> datetime:
        if self._offset_s is None:
            self.follow()
        return datetime.fromtimestamp(self._steady() + (self._offset_s or 0.0), UTC)

    def follow(self) -> None:
        """Take the machine's time again; for when no rollout is under way."""
        offset_s = self._wall() - self._steady()
        if self._offset_s is None or abs(offset_s - self._offset_s) > STEP_S:
            self._store.save_setting(CLOCK, [self._boot, offset_s])
            self._offset_s = offset_s
