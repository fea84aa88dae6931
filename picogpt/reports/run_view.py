"""The view of one run on a terminal: a table of its evaluations, a plot of its losses, its last sample."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from picogpt.reports.line_plot import Line, LinePlot
from picogpt.reports.summary import Summary
from picogpt.runs.log import Evaluation, is_finite, series
from picogpt.system.terminal import visible

_TABLE_ROWS = 20
_UNITS = "train and val: losses in nats a token; bits: val, as bits a character and a byte of the text; *: the best"
_TRAIN, _VAL = "cyan", "bold yellow"


def run_view(run: Summary) -> Group:
    """Return the table, the plot and the last sample of a run, for a terminal."""
    axis, points = run.axis, run.points
    if not points:
        notices = [_Visible(notice, "") for notice in run.log.notices[-1:]]
        return Group(_Visible(run.name, "bold"), Text("no evaluation yet"), *notices)
    parts: list[RenderableType] = [_Visible(run.name, "bold"), _table(axis, points), Text(_UNITS, "dim")]
    parts.append(_loss_plot(axis, points))
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


def _table(axis: str, points: Sequence[Evaluation]) -> Table:
    """Return a table of about _TABLE_ROWS evaluations, with the first, the best (starred) and the last among them."""
    columns = {
        axis: ("step", "{:,}"),
        "tokens": ("tokens", "{:,}"),
        "train": ("train_loss", "{:.4f}"),
        "val": ("val_loss", "{:.4f}"),
        "bits/char": ("bits_per_char", "{:.3f}"),
        "bits/byte": ("bits_per_byte", "{:.3f}"),
        "unknown": ("unknown", "{:.1%}"),
        "lr": ("lr", "{:.2g}"),
        "tok/s": ("tokens_per_second", "{:,.0f}"),
        "MB": ("memory_mb", "{:,.0f}"),
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
        for title, (field, form) in columns.items():
            value = getattr(points[i], field)
            cells.append("-" if value is None else form.format(value) + ("*" if i == best and title == "val" else ""))
        table.add_row(*cells, style="bold" if i == best else "")
    return table


def _loss_plot(axis: str, points: Sequence[Evaluation]) -> LinePlot:
    train = Line("train", series(points, "train_loss"), _TRAIN, ".", dotted=True)
    return LinePlot(axis, [train, Line("val", series(points, "val_loss"), _VAL, "o")])
