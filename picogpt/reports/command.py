"""`picogpt logs` and `picogpt report`: runs looked at and compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from picogpt.api import LOGS
from picogpt.config import UserError
from picogpt.files import unwritten
from picogpt.options import parse
from picogpt.reports.compare import Comparison, draw_runs
from picogpt.reports.page import write_page
from picogpt.reports.summary import find_logs, read_runs
from picogpt.training.logview import summary


@dataclass(frozen=True)
class _Runs:
    runs: Positional[Annotated[tuple[str, ...], arg(metavar="RUN...", help_behavior_hint="")]]
    """A run in logs/, its folder, or a log.pkl; or several. A folder of runs stands for all of them. The first is what
    the others are compared with."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("give one run or more (see --help)")


@dataclass(frozen=True)
class LogsArgs(_Runs):
    """Show the log of a run, a table and a curve, or compare several."""

    out: str = ""
    """Draw the losses as a picture, too: FILE.png or FILE.svg."""


@dataclass(frozen=True)
class ReportArgs(_Runs):
    """Write one page of runs, which any browser opens without a network: curves, settings, samples, the machine."""

    out: str = ""
    """The .html file to write. Default: report.html in the folder that is named, or here where several are."""


def logs(argv: Sequence[str]) -> None:
    args = parse(LogsArgs, "picogpt logs", argv)
    out = _out(args.out, ".png", ".svg")
    runs = read_runs(find_logs(args.runs, LOGS))
    Console().print(Comparison(runs) if runs[1:] else summary(runs[0].log, runs[0].name))
    if out:
        try:
            draw_runs(runs, out)
        except OSError as error:
            raise unwritten(out, error) from error
        print(f"wrote {out}")


def report(argv: Sequence[str]) -> None:
    args = parse(ReportArgs, "picogpt report", argv)
    out, paths = _out(args.out, ".html", ".htm"), find_logs(args.runs, LOGS)
    if out is None:
        inside = paths[0].parent if len(paths) == 1 else paths[0].parent.parent if len(args.runs) == 1 else Path()
        out = inside / "report.html"
    write_page(read_runs(paths), out)
    print(f"wrote {out}: open it in a browser")


def _out(name: str, *kinds: str) -> Path | None:
    """The file to write, of one of these kinds, so that a slip overwrites nothing else. Raises UserError."""
    if name and Path(name).suffix.lower() not in kinds:
        raise UserError(f"--out {name} is not the name of a {' or '.join(kinds)} file: give one")
    return Path(name) if name else None
