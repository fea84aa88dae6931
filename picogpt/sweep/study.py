"""The record of a sweep: an Optuna study in a SQLite file. A trial is one case with one seed."""

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from picogpt.errors import UserError, install_extra, one_line, shown
from picogpt.sweep.cases import Case
from picogpt.sweep.worker import Figures, Outcome

DATABASE, TABLE = "study.db", "table.md"
_WARMUP, _GRID = 10, 5  # percent of a run before it may be pruned, and between two comparisons
_FIGURES, _REASON, _CASES, _FOLDER = "figures", "reason", "cases", "folder"


@dataclass(frozen=True)
class Trial:
    """A run that has ended."""

    case: str
    seed: int
    outcome: Outcome


class Study:
    """The trials of some cases with some seeds."""

    def __init__(self, folder: Path, cases: Sequence[Case], seeds: Sequence[int], prune: bool, fresh: bool) -> None:
        """Begin a study, or continue the one in `folder`; fresh: first delete that one with its runs.

        Raises UserError where Optuna is missing, the file is damaged, or the cases are not those it was begun with.
        """
        self._optuna, self._prune, self._path = _library(), prune, folder / DATABASE
        self._cases, self._seeds = {case.name: case for case in cases}, seeds
        options = self._optuna
        if fresh:
            self._clear(folder)
        self._study = self._open_database(folder)
        about = json.dumps([{"name": case.name, "prune": prune, **asdict(case.config)} for case in cases])
        before = self._study.user_attrs.get(_CASES)
        if before is None:
            self._study.set_user_attr(_CASES, about)
        elif before != about:
            raise UserError(
                f"sweep {folder.name} was begun differently ({_difference(before, about)}): "
                "give the old options to continue, another --run NAME, or --fresh to start over"
            )
        for _ in self._study.get_trials(deepcopy=False, states=[options.trial.TrialState.WAITING]):
            self._study.ask()  # it was enqueued and never begun: if it waited on, the next case would get it
        for trial in self._study.get_trials(deepcopy=False, states=[options.trial.TrialState.RUNNING]):
            self._study.tell(trial.number, state=options.trial.TrialState.FAIL)  # its process was killed

    def _open_database(self, folder: Path) -> Any:
        """Open the Optuna study in the folder, which may be new. Its first few trials are never pruned."""
        options, path = self._optuna, folder / DATABASE
        startup = min(5, len(self._cases))
        try:
            return options.create_study(
                storage=options.storages.RDBStorage(f"sqlite:///{path}"),
                study_name=folder.name,
                load_if_exists=True,
                sampler=options.samplers.RandomSampler(seed=0),
                pruner=options.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=_WARMUP),
            )
        except Exception as error:  # its storage has errors of several libraries
            raise UserError(
                f"{path} cannot be used ({_first_line(error)}): look at the disk, or move {folder} away"
            ) from None

    def _clear(self, folder: Path) -> None:
        """Delete what a sweep has made, and nothing else. Raises UserError where the folder is not that of a sweep."""
        if not (folder / DATABASE).is_file():
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                raise UserError(f"{folder} is no sweep, and is left as it is: give another --run NAME")
            return
        for trial in self._open_database(folder).get_trials(deepcopy=False):
            if name := trial.user_attrs.get(_FOLDER):
                shutil.rmtree(folder / name, ignore_errors=True)
        for name in (TABLE, DATABASE):  # the study last: what is left is still a sweep
            (folder / name).unlink(missing_ok=True)

    @contextmanager
    def explaining_errors(self) -> Iterator[None]:
        """Turn errors of the database, such as a full disk, into a UserError."""
        import sqlalchemy

        try:
            yield
        except (self._optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError) as error:
            why = _first_line(error.__cause__ or error)
            raise UserError(
                f"{self._path} cannot be used any more ({why}): look at the disk; the same command continues"
            ) from error

    def open(self, case: Case, seed: int) -> Any:
        """Begin a trial, and return it as Optuna has it."""
        choices = self._optuna.distributions.CategoricalDistribution
        params = {**case.values, "seed": seed}
        self._study.enqueue_trial(params, user_attrs={"case": case.name, "seed": seed, _FOLDER: case.run_folder(seed)})
        values = {name: [other.values[name] for other in self._cases.values()] for name in case.values}
        spaces = {name: choices(list(dict.fromkeys(given))) for name, given in values.items()}
        # A range and not a choice, because more seeds may be added later.
        return self._study.ask({**spaces, "seed": self._optuna.distributions.IntDistribution(0, 2**63 - 1)})

    def should_prune(self, trial: Any, progress: float, loss: float) -> bool:
        """Return whether to end a trial: its loss is worse than the median of the others at the same share of a run.

        Runs of different lengths are evaluated at different shares, so an evaluation counts for the twentieth it is in.
        """
        percent = int(100 * progress) // _GRID * _GRID
        seen = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if percent in seen or percent >= 100:
            return False
        trial.report(loss, percent)
        return self._prune and bool(trial.should_prune())

    def close(self, trial: Any, outcome: Outcome) -> None:
        """Record how a trial ended. One that was stopped does not count as ended, so that it is resumed later."""
        state = self._optuna.trial.TrialState
        if outcome.figures is not None:
            trial.set_user_attr(_FIGURES, asdict(outcome.figures))
            self._study.tell(trial, outcome.figures.loss)
        elif outcome.state == "pruned":
            self._study.tell(trial, state=state.PRUNED)
        else:
            if outcome.state == "failed":
                trial.set_user_attr(_REASON, outcome.reason)
            self._study.tell(trial, state=state.FAIL)

    def trials(self) -> list[Trial]:
        """Return the trials that have ended for good, by seed and then by case."""
        state = self._optuna.trial.TrialState
        found: dict[tuple[int, str], Trial] = {}
        for trial in self._study.get_trials(deepcopy=False):
            outcome = None
            if trial.state == state.COMPLETE:
                outcome = Outcome("done", _figures_of(trial))
            elif trial.state == state.PRUNED:
                outcome = Outcome("pruned")
            elif _REASON in trial.user_attrs:
                outcome = Outcome("failed", reason=trial.user_attrs[_REASON])
            if outcome:
                key = trial.user_attrs["seed"], trial.user_attrs["case"]
                found[key] = Trial(key[1], key[0], outcome)
        order = [(seed, name) for seed in self._seeds for name in self._cases]
        return [found[key] for key in order if key in found]


def _library() -> Any:
    """Return Optuna, silenced. Raises UserError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError(f"picogpt sweep needs the package optuna: {install_extra('sweep')}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def _figures_of(trial: Any) -> Figures:
    """Return the figures that `Study.close` stored in a trial."""
    values = trial.user_attrs[_FIGURES]
    return Figures(**{field.name: values[field.name] for field in fields(Figures)})


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text; of SQLAlchemy's, the others are the statement."""
    return one_line(str(error).partition("\n")[0] or type(error).__name__)


def _difference(before: str, now: str) -> str:
    """Return in words the first difference between two lists of cases in JSON."""
    old_cases, new_cases = json.loads(before), json.loads(now)
    names = [", ".join(case["name"] for case in cases) for cases in (old_cases, new_cases)]
    if names[0] != names[1]:
        return f"its cases were {names[0]}, now {names[1]}"
    for old, new in zip(old_cases, new_cases, strict=True):
        for part in ("model", "data", "train"):
            for name, value in new[part].items():
                if old[part].get(name) != value:
                    return f"{name} was {shown(old[part].get(name))}, now {shown(value)}"
        if old["prune"] != new["prune"]:
            return "with --prune" if old["prune"] else "without --prune"
    return "by another version of picogpt"
