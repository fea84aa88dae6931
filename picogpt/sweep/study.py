"""The memory of a sweep: an Optuna study in a SQLite file. A trial is one case with one seed."""

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from picogpt.errors import UserError, install_extra, shown
from picogpt.sweep.cases import Case
from picogpt.sweep.worker import Outcome

DATABASE, TABLE = "study.db", "table.md"

_WARMUP, _GRID = 10, 5  # percent of a run that nobody judges, and between two looks

_FIGURES, _REASON, _CASES, _FOLDER = "figures", "reason", "cases", "folder"


@dataclass(frozen=True)
class Trial:
    """What became of one run."""

    case: str
    seed: int
    outcome: Outcome


class Study:
    """Trials of these cases with these seeds."""

    def __init__(self, folder: Path, cases: Sequence[Case], seeds: Sequence[int], prune: bool, fresh: bool) -> None:
        """Begin one, or go on with the one in `folder`; fresh: delete that with its runs before.

        Raises UserError where Optuna is missing, the file is damaged, or the cases are not those it was begun with.
        """
        self._optuna, self._prune, self._path = _library(), prune, folder / DATABASE
        self._cases, self._seeds = {case.name: case for case in cases}, seeds
        options = self._optuna
        if fresh:
            self._clear(folder)
        self._study = self._opened(folder)
        asked: list[dict[str, Any]] = [{"name": case.name, "prune": prune, **asdict(case.config)} for case in cases]
        about = json.dumps(asked)
        before = self._study.user_attrs.get(_CASES)
        if before is None:
            self._study.set_user_attr(_CASES, about)
        elif before != about:
            raise UserError(
                f"sweep {folder.name} was begun differently ({_difference(json.loads(before), json.loads(about))}): "
                "give the old options to go on, another --run NAME, or --fresh to start over"
            )
        for _ in self._study.get_trials(deepcopy=False, states=[options.trial.TrialState.WAITING]):
            self._study.ask()  # it was noted and never begun: left waiting, it would be taken for the next case
        for trial in self._study.get_trials(deepcopy=False, states=[options.trial.TrialState.RUNNING]):
            self._study.tell(trial.number, state=options.trial.TrialState.FAIL)  # its process was killed

    def _opened(self, folder: Path) -> Any:
        """The study in the folder, which may be new. The first seed of a few cases is trained whatever others did."""
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
            why = shown(str(error).splitlines()[0] if str(error) else type(error).__name__)
            raise UserError(f"{path} cannot be used ({why}): look at the disk, or move {folder} away") from None

    def _clear(self, folder: Path) -> None:
        """Delete what a sweep has made, and nothing else. Raises UserError where the folder is another thing."""
        if not (folder / DATABASE).is_file():
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                raise UserError(f"{folder} is no sweep, and is left as it is: give another --run NAME")
            return
        for trial in self._opened(folder).get_trials(deepcopy=False):
            if name := trial.user_attrs.get(_FOLDER):
                shutil.rmtree(folder / name, ignore_errors=True)
        for name in (TABLE, DATABASE):  # the study last: what is left is still a sweep
            (folder / name).unlink(missing_ok=True)

    @contextmanager
    def in_reach(self) -> Iterator[None]:
        """Say in one line that the file cannot be read or written any more, as on a full disk."""
        import sqlalchemy

        try:
            yield
        except (self._optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError) as error:
            why = str(error.__cause__ or error).splitlines()[0]
            raise UserError(
                f"{self._path} cannot be used any more ({shown(why)}): look at the disk; the same command goes on"
            ) from error

    def open(self, case: Case, seed: int) -> Any:
        """A trial that runs from now on."""
        choices = self._optuna.distributions.CategoricalDistribution
        params = {**case.values, "seed": seed}
        self._study.enqueue_trial(params, user_attrs={"case": case.name, "seed": seed, _FOLDER: case.run_folder(seed)})
        values = {name: [other.values[name] for other in self._cases.values()] for name in case.values}
        spaces = {name: choices(list(dict.fromkeys(given))) for name, given in values.items()}
        # More seeds may come another time: they are numbers of a range, not a choice.
        return self._study.ask({**spaces, "seed": self._optuna.distributions.IntDistribution(0, 2**63 - 1)})

    def should_prune(self, trial: Any, progress: float, val_loss: float) -> bool:
        """Whether it is to be given up: its loss is worse than the median of the others at the same share of their run.

        Evaluations fall on different shares of runs of different lengths: they count for the twentieth they are in.
        """
        percent = int(100 * progress) // _GRID * _GRID
        seen = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if percent in seen or percent >= 100:
            return False
        trial.report(val_loss, percent)
        return self._prune and bool(trial.should_prune())

    def close(self, trial: Any, outcome: Outcome) -> None:
        """Note how it ended. One that was stopped is as if it had not been begun: it goes on another time."""
        state = self._optuna.trial.TrialState
        if outcome.state == "done":
            trial.set_user_attr(_FIGURES, outcome.figures)
            self._study.tell(trial, outcome.figures["val_loss"])
        elif outcome.state == "pruned":
            self._study.tell(trial, state=state.PRUNED)
        else:
            if outcome.state == "failed":
                trial.set_user_attr(_REASON, outcome.reason)
            self._study.tell(trial, state=state.FAIL)

    def trials(self) -> list[Trial]:
        """What has ended for good, in the order of the seeds and of the cases."""
        state = self._optuna.trial.TrialState
        found: dict[tuple[int, str], Trial] = {}
        for trial in self._study.get_trials(deepcopy=False):
            outcome = None
            if trial.state == state.COMPLETE:
                outcome = Outcome("done", trial.user_attrs[_FIGURES])
            elif trial.state == state.PRUNED:
                outcome = Outcome("pruned", {})
            elif _REASON in trial.user_attrs:
                outcome = Outcome("failed", {}, trial.user_attrs[_REASON])
            if outcome:
                key = trial.user_attrs["seed"], trial.user_attrs["case"]
                found[key] = Trial(key[1], key[0], outcome)
        order = [(seed, name) for seed in self._seeds for name in self._cases]
        return [found[key] for key in order if key in found]


def _library() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(f"picogpt sweep needs the package optuna: {install_extra('sweep')}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def _difference(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    names = [", ".join(case["name"] for case in cases) for cases in (before, now)]
    if names[0] != names[1]:
        return f"its cases were {names[0]}, now {names[1]}"
    for old, new in zip(before, now, strict=True):
        for part in ("model", "data", "train"):
            for name, value in new[part].items():
                if old[part].get(name) != value:
                    return f"{name} was {shown(old[part].get(name))}, now {shown(value)}"
        if old["prune"] != new["prune"]:
            return "with --prune" if old["prune"] else "without --prune"
    return "by another version of picogpt"
