"""Training curves from tensorboard's event files, drawn as SVG."""

import logging
import math
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

logger = logging.getLogger(__name__)

POINTS = 300  # drawn of a curve; more cannot be seen
KEPT = 5000  # read of a curve
WIDTH, HEIGHT = 320, 180  # of a drawing
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 8, 22  # its margins


@dataclass(frozen=True)
class Curve:
    """A scalar over the iterations."""

    name: str
    steps: list[int]
    values: list[float]


def read_curves(folder: Path) -> list[Curve]:
    """All scalars of the event files in a folder and below; losses first, then tests.

    Values that are not finite are left out.
    """
    curves = []
    for place in sorted({path.parent for path in folder.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(place), size_guidance={SCALARS: KEPT})
        try:
            events.Reload()
        except Exception as error:  # a damaged file can raise anything
            logger.warning(
                "event files in %s are damaged (%s): their curves are left out", place, error
            )
            continue
        prefix = "" if place == folder else f"{place.relative_to(folder).as_posix()}/"
        for tag in events.Tags()[SCALARS]:
            points = [point for point in events.Scalars(tag) if math.isfinite(point.value)]
            if points:
                steps = [point.step for point in points]
                curves.append(Curve(prefix + tag, steps, [point.value for point in points]))
    order = ("loss", "val", "reward")
    return sorted(
        curves,
        key=lambda curve: (
            next((place for place, word in enumerate(order) if word in curve.name), len(order)),
            curve.name,
        ),
    )


def thin(curve: Curve, points: int = POINTS) -> Curve:
    """The means of at most `points` parts of equal length."""
    size = math.ceil(len(curve.steps) / points)
    parts = range(0, len(curve.steps), size)

    def means(numbers: list[int] | list[float]) -> list[float]:
        return [math.fsum(numbers[at : at + size]) / len(numbers[at : at + size]) for at in parts]

    return Curve(curve.name, [round(step) for step in means(curve.steps)], means(curve.values))


def draw(curve: Curve) -> str:
    """The curve as an <svg> element; its colours are those of the page's style sheet."""
    curve = thin(curve)
    x_ticks = ticks(min(curve.steps), max(curve.steps), 4)
    y_ticks = ticks(min(curve.values), max(curve.values), 4)
    x_low, x_high = _bounds(curve.steps, [])
    y_low, y_high = _bounds(curve.values, y_ticks)

    def x(step: float) -> float:
        return LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(curve.name)}">',
    ]
    for tick in y_ticks:
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" {_both("y", y(tick))}/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}" class="end">{label(tick)}</text>'
        )
    for tick in x_ticks:
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - 6}" class="mid">{label(tick)}</text>')
    points = " ".join(
        f"{x(step):.1f},{y(value):.1f}"
        for step, value in zip(curve.steps, curve.values, strict=True)
    )
    parts.append(f'<polyline class="curve" points="{points}"/>')
    last_x, last_y = points.split(" ")[-1].split(",")
    parts.append(f'<circle class="last" cx="{last_x}" cy="{last_y}" r="2.5"/></svg>')
    return "".join(parts)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers in [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * unit for unit in (1, 2, 5) if power * unit >= rough), power * 10)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]


def label(number: float) -> str:
    """A number in few characters: 1500000 is 1.5M, 0.00001 is 1e-05."""
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= unit:
            return f"{number / unit:.4g}{suffix}"
    return f"{number:.3g}"


def _both(axis: str, value: float) -> str:
    return f'{axis}1="{value:.1f}" {axis}2="{value:.1f}"'


def _bounds(numbers: list[int] | list[float], ticks: list[float]) -> tuple[float, float]:
    low, high = min([*numbers, *ticks]), max([*numbers, *ticks])
    # a flat curve runs through the middle
    return (low, high) if high > low else (low - (abs(low) or 1), high + (abs(high) or 1))
