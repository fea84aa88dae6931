"""Train every combination of some settings with several seeds, and compare them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import UseAppendAction

from picogpt.commands.options import LengthArgs, PresetArgs, parse, parse_known, with_dashboard_port
from picogpt.config import MonitoringConfig, RunConfig
from picogpt.config.presets import preset
from picogpt.data.sources.datasets import only_dataset
from picogpt.errors import UserError
from picogpt.runs.find import run_name
from picogpt.runs.layout import DATASET, LOGS
from picogpt.runs.lock import run_lock
from picogpt.sweep.cases import EXERCISE, Budget, Case, exercise, seeded, varied, within
from picogpt.sweep.result import COLUMNS, CaseResult, markdown, notes, results, table
from picogpt.sweep.study import TABLE, Study
from picogpt.sweep.worker import Order, Outcome, Worker
from picogpt.system.files import make_folder, write_durably, write_error
from picogpt.system.hardware import machine
from picogpt.system.signals import stop_signals
from picogpt.system.terminal import to_stderr, visible

_FOR_WIDE = ("min", "train", "val", "tok/s", "MB")  # columns that leave names no room on a narrow terminal


@dataclass(frozen=True)
class SweepArgs(PresetArgs):
    """Train every combination of some settings with several seeds, and compare them.

    The same command continues where it stopped. A run that diverges is reported, and the others continue. --preset
    exercise is the study of four cases from a course, beside the figures of that course.
    """

    vary: UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE,VALUE,... with the name of an option of train. Several of these make every combination.
    The other cases are compared with that of the first values."""
    seeds: int = 3
    """Runs of each case, with seeds from --seed on. Their spread tells how much of a difference may be chance."""
    budget: Budget = "own"
    """tokens: each case trains on as many as the first; minutes: each for --minutes; own: each as its settings say."""
    prune: bool = False
    """Give up a run if its validation loss is worse than the median of the others at the same share of a run.
    Its case then has no mean over all seeds, so this helps to find a good case, but not to measure how good it is."""
    run: str = ""
    """Name of the sweep, its folder in logs/. Default: what is varied."""
    fresh: bool = False
    """Delete the runs of the sweep and start over."""
    config: RunConfig = field(default_factory=RunConfig)
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)


def run(argv: Sequence[str]) -> None:
    """Run the sweep that the options ask for, or continue it. Raises UserError for a problem the user can solve."""
    args, cases = _parse_cases(with_dashboard_port(argv))
    if args.seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {args.seeds}")
    if only_dataset(args.config.data.names):
        raise UserError("a streamed data set is a different text in every run: sweep over files, sample or shakespeare")
    default = "-".join(["sweep", args.preset if args.preset == EXERCISE else "-".join(cases[0].values)])
    folder = LOGS / run_name(args.run or default)
    seeds = [args.config.train.seed + i for i in range(args.seeds)]
    make_folder(folder)
    with run_lock(folder, to_stderr):
        study = Study(folder, cases, seeds, args.prune, args.fresh)
        with study.explaining_errors():
            done = _run_all(study, cases, seeds, folder, args)
            found = results(cases, study.trials())
        _print_results(found, folder)
    if not done:
        print(f"stopped: the same command{' without --fresh' * args.fresh} continues from here")


def _parse_cases(argv: Sequence[str]) -> tuple[SweepArgs, list[Case]]:
    """Return the options and the cases they make. Raises UserError."""
    name = parse_known(PresetArgs, "picogpt sweep", argv).preset

    def parse_from(start: RunConfig) -> SweepArgs:
        return parse(SweepArgs, "picogpt sweep", argv, SweepArgs(config=start))

    if name == EXERCISE:
        args = parse_from(preset(f"{EXERCISE}-base"))
        if args.vary:
            raise UserError("--preset exercise is four cases already: leave --vary out, or give --preset exercise-base")
        cases = exercise(lambda start: parse_from(start).config)
    else:
        length = parse_known(LengthArgs, "picogpt sweep", argv)
        args = parse_from(length.applied(preset(name)))
        if not args.vary:
            raise UserError("say what to compare: for example --vary n_head=4,8, or --preset exercise")
        cases = varied(args.config, args.vary)
    return args, within(cases, args.budget)


def _run_all(study: Study, cases: Sequence[Case], seeds: Sequence[int], folder: Path, args: SweepArgs) -> bool:
    """Train the runs that have not been trained yet. Returns whether all are done."""
    ended = {(trial.seed, trial.case) for trial in study.trials()}
    wanted = [(seed, case) for seed in seeds for case in cases]
    with stop_signals(lambda text: print(text, flush=True) if text else None) as stopped:
        for number, (seed, case) in enumerate(wanted, start=1):
            if (seed, case.name) in ended:
                continue
            if stopped():
                return False
            print(f"run {number} of {len(wanted)}: {case.name}, seed {seed}", flush=True)
            order = Order(seeded(case.config, seed), folder / case.run_folder(seed), DATASET, args.monitoring)
            outcome = _train(study, case, seed, order, stopped)
            if outcome.state == "failed":
                print(f"failed: {outcome.reason}", flush=True)
            elif outcome.state == "pruned":
                print("given up: worse than the median of the runs before", flush=True)
            elif outcome.state == "refused":
                raise UserError(outcome.reason)
            elif outcome.state == "stopped":
                return False
    return True


def _train(study: Study, case: Case, seed: int, order: Order, stopped: Callable[[], bool]) -> Outcome:
    """Train one run in a process of its own, and note in the study how it ended."""
    trial = study.open(case, seed)
    with ExitStack() as stack:
        worker = Worker(order)
        stack.callback(worker.close)
        while True:
            news = worker.next(stopped())
            if isinstance(news, Outcome):
                study.close(trial, news)
                return news
            if news is not None:
                worker.answer(not study.should_prune(trial, *news))


def _print_results(found: Sequence[CaseResult], folder: Path) -> None:
    """Print the table, its notes and the samples, and write them to table.md."""
    console = Console()
    titles, *rows = table(found)
    grid = Table(box=None, pad_edge=False, padding=(0, 2 if console.width >= 100 else 1, 0, 0))
    shown = [i for i, title in enumerate(titles) if console.width >= 100 or title not in _FOR_WIDE]
    for i in shown:
        grid.add_column(titles[i], justify="right" if i else "left", no_wrap=0 < i < len(COLUMNS), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(visible(row[i], console.encoding)) for i in shown))
    console.print(grid)
    for note in notes(found):
        console.print(Text(visible(note, console.encoding), "dim"))
    for result in found:
        if samples := result.samples():
            console.print(Text(visible(result.case.name, console.encoding), "bold"))
            for when, text in zip(("before", "after"), samples, strict=True):
                console.print(Text(f"  {when}: {visible(text, console.encoding)}"))
    path = folder / TABLE
    try:
        write_durably(path, markdown(folder.name, found, machine()).encode())
    except OSError as error:
        raise write_error(path, error) from error
    console.print(Text(f"wrote {path}; picogpt report {folder.name} makes a page of its runs"))
