"""The view of one run on a terminal: a table of its evaluations, a plot of its losses, its last sample."""

from collections.abc import Sequence
from math import log as ln

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from picogpt.reports.line_plot import Line, LinePlot
from picogpt.runs.log import Evaluation, LogContent, is_finite, series
from picogpt.system.terminal import visible
from picogpt.tokenizers.registry import unit_of

_TABLE_ROWS = 20
_TRAIN, _VAL = "cyan", "bold yellow"


def run_view(log: LogContent, name: str) -> Group:
    """Return the table, the plot and the last sample of a log from `read_log`, for a terminal."""
    axis, points = log.axis, log.points
    if not points:
        notices = [_Visible(notice, "") for notice in log.notices[-1:]]
        return Group(_Visible(name, "bold"), Text("no evaluation yet"), *notices)
    match log.config:
        case {"data": {"tokenizer": tokenizer}}:
            bits = f"bits/{unit_of(tokenizer)}"
        case _:
            bits = "bits/char"
    parts: list[RenderableType] = [_Visible(name, "bold"), _table(axis, points, bits), _loss_plot(axis, points)]
    sample = points[-1].sample
    if sample:
        parts += [Text("last sample", "bold"), _Visible(sample, "")]
    return Group(*parts)


class _Visible:
    """A line of text from a log, in characters that the terminal can show."""

    def __init__(self, text: str, style: str) -> None:
        self._text, self._style = text, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(visible(self._text, options.encoding), self._style)


def _table(axis: str, points: Sequence[Evaluation], bits: str) -> Table:
    """Return a table of about _TABLE_ROWS evaluations, with the first, the best (starred) and the last among them."""
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
    columns = {
        title: column for title, column in columns.items() if any(getattr(p, column[0]) is not None for p in points)
    }
    table = Table()
    for title in columns:
        table.add_column(title, justify="right", overflow="fold")  # an ellipsis would break an ASCII terminal
    finite = [i for i, point in enumerate(points) if is_finite(point.val_loss)]
    best = min(finite, key=lambda i: points[i].val_loss or 0.0, default=-1)
    for i in sorted({*np.linspace(0, len(points) - 1, _TABLE_ROWS - 1).astype(int).tolist(), best} - {-1}):
        cells = []
        for title, (field, form, factor) in columns.items():
            value = getattr(points[i], field)
            cells.append(
                "-" if value is None else form.format(value * factor) + ("*" if i == best and title == "val" else "")
            )
        table.add_row(*cells, style="bold" if i == best else "")
    return table


def _loss_plot(axis: str, points: Sequence[Evaluation]) -> LinePlot:
    train = Line("train", series(points, "train_loss"), _TRAIN, ".", dotted=True)
    return LinePlot(axis, [train, Line("val", series(points, "val_loss"), _VAL, "o")])
