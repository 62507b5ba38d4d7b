"""The server's own log lines, whatever clients make of them: some per minute from each place in the code, and nothing
in them that a terminal or a reader of lines would take for anything but text."""

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

LINES: Final = 10
PERIOD_S: Final = 60.0

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Limited(logging.Filter):
    """Lets `LINES` records from each line of code pass in each period; the next period's first one says how many were
    left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._periods: dict[tuple[str, int], tuple[float, int]] = {}
        """By place in the code: when its period began, and how many records it has had since."""

    def filter(self, record: logging.LogRecord) -> bool:
        place, now_s = (record.pathname, record.lineno), self._clock()
        start_s, count = self._periods.get(place, (now_s, 0))
        if now_s - start_s >= PERIOD_S:
            record.left_out = max(0, count - LINES)
            start_s, count = now_s, 0
        self._periods[place] = start_s, count + 1
        return count < LINES


class Text(logging.Formatter):
    """Escapes what is not printable; the lines of a traceback are indented, so that none looks like a record."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.message, record.asctime = record.getMessage(), self.formatTime(record)
        left_out = getattr(record, "left_out", 0)
        line = printable(self.formatMessage(record)) + (f" ({left_out} like this one were left out)" * bool(left_out))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def formatException(self, error: _ExcInfo) -> str:
        return "\n".join(f"    {printable(line)}" for line in super().formatException(error).splitlines())


def printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def configure() -> None:
    handler = logging.StreamHandler()
    handler.addFilter(Limited())
    handler.setFormatter(Text())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
