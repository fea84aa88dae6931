"""The view of several runs on a terminal: a table of their figures, notes on it, and a plot of their losses."""

from collections.abc import Sequence
from pathlib import Path
from string import ascii_letters

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from picogpt.reports.comparison import common_axis, common_loss, difference, notes
from picogpt.reports.line_plot import Line, LinePlot
from picogpt.reports.number_format import count, duration, number, signed
from picogpt.reports.picture import draw, draw_comparison
from picogpt.reports.summary import Summary
from picogpt.system.terminal import visible

_STYLES = ("bold yellow", "cyan", "magenta", "green", "blue", "red")
_NARROW, _WIDE = 72, 100  # columns of a terminal below which numbers do not fit, and from which they have room

_OF_THE_MODEL = "run", "params", "tokens", "time", "train", "val", "best", "bits/char", "bits/byte"
COLUMNS = (*_OF_THE_MODEL, "vs first", "tokens/s", "MB")
_FOR_WIDE = ("train", "best")  # columns that leave names no room on a narrow terminal

LEGEND = (
    "train and val: the losses at the last evaluation, in nats a token; best: the lowest of val; "
    "bits: val, as bits a character and a byte of the text; "
    "vs first: how far val, or bits/byte of other tokenizers, is from the first run's, where + is worse and - is better"
)


def row(run: Summary, runs: Sequence[Summary]) -> list[str]:
    """Return a run's row of the table: a cell for each of COLUMNS."""
    best = run.best
    return [
        run.name,
        count(run.parameters),
        count(run.tokens),
        duration(run.seconds),
        number(run.train_loss, ".4f"),
        number(run.val_loss, ".4f"),
        number(best and best[1], ".4f"),
        number(run.bits_per_char, ".3f"),
        number(run.bits_per_byte, ".3f"),
        "first" if run is runs[0] else signed(difference(run, runs[0])),
        number(run.tokens_per_second, ",.0f"),
        number(run.memory_mb, ",.0f"),
    ]


def drawn_loss(runs: Sequence[Summary]) -> tuple[str, str]:
    """Return the field that is drawn of these runs, and its unit: nats a token, or bits a byte where that compares."""
    if common_loss(runs) == "bits_per_byte":
        return "bits_per_byte", "bits a byte"
    return "val_loss", "nats a token"


def axis_in_words(runs: Sequence[Summary]) -> str:
    """Return which losses are drawn over what, and why."""
    axis, loss = common_axis(runs), f"validation loss in {drawn_loss(runs)[1]}"
    if axis == "tokens" and len(runs) > 1:
        return f"{loss} over tokens, as the runs differ in tokens a step"
    if axis == "evaluation":
        return f"{loss} over evaluations, as a log without steps has no other measure"
    return f"{loss} over {axis}s"


class ComparisonView:
    """The table, the notes and the plot of several runs, for rich to print."""

    def __init__(self, runs: Sequence[Summary]) -> None:
        self._runs = runs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        runs = self._runs
        yield self._table(options)
        yield Text(LEGEND if options.max_width >= _WIDE else _narrow(LEGEND), "dim")
        for note in notes(runs):
            yield Text(f"note: {visible(note, options.encoding)}", "yellow")
        yield Text("")
        yield Text(axis_in_words(runs), "bold")
        axis, field = common_axis(runs), drawn_loss(runs)[0]
        lines = [
            Line(run.name, run.curve(field, axis), _style(i), letter, lettered=True)
            for i, (letter, run) in enumerate(zip(ascii_letters, runs, strict=False))
        ]
        yield LinePlot(axis, lines)

    def _table(self, options: ConsoleOptions) -> Table:
        wide = options.max_width >= _WIDE
        table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
        shown = [i for i, title in enumerate(COLUMNS) if wide or title not in _FOR_WIDE]
        for title in (COLUMNS[i] for i in shown):
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
    axis, (field, unit) = common_axis(runs), drawn_loss(runs)
    draw_comparison([(run.name, run.curve(field, axis)) for run in runs], "validation loss", unit, axis, path)


def _narrow(legend: str) -> str:
    return legend.replace("train and val: the losses", "val: the loss").replace("best: the lowest of val; ", "")


def _style(i: int) -> str:
    return _STYLES[i % len(_STYLES)]
