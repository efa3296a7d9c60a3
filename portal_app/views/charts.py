"""Charts as SVG: where lines and ticks are. The macros in ``charts.html`` draw them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Units of the drawing; style.css sizes it, and its text.
WIDTH, HEIGHT = 480, 220
_RIGHT, _TOP, _BOTTOM = 12, 12, 30
#: So wide is a letter of a label, where it is largest.
_LETTER = 9
_ROWS = 4
#: So many names of times fit beneath.
_LABELS = 5
#: What a part of the axis is, times a power of ten.
_ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)

Value = float | None


@dataclass(frozen=True)
class Series:
    """Values at the chart's times; None is unknown and leaves a gap. ``kind`` is ``a`` or ``b``."""

    name: str
    values: Sequence[Value]
    kind: str = "a"


@dataclass(frozen=True)
class Tick:
    at: float
    label: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Line:
    name: str
    kind: str
    path: str
    area: str


@dataclass(frozen=True)
class LineChart:
    lines: list[Line]
    rows: list[Tick]
    columns: list[Tick]
    left: int
    width: int = WIDTH
    height: int = HEIGHT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM


@dataclass(frozen=True)
class Bar:
    """One bar; ``share`` is its length in percent of the longest."""

    name: str
    value: str
    share: float


def line_chart(
    series: Sequence[Series], times: Sequence[str], write: Callable[[float], str], *, step: float = 1
) -> LineChart:
    """Return a chart from 0 to a round number above everything; ``step`` is what round means: 1, or 1024."""
    top = _round_up(max([v for s in series for v in s.values if v is not None], default=0), step)
    count = len(times)
    labels = [write(top * row / _ROWS) for row in range(_ROWS + 1)]
    left = 16 + _LETTER * max(map(len, labels))

    def x(number: int) -> float:
        return round(left + (WIDTH - left - _RIGHT) * (number / max(1, count - 1)), 1)

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / top, 1)

    rows = [Tick(y(top * row / _ROWS), label) for row, label in enumerate(labels)]
    return LineChart([_line(s, x, y) for s in series], rows, _columns(times, x), left)


def bars(values: Sequence[tuple[str, float]], write: Callable[[float], str]) -> list[Bar]:
    longest = max((value for _name, value in values), default=0) or 1
    return [Bar(name, write(value), round(100 * value / longest, 1)) for name, value in values]


def _columns(times: Sequence[str], x: Callable[[int], float]) -> list[Tick]:
    """Return the ticks below: each where its time begins, as several points may be on one day. The first one
    may have begun before the chart does: it has no label where the next is too near.
    """
    last = len(times) - 1
    if last < 1:
        return [Tick(x(0), label, "start") for label in times]
    begins = [number for number, label in enumerate(times) if number == 0 or label != times[number - 1]]
    step = max(1, math.ceil((len(begins) - 1) / (_LABELS - 1)))
    anchors = {0: "start", last: "end"}
    ticks = [Tick(x(number), times[number], anchors.get(number, "middle")) for number in begins[::step]]
    return ticks[1:] if len(ticks) > 2 and _ends(ticks[0]) > _begins(ticks[1]) else ticks


def _begins(tick: Tick) -> float:
    return tick.at - {"start": 0, "middle": 0.5, "end": 1}[tick.anchor] * _LETTER * len(tick.label)


def _ends(tick: Tick) -> float:
    return _begins(tick) + _LETTER * len(tick.label)


def _line(series: Series, x: Callable[[int], float], y: Callable[[float], float]) -> Line:
    path, area = "", ""
    for run in _runs(series.values):
        points = [f"{x(number):g} {y(value):g}" for number, value in run]
        # A point alone is a line of no length, which round ends make a dot.
        path += "M" + "L".join(points if len(points) > 1 else points * 2)
        area += f"M{x(run[0][0]):g} {y(0):g}L" + "L".join(points) + f"L{x(run[-1][0]):g} {y(0):g}Z"
    return Line(series.name, series.kind, path, area)


def _runs(values: Sequence[Value]) -> list[list[tuple[int, float]]]:
    """Return what is known, cut where something is not."""
    runs: list[list[tuple[int, float]]] = []
    before: Value = None
    for number, value in enumerate(values):
        if value is not None:
            if before is None:
                runs.append([])
            runs[-1].append((number, value))
        before = value
    return runs


def _round_up(value: float, step: float) -> float:
    """Return a number of four equal parts, each round.

    >>> _round_up(0, 1), _round_up(5, 1), _round_up(101, 1), _round_up(1500, 1024)
    (4.0, 8.0, 120.0, 2048.0)
    """
    unit = 1.0
    while step > 1 and unit * step <= value:
        unit *= step
    part = value / unit / _ROWS
    if part <= 1:
        # Half and quarter units are round for bytes, people are whole.
        return unit * (_ROWS if step == 1 else 2.0 ** math.ceil(math.log2(part or 1)) * _ROWS)
    size = float(10 ** math.floor(math.log10(part)))
    return unit * _ROWS * next(size * f for f in _ROUND if size * f >= part and _is_whole(size * f))


def _is_whole(value: float) -> bool:
    return value == int(value)
