"""The checkpoints of a run: one folder a step, written aside, made durable, read back, and only then given its name.

    <run>/checkpoints/<step:08d>/

A folder without `meta.json` is no checkpoint, so a kill or a power cut at any moment leaves the last one valid.
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
from picogpt.runs.checkpoint_meta import CheckpointMeta
from picogpt.runs.layout import CHECKPOINTS
from picogpt.system.files import make_folder, replace, sync_folder

_TEMPORARY = ".tmp-"
# .old: replaced by another checkpoint of the same step. .aside: damaged, or newer than the step the run went back to.
_NAME = re.compile(r"(\d{8,})(\.old|\.aside)?")


@dataclass(frozen=True)
class Draft:
    """A checkpoint whose arrays are written, but neither durable nor under its name."""

    folder: Path
    final: Path
    step: int
    meta: dict[str, object]
    """As it will be read from JSON."""

    def drop(self) -> None:
        """Delete it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def save(
    run_dir: Path, step: int, model: Mapping[str, Array], optimizer: Mapping[str, Array], meta: CheckpointMeta
) -> Path:
    """Write the checkpoint of `step`, replacing one of the same step, and return its folder.

    Raises UserError where the disk refuses; earlier checkpoints stay as they are.
    """
    make_folder(run_dir)
    return publish(write(run_dir, step, model, optimizer, meta))


def write(
    run_dir: Path, step: int, model: Mapping[str, Array], optimizer: Mapping[str, Array], meta: CheckpointMeta
) -> Draft:
    """Do the first half of `save`, as fast as the arrays can be copied: when it returns, they may change.

    The run's folder must exist: one that is missing may be on a network, and come back. Raises UserError where the disk
    refuses.
    """
    # Through JSON and back: what JSON cannot hold is refused before anything is written, and the crc32 is of the rest.
    fields = json.loads(json.dumps(meta.to_dict()))
    final = run_dir / CHECKPOINTS / f"{step:08d}"
    draft = Draft(final.with_name(f"{_TEMPORARY}{final.name}"), final, step, fields)
    with _explaining_disk_errors(draft):
        final.parent.mkdir(exist_ok=True)
        _remove(draft.folder)
        draft.folder.mkdir()
        write_arrays(draft.folder, model, optimizer)
    return draft


def publish(draft: Draft) -> Path:
    """Do the second half of `save`, which waits for the disk.

    Where it replaces a checkpoint, one of the two is complete at every moment. Raises UserError where the disk refuses.
    """
    aside = draft.final.with_name(f"{draft.final.name}.old")
    with _explaining_disk_errors(draft):
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
def _explaining_disk_errors(draft: Draft) -> Iterator[None]:
    """Turn an OSError into a UserError and delete the draft; on a full disk also what was set aside."""
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
    """Read a checkpoint folder as `checkpoint.read` does, for a user who named it. Nothing is ever unpickled.

    Raises UserError that names the damaged file and says what to do.
    """
    try:
        return read(path, optimizer, mapped)
    except DamageError as damage:
        raise UserError(f"{damage}: {remedy(path)}") from None


def remedy(path: Path) -> str:
    """Return what to do about a damaged checkpoint, in words."""
    for other in _complete(path.parent)[::-1]:
        with suppress(DamageError):
            if other != path:
                verify(other)
                return f"delete {path} to continue from step {_step(other)}"
    return "start the run again with --fresh"


def newest(run_dir: Path) -> Path | None:
    """Return the run's newest checkpoint folder, by its name alone."""
    folders = _complete(run_dir / CHECKPOINTS)
    return folders[-1] if folders else None


def newest_recorded(run_dir: Path) -> Path | None:
    """Return the run's newest checkpoint folder whose record is valid; its arrays may be damaged."""
    return next(reversed(_valid_metas(run_dir)), None)


def ranked(run_dir: Path) -> list[Path]:
    """Return the run's checkpoint folders in the order in which they should be tried for generating.

    First those with a loss of the same text, the lowest first, and then the rest, the newest first. Nothing is known of
    a folder whose record is damaged: one that is newer than all others comes before them, so that a caller who tries it
    finds out, and any other comes last.
    """
    metas = _valid_metas(run_dir)
    newest_step = max(map(_step, metas), default=-1)
    damaged = [folder for folder in _complete(run_dir / CHECKPOINTS)[::-1] if folder not in metas]
    newer = [folder for folder in damaged if _step(folder) > newest_step]
    compared = [folder for _, folder in sorted(_comparable_losses(metas))]
    others = [folder for folder in [*reversed(metas), *damaged] if folder not in compared + newer]
    return newer + compared + others


def state_of(run_dir: Path) -> str:
    """Return a text that changes whenever the run is saved; "" for a run without checkpoints."""
    folder = newest(run_dir)
    try:
        return fingerprint(folder) if folder else ""
    except DamageError:  # it cannot be read; a run continues from the one before it
        return str(folder)


def latest(run_dir: Path, notify: Callable[[str], None] = lambda _: None, mapped: bool = False) -> Checkpoint | None:
    """Read the run's newest checkpoint that verifies. `notify` gets what is wrong with each newer one.

    mapped: as `checkpoint.read` has it. Raises UserError for files that are not damaged but cannot be read.
    """
    return next(_verified(_folders(run_dir / CHECKPOINTS)[::-1], notify, mapped), None)


def best(run_dir: Path) -> Path | None:
    """Return the checkpoint folder with the lowest finite validation loss, or None where none has one.

    Losses from before the last change of the text do not count.
    """
    return _lowest_loss(_valid_metas(run_dir))


def before_divergence(run_dir: Path, again: bool) -> Checkpoint | None:
    """Read the checkpoint to which a run that diverged goes back; None where none verifies.

    It is that of the last evaluation or, when the run diverges again, of the best one. The beginning counts as an
    evaluation. Raises UserError for files that cannot be read.
    """
    metas = {folder: meta for folder, meta in _valid_metas(run_dir).items() if meta.evaluated}
    order = list(metas)[::-1]
    if again and (first := _lowest_loss(metas)):
        order.sort(key=lambda folder: folder != first)
    return next(_verified(order), None)


def set_aside(run_dir: Path, after: int) -> None:
    """Rename the checkpoints after this step, durably, so that they no longer count: the log will end before them.

    They are deleted when the run has saved as late a step again.
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
    """Delete what interrupted saves left, and all checkpoints but the two newest, the last evaluation's and the best.

    Two, because one may turn out to be damaged.
    """
    root, metas = run_dir / CHECKPOINTS, _valid_metas(run_dir)
    evaluated = [folder for folder, meta in metas.items() if meta.evaluated]
    last = newest(run_dir)
    wanted = {last, *list(metas)[-2:], _lowest_loss(metas), *evaluated[-1:]}
    for folder in _made_by_save(root):
        is_ahead = folder.name.endswith(".aside") and (last is None or _step(folder) > _step(last))
        if folder not in wanted and not is_ahead:
            _remove(folder)


def clear(run_dir: Path) -> None:
    """Delete every checkpoint of the run, durably: a new log will know nothing of them.

    Files that picogpt did not make stay.
    """
    root = run_dir / CHECKPOINTS
    for folder in _made_by_save(root):
        _remove(folder)
    if root.is_dir():
        sync_folder(root)


def _made_by_save(root: Path) -> list[Path]:
    """Return all folders that `save` has made, finished or not."""
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [f for f in folders if f.is_dir() and (f.name.startswith(_TEMPORARY) or _NAME.fullmatch(f.name))]


def _folders(root: Path) -> list[Path]:
    """Return the folders that are named as checkpoints, by step; the old one of a step comes before the new one."""
    folders = [folder for folder in _made_by_save(root) if not folder.name.startswith(_TEMPORARY)]
    valid = [folder for folder in folders if not folder.name.endswith(".aside")]
    return sorted(valid, key=lambda folder: (_step(folder), not folder.name.endswith(".old")))


def _complete(root: Path) -> list[Path]:
    """Return the folders that are named as checkpoints and hold a meta.json, by step."""
    return [folder for folder in _folders(root) if (folder / META).is_file()]


def _step(folder: Path) -> int:
    return int(folder.name.partition(".")[0])


def _verified(
    folders: list[Path], notify: Callable[[str], None] = lambda _: None, mapped: bool = False
) -> Iterator[Checkpoint]:
    """Read the folders one after the other, and yield those that verify."""
    for folder in folders:
        try:
            yield read(folder, mapped=mapped)
        except DamageError as damage:
            notify(str(damage))


def _valid_metas(run_dir: Path) -> dict[Path, CheckpointMeta]:
    """Return the meta of every checkpoint whose record is valid, by step."""
    metas = {}
    for folder in _complete(run_dir / CHECKPOINTS):
        with suppress(DamageError):  # `load` says what is wrong with it
            metas[folder] = read_record(folder).meta
    return metas


def _lowest_loss(metas: Mapping[Path, CheckpointMeta]) -> Path | None:
    """Return the folder with the lowest comparable loss; None where there is no such loss."""
    return min(_comparable_losses(metas), default=(0.0, None))[1]


def _comparable_losses(metas: Mapping[Path, CheckpointMeta]) -> list[tuple[float, Path]]:
    """Return the finite validation losses that are of the same text as the last one, with their folders."""
    losses: list[tuple[float, Path]] = []
    text = None
    for folder, meta in metas.items():
        if meta.val_loss is not None and isfinite(meta.val_loss):
            if meta.text != text:
                losses, text = [], meta.text
            losses.append((meta.val_loss, folder))
    return losses


def _remove(folder: Path) -> None:
    """Delete a folder, meta.json first, so that a part of it is never taken for a checkpoint.

    Files that another program has open on Windows stay, and the next prune tries again.
    """
    with suppress(PermissionError):
        (folder / META).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # what remains is no checkpoint, as its record is gone
