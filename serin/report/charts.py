"""Charts as values. The template `charts.html` draws them as inline SVG with their text around it as HTML.

Everything is in percent of the plot's width and height, y downwards, so a chart fits any width without scaling its
text. Colours are left to the page: `tone` names one of its classes.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal

Point = tuple[float, float]

_SPANS_S: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps a value onto 0 to 100; what lies outside is drawn at the edge."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, here = (map(math.log, (self.low, self.high, value))) if self.log else (self.low, self.high, value)
        return round(100 * min(max((here - low) / (high - low), 0.0), 1.0), 2)


@dataclass(frozen=True, slots=True)
class Mark:
    """`path` is an SVG path. Dots and the larger points are strokes without length and with round ends, which no
    stretching distorts."""

    shape: Literal["line", "area", "dots", "points", "rule"]
    tone: str
    path: str


@dataclass(frozen=True, slots=True)
class Key:
    tone: str
    text: str


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the x axis with a name, such as a phase."""

    start: float
    width: float
    text: str
    tone: str


@dataclass(frozen=True, slots=True)
class Chart:
    """`about` says in a sentence what to see. `notes` are labels at the height of a rule."""

    title: str
    about: str
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    keys: tuple[Key, ...] = ()
    notes: tuple[Tick, ...] = ()
    spans: tuple[Span, ...] = ()
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its interval, on an axis shared with the rows around it; None where an end is not known."""

    name: str
    text: str
    low: float
    high: float
    reference: float
    tone: str
    value: float | None = None
    bound: float | None = None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """Turns points in units of the data into paths."""

    x: Axis
    y: Axis = field(default_factory=lambda: Axis(0, 1))

    def line(self, points: Iterable[Point], tone: str) -> Mark:
        return Mark("line", tone, _path(self._place(points)))

    def steps(self, points: Sequence[Point], tone: str) -> Mark:
        """Each value holds until the next one."""
        return Mark("line", tone, _path(self._place(_stairs(points))))

    def area(self, points: Sequence[Point], tone: str) -> Mark:
        """Down to the x axis."""
        placed = list(self._place(points))
        return Mark("area", tone, _path([(placed[0][0], 100.0), *placed, (placed[-1][0], 100.0)]) + "Z")

    def step_area(self, points: Sequence[Point], tone: str) -> Mark:
        return self.area(_stairs(points), tone)

    def dots(self, points: Iterable[Point], tone: str) -> Mark:
        return Mark("dots", tone, self._spots(points))

    def points(self, points: Iterable[Point], tone: str) -> Mark:
        return Mark("points", tone, self._spots(points))

    def rule(self, value: float, tone: str) -> Mark:
        """Across the plot, at a value of y."""
        return Mark("rule", tone, f"M0 {100 - self.y.at(value):g}H100")

    def upright(self, value: float, tone: str) -> Mark:
        """From top to bottom, at a value of x."""
        return Mark("rule", tone, f"M{self.x.at(value):g} 0V100")

    def height(self, value: float, text: str) -> Tick:
        return Tick(100 - self.y.at(value), text)

    def _spots(self, points: Iterable[Point]) -> str:
        return "".join(f"M{x:g} {y:g}h0" for x, y in self._place(points))

    def _place(self, points: Iterable[Point]) -> Iterator[Point]:
        return ((self.x.at(x), 100 - self.y.at(y)) for x, y in points)


def _path(points: Iterable[Point]) -> str:
    """A single point is seen as the round ends of a stroke without length."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) + "h0"


def _stairs(points: Sequence[Point]) -> list[Point]:
    corners = list(points[:1])
    for (_, before), (x, y) in pairwise(points):
        corners += [(x, before), (x, y)]
    return corners


def nice_top(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten that is not below `value`."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * (1 - 1e-9))


def time_ticks(axis: Axis, at_most: int = 6) -> tuple[Tick, ...]:
    """Round times for an axis in seconds, as minutes:seconds or hours:minutes."""
    span = next((span for span in _SPANS_S if axis.high / span <= at_most), _SPANS_S[-1])
    times = [span * k for k in range(math.floor(axis.high / span) + 1)]
    return tuple(Tick(axis.at(time), _clock(time, hours=axis.high >= 7200)) for time in times)


def _clock(seconds: int, *, hours: bool) -> str:
    """m:ss, or h:mm h on a long axis."""
    return f"{seconds // 3600}:{seconds // 60 % 60:02} h" if hours else f"{seconds // 60}:{seconds % 60:02}"


def share_ticks(axis: Axis, parts: int = 4) -> tuple[Tick, ...]:
    """Equal steps for an axis of shares from 0, as percent."""
    values = [axis.high * k / parts for k in range(parts + 1)]
    return tuple(Tick(axis.at(value), f"{100 * value:.3g} %") for value in values)


def upward(ticks: Iterable[Tick]) -> tuple[Tick, ...]:
    """Ticks of an axis, placed for y."""
    return tuple(Tick(100 - tick.at, tick.text) for tick in ticks)
