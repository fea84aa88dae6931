"""`python -m tests.torture` kills, starves and damages training runs at random, and looks for a difference.

A first run measures the pace of the machine. Then each variant of a tiny model is trained twice: undisturbed, and by a
command that is given again and again with a fault each time. Both must come to the same bits. In the end the files of a
finished run are damaged and opened.
"""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from rich.console import Console

from picogpt.commands.options import parse
from picogpt.engine.lanes import FORK
from picogpt.errors import UserError
from picogpt.system import hardware
from tests.torture.corrupt import Corrupter, Corruption
from tests.torture.load import load
from tests.torture.pace import Pace, Sizes, measure_pace, sizes
from tests.torture.report import Report, show
from tests.torture.runs import Left, Torture
from tests.torture.tally import Part
from tests.torture.variants import VARIANTS, text

PROGRAM = "python -m tests.torture"


@dataclass(frozen=True)
class Options:
    """Kill, starve and damage runs of a tiny model, and look for a difference."""

    minutes: float = 10.0
    """How long, without --load. In a short time fewer than the four variants are trained, with fewer faults."""
    seed: int = 0
    """Of the faults and their moments, which also depend on the machine's."""
    load: int = 0
    """Then a run of so many steps, watched for leaks; 100,000 say something."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        if self.minutes <= 0 or self.load < 0:
            raise UserError(f"--minutes must be positive, and --load not negative: {self.minutes:g}, {self.load}")


def disturb_all(runs: Torture, pace: Pace, chosen: Sizes, deadline: float) -> None:
    """Share the time until the deadline among the variants: what their undisturbed runs leave is for faults."""
    variants = sorted(VARIANTS[: chosen.variants], key=lambda variant: not variant.diverges)
    for number, variant in enumerate(variants):
        now = time.monotonic()
        turn = (deadline - now) / (len(variants) - number) - pace.start - pace.save  # the last start takes these
        print(f"{variant.name} ... ", end="", file=sys.stderr, flush=True)
        runs.run(variant, until(now + turn, runs, pace))
        print(f"{runs.tally.kills[variant.name]} kills survived", file=sys.stderr, flush=True)


def until(deadline: float, runs: Torture, pace: Pace) -> Left:
    """Let a variant have as many faults as fit before the deadline, and one in any case."""

    def left(done: int) -> int:
        fit = int((deadline - time.monotonic()) / (runs.tally.seconds_a_fault or pace.fault))
        return max(fit, 0 if done else 1)

    return left


def damage_files(runs: Torture, seconds: float, random: Random) -> Corruption:
    """Damage every file of a finished run again and again for so many seconds, and once in any case."""
    with runs.tally.timed(Part.FILES):
        deadline = time.monotonic() + seconds
        corrupter = Corrupter(runs.finished(), random)
        corrupter.round()
        while time.monotonic() < deadline:
            corrupter.round()
    return corrupter.result


def torture(args: Options) -> Report:
    """Do all of it in a folder that is removed. Raises UserError where this cannot be done at all."""
    if not FORK:
        raise UserError("this takes signals and processes as Linux has them")
    began, seconds, random = time.monotonic(), 60 * args.minutes, Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="picogpt-torture-") as name:
        folder = Path(name)
        pace = measure_pace(folder, text(random))
        measured = time.monotonic() - began
        chosen = sizes(pace, args.minutes)
        runs = Torture(folder, chosen.steps, chosen.faults, random)
        runs.tally.spend(Part.PACE, measured)
        runs.short_memory()
        disturb_all(runs, pace, chosen, began + seconds - chosen.files)
        files = damage_files(runs, chosen.files, random)
        seconds = time.monotonic() - began
        loaded = None
        if args.load:
            (folder / "load").mkdir()
            loaded = load(folder / "load", text(random), args.load)
    return Report(seconds, pace, chosen, runs.tally, files, loaded)


def main(argv: Sequence[str]) -> int:
    """Torture and print. Returns the exit status: that of the report, 2 for wrong options, 130 for Ctrl-C."""
    try:
        args = parse(Options, PROGRAM, argv)
        report = torture(args)
    except UserError as error:
        print(f"torture: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    if args.json:
        shown = {"machine": hardware.machine(), **vars(report), "missing": report.runs.missing}
        print(json.dumps({**shown, "problems": report.problems}, default=vars))
    else:
        show(report, Console())
    return report.status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process is left behind
    sys.exit(main(sys.argv[1:]))
