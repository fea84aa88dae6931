"""Checkpoints: one folder a step, written aside, renamed into place, `meta.json` last.

    <run>/checkpoints/<step:08d>/model.safetensors, optimizer.safetensors, meta.json

A folder without `meta.json` is no checkpoint, so a kill at any moment leaves the last one in force. `meta.json`
holds the size and the crc32 of the other files, checked before the safetensors library sees a byte of them.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from picogpt.config import UserError
from picogpt.files import read_bytes, replace

Array = npt.NDArray[np.float32]

FORMAT = 1
FOLDER, META, MODEL, OPTIMIZER = "checkpoints", "meta.json", "model.safetensors", "optimizer.safetensors"

_TEMPORARY = ".tmp-"
_FOLDER = re.compile(r"(\d{8,})(\.old)?")  # .old: set aside while a checkpoint of the same step takes its name
_META_LIMIT = 16 << 20  # bytes of JSON; ours are a few thousand
_PIECE = 1 << 18  # bytes read at once
_FILE = {"size": 0, "crc32": 0}
_RECORD = {"format": FORMAT, "step": 0, "files": {MODEL: _FILE, OPTIMIZER: _FILE}, "meta": {}, "crc32": 0}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: float32 arrays by dotted name; `optimizer` is empty when it was not asked for."""

    path: Path
    step: int
    model: dict[str, Array]
    optimizer: dict[str, Array]
    meta: dict[str, Any]


class _DamageError(Exception):
    """What is wrong with one file of a checkpoint."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file} {reason}")


def save(
    run_dir: Path, step: int, model: Mapping[str, Array], optimizer: Mapping[str, Array], meta: dict[str, Any]
) -> Path:
    """Write the checkpoint of `step`, replacing one of the same step, and return its folder.

    `meta` is anything JSON holds. Raises UserError when the disk refuses; the checkpoints before stay as they are.
    """
    meta = json.loads(json.dumps(meta))  # refused before anything is written; and the crc32 is of what will be read
    root = run_dir / FOLDER
    final, temporary = root / f"{step:08d}", root / f"{_TEMPORARY}{step:08d}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        temporary.mkdir()
        files = {MODEL: _write_arrays(temporary / MODEL, model)}
        files[OPTIMIZER] = _write_arrays(temporary / OPTIMIZER, optimizer)
        _write_meta(temporary / META, {"format": FORMAT, "step": step, "files": files, "meta": meta})
        _sync_folder(temporary)
        _publish(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the space back
        raise UserError(
            f"cannot write the checkpoint {final} ({error.strerror or error}): free some disk space or choose "
            "another folder; the checkpoints before it are as they were"
        ) from error
    return final


def load(path: Path, optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint folder and verify the size and crc32 of each file read.

    Raises UserError naming the damaged file and what to do; nothing is ever unpickled.
    """
    try:
        return _load(path, optimizer)
    except _DamageError as damage:
        older = _newest_sound(path)
        way_out = "start the run again with --fresh" if older is None else f"delete {path} to go on from step {older}"
        raise UserError(f"{damage}: {way_out}") from None


def fingerprint(path: Path) -> str:
    """Tells this checkpoint from every other, without reading its arrays."""
    try:
        return f"{path.name}-{crc32(read_bytes(path / META)):08x}"
    except OSError as error:
        raise UserError(str(_unreadable(path / META, error))) from None


def latest(run_dir: Path) -> Path | None:
    """The run's newest complete checkpoint folder."""
    folders = _complete(run_dir / FOLDER)
    return folders[-1] if folders else None


def best(run_dir: Path) -> Path | None:
    """The checkpoint folder with the lowest finite meta["val_loss"]; one without such a number does not count.

    Nor do those from before the last change of meta["text"], the text the losses are of.
    """
    ranked: list[tuple[float, Path]] = []
    text = None
    for folder in _complete(run_dir / FOLDER):
        try:
            meta = _read_meta(folder)["meta"]
        except _DamageError:
            continue  # it says no loss; load() tells its story to whoever asks for it
        loss = meta.get("val_loss")
        if isinstance(loss, int | float) and -inf < loss < inf:
            if meta.get("text") != text:
                ranked, text = [], meta.get("text")
            ranked.append((loss, folder))
    return min(ranked)[1] if ranked else None


def prune(run_dir: Path) -> None:
    """Delete every checkpoint but the newest and the best, and what an interrupted save left behind."""
    root = run_dir / FOLDER
    kept = {latest(run_dir), best(run_dir)}
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        ours = folder.name.startswith(_TEMPORARY) or _FOLDER.fullmatch(folder.name)
        if ours and folder.is_dir() and folder not in kept:
            _remove(folder)


def clear(run_dir: Path) -> None:
    """Delete every checkpoint of the run. Files that are not ours stay."""
    root = run_dir / FOLDER
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.is_dir() and (folder.name.startswith(_TEMPORARY) or _FOLDER.fullmatch(folder.name)):
            _remove(folder)


def _complete(root: Path) -> list[Path]:
    """Folders under `root` that hold a meta.json, by step; one set aside comes before its successor."""
    found: list[tuple[int, bool, Path]] = []
    for folder in root.iterdir() if root.is_dir() else []:
        match = _FOLDER.fullmatch(folder.name)
        if match and (folder / META).is_file():
            found.append((int(match[1]), match[2] is None, folder))
    return [folder for _, _, folder in sorted(found)]


def _publish(temporary: Path, final: Path) -> None:
    """Give a finished folder its name. There is a complete checkpoint of this step at every moment."""
    aside = final.with_name(f"{final.name}.old")
    if final.exists():  # no platform replaces a folder that is not empty
        _remove(aside)
        replace(final, aside)
    replace(temporary, final)
    _sync_folder(final.parent)
    _remove(aside)


def _remove(folder: Path) -> None:
    """Delete a folder, meta.json first, so that half of it is never taken for a checkpoint.

    What another program holds open on Windows stays, and the next prune tries again.
    """
    with suppress(PermissionError):
        (folder / META).unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(folder)


def _newest_sound(damaged: Path) -> int | None:
    """Step of the newest other checkpoint beside `damaged` that loads."""
    for folder in reversed(_complete(damaged.parent)):
        if folder != damaged:
            with suppress(_DamageError):
                return _load(folder, optimizer=True).step
    return None


def _load(path: Path, optimizer: bool) -> Checkpoint:
    record = _read_meta(path)
    loaded: dict[str, dict[str, Array]] = {OPTIMIZER: {}}
    for name in (MODEL, OPTIMIZER) if optimizer else (MODEL,):
        loaded[name] = _read_arrays(path / name, record["files"][name])
    return Checkpoint(path, record["step"], loaded[MODEL], loaded[OPTIMIZER], record["meta"])


def _write_arrays(path: Path, arrays: Mapping[str, Array]) -> dict[str, int]:
    """Write float32 arrays as a safetensors file, sync it to the disk, and return the record of it.

    Raises TypeError for another dtype, OSError as the disk does.
    """
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise TypeError(f"{name} is {array.dtype}; a checkpoint holds float32")
    try:  # the library writes the memory as it lies: an array whose rows do not follow each other is copied
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    with suppress(PermissionError):  # the library leaves it to its owner alone; some file systems know no modes
        path.chmod(path.parent.stat().st_mode & 0o666)
    with path.open("r+b") as file:  # Windows syncs only what is open for writing
        os.fsync(file.fileno())
        return _measure(file)


def _read_arrays(path: Path, expected: dict[str, int]) -> dict[str, Array]:
    """Arrays of a safetensors file whose record is `expected`. Raises _DamageError."""
    try:
        with path.open("rb") as file:
            found = _measure(file)
        if found["size"] != expected["size"]:
            raise _DamageError(path, f"is damaged (it has {found['size']:,} bytes, {expected['size']:,} were written)")
        if found["crc32"] != expected["crc32"]:
            crcs = f"its crc32 is {found['crc32']:08x}, {expected['crc32']:08x} was written"
            raise _DamageError(path, f"is damaged ({crcs})")
        arrays = load_file(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:  # the last two for dtypes NumPy lacks
        reason = " ".join(str(error).split())[:120]
        raise _DamageError(path, f"is damaged ({reason})") from None
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise _DamageError(path, f"is damaged ({name[:80]!r} is not a float32 array)")
    return {name: np.require(array, requirements="W") for name, array in arrays.items()}


def _measure(file: BinaryIO) -> dict[str, int]:
    """Size and crc32 of an open file, read in small pieces."""
    size = crc = 0
    while piece := file.read(_PIECE):
        size += len(piece)
        crc = crc32(piece, crc)
    return {"size": size, "crc32": crc}


def _digest(record: dict[str, Any]) -> int:
    """crc32 of a record, whatever its layout in the file; its own entry "crc32" does not count."""
    return crc32(json.dumps({key: record[key] for key in _RECORD if key != "crc32"}, sort_keys=True).encode())


def _write_meta(path: Path, record: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump({**record, "crc32": _digest(record)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _read_meta(folder: Path) -> dict[str, Any]:
    """The verified record of a checkpoint: format, step, files, meta. Raises _DamageError."""
    path = folder / META
    try:
        if path.stat().st_size > _META_LIMIT:
            raise _DamageError(path, "is too large to be a record of picogpt")
        record = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError):
        raise _DamageError(path, "is damaged (it is not JSON)") from None
    version = record.get("format") if isinstance(record, dict) else None
    if type(version) is int and version != FORMAT:
        raise _DamageError(path, f"has format {version}, this picogpt reads format {FORMAT}")
    if not _has_shape(record, _RECORD):
        raise _DamageError(path, "is not a record of picogpt")
    if _digest(record) != record.pop("crc32"):
        raise _DamageError(path, "is damaged (it does not match its own crc32)")
    return dict(record)


def _has_shape(value: object, example: object) -> bool:
    """Whether JSON `value` has the type of `example` and, for an object, at least its keys, so shaped as well."""
    if type(value) is not type(example):
        return False
    if isinstance(value, dict) and isinstance(example, dict):
        return all(key in value and _has_shape(value[key], inner) for key, inner in example.items())
    return True


def _unreadable(path: Path, error: OSError) -> _DamageError:
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    return _DamageError(path, "is missing" if missing else f"cannot be read ({error.strerror or error})")


def _sync_folder(folder: Path) -> None:
    """Make a folder's names durable: Windows has no such call, and some network file systems refuse it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        with suppress(OSError):
            os.fsync(descriptor)
        os.close(descriptor)
