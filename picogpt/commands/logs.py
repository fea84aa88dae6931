"""Show the log of a run as a table and a plot of its losses, or compare several runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from picogpt.commands.options import RunsArgs, output_file, parse
from picogpt.reports.comparison_view import ComparisonView, draw_runs
from picogpt.reports.run_view import run_view
from picogpt.reports.summary import read_runs
from picogpt.runs.find import find_logs
from picogpt.runs.layout import LOGS
from picogpt.system.files import write_error


@dataclass(frozen=True)
class LogsArgs(RunsArgs):
    """Show the log of a run as a table and a plot of its losses, or compare several runs."""

    out: str = ""
    """Also draw the losses as a picture, FILE.png or FILE.svg."""


def run(argv: Sequence[str]) -> None:
    """Print the log of a run, or the comparison of several. Raises UserError for a problem the user can solve."""
    args = parse(LogsArgs, "picogpt logs", argv)
    out = output_file(args.out, ".png", ".svg")
    runs = read_runs(find_logs(args.runs, LOGS))
    Console().print(ComparisonView(runs) if runs[1:] else run_view(runs[0]))
    if out:
        try:
            draw_runs(runs, out)
        except OSError as error:
            raise write_error(out, error) from error
        print(f"wrote {out}")
