"""The panel at the foot of a terminal: what a run has learnt, how fast, and how busy the machine is."""

from collections.abc import Sequence
from itertools import pairwise

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.panel import Panel as Frame
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from picogpt.monitoring.screen import bits
from picogpt.monitoring.status import Status
from picogpt.reports.number_format import duration, rate, size, steps_done
from picogpt.runs.log import Evaluation, is_finite
from picogpt.system.terminal import visible

_SPARKS, _ASCII_SPARKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
_SPARK_COLUMNS, _SAMPLE_LINES = 24, 2
_NARROW, _WIDEST = 96, 100  # columns of a terminal below which a sparkline is shorter, and of the panel at most


class Panel:
    """A run at one moment, for rich to print."""

    def __init__(self, name: str, status: Status, evaluations: Sequence[Evaluation]) -> None:
        """name: of the run. evaluations: those of its log."""
        self._name, self._status, self._evaluations = name, status, evaluations

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(_WIDEST, options.max_width - 2)
        plain = options.ascii_only
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(no_wrap=True, overflow="crop", ratio=1)
        for label, text in self._rows(plain, _SPARK_COLUMNS if width >= _NARROW - 2 else _SPARK_COLUMNS // 3).items():
            table.add_row(label, text)
        bar = Padding(ProgressBar(total=1.0, completed=self._status.progress), 0)  # the padding ends its line
        parts: list[RenderableType] = [bar, table]
        if sample := next((entry.sample for entry in self._evaluations[::-1] if entry.sample), ""):
            shown = visible(sample, options.encoding)
            parts.append(Text(shown[: _SAMPLE_LINES * (width - 4)], "italic"))
        if self._status.pausing:
            parts.append(Text(visible(self._status.pausing, options.encoding), "bold yellow"))
        yield Frame(
            Group(*parts),
            title=Text(visible(self._name, options.encoding), "bold"),
            title_align="left",
            subtitle=Text(self._time()),
            subtitle_align="right",
            width=width,
            border_style="cyan",
        )

    def _rows(self, plain: bool, columns: int) -> dict[str, Text]:
        """Return the lines by their labels. plain: in ASCII. columns: of a sparkline, at most."""
        status = self._status
        gap = "   "
        step = steps_done(status.step, status.steps, " of ")
        step += f"{gap}{status.progress:.1%} done{gap}lr {rate(status.learning_rate)}"
        speed = [f"{status.tokens_per_second:,.0f} tokens/s"]
        if status.peak_share is not None:
            speed.append(f"{status.peak_share:.0%} of the machine's matrix products")
        memory = f"{size(status.process_memory)} here"
        memory += f"{gap}{size(status.machine_memory)} of {size(status.total_memory)} in use"
        machine = [f"{status.load:.0%} busy"]
        if status.temperature is not None:
            machine.append(f"{status.temperature:.0f} {'C' if plain else '°C'}")
        if status.battery is not None:
            machine.append(f"battery {status.battery} %, {'on mains power' if status.plugged else 'discharging'}")
        return {
            "step": Text(step),
            "train": self._losses("train_loss", status.train_loss, plain, columns),
            "val": self._losses("val_loss", None, plain, columns),
            "speed": Text(gap.join(speed)),
            "memory": Text(memory),
            "machine": Text(gap.join(machine)),
            "data": Text(visible(status.data, "ascii" if plain else "utf-8")),
        }

    def _losses(self, name: str, now: float | None, plain: bool, columns: int) -> Text:
        """Return the last value and a sparkline of all; of the validation loss, also its bits and the best so far."""
        values = [value for entry in self._evaluations if is_finite(value := getattr(entry, name))]
        last = now if now is not None else values[-1] if values else None
        if last is None:
            return Text("not yet")
        text = Text(f"{last:.3f}  ", "bold")
        text.append(sparkline(values, columns, plain), "cyan" if name == "train_loss" else "yellow")
        if name == "val_loss":
            best = min(values)
            text.append("".join(f"  {part}" for part in bits(self._evaluations[-1])), "not bold")
            text.append("  best so far" if best == last else f"  best {best:.3f}", "not bold dim")
        return text

    def _time(self) -> str:
        status = self._status
        left = "?" if status.eta_seconds is None else duration(status.eta_seconds)
        return f"{duration(status.seconds)} trained, {left} to go"


def sparkline(values: Sequence[float], columns: int, plain: bool = False) -> str:
    """Return a curve as one line of at most `columns` characters, each for the mean of its share of the values."""
    columns = min(columns, len(values))
    edges = [i * len(values) // columns for i in range(columns + 1)] if columns else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    if not means:
        return ""
    marks, low, high = _ASCII_SPARKS if plain else _SPARKS, min(means), max(means)
    return "".join(marks[round((len(marks) - 1) * (mean - low) / ((high - low) or 1.0))] for mean in means)
