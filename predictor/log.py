"""The prediction log: what was asked and answered, for replay, labels and drift.

It never blocks or fails a request: entries wait in a bounded buffer, a thread writes them in batches, and what
does not fit or cannot be written is dropped and counted.
"""

import hashlib
import hmac
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from predictor.columns import Batch, Layout
from serin.errors import UserError

logger = logging.getLogger("predictor.log")

CAPACITY_ROWS: Final = 100_000
WRITE_ROWS: Final = 10_000
WRITE_S: Final = 10.0
CLOSE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One request and its answer; `time_s` is UTC epoch."""

    request_id: str
    time_s: float
    batch: Batch
    scores: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Fields:
    """Which features are written, and how. `hashed` ones are written as a keyed hash: equal values stay equal,
    and nobody without `key` can find the value by trying.

    Raises `UserError` for names that are no features, and for hashing without a key.
    """

    layout: Layout
    excluded: frozenset[str] = frozenset()
    hashed: frozenset[str] = frozenset()
    key: bytes = b""

    def __post_init__(self) -> None:
        for name in sorted((self.excluded | self.hashed) - self.layout.names):
            raise UserError(
                f"Prediction log: {name!r} is no feature of the model; correct --log-exclude or --log-hash."
            )
        if self.hashed and not self.key:
            raise UserError("Prediction log: --log-hash needs a secret key; set SERIN_LOG_KEY.")

    def columns(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Values by feature: float32 with NaN for missing, or str with "" for missing."""
        columns: dict[str, NDArray[Any]] = {}
        for features, values in ((self.layout.numbers, batch.numbers), (self.layout.strings, batch.strings)):
            for feature, column in zip(features, values, strict=True):
                if feature.name in self.hashed:
                    columns[feature.name] = np.array([self._hash(value) for value in column.tolist()], object)
                elif feature.name not in self.excluded:
                    columns[feature.name] = column
        return columns

    def _hash(self, value: float | str) -> str:
        if is_missing(value):
            return ""
        return hmac.new(self.key, str(value).encode(), hashlib.sha256).hexdigest()[:32]


def is_missing(value: float | str) -> bool:
    return value == "" or value != value  # NaN alone differs from itself


class Sink(Protocol):
    def write(self, entries: Sequence[Entry]) -> None:
        """Raises when the entries are lost."""
        ...


class PredictionLog:
    """`rows` counts what was "written", "failed" (the sink refused it) and "dropped" (the buffer was full)."""

    def __init__(self, sink: Sink, *, capacity_rows: int = CAPACITY_ROWS, write_s: float = WRITE_S) -> None:
        self.rows: Counter[str] = Counter(written=0, failed=0, dropped=0)
        self._sink, self._capacity_rows, self._write_s = sink, capacity_rows, write_s
        self._lock = threading.Lock()
        self._waiting: list[Entry] = []
        self._waiting_rows = 0
        self._due = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def add(self, entry: Entry) -> None:
        with self._lock:
            if self._waiting_rows + entry.batch.rows > self._capacity_rows:
                self.rows["dropped"] += entry.batch.rows
                return
            self._waiting.append(entry)
            self._waiting_rows += entry.batch.rows
            due = self._waiting_rows >= WRITE_ROWS
        if due:
            self._due.set()

    def close(self) -> None:
        """Write what waits, for at most `CLOSE_S`, then stop."""
        self._closing = True
        self._due.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        closing = False
        while not closing:
            self._due.wait(self._write_s)
            self._due.clear()
            closing = self._closing
            with self._lock:
                entries, self._waiting = self._waiting, []
                rows, self._waiting_rows = self._waiting_rows, 0
            if entries:
                self._write(entries, rows)

    def _write(self, entries: list[Entry], rows: int) -> None:
        try:
            self._sink.write(entries)
        except Exception:  # whatever ails the sink, requests go on and the next write is tried
            self.rows["failed"] += rows
            logger.exception("%d rows of the prediction log are lost", rows)
        else:
            self.rows["written"] += rows
