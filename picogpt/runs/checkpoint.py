"""One checkpoint: a folder with two files of arrays and a record of their checksums.

    model.safetensors, optimizer.safetensors, meta.json

`meta.json` is written last. It holds the size and the crc32 of the other files, which are checked before they are used,
and a crc32 of itself.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from errno import EIO
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

from picogpt.engine.backend import Array
from picogpt.errors import UserError, shown
from picogpt.runs.checkpoint_meta import CheckpointMeta
from picogpt.runs.eight_bits import is_scale, restored
from picogpt.system.files import read_bytes, sync_file, sync_folder
from picogpt.tensorfiles.safetensors import tensors_in, write_safetensors

FORMAT = 2
META, MODEL, OPTIMIZER = "meta.json", "model.safetensors", "optimizer.safetensors"
_META_LIMIT = 16 << 20  # bytes of JSON; picogpt writes a few thousand
_PIECE = 1 << 18  # bytes read at once
# An example of a record: a file must have at least its keys, with values of these types.
_FILE = {"size": 0, "crc32": 0}
_RECORD = {"format": FORMAT, "step": 0, "files": {MODEL: _FILE, OPTIMIZER: _FILE}, "meta": {}, "crc32": 0}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: float32 arrays by dotted name; `optimizer` is empty when it was not asked for.

    Matrices of 16 bits, and all float32 ones when they are read mapped, are `MappedMatrix`; others are in memory.
    """

    path: Path
    step: int
    model: dict[str, Array]
    optimizer: dict[str, Array]
    meta: CheckpointMeta


@dataclass(frozen=True)
class Record:
    """The content of meta.json: the step, the size and crc32 of each file of arrays, and the run's meta."""

    step: int
    files: dict[str, dict[str, int]]
    meta: CheckpointMeta


class DamageError(UserError):
    """One file of a checkpoint is damaged. A caller that has another checkpoint uses that one instead."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file} {reason}")


def write_arrays(folder: Path, model: Mapping[str, Array], optimizer: Mapping[str, Array]) -> None:
    """Write the arrays without waiting for the disk, as fast as they can be copied.

    Raises TypeError for dtypes that `write_safetensors` does not take, and OSError where the disk refuses.
    """
    for file, arrays in ((MODEL, model), (OPTIMIZER, optimizer)):
        write_safetensors(folder / file, arrays)


def finish(folder: Path, step: int, meta: dict[str, object]) -> None:
    """Write the record of the arrays in this folder, make everything durable, and verify it as read from the disk.

    Raises OSError where the disk refuses, or returns other bytes than were written.
    """
    files = {}
    for name in (MODEL, OPTIMIZER):
        with (folder / name).open("rb") as file:
            files[name] = _measure(file)
    record = {"format": FORMAT, "step": step, "files": files, "meta": meta}
    (folder / META).write_text(json.dumps({**record, "crc32": _digest(record)}, indent=1), encoding="utf-8")
    for name in (MODEL, OPTIMIZER, META):
        sync_file(folder / name)
    sync_folder(folder)
    try:
        for name, expected in read_record(folder).files.items():
            _check(folder / name, expected, from_disk=True)
    except UserError as damage:
        raise OSError(f"what was written cannot be read back: {damage}") from None


def read(folder: Path, optimizer: bool = True, mapped: bool = False) -> Checkpoint:
    """Read a checkpoint folder and verify the size and crc32 of each file that is read.

    optimizer: read its state as well. mapped: map the matrices from the file instead of reading them into memory.
    Raises DamageError, and UserError for files that are not damaged but cannot be read.
    """
    record = read_record(folder)
    loaded: dict[str, dict[str, Array]] = {OPTIMIZER: {}}
    for name in (MODEL, OPTIMIZER) if optimizer else (MODEL,):
        loaded[name] = _read_arrays(folder / name, record.files[name], mapped)
    return Checkpoint(folder, record.step, loaded[MODEL], loaded[OPTIMIZER], record.meta)


def verify(folder: Path, optimizer: bool = True) -> None:
    """Raise what `read` would raise for a damaged checkpoint, with only a small piece of it in memory at a time."""
    record = read_record(folder)
    for name in (MODEL, OPTIMIZER) if optimizer else (MODEL,):
        _check(folder / name, record.files[name])


def fingerprint(folder: Path) -> str:
    """Return a name that no other checkpoint has, without reading the arrays. Raises as `read` does."""
    try:
        return f"{folder.name}-{crc32(read_bytes(folder / META)):08x}"
    except OSError as error:
        raise _unreadable(folder / META, error) from None


def _read_arrays(path: Path, expected: dict[str, int], mapped: bool) -> dict[str, Array]:
    """Verify and read a safetensors file; `expected` is its entry in the record. Raises DamageError."""
    _check(path, expected)
    arrays: dict[str, Array] = {}
    try:
        tensors = tensors_in(path)
        for name, stored in tensors.items():
            if stored.dtype == "I8" and len(stored.shape) == 2:
                continue
            half = stored.dtype in ("F16", "BF16")
            if stored.dtype != "F32" and not (half and len(stored.shape) == 2):
                raise ValueError(f"{shown(name)} is {stored.dtype} of {stored.shape}, where float32 is expected")
            arrays[name] = stored.mapped() if half or (mapped and len(stored.shape) == 2) else stored.read()
        eight = {name: restored(name, tensors[name].raw(), arrays) for name in tensors.keys() - arrays.keys()}
        return {name: array for name, array in {**arrays, **eight}.items() if not is_scale(name, eight)}
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError as error:
        raise DamageError(path, f"is damaged ({error})") from None


def _check(path: Path, expected: dict[str, int], from_disk: bool = False) -> None:
    """Raise DamageError where the size or crc32 of a file is not the recorded one.

    from_disk: drop it from the system's cache first, where the system can do that, so that the disk is read.
    """
    try:
        with path.open("rb") as file:
            if from_disk and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = _measure(file)
    except OSError as error:
        raise _unreadable(path, error) from None
    if found["size"] != expected["size"]:
        raise DamageError(path, f"is damaged (it has {found['size']:,} bytes, {expected['size']:,} were written)")
    if found["crc32"] != expected["crc32"]:
        crcs = f"its crc32 is {found['crc32']:08x}, {expected['crc32']:08x} was written"
        raise DamageError(path, f"is damaged ({crcs})")


def _measure(file: BinaryIO) -> dict[str, int]:
    """Return size and crc32 of an open file, which is read in small pieces."""
    size = crc = 0
    while piece := file.read(_PIECE):
        size += len(piece)
        crc = crc32(piece, crc)
    return {"size": size, "crc32": crc}


def _digest(record: dict[str, object]) -> int:
    """Return the crc32 of a record without its entry "crc32"; it does not depend on the layout of the file."""
    return crc32(json.dumps({key: record[key] for key in _RECORD if key != "crc32"}, sort_keys=True).encode())


def read_record(folder: Path) -> Record:
    """Read and verify meta.json alone, without the arrays. Raises DamageError, and UserError as `read` does."""
    path = folder / META
    try:
        if path.stat().st_size > _META_LIMIT:
            raise DamageError(path, "is too large to be a record of picogpt")
        record = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError):
        raise DamageError(path, "is damaged (it is not JSON)") from None
    version = record.get("format") if isinstance(record, dict) else None
    if type(version) is int and version != FORMAT:
        raise DamageError(path, f"has format {version}, this picogpt reads format {FORMAT}")
    if not _has_shape(record, _RECORD):
        raise DamageError(path, "is not a record of picogpt")
    if _digest(record) != record["crc32"]:
        raise DamageError(path, "is damaged (it does not match its own crc32)")
    try:
        meta = CheckpointMeta.from_dict(record["meta"])
    except ValueError as error:
        raise UserError(
            f"{path} is of another version of picogpt, or of another program ({error}): "
            "use that, give another run, or start over with --fresh"
        ) from None
    return Record(record["step"], record["files"], meta)


def _has_shape(value: object, example: object) -> bool:
    """Return whether JSON `value` has the type of `example` and, in an object, at least its keys, with such values."""
    if type(value) is not type(example):
        return False
    if isinstance(value, dict) and isinstance(example, dict):
        return all(key in value and _has_shape(value[key], inner) for key, inner in example.items())
    return True


def _unreadable(path: Path, error: OSError) -> DamageError:
    """Return the damage of a file that cannot be read. Raises UserError where the file itself may be sound."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return DamageError(path, "is missing")
    if error.errno == EIO:  # a bad place on the disk
        return DamageError(path, f"cannot be read ({error.strerror})")
    raise UserError(
        f"{path} cannot be read ({error.strerror or error}): look at the folder and its permissions"
    ) from None
