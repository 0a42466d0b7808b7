"""The loss curve as lines on a logarithmic scale: everything a template needs to draw it as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flows.report import scale_ends
from storage.models import LossPoint

WIDTH: Final = 720
HEIGHT: Final = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 12, 12, 46
POINTS: Final = 600
_TABLE_ROWS: Final = 12
_MOST_TICKS: Final = 6
_RAISED: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Line:
    """One line: its number (which gives its colour), its label, the `d` of its path, and whether it shows at first."""

    number: int
    label: str
    path: str
    shown: bool


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where it is in the picture, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """The lines, the marks of both axes, where a scale ended, and some of the numbers as rows of a table under the
    names of `columns`."""

    lines: Sequence[Line]
    iterations: Sequence[Tick]
    losses: Sequence[Tick]
    scales: Sequence[float]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def draw(points: Sequence[LossPoint]) -> Curve | None:
    """The curve through these points, oldest first; None without a loss above zero."""
    series: dict[str, list[float]] = {
        "total": [point.total for point in points],
        "content": [point.content for point in points],
        "style": [point.style for point in points],
        "total variation": [point.tv for point in points],
    }
    layers = list(points[0].layers) if points else []
    series |= {layer.replace("/", " "): [point.layers.get(layer, 0.0) for point in points] for layer in layers}
    # A logarithmic axis has no place for zero: the content's loss where the content is the first picture.
    series = {label: values for label, values in series.items() if any(_has_place(value) for value in values)}
    main = [label for label in series if label.replace(" ", "/", 1) not in layers]
    logs = [math.log10(value) for label in main for value in series[label] if _has_place(value)]
    if not logs:
        return None
    # What is far below all that matters would press the rest together.
    low, high = max(min(logs), max(logs) - 8), max(logs)
    if high - low < 0.1:
        low, high = low - 0.1, high + 0.1
    iterations = [point.iteration for point in points]
    last = max(iterations[-1], 1)
    lines = [
        Line(number, label, _path(iterations, values, last=last, low=low, high=high), label in main)
        for number, (label, values) in enumerate(series.items())
    ]
    table = [points[index] for index in _even(len(points), _TABLE_ROWS)]
    return Curve(
        lines,
        [Tick(_x(value, last), f"{value:,}") for value in _iteration_ticks(last)],
        [Tick(_y(value, low, high), _power(value)) for value in _loss_ticks(low, high)],
        [_x(iteration, last) for iteration in scale_ends(points)],
        ("iteration", "total", "content", "style", "total variation"),
        [
            (f"{point.iteration:,}", *(f"{loss:.4g}" for loss in (point.total, point.content, point.style, point.tv)))
            for point in table
        ],
    )


def _power(log: float) -> str:
    return f"10{str(round(log)).translate(_RAISED)}" if log == round(log) else f"{10**log:.3g}"


def _path(iterations: Sequence[int], values: Sequence[float], *, last: int, low: float, high: float) -> str:
    parts, pen = [], "M"
    for iteration, value in zip(iterations, values, strict=True):
        if not _has_place(value):
            pen = "M"
            continue
        height = min(max(math.log10(value), low), high)
        parts.append(f"{pen}{_x(iteration, last):.1f} {_y(height, low, high):.1f}")
        pen = "L"
    # A line to itself shows a single point, where the ends of lines are round.
    return f"{parts[0]}{parts[0].replace('M', 'L')}" if len(parts) == 1 else "".join(parts)


def _has_place(value: float) -> bool:
    return 0 < value < math.inf


def _x(iteration: float, last: int) -> float:
    return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * iteration / last, 1)


def _y(log: float, low: float, high: float) -> float:
    return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (high - log) / (high - low), 1)


def _iteration_ticks(last: int) -> list[int]:
    rough = last / 5
    power = 10 ** math.floor(math.log10(rough)) if rough >= 1 else 1
    step = next((int(power * factor) for factor in (1, 2, 5, 10) if power * factor >= rough), 1)
    return list(range(0, last + 1, max(1, step)))


def _loss_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, fewer where there are many, and numbers between them where there are hardly any."""
    decades = range(math.ceil(low), math.floor(high) + 1)
    if len(decades) >= 2:
        return [float(decade) for decade in decades[:: math.ceil(len(decades) / _MOST_TICKS)]]
    finer = [
        decade + math.log10(factor) for decade in range(math.floor(low), math.ceil(high) + 1) for factor in (1, 2, 5)
    ]
    found = [log for log in finer if low <= log <= high]
    return found if len(found) >= 2 else [low, (low + high) / 2, high]


def _even(count: int, wanted: int) -> list[int]:
    steps = wanted - 1
    return sorted({round(step * (count - 1) / steps) for step in range(wanted)})
