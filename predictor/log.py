"""The prediction log: what was asked and answered, for replay, labels and drift.

It never blocks or fails a request: entries wait in a bounded buffer, a thread writes them in batches, and every row
that is not written is counted.
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
CAPACITY_BYTES: Final = 64 * 2**20
WRITE_ROWS: Final = 4_000
"""10,000 would make fewer files and take 20 MB more."""
WRITE_BYTES: Final = 8 * 2**20
WRITE_S: Final = 10.0
CLOSE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One request and its answer; `time_s` is UTC epoch, `size_bytes` that of the request as it came."""

    request_id: str
    time_s: float
    batch: Batch
    scores: NDArray[Any]
    size_bytes: int


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
                f"Prediction log: {name!r} is not a feature of the model; correct --log-exclude or --log-hash."
            )
        if self.hashed and not self.key:
            raise UserError("Prediction log: --log-hash needs a secret key; set SERIN_LOG_KEY.")

    def columns(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Values by feature: float32 with NaN for missing, or str with "" for missing."""
        columns: dict[str, NDArray[Any]] = {}
        for features, values in ((self.layout.numbers, batch.numbers), (self.layout.strings, batch.strings)):
            for feature, column in zip(features, values, strict=True):
                if feature.name in self.excluded:
                    continue
                if feature.name in self.hashed:
                    columns[feature.name] = np.array([self._hash(value) for value in column.tolist()], object)
                else:
                    columns[feature.name] = column
        return columns

    def _hash(self, value: float | str) -> str:
        if is_missing(value):
            return ""
        return hmac.new(self.key, str(value).encode(), hashlib.sha256).hexdigest()[:32]


def is_missing(value: float | str) -> bool:
    return value == "" or value != value  # NaN alone differs from itself


class PartlyWritten(Exception):
    """The first `rows` rows are written, the rest of the entries is lost."""

    def __init__(self, rows: int) -> None:
        super().__init__(f"only {rows} rows were written")
        self.rows = rows


class Sink(Protocol):
    def write(self, entries: Sequence[Entry]) -> None:
        """Raises `PartlyWritten` when some of the entries are lost, anything else when all of them are."""
        ...


class PredictionLog:
    """`rows` counts what was "written", "failed" (the sink refused it) and "dropped" (the buffer was full, or the
    log was closed before its turn came)."""

    def __init__(self, sink: Sink, *, capacity_rows: int = CAPACITY_ROWS, write_s: float = WRITE_S) -> None:
        self.rows: Counter[str] = Counter(written=0, failed=0, dropped=0)
        self._sink, self._capacity_rows, self._write_s = sink, capacity_rows, write_s
        self._lock = threading.Lock()
        self._waiting: list[Entry] = []
        self._waiting_rows = 0
        self._waiting_bytes = 0
        self._writing_rows = 0
        self._due = threading.Event()
        self._closing = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def add(self, entry: Entry) -> None:
        with self._lock:
            rows, size_bytes = self._waiting_rows + entry.batch.rows, self._waiting_bytes + entry.size_bytes
            if self._closed or rows > self._capacity_rows or size_bytes > CAPACITY_BYTES:
                self.rows["dropped"] += entry.batch.rows
                return
            self._waiting.append(entry)
            self._waiting_rows, self._waiting_bytes = rows, size_bytes
            due = rows >= WRITE_ROWS or size_bytes >= WRITE_BYTES
        if due:
            self._due.set()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what waits, for at most `timeout_s`; what is not written by then counts as dropped."""
        self._closing = True
        self._due.set()
        self._thread.join(timeout_s)
        with self._lock:
            self._closed = True
            lost = self._waiting_rows + self._writing_rows
            self._waiting, self._waiting_rows, self._writing_rows = [], 0, 0
            self.rows["dropped"] += lost
        if lost:
            logger.error(
                "%d rows of the prediction log are lost: not written within %g s of the end", lost, timeout_s
            )

    def _run(self) -> None:
        closing = False
        while not closing:
            self._due.wait(self._write_s)
            self._due.clear()
            closing = self._closing
            with self._lock:
                entries, self._waiting = self._waiting, []
                self._writing_rows, self._waiting_rows, self._waiting_bytes = self._waiting_rows, 0, 0
            if entries:
                self._write(entries)

    def _write(self, entries: list[Entry]) -> None:
        rows = written = sum(entry.batch.rows for entry in entries)
        try:
            self._sink.write(entries)
        except Exception as error:  # whatever ails the sink, requests go on and the next write is tried
            written = error.rows if isinstance(error, PartlyWritten) else 0
            logger.exception("%d rows of the prediction log are lost", rows - written)
        with self._lock:
            if not self._closed:  # else `close` has counted them
                self.rows["written"] += written
                self.rows["failed"] += rows - written
            self._writing_rows = 0
