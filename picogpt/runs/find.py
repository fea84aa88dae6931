"""Finding runs and their checkpoints by name."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from picogpt.errors import UserError
from picogpt.runs import checkpoints
from picogpt.runs.checkpoint import META, DamageError
from picogpt.runs.layout import BASE, LOG, LOGS, PRETRAINED

Result = TypeVar("Result")
MOST_RUNS = 52  # a letter for each


def use_checkpoint(run_or_path: str | Path, use: Callable[[Path], Result], notify: Callable[[str], None]) -> Result:
    """Return what `use` makes of the best checkpoint that a name stands for; of the next best where that is damaged.

    notify: gets a line that says which is damaged and which is used. Raises UserError where there is none, or none is
    sound.
    """
    tried: dict[Path, DamageError] = {}
    while place := next((place for place in _candidates(run_or_path) if place not in tried), None):
        for other in list(tried)[-1:]:
            if other.exists():  # else the run is training and has pruned it
                notify(f"{tried[other]}: step {int(place.name)} is used in its place")
        try:
            return use(place)
        except DamageError as damage:
            tried[place] = damage
    first = next(iter(tried))
    raise UserError(f"{tried[first]}: {checkpoints.remedy(first)}")


def _candidates(run_or_path: str | Path) -> list[Path]:
    """Return the checkpoint folders that a name or path stands for, the best first. Raises UserError for none."""
    came_with_picogpt = [PRETRAINED / BASE] * (str(run_or_path) == BASE)
    for folder in (LOGS / run_or_path, Path(run_or_path), *came_with_picogpt):
        if (folder / META).is_file():
            return [folder]
        if found := checkpoints.ranked(folder):
            return found
    runs = ", ".join(sorted(run.name for run in trained_runs()))
    there = f"there are: {runs}, and {BASE}" if runs else f"there is {BASE}, and python train.py makes others"
    raise UserError(f"no trained run is called {str(run_or_path)!r}; {there}")


def newest_run() -> str:
    """Return the name of the run that was saved last, or BASE before anything was trained."""
    saved = [(newest / META, run) for run in trained_runs() if (newest := checkpoints.newest(run))]
    return max(saved, key=lambda item: item[0].stat().st_mtime)[1].name if saved else BASE


def trained_runs() -> list[Path]:
    """Return the folders in logs/ with a checkpoint after the first step."""
    if not LOGS.is_dir():
        return []
    folders = [folder for folder in LOGS.iterdir() if os.access(folder, os.R_OK | os.X_OK)]
    return [folder for folder in folders if (found := checkpoints.newest(folder)) and found.name.strip("0")]


def run_name(name: str) -> str:
    """Return the name, checked. Raises UserError for one that a run cannot have."""
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise UserError(f"a run is named with letters, digits, '.', '-' and '_', not {name!r}: give another --run")
    return name


def find_logs(names: Sequence[str], logs: Path) -> list[Path]:
    """Return the log.pkl of each name: a run in `logs`, a run's folder or the file; a folder of runs gives all of them.

    Raises UserError for a name that stands for nothing.
    """
    found: list[Path] = []
    for name in names:
        places = [logs / name, Path(name)]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise UserError(f"there is no log at {places[0]} or {places[1]}")
        path = place / LOG if place.is_dir() else place
        inside = [] if path.exists() else sorted(place.glob(f"*/{LOG}"), key=lambda log: _natural_key(log.parent.name))
        found += inside or [path]
    if len(found) > MOST_RUNS:
        raise UserError(f"{len(found)} runs are too many to tell apart: name {MOST_RUNS} at most")
    return found


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts run-2 before run-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
