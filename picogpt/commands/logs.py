"""Show the log of a run, or compare several: a table, and their losses as a plot."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from picogpt.commands.options import RunsArgs, output_file, parse
from picogpt.reports.run_view import run_view
from picogpt.reports.summary import read_runs
from picogpt.reports.terminal import Comparison, draw_runs
from picogpt.runs.find import find_logs
from picogpt.runs.layout import LOGS
from picogpt.system.files import write_error


@dataclass(frozen=True)
class LogsArgs(RunsArgs):
    """Show the log of a run, a table and a curve, or compare several."""

    out: str = ""
    """Draw the losses as a picture, too: FILE.png or FILE.svg."""


def run(argv: Sequence[str]) -> None:
    args = parse(LogsArgs, "picogpt logs", argv)
    out = output_file(args.out, ".png", ".svg")
    runs = read_runs(find_logs(args.runs, LOGS))
    Console().print(Comparison(runs) if runs[1:] else run_view(runs[0].log, runs[0].name))
    if out:
        try:
            draw_runs(runs, out)
        except OSError as error:
            raise write_error(out, error) from error
        print(f"wrote {out}")
