"""The view of several runs on a terminal: a table of their figures, notes on it, and a plot of their losses."""

from collections.abc import Sequence
from pathlib import Path
from string import ascii_letters

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from picogpt.reports.comparison import common_axis, difference, notes
from picogpt.reports.line_plot import Line, LinePlot
from picogpt.reports.number_format import count, duration, number, signed
from picogpt.reports.picture import draw, draw_comparison
from picogpt.reports.summary import Summary
from picogpt.system.terminal import visible

_STYLES = ("bold yellow", "cyan", "magenta", "green", "blue", "red")
_NARROW, _WIDE = 72, 100  # columns of a terminal below which numbers do not fit, and from which they have room

LEGEND = (
    "train and val: the losses at the last evaluation, in nats a token; best: the lowest of val; "
    "vs first: how far val is from the first run's, where + is worse and - is better"
)


def columns(runs: Sequence[Summary]) -> list[str]:
    """Return the titles of the table's columns."""
    units = {run.unit for run in runs}
    bits = f"bits/{units.pop()}" if len(units) == 1 else "bits"
    return ["run", "params", "tokens", "time", "train", "val", "best", bits, "vs first", "tokens/s", "MB"]


def row(run: Summary, runs: Sequence[Summary]) -> list[str]:
    """Return a run's row of the table: a cell for each of the `columns`."""
    mixed = len({run.unit for run in runs}) > 1
    best = run.best
    return [
        run.name,
        count(run.parameters),
        count(run.tokens),
        duration(run.seconds),
        number(run.train_loss, ".4f"),
        number(run.val_loss, ".4f"),
        number(best and best[1], ".4f"),
        number(run.bits, ".3f") + (f"/{run.unit}" if mixed and run.bits is not None else ""),
        "first" if run is runs[0] else signed(difference(run, runs[0])),
        number(run.tokens_per_second, ",.0f"),
        number(run.memory_mb, ",.0f"),
    ]


def axis_in_words(runs: Sequence[Summary]) -> str:
    """Return what the losses are drawn over, and why."""
    axis = common_axis(runs)
    if axis == "tokens" and len(runs) > 1:
        return "validation loss over tokens, as the runs differ in tokens a step"
    if axis == "evaluation":
        return "validation loss over evaluations, as a log without steps has no other measure"
    return f"validation loss over {axis}s"


class ComparisonView:
    """The table, the notes and the plot of several runs, for rich to print."""

    def __init__(self, runs: Sequence[Summary]) -> None:
        self._runs = runs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        runs = self._runs
        yield self._table(options)
        yield Text(LEGEND if options.max_width >= _WIDE else LEGEND.replace("best: the lowest of val; ", ""), "dim")
        for note in notes(runs):
            yield Text(f"note: {visible(note, options.encoding)}", "yellow")
        yield Text("")
        yield Text(axis_in_words(runs), "bold")
        axis = common_axis(runs)
        lines = [
            Line(run.name, run.curve("val_loss", axis), _style(i), letter, lettered=True)
            for i, (letter, run) in enumerate(zip(ascii_letters, runs, strict=False))
        ]
        yield LinePlot(axis, lines)

    def _table(self, options: ConsoleOptions) -> Table:
        wide, titles = options.max_width >= _WIDE, columns(self._runs)
        table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
        shown = [i for i, title in enumerate(titles) if wide or title != "best"]  # else names have no room
        for title in (titles[i] for i in shown):
            is_name, whole = title == "run", title != "run" and options.max_width >= _NARROW
            folded = title.replace(" ", "\n").replace("/", "/\n")
            table.add_column(folded, justify="left" if is_name else "right", no_wrap=whole, overflow="fold")
        for i, (letter, run) in enumerate(zip(ascii_letters, self._runs, strict=False)):
            name, *figures = (visible(cell, options.encoding) for cell in row(run, self._runs))
            folded_figures = (
                figure if wide else figure.replace(", ", ",\n") for figure in figures
            )  # of days and hours
            cells = [Text.assemble((letter, _style(i)), " ", name), *map(Text, folded_figures)]
            table.add_row(*(cells[i] for i in shown))
        return table


def draw_runs(runs: Sequence[Summary], path: Path) -> None:
    """Draw the picture of one run, or the comparison of several. Raises OSError if it cannot be written."""
    if len(runs) == 1:
        draw(runs[0].log, runs[0].name, path)
        return
    axis = common_axis(runs)
    draw_comparison([(run.name, run.curve("val_loss", axis)) for run in runs], "validation loss", axis, path)


def _style(i: int) -> str:
    return _STYLES[i % len(_STYLES)]
