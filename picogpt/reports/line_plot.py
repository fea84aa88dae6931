"""A plot of lines over one axis on a terminal, in braille or in ASCII."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.text import Text

from picogpt.runs.log import Values
from picogpt.system.terminal import visible

_COLUMNS, _ROWS = 70, 14
_LABELLED_ROWS = (0, 4, 9, 13)
_BRAILLE = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # the bit of each dot in U+2800 to U+28FF


@dataclass(frozen=True)
class Line:
    """One line of a `LinePlot`."""

    label: str
    values: Values
    style: str
    mark: str
    """The character that draws it in ASCII."""
    dotted: bool = False
    lettered: bool = False
    """Whether its mark stands on it here and there, so that it can be told apart without its colour."""


class LinePlot:
    """Lines over one axis, later ones on top: in braille or, if the terminal cannot show that, in ASCII."""

    def __init__(self, axis: str, lines: Sequence[Line]) -> None:
        self._axis, self._lines = axis, lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        steps, values = (np.concatenate(all) for all in zip(*(line.values for line in self._lines), strict=True))
        if not values.size:
            yield Text("no finite loss to draw")
            return
        columns = max(10, min(_COLUMNS, options.max_width - 10))
        ascii_only = options.ascii_only or options.legacy_windows  # the fonts of old Windows consoles have no braille
        box = (steps.min(), steps.max(), values.min(), values.max())
        cells = _cells(self._lines, box, columns, ascii_only)
        for row in range(_ROWS):
            labelled = row in _LABELLED_ROWS
            value = box[3] - (box[3] - box[2]) * row / (_ROWS - 1)
            line = Text(f"{value:8.4g} " if labelled else " " * 9)
            line.append("|" if ascii_only else ("┤" if labelled else "│"))
            for column in range(columns):
                line.append(*cells.get((row, column), (" ", "")))
            yield line
        low, high_step = f"{box[0]:,.0f}", f"{box[1]:,.0f}"
        yield Text(" " * 10 + low + self._axis.center(columns - len(low) - len(high_step)) + high_step)
        legend = Text()
        for it in self._lines:
            mark = it.mark if ascii_only or it.lettered else "⠄⠠" if it.dotted else "⠤⠤"
            legend.append(f"{mark} {visible(it.label, options.encoding)}", it.style).append("   ")
        legend.rstrip()
        yield Padding(legend, (0, 0, 0, 10))


def _cells(
    lines: Sequence[Line], box: tuple[float, float, float, float], columns: int, ascii_only: bool
) -> dict[tuple[int, int], tuple[str, str]]:
    """Return the character and style of every cell (row, column) that a line passes through."""
    wide, high = (1, 1) if ascii_only else (2, 4)  # dots of a character
    drawn = np.zeros((_ROWS, high, columns, wide), dtype=np.bool_)
    cells: dict[tuple[int, int], tuple[str, str]] = {}
    marks: dict[tuple[int, int], tuple[str, str]] = {}
    apart = max(12, 2 * len(lines))  # columns from one mark to the next of the same line
    for i, line in enumerate(lines):
        dotted = line.dotted and not ascii_only
        dots = _dots(line.values, box, _ROWS * high, columns * wide, dotted).reshape(drawn.shape)
        drawn |= dots
        rows, at = np.nonzero(dots.any(axis=(1, 3)))
        places = list(zip(rows.tolist(), at.tolist(), strict=True))
        for place in places:
            cells[place] = line.mark if ascii_only else _braille(drawn[place[0], :, place[1]]), line.style
        if line.lettered and places:
            turn = [place for place in places if place[1] % apart == i * apart // len(lines)]
            marks |= dict.fromkeys(turn or [max(places, key=lambda place: place[1])], (line.mark, line.style))
    return cells | marks


def _dots(
    line: Values, box: tuple[float, float, float, float], rows: int, columns: int, dotted: bool
) -> npt.NDArray[np.bool_]:
    """Return a line as dots (rows, columns) in the box (left, right, bottom, top)."""
    dots = np.zeros((rows, columns), dtype=np.bool_)
    steps, values = line
    if steps.size:
        at = np.arange(columns) / (columns - 1) * (box[1] - box[0]) + box[0]
        inside = (at >= steps[0]) & (at <= steps[-1])
        inside[np.abs(at - steps[-1]).argmin()] = True  # or rounding could lose the only point
        height = np.interp(at, steps, values) - box[2]
        y = np.rint((rows - 1) * (1 - height / ((box[3] - box[2]) or 1.0))).astype(int)
        for x in np.flatnonzero(inside & (np.arange(columns) % 3 == 0 if dotted and inside.sum() > 3 else True)):
            before = y[x - 1] if x and inside[x - 1] and not dotted else y[x]
            dots[min(before, y[x]) : max(before, y[x]) + 1, x] = True
    return dots


def _braille(dots: npt.NDArray[np.bool_]) -> str:
    """Return the character with these dots (4, 2)."""
    return chr(0x2800 + int(_BRAILLE[dots].sum()))
