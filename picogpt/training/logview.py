"""A log on a terminal: the table of its evaluations, the curve of its losses, its last sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log as ln
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from picogpt.training.runlog import Values, entries, is_finite, series, visible

_TABLE_ROWS = 20
_CURVE_COLUMNS, _CURVE_ROWS = 70, 14
_LABELLED_ROWS = (0, 4, 9, 13)
_TRAIN, _VAL = "cyan", "bold yellow"
_BRAILLE = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # which bit a dot is


def summary(log: dict[str, Any], name: str) -> Group:
    """The table, the curve and the last sample of a log from `read_log`, for a terminal."""
    axis, points = entries(log)
    if not points:
        notices = [_Visible(notice, "") for notice in log["notices"][-1:]]
        return Group(_Visible(name, "bold"), Text("no evaluation yet"), *notices)
    match log["config"]:
        case {"data": {"tokenizer": "bpe" | "ids"}}:
            bits = "bits/token"
        case _:
            bits = "bits/char"
    parts: list[Any] = [_Visible(name, "bold"), _table(axis, points, bits), _losses(axis, points)]
    sample = points[-1].get("sample")
    if sample:
        parts += [Text("last sample", "bold"), _Visible(sample, "")]
    return Group(*parts)


class _Visible:
    """A line of text, whatever is in it, on whatever terminal shows it."""

    def __init__(self, text: str, style: str) -> None:
        self._text, self._style = text, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(visible(self._text, options.encoding), self._style)


def _table(axis: str, points: list[dict[str, Any]], bits: str) -> Table:
    """About _TABLE_ROWS of the evaluations, the first, the best (starred) and the last among them."""
    columns = {
        axis: ("step", "{:,}", 1),
        "tokens": ("tokens", "{:,}", 1),
        "train": ("train_loss", "{:.4f}", 1),
        "val": ("val_loss", "{:.4f}", 1),
        bits: ("val_loss", "{:.3f}", 1 / ln(2)),
        "lr": ("lr", "{:.2g}", 1),
        "tok/s": ("tokens_per_second", "{:,.0f}", 1),
        "MB": ("memory_mb", "{:,.0f}", 1),
    }
    columns = {title: column for title, column in columns.items() if any(p.get(column[0]) is not None for p in points)}
    table = Table()
    for title in columns:
        table.add_column(title, justify="right", overflow="fold")  # an ellipsis would break an ASCII terminal
    finite = [i for i, point in enumerate(points) if is_finite(point["val_loss"])]
    best = min(finite, key=lambda i: points[i]["val_loss"], default=-1)
    for i in sorted({*np.linspace(0, len(points) - 1, _TABLE_ROWS - 1).astype(int).tolist(), best} - {-1}):
        cells = []
        for title, (field, form, factor) in columns.items():
            value = points[i].get(field)
            cells.append(
                "-" if value is None else form.format(value * factor) + ("*" if i == best and title == "val" else "")
            )
        table.add_row(*cells, style="bold" if i == best else "")
    return table


def _losses(axis: str, points: list[dict[str, Any]]) -> "LinePlot":
    train = Line("train", series(points, "train_loss"), _TRAIN, ".", dotted=True)
    return LinePlot(axis, [train, Line("val", series(points, "val_loss"), _VAL, "o")])


@dataclass(frozen=True)
class Line:
    """A line of a `LinePlot`."""

    label: str
    values: Values
    style: str
    mark: str
    """The character that draws it in ASCII."""
    dotted: bool = False
    lettered: bool = False
    """Bear the mark here and there, so that it is told apart without its colour."""


class LinePlot:
    """Lines over one axis, a later one on top, in braille or, where the terminal has none, in ASCII."""

    def __init__(self, axis: str, lines: Sequence[Line]) -> None:
        self._axis, self._lines = axis, lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        steps, values = (np.concatenate(all) for all in zip(*(line.values for line in self._lines), strict=True))
        if not values.size:
            yield Text("no finite loss to draw")
            return
        columns = max(10, min(_CURVE_COLUMNS, options.max_width - 10))
        ascii_only = options.ascii_only or options.legacy_windows  # whose fonts have no braille
        box = (steps.min(), steps.max(), values.min(), values.max())
        cells = _cells(self._lines, box, columns, ascii_only)
        for row in range(_CURVE_ROWS):
            labelled = row in _LABELLED_ROWS
            value = box[3] - (box[3] - box[2]) * row / (_CURVE_ROWS - 1)
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
    """Character and style of every place (row, column) where there is a line."""
    wide, high = (1, 1) if ascii_only else (2, 4)  # dots in a character
    drawn = np.zeros((_CURVE_ROWS, high, columns, wide), dtype=np.bool_)
    cells: dict[tuple[int, int], tuple[str, str]] = {}
    marks: dict[tuple[int, int], tuple[str, str]] = {}
    apart = max(12, 2 * len(lines))  # columns from one mark to the next of the same line
    for i, line in enumerate(lines):
        dotted = line.dotted and not ascii_only
        dots = _dots(line.values, box, _CURVE_ROWS * high, columns * wide, dotted).reshape(drawn.shape)
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
    """The line through (steps, values) as dots (rows, columns) of the box (left, right, bottom, top)."""
    dots = np.zeros((rows, columns), dtype=np.bool_)
    steps, values = line
    if steps.size:
        at = np.arange(columns) / (columns - 1) * (box[1] - box[0]) + box[0]
        inside = (at >= steps[0]) & (at <= steps[-1])
        inside[np.abs(at - steps[-1]).argmin()] = True  # rounding must not lose the only point
        height = np.interp(at, steps, values) - box[2]
        y = np.rint((rows - 1) * (1 - height / ((box[3] - box[2]) or 1.0))).astype(int)
        for x in np.flatnonzero(inside & (np.arange(columns) % 3 == 0 if dotted and inside.sum() > 3 else True)):
            before = y[x - 1] if x and inside[x - 1] and not dotted else y[x]
            dots[min(before, y[x]) : max(before, y[x]) + 1, x] = True
    return dots


def _braille(dots: npt.NDArray[np.bool_]) -> str:
    """One character for the dots (4, 2) of a place."""
    return chr(0x2800 + int(_BRAILLE[dots].sum()))
