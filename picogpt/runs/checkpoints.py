"""The checkpoints of a run: one folder a step, written aside, made durable, read back, and only then given its name.

    <run>/checkpoints/<step:08d>/

A folder without `meta.json` is no checkpoint, so a kill or a power cut at any moment leaves the last one in force.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from math import isfinite
from pathlib import Path

from picogpt.engine.backend import Array
from picogpt.errors import UserError
from picogpt.runs.checkpoint import (
    META,
    Checkpoint,
    DamageError,
    fingerprint,
    finish,
    read,
    read_record,
    verify,
    write_arrays,
)
from picogpt.runs.layout import CHECKPOINTS
from picogpt.runs.meta import CheckpointMeta
from picogpt.system.files import make_folder, replace, sync_folder

_TEMPORARY = ".tmp-"

# .old: while another checkpoint of the same step takes its name. .aside: damaged, or of a course that was given up.
_NAME = re.compile(r"(\d{8,})(\.old|\.aside)?")


@dataclass(frozen=True)
class Draft:
    """A checkpoint whose arrays are written, but neither durable nor under its name."""

    folder: Path
    final: Path
    step: int
    meta: dict[str, object]
    """As JSON holds it."""

    def drop(self) -> None:
        """Give its space back."""
        shutil.rmtree(self.folder, ignore_errors=True)


def save(
    run_dir: Path, step: int, model: Mapping[str, Array], optimizer: Mapping[str, Array], meta: CheckpointMeta
) -> Path:
    """Write the checkpoint of `step`, replacing one of the same step, and return its folder.

    Raises UserError when the disk refuses; the checkpoints before stay as they are.
    """
    make_folder(run_dir)
    return publish(write(run_dir, step, model, optimizer, meta))


def write(
    run_dir: Path, step: int, model: Mapping[str, Array], optimizer: Mapping[str, Array], meta: CheckpointMeta
) -> Draft:
    """The first half of `save`, as quick as copying: when it returns, the arrays may change.

    The run's folder has to be there: one that has gone, as a network's does, may come back. Raises UserError when the
    disk refuses.
    """
    # What is no JSON is refused before anything is written; and the crc32 is of what will be read.
    fields = json.loads(json.dumps(meta.to_dict()))
    final = run_dir / CHECKPOINTS / f"{step:08d}"
    draft = Draft(final.with_name(f"{_TEMPORARY}{final.name}"), final, step, fields)
    with _as_one_line(draft):
        final.parent.mkdir(exist_ok=True)
        _remove(draft.folder)
        draft.folder.mkdir()
        write_arrays(draft.folder, model, optimizer)
    return draft


def publish(draft: Draft) -> Path:
    """The second half of `save`, which waits for the disk. There is a complete checkpoint of this step at every moment.

    Raises UserError when the disk refuses.
    """
    aside = draft.final.with_name(f"{draft.final.name}.old")
    with _as_one_line(draft):
        finish(draft.folder, draft.step, draft.meta)
        if draft.final.exists():  # no platform replaces a folder that is not empty
            _remove(aside)
            replace(draft.final, aside)
        replace(draft.folder, draft.final)
        for folder in (draft.final.parent, draft.final.parent.parent):
            sync_folder(folder)
        _remove(aside)
    return draft.final


@contextmanager
def _as_one_line(draft: Draft) -> Iterator[None]:
    """An error of the disk as one line; what the draft took is given back, and what may go if there is no room."""
    try:
        yield
    except OSError as error:
        draft.drop()
        if error.errno in (ENOSPC, EDQUOT):
            for aside in draft.final.parent.glob("*.aside"):
                shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"cannot write the checkpoint {draft.final} ({error.strerror or error}): free some disk space or choose "
            "another folder; the checkpoints before it are as they were"
        ) from error


def load(path: Path, optimizer: bool = True, mapped: bool = False) -> Checkpoint:
    """Read a checkpoint folder and verify the size and crc32 of each file read; mapped: leave the matrices there.

    Raises UserError naming the damaged file and what to do; nothing is ever unpickled.
    """
    try:
        return read(path, optimizer, mapped)
    except DamageError as damage:
        raise UserError(f"{damage}: {way_out(path)}") from None


def way_out(path: Path) -> str:
    """What to do about a damaged checkpoint."""
    for other in _complete(path.parent)[::-1]:
        with suppress(DamageError):
            if other != path:
                verify(other)
                return f"delete {path} to go on from step {_step(other)}"
    return "start the run again with --fresh"


def newest(run_dir: Path) -> Path | None:
    """The run's newest checkpoint folder, by its name alone."""
    folders = _complete(run_dir / CHECKPOINTS)
    return folders[-1] if folders else None


def newest_recorded(run_dir: Path) -> Path | None:
    """The run's newest checkpoint folder whose record is sound; its arrays may be damaged."""
    return next(reversed(_records(run_dir)), None)


def ranked(run_dir: Path) -> list[Path]:
    """The run's checkpoint folders in the order in which they are wanted to write with.

    First those whose record is damaged, of which nothing is known: whoever tries them finds out and takes the next.
    Then `best`, the others that have a loss of the same text, the lower the sooner, and the rest from the newest on.
    """
    records = _records(run_dir)
    damaged = [folder for folder in _complete(run_dir / CHECKPOINTS) if folder not in records]
    compared = [folder for _, folder in sorted(_losses(records))]
    return damaged + compared + [folder for folder in reversed(records) if folder not in compared]


def state_of(run_dir: Path) -> str:
    """Something that is another when the run was saved since; "" for a run without checkpoints."""
    folder = newest(run_dir)
    try:
        return fingerprint(folder) if folder else ""
    except DamageError:  # it cannot be read; a run goes on from the one before it
        return str(folder)


def latest(run_dir: Path, skipped: Callable[[str], None] = lambda _: None, mapped: bool = False) -> Checkpoint | None:
    """The run's newest checkpoint that verifies, read. `skipped` is told what is wrong with every newer one.

    mapped: leave the matrices where they lie. Raises UserError for files that are not damaged but cannot be read.
    """
    return next(_sound(_folders(run_dir / CHECKPOINTS)[::-1], skipped, mapped), None)


def best(run_dir: Path) -> Path | None:
    """Return the checkpoint folder with the lowest finite validation loss; one without such a number does not count.

    Nor do those from before the last change of the text that the losses are of.
    """
    return _best(_records(run_dir))


def before_divergence(run_dir: Path, again: bool) -> Checkpoint | None:
    """Where a run that diverged goes on: at its last evaluation or, when that diverged again, at its best one.

    The beginning counts as an evaluation. Of those that verify. Raises UserError for files that cannot be read.
    """
    records = {folder: meta for folder, meta in _records(run_dir).items() if meta.evaluated}
    order = list(records)[::-1]
    if again and (first := _best(records)):
        order.sort(key=lambda folder: folder != first)
    return next(_sound(order), None)


def set_aside(run_dir: Path, after: int) -> None:
    """Take the checkpoints after this step out of the way, durably: the log will no longer reach as far as they do.

    They are deleted when the run has come as far again.
    """
    root = run_dir / CHECKPOINTS
    later = [folder for folder in _folders(root) if _step(folder) > after]
    for folder in later:
        aside = folder.with_name(f"{_step(folder):08d}.aside")
        _remove(aside)
        replace(folder, aside)
    if later:
        sync_folder(root)


def prune(run_dir: Path) -> None:
    """Delete every checkpoint but the two newest, the last evaluation's and the best, and what interrupted saves left.

    Two, because one may turn out to be damaged.
    """
    root, records = run_dir / CHECKPOINTS, _records(run_dir)
    evaluated = [folder for folder, meta in records.items() if meta.evaluated]
    last = newest(run_dir)
    kept = {last, *list(records)[-2:], _best(records), *evaluated[-1:]}
    for folder in _ours(root):
        awaited = folder.name.endswith(".aside") and (last is None or _step(folder) > _step(last))
        if folder not in kept and not awaited:
            _remove(folder)


def clear(run_dir: Path) -> None:
    """Delete every checkpoint of the run, durably: a new log will know nothing of them.

    Files that are not ours stay.
    """
    root = run_dir / CHECKPOINTS
    for folder in _ours(root):
        _remove(folder)
    if root.is_dir():
        sync_folder(root)


def _ours(root: Path) -> list[Path]:
    """All that `save` ever made, finished or not."""
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [f for f in folders if f.is_dir() and (f.name.startswith(_TEMPORARY) or _NAME.fullmatch(f.name))]


def _folders(root: Path) -> list[Path]:
    """Folders under `root` named as checkpoints, by step; one that makes room comes before its successor."""
    folders = [folder for folder in _ours(root) if not folder.name.startswith(_TEMPORARY)]
    in_force = [folder for folder in folders if not folder.name.endswith(".aside")]
    return sorted(in_force, key=lambda folder: (_step(folder), not folder.name.endswith(".old")))


def _complete(root: Path) -> list[Path]:
    """Those that hold a meta.json."""
    return [folder for folder in _folders(root) if (folder / META).is_file()]


def _step(folder: Path) -> int:
    return int(folder.name.partition(".")[0])


def _sound(
    folders: list[Path], skipped: Callable[[str], None] = lambda _: None, mapped: bool = False
) -> Iterator[Checkpoint]:
    """Those of the folders that verify, read one after the other."""
    for folder in folders:
        try:
            yield read(folder, mapped=mapped)
        except DamageError as damage:
            skipped(str(damage))


def _records(run_dir: Path) -> dict[Path, CheckpointMeta]:
    """The meta of every checkpoint whose record is sound, by step."""
    records = {}
    for folder in _complete(run_dir / CHECKPOINTS):
        with suppress(DamageError):  # it says nothing; load() tells its story to whoever asks for it
            records[folder] = read_record(folder).meta
    return records


def _best(records: Mapping[Path, CheckpointMeta]) -> Path | None:
    ranked = _losses(records)
    return min(ranked)[1] if ranked else None


def _losses(records: Mapping[Path, CheckpointMeta]) -> list[tuple[float, Path]]:
    """The finite validation losses, and whose they are, of those that are of the same text as the last one."""
    ranked: list[tuple[float, Path]] = []
    text = None
    for folder, meta in records.items():
        if meta.val_loss is not None and isfinite(meta.val_loss):
            if meta.text != text:
                ranked, text = [], meta.text
            ranked.append((meta.val_loss, folder))
    return ranked


def _remove(folder: Path) -> None:
    """Delete a folder, meta.json first, so that half of it is never taken for a checkpoint.

    What another program holds open on Windows stays, and the next prune tries again.
    """
    with suppress(PermissionError):
        (folder / META).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # without its record it is no checkpoint, whatever stays of it
