"""The torture's result is printed as tables: kills, faults wanted and happened, damaged files, and the time."""

from collections import Counter
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from picogpt.system import hardware
from tests.torture.corrupt import ACCEPTED, CRASHED, HARMLESS, REFUSED, Corruption
from tests.torture.faults import FAULTS
from tests.torture.load import Load
from tests.torture.pace import FAULTS_SHARE, Pace, Sizes
from tests.torture.runs import NOT_FINITE, SHORT_MEMORY
from tests.torture.tally import Part, Tally
from tests.torture.variants import VARIANTS

_SHOWN = 20  # problems, where there are more


@dataclass(frozen=True)
class Report:
    """All that is printed, or written as JSON."""

    seconds: float
    """Without the load."""
    pace: Pace
    sizes: Sizes
    runs: Tally
    files: Corruption
    load: Load | None

    @property
    def problems(self) -> list[str]:
        """Everything that was not as promised, a line each."""
        return self.runs.problems + self.files.problems + (self.load.problems if self.load else [])

    @property
    def faults_share(self) -> float:
        """The part of the time that was spent on faults that took effect."""
        return self.runs.seconds.get(Part.FAULTS, 0.0) / self.seconds

    @property
    def status(self) -> int:
        """The exit status: 1 for a difference or a problem, 3 where a kind of fault was wanted and never happened."""
        if self.problems or self.runs.bits_different:
            return 1
        return 3 if self.runs.missing else 0


def show(report: Report, console: Console) -> None:
    """Print the tables, then the figures that need no table."""
    runs = report.runs
    console.print(_pace(report.pace, report.sizes), highlight=False, soft_wrap=True)
    tables = [_kills(runs), _faults(runs), _files(report.files), _time(report)]
    for table in [*tables, *([_load(report.load)] if report.load else [])]:
        console.print(table, "")
    short = "" if report.faults_share >= FAULTS_SHARE else ", less than two thirds: more minutes give them more"
    console.print(f"faults had {report.faults_share:.0%} of the time{short}", highlight=False)
    if runs.missing:
        console.print(f"wanted, but never happened: {', '.join(runs.missing)}", soft_wrap=True)
    else:
        console.print("every kind of fault that was wanted happened")
    console.print(f"bits compared: {runs.bits_compared:,}, different: {runs.bits_different:,}")
    console.print(f"problems: {len(report.problems)}")
    for problem in report.problems[:_SHOWN]:
        console.print(f"  {problem}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{report.seconds:,.0f} seconds on {hardware.machine()}", highlight=False)


def _pace(pace: Pace, sizes: Sizes) -> str:
    measured = f"a start takes {pace.start:.2f} s, a step {1000 * pace.step:.1f} ms, a save {pace.save:.2f} s"
    planned = f"{sizes.variants} of {len(VARIANTS)} variants, {sizes.steps:,} steps a run, {sizes.faults} faults"
    return f"{measured}: {planned} planned\n"


def _kills(runs: Tally) -> Table:
    table = _table(f"kills survived: {runs.kills.total()}", "run", "SIGKILL")
    for variant in VARIANTS:
        if variant.name in runs.names:
            table.add_row(variant.name, str(runs.kills[variant.name]))
    return table


def _faults(runs: Tally) -> Table:
    table = _table(f"faults: {runs.faults.total()}", "kind", "wanted", "happened", "no effect")
    for kind in [*(fault.kind for fault in FAULTS), NOT_FINITE, SHORT_MEMORY]:
        table.add_row(kind, *(str(counts[kind]) for counts in (runs.wanted, runs.faults, runs.no_effect)))
    return table


def _files(files: Corruption) -> Table:
    outcomes = (REFUSED, HARMLESS, ACCEPTED, CRASHED)
    table = _table(f"files damaged and opened: {files.tried}", "file", *outcomes)
    for name, counts in {**files.outcomes, "all": sum(files.outcomes.values(), Counter())}.items():
        table.add_row(name, *(str(counts[outcome]) for outcome in outcomes))
    return table


def _time(report: Report) -> Table:
    table = _table(f"time: {report.seconds:,.0f} seconds", "part", "seconds", "share")
    parts = {str(part): report.runs.seconds.get(part, 0.0) for part in Part}
    for name, seconds in {**parts, "the rest": report.seconds - sum(parts.values())}.items():
        table.add_row(name, f"{seconds:,.1f}", f"{seconds / report.seconds:.1%}")
    return table


def _load(load: Load) -> Table:
    table = _table(f"{load.steps:,} steps in {load.seconds:,.0f} seconds", "what", "second quarter", "last quarter")
    table.add_row("memory, MB", *(f"{value:.1f}" for value in load.memory_mb))
    table.add_row("threads", *map(str, load.threads))
    table.add_row("open files", *map(str, load.files))
    table.add_row(f"log: {load.log_bytes_an_evaluation:.0f} bytes an evaluation", "", f"{load.log_bytes:,} bytes")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table
