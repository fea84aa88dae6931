"""A log on a terminal: the table of its evaluations, the curve of its losses, its last sample."""

from math import log as ln
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from picogpt.training.runlog import entries, is_finite, series, visible

_TABLE_ROWS = 20
_CURVE_COLUMNS, _CURVE_ROWS = 70, 14
_LABELLED_ROWS = (0, 4, 9, 13)
_TRAIN, _VAL = "cyan", "bold yellow"


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
    parts: list[Any] = [_Visible(name, "bold"), _table(axis, points, bits), _Curve(axis, points)]
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


class _Curve:
    """Train (dotted) and validation (solid) loss, in braille or, where the terminal has none, in ASCII."""

    def __init__(self, axis: str, points: list[dict[str, Any]]) -> None:
        self._axis = axis
        self._train, self._val = series(points, "train_loss"), series(points, "val_loss")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        steps, values = (np.concatenate(pair) for pair in zip(self._train, self._val, strict=True))
        if not values.size:
            yield Text("no finite loss to draw")
            return
        columns = max(10, min(_CURVE_COLUMNS, options.max_width - 10))
        ascii_only = options.ascii_only or options.legacy_windows  # whose fonts have no braille
        wide, high = (1, 1) if ascii_only else (2, 4)  # dots in a character
        box = (steps.min(), steps.max(), values.min(), values.max())
        train = _dots(self._train, box, _CURVE_ROWS * high, columns * wide, dotted=not ascii_only)
        val = _dots(self._val, box, _CURVE_ROWS * high, columns * wide, dotted=False)
        for row in range(_CURVE_ROWS):
            labelled = row in _LABELLED_ROWS
            value = box[3] - (box[3] - box[2]) * row / (_CURVE_ROWS - 1)
            line = Text(f"{value:8.4g} " if labelled else " " * 9)
            line.append("|" if ascii_only else ("┤" if labelled else "│"))
            for column in range(columns):
                cell = np.s_[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
                style = _VAL if val[cell].any() else _TRAIN if train[cell].any() else ""
                line.append(_character(train[cell], val[cell]), style)
            yield line
        low, high_step = f"{box[0]:,.0f}", f"{box[1]:,.0f}"
        yield Text(" " * 10 + low + self._axis.center(columns - len(low) - len(high_step)) + high_step)
        marks = (". train", "o val") if ascii_only else ("⠄⠠ train", "⠤⠤ val")
        yield Text.assemble(" " * 10, (marks[0], _TRAIN), "   ", (marks[1], _VAL))


def _dots(
    line: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]],
    box: tuple[float, float, float, float],
    rows: int,
    columns: int,
    dotted: bool,
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


def _character(train: npt.NDArray[np.bool_], val: npt.NDArray[np.bool_]) -> str:
    """One character for the dots of a cell, (1, 1) for ASCII or (4, 2) for braille."""
    if train.size == 1:
        return "o" if val.any() else "." if train.any() else " "
    bits = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
    dots = int(bits[train | val].sum())
    return chr(0x2800 + dots) if dots else " "
