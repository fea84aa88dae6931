"""The chart of a page: curves as SVG, for a screen as narrow as a phone or as wide as a desktop, light or dark.

matplotlib does not draw it: the letters of a scaled picture have no readable size, and a page that follows a run would
draw it again at every evaluation, on the processor that trains. Here the lines stretch with the page, the labels keep
their size, and the style sheet has the colours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np

from picogpt.runs.log import Values

SIZE = 1000  # width and height of the box that is stretched to the page
_MOST_POINTS = 400  # of a curve: more than a screen can show
_EARLY = 0.1  # share of the axis in which losses fall fast, from where nothing is learnt yet


@dataclass(frozen=True)
class Curve:
    """A curve to draw."""

    label: str
    values: Values
    look: str
    """Its classes in the style sheet: colour and dashes."""


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    percent: float
    """How far it is from the left, or from the top."""
    text: str


@dataclass(frozen=True)
class Path:
    """A curve as a line of SVG."""

    label: str
    look: str
    points: str
    """The points of its polyline in the box."""
    end: str
    """The last of them, which is marked."""


@dataclass(frozen=True)
class Chart:
    """A chart as the template draws it."""

    axis: str
    paths: list[Path]
    left: list[Tick]
    below: list[Tick]
    cut: float | None
    """The loss above which the beginning is cut off, if it is."""


def chart(curves: Sequence[Curve], axis: str) -> Chart | None:
    """Return the chart of these curves over an axis with this name; None where they have no finite value."""
    drawn = [curve for curve in curves if curve.values[0].size]
    if not drawn:
        return None
    steps, values = (np.concatenate(all) for all in zip(*(curve.values for curve in drawn), strict=True))
    left, right, bottom = float(steps.min()), float(steps.max()), float(values.min())
    highest = float(values.max())
    top = float(values[steps >= left + _EARLY * (right - left)].max())
    cut = top if top - bottom < (highest - bottom) / 2 else None
    top = highest if cut is None else top
    room = 0.04 * (top - bottom) if top > bottom else 0.5  # for the width of the lines; a single value has no scale
    room = max(room, 1e-6 * max(1.0, abs(top)))
    bottom, top = bottom - room, top + room
    more = max(0.008 * (right - left), 1e-6 * abs(right), 1e-3)
    left, right = (left - more, right + more) if left == right else (left, right + more)

    def path(curve: Curve) -> Path:
        x, y = _thinned(curve.values)
        across, down = (x - left) / (right - left) * SIZE, (top - y) / (top - bottom) * SIZE
        points = [f"{a:.1f},{b:.1f}" for a, b in zip(across, np.maximum(down, -SIZE), strict=True)]
        return Path(curve.label, curve.look, " ".join(points), points[-1])

    return Chart(
        axis,
        [path(curve) for curve in drawn],
        [Tick(100 * (top - at) / (top - bottom), text) for at, text in _ticks(bottom, top, 6)],
        [Tick(100 * (at - left) / (right - left), text) for at, text in _ticks(left, right, 4)],
        cut,
    )


def _thinned(line: Values) -> Values:
    """Return about as many points as can be seen, evenly spread, with the lowest and the last among them."""
    steps, values = line
    even = np.linspace(0, steps.size - 1, min(steps.size, _MOST_POINTS)).astype(int)
    chosen = np.unique([*even, values.argmin()])
    return steps[chosen], values[chosen]


def _ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Return the round numbers in a range, at most `most` + 1, each with its text."""
    raw = (high - low) / most
    power = 10.0 ** floor(log10(raw))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= raw)
    digits = max(0, -floor(log10(step) + 1e-9))
    numbers = [i * step for i in range(ceil(low / step), floor(high / step) + 1)]
    return [(at, f"{at / 1e6:,g}M" if step >= 1e5 else f"{at:,.{digits}f}") for at in numbers]
