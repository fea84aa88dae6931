"""Finding runs and their checkpoints by name."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from picogpt.errors import UserError
from picogpt.runs import checkpoints
from picogpt.runs.checkpoint import META, DamageError
from picogpt.runs.layout import LOG, LOGS

Result = TypeVar("Result")
MOST_RUNS = 52  # a letter for each


def find_checkpoint(run_or_path: str | Path) -> Path:
    """The checkpoint folder that a run's name, its folder or its own path stands for, the best. Raises UserError."""
    return _candidates(run_or_path)[0]


def use_checkpoint(run_or_path: str | Path, use: Callable[[Path], Result], notify: Callable[[str], None]) -> Result:
    """What `use` makes of the best checkpoint that a name stands for; of the next best where it finds that damaged.

    notify: told which is used in place of which. Raises UserError where there is none, or none is sound.
    """
    tried: dict[Path, DamageError] = {}
    while place := next((place for place in _candidates(run_or_path) if place not in tried), None):
        for other in list(tried)[-1:]:
            if other.exists():  # else a run that trains has deleted it meanwhile, as it does
                notify(f"{tried[other]}: step {int(place.name)} is used in its place")
        try:
            return use(place)
        except DamageError as damage:
            tried[place] = damage
    first = next(iter(tried))
    raise UserError(f"{tried[first]}: {checkpoints.way_out(first)}")


def _candidates(run_or_path: str | Path) -> list[Path]:
    """The checkpoint folders that a run's name, its folder or its own path stands for. Raises UserError for none."""
    for folder in (LOGS / run_or_path, Path(run_or_path)):
        if (folder / META).is_file():
            return [folder]
        if found := checkpoints.ranked(folder):
            return found
    runs = ", ".join(sorted(run.name for run in trained_runs())) or "none yet: python train.py makes one"
    raise UserError(f"no trained run is called {str(run_or_path)!r}; there are: {runs}")


def newest_run() -> str:
    """The name of the run that was saved last. Raises UserError where there is none."""
    saved = [(newest / META, run) for run in trained_runs() if (newest := checkpoints.newest(run))]
    if not saved:
        raise UserError(f"no run was trained yet in {LOGS.resolve()}: python train.py --data sample makes one")
    return max(saved, key=lambda item: item[0].stat().st_mtime)[1].name


def trained_runs() -> list[Path]:
    """Folders in logs/ with a checkpoint of more than the beginning."""
    if not LOGS.is_dir():
        return []
    folders = [folder for folder in LOGS.iterdir() if os.access(folder, os.R_OK | os.X_OK)]
    return [folder for folder in folders if (found := checkpoints.newest(folder)) and found.name.strip("0")]


def run_name(name: str) -> str:
    """The name itself. Raises UserError for one that cannot be that of a run."""
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise UserError(f"a run is named with letters, digits, '.', '-' and '_', not {name!r}: give another --run")
    return name


def find_logs(names: Sequence[str], logs: Path) -> list[Path]:
    """The log.pkl of each name: a run in `logs`, its folder or the file; a folder of runs stands for all of them.

    Raises UserError for a name of nothing.
    """
    found: list[Path] = []
    for name in names:
        places = [logs / name, Path(name)]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise UserError(f"there is no log at {places[0]} or {places[1]}")
        path = place / LOG if place.is_dir() else place
        inside = [] if path.exists() else sorted(place.glob("*/log.pkl"), key=lambda log: _natural(log.parent.name))
        found += inside or [path]
    if len(found) > MOST_RUNS:
        raise UserError(f"{len(found)} runs are too many to tell apart: name {MOST_RUNS} at most")
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """run-2 before run-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
