"""Log lines that clients have a hand in."""

import io
import logging
from collections.abc import Iterator

import pytest

from predictor.logs import LINES, PERIOD_S, Limited, Text


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def written(clock: Clock) -> Iterator[io.StringIO]:
    """What `logger` writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(Limited(clock))
    handler.setFormatter(Text())
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)


logger = logging.getLogger("tried")
logger.propagate = False


def warn(times: int) -> None:
    for i in range(times):
        logger.warning("bad request %d", i)


def test_a_place_in_the_code_has_so_many_lines_a_minute(written: io.StringIO, clock: Clock) -> None:
    warn(1000)
    logger.warning("another place")
    assert written.getvalue().count("\n") == LINES + 1
    clock.now_s = PERIOD_S
    warn(2)
    assert "bad request 0 (990 like this one were left out)" in written.getvalue()
    assert written.getvalue().endswith("bad request 1\n")


def test_nothing_in_a_line_is_anything_but_text(written: io.StringIO) -> None:
    injected = "a\n2026-01-01 00:00:00,000 CRITICAL root: forged\r\x1b[2J\u2028\u202e\x9b é"
    logger.warning("path %s", injected)
    try:
        int(injected)
    except ValueError:
        logger.exception("failed")
    lines = written.getvalue().splitlines()
    assert lines[0].endswith(r"path a\n2026-01-01 00:00:00,000 CRITICAL root: forged\r\x1b[2J\u2028\u202e\x9b é")
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if not line.startswith("    ")] == [lines[0], lines[1]]
