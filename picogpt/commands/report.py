"""Write a report of one run or several: a page that any browser opens without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from picogpt.commands.options import RunsArgs, output_file, parse
from picogpt.reports.page import write_page
from picogpt.reports.summary import read_runs
from picogpt.runs.find import find_logs
from picogpt.runs.layout import LOGS


@dataclass(frozen=True)
class ReportArgs(RunsArgs):
    """Write a report of one run or several: curves, settings and samples on a page that needs no network."""

    out: str = ""
    """The .html file to write. Default: report.html in the folder that is named, or here if several runs are named."""


def run(argv: Sequence[str]) -> None:
    """Write the page of the runs that are named. Raises UserError for a problem the user can solve."""
    args = parse(ReportArgs, "picogpt report", argv)
    out, paths = output_file(args.out, ".html", ".htm"), find_logs(args.runs, LOGS)
    if out is None:
        folder = paths[0].parent if len(paths) == 1 else paths[0].parent.parent if len(args.runs) == 1 else Path()
        out = folder / "report.html"
    write_page(read_runs(paths), out)
    print(f"wrote {out}: open it in a browser")
