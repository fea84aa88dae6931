"""`python -m tests.torture`: runs that are killed, starved and damaged at random must come to the same bits.

Each variant of a tiny model is trained twice: undisturbed, and by a command that is given again and again while
something befalls it each time. Then the files of a finished run are damaged and opened.
"""

import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from random import Random

from rich.console import Console
from rich.table import Table

from picogpt.commands.options import parse
from picogpt.engine.lanes import FORK
from picogpt.errors import UserError
from picogpt.system import hardware
from tests.torture.corrupt import ACCEPTED, CRASHED, HARMLESS, REFUSED, Corrupter, Corruption
from tests.torture.faults import FAULTS
from tests.torture.load import Load, load
from tests.torture.runs import VARIANTS, Tally, Torture, text

PROGRAM = "python -m tests.torture"
_RUNS = 0.9  # of the time; the rest is for damaged files
_A_FAULT = 1.2  # seconds, with all that belongs to it
_STEPS_A_FAULT = 50  # so many pass, on the average, until the next one
_FEWEST = 60  # steps of a run
_ROUNDS = 30  # of damaging every file, at least
_SHOWN = 20  # problems, where there are more


@dataclass(frozen=True)
class Options:
    """Kill, starve and damage runs of a tiny model, and look for a difference."""

    minutes: float = 10.0
    """How long, without --load. Of less than two, fewer than the four variants are trained."""
    seed: int = 0
    """Of the faults and their moments, which also depend on the machine's."""
    load: int = 0
    """Then a run of so many steps, watched for leaks; 100,000 say something."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.load < 0:
            raise UserError(f"--minutes must be positive, and --load not negative: {self.minutes:g}, {self.load}")


@dataclass
class Report:
    seconds: float
    runs: Tally
    files: Corruption
    load: Load | None

    @property
    def problems(self) -> list[str]:
        return self.runs.problems + self.files.problems + (self.load.problems if self.load else [])


def torture(folder: Path, variants: int, seconds: float, random: Random) -> tuple[Tally, Corruption]:
    """Faults for each of the first variants, then damaged files; as many as these seconds hold, and some even so."""
    faults = max(1, round(_RUNS * seconds / variants / _A_FAULT))
    began = time.monotonic()
    runs = Torture(folder, max(_FEWEST, _STEPS_A_FAULT * faults), random)
    for number, variant in enumerate(VARIANTS[:variants], start=1):
        print(f"{variant.name} ... ", end="", file=sys.stderr, flush=True)
        runs.run(variant, faults, began + _RUNS * seconds * number / variants)
        print(f"{runs.tally.kills[variant.name]} kills survived", file=sys.stderr, flush=True)
    runs.short_memory()
    corrupter = Corrupter(runs.finished(), random)
    rounds = 0
    while rounds < _ROUNDS or time.monotonic() < began + seconds:
        corrupter.round()
        rounds += 1
    return runs.tally, corrupter.result


def measure(args: Options) -> Report:
    if not FORK:
        raise UserError("this takes signals and processes as Linux has them")
    began, seconds = time.monotonic(), 60 * args.minutes
    variants = min(len(VARIANTS), ceil(2 * args.minutes))
    with tempfile.TemporaryDirectory(prefix="picogpt-torture-") as name:
        folder, random = Path(name), Random(args.seed)
        runs, files = torture(folder, variants, seconds, random)
        loaded = None
        if args.load:
            (folder / "load").mkdir()
            loaded = load(folder / "load", text(random), args.load)
    return Report(time.monotonic() - began, runs, files, loaded)


def tables(report: Report) -> list[Table]:
    runs, files = report.runs, report.files
    survived = _table(f"kills survived: {runs.kills.total()}", "run", "SIGKILL")
    for variant in VARIANTS:
        if variant.name in runs.names:
            survived.add_row(variant.name, str(runs.kills[variant.name]))
    injected = _table(f"faults: {runs.faults.total()}", "kind", "took effect")
    for kind in [*(fault.kind for fault in FAULTS), *sorted(runs.faults.keys() - {fault.kind for fault in FAULTS})]:
        injected.add_row(kind, str(runs.faults[kind]))
    damaged = _table(f"files damaged and opened: {files.tried}", "file", REFUSED, HARMLESS, ACCEPTED, CRASHED)
    for name, counts in {**files.outcomes, "all": sum(files.outcomes.values(), Counter())}.items():
        damaged.add_row(name, *(str(counts[outcome]) for outcome in (REFUSED, HARMLESS, ACCEPTED, CRASHED)))
    return [survived, injected, damaged, *([_load_table(report.load)] if report.load else [])]


def _load_table(load: Load) -> Table:
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


def show(report: Report, console: Console) -> None:
    for table in tables(report):
        console.print(table, "")
    runs = report.runs
    console.print(f"bits compared: {runs.bits_compared:,}, different: {runs.bits_different:,}")
    console.print(f"problems: {len(report.problems)}")
    for problem in report.problems[:_SHOWN]:
        console.print(f"  {problem}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{report.seconds:,.0f} seconds on {hardware.machine()}", highlight=False)


def main(argv: Sequence[str]) -> int:
    """Measure and print. Returns the exit status: 1 for a difference or a problem, 2 for wrong options."""
    try:
        args = parse(Options, PROGRAM, argv)
        report = measure(args)
    except UserError as error:
        print(f"torture: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps({"machine": hardware.machine(), **vars(report), "problems": report.problems}, default=vars))
    else:
        show(report, Console())
    return int(bool(report.problems) or report.runs.bits_different > 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process is left behind
    sys.exit(main(sys.argv[1:]))
