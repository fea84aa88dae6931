"""Token shards: files of raw ids, appended, sealed, and opened as read-only memory maps.

A shard is a 32-byte little-endian header (magic, version, dtype code, count, hash of the vocabulary) and the ids.
A folder's index.json names the sealed shards and is replaced in one step, so a reader never sees a half-written one.
"""

import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from picogpt.config import UserError
from picogpt.data.tokenizer import Ids

SHARD_TOKENS = 1 << 26  # a shard is sealed when it holds so many

_HEADER = struct.Struct("<8sHH4xQ8s")
_MAGIC = b"picogpt\0"
_VERSION = 1
_BLOCK = 1 << 20
_INDEX = "index.json"


@dataclass(frozen=True)
class _Entry:
    """A sealed shard as the index names it."""

    file: str
    count: int
    crc32: int


def _header(dtype: np.dtype[Any], count: int, fingerprint: str) -> bytes:
    return _HEADER.pack(_MAGIC, _VERSION, dtype.itemsize, count, sha256(fingerprint.encode()).digest()[:8])


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} {reason}: delete {path.parent}; it is made again")


class ShardWriter:
    """Writes a new folder of shards. As a context manager it seals at the end, or drops the unsealed on an error."""

    def __init__(self, folder: Path, dtype: npt.DTypeLike, fingerprint: str, signature: str) -> None:
        """`fingerprint` is the tokenizer's, `signature` the corpus's. Raises FileExistsError when `folder` exists."""
        folder.mkdir(parents=True)
        self._folder = folder
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._fingerprint = fingerprint
        self._signature = signature
        self._sealed: list[_Entry] = []
        self._file: BinaryIO | None = None
        self._count = 0
        self._crc32 = 0

    def append(self, ids: Ids) -> None:
        """Add ids (n,) of the writer's dtype to the shard being written; a full shard is sealed."""
        if ids.dtype != self._dtype:
            raise TypeError(f"shards of {self._dtype} were given {ids.dtype}")
        while len(ids):
            part = ids[: SHARD_TOKENS - self._count]
            self._write(np.ascontiguousarray(part, self._dtype))
            ids = ids[len(part) :]
            if self._count == SHARD_TOKENS:
                self.seal()

    def _write(self, ids: Ids) -> None:
        if self._file is None:
            self._file = self._next_path().open("xb")
            self._file.write(bytes(_HEADER.size))  # no magic, so no shard until it is sealed
        self._file.write(ids.data)
        self._crc32 = zlib.crc32(ids.data, self._crc32)
        self._count += len(ids)

    def _next_path(self) -> Path:
        return self._folder / f"{len(self._sealed):05d}.bin"

    def seal(self) -> None:
        """Make everything appended so far durable, and visible to readers."""
        if self._file is not None:
            self._file.seek(0)
            self._file.write(_header(self._dtype, self._count, self._fingerprint))
            _sync(self._file)
            self._file.close()
            self._sealed.append(_Entry(self._next_path().name, self._count, self._crc32))
            self._file, self._count, self._crc32 = None, 0, 0
        self._write_index()

    def _write_index(self) -> None:
        index = {
            "version": _VERSION,
            "dtype": self._dtype.name,
            "tokenizer": self._fingerprint,
            "corpus": self._signature,
            "shards": [asdict(entry) for entry in self._sealed],
        }
        path = self._folder / _INDEX
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            file.write(json.dumps(index, indent=1).encode())
            _sync(file)
        os.replace(part, path)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.seal()
        finally:
            if self._file is not None:
                self._file.close()
                self._next_path().unlink()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


class Shards:
    """The sealed shards of a folder as one sequence of ids; `arrays` are read-only memory maps of `dtype`."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], entries: list[_Entry], arrays: list[Ids]) -> None:
        self.folder = folder
        self.dtype = dtype
        self.arrays = arrays
        self._entries = entries
        self._count = sum(entry.count for entry in entries)

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> Ids:
        """Ids start..stop - 1 across shard borders: (stop - start,), a read-only view where one shard holds them."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start}:{stop} of {len(self)}")
        parts = []
        begin = 0
        for array in self.arrays:
            if begin < stop and start < begin + len(array):
                parts.append(array[max(start - begin, 0) : stop - begin])
            begin += len(array)
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts])

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the ids: of each shard's count and checksum."""
        facts = [(entry.count, entry.crc32) for entry in self._entries]
        return sha256(repr((self.dtype.name, facts)).encode()).hexdigest()[:16]

    def verify(self) -> None:
        """Read everything and compare checksums. Raises UserError for ids that are not the ones written."""
        for entry, array in zip(self._entries, self.arrays, strict=True):
            crc32 = 0
            for start in range(0, len(array), _BLOCK):
                crc32 = zlib.crc32(array[start : start + _BLOCK].data, crc32)
            if crc32 != entry.crc32:
                raise _damaged(self.folder / entry.file, "has a wrong checksum")


def _read_index(path: Path) -> tuple[np.dtype[Any], str, list[_Entry]]:
    """(dtype, the tokenizer's fingerprint, shards) of an index. Raises UserError."""
    try:
        index = json.loads(path.read_bytes())
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise _damaged(path, "is not JSON") from None
    match index:
        case {"version": int(version)} if version != _VERSION:
            raise _damaged(path, f"has version {version}, not {_VERSION}")
        case {"dtype": "uint8" | "uint16" as dtype, "tokenizer": str(fingerprint), "shards": list(shards)}:
            entries = [_entry(path, number, shard) for number, shard in enumerate(shards)]
            return np.dtype(dtype).newbyteorder("<"), fingerprint, entries
    raise _damaged(path, "is not an index of shards")


def _entry(path: Path, number: int, shard: Any) -> _Entry:
    """The index's `number`-th entry. A file has one name it can have, so no entry leads out of the folder."""
    match shard:
        case {"file": str(file), "count": int(count), "crc32": int(crc32)} if file == f"{number:05d}.bin" and count > 0:
            return _Entry(file, count, crc32)
    raise _damaged(path, f"has a damaged entry {number}")


def _map(path: Path, dtype: np.dtype[Any], count: int, fingerprint: str) -> Ids:
    """The ids of one shard, (count,), after every check its header allows. Raises UserError."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror})") from None
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise _damaged(path, "is not a token shard")
    _, version, code, held, vocabulary = _HEADER.unpack(header)
    if version != _VERSION:
        raise _damaged(path, f"has version {version}, not {_VERSION}")
    if code != dtype.itemsize:
        raise _damaged(path, f"has dtype code {code}, not {dtype.itemsize} ({dtype.name})")
    if held != count or size != _HEADER.size + count * dtype.itemsize:
        raise _damaged(path, f"is not complete or not the one indexed ({size:,} bytes for {count:,} tokens)")
    if header != _header(dtype, count, fingerprint):
        raise _damaged(path, f"was made with another vocabulary ({vocabulary.hex()})")
    return np.asarray(np.memmap(path, dtype, "r", _HEADER.size, (count,)))


def open_shards(folder: Path, fingerprint: str) -> Shards:
    """The sealed shards of `folder`, made with the tokenizer of that fingerprint.

    Raises UserError naming the file, what is wrong with it and the repair.
    """
    path = folder / _INDEX
    dtype, made_with, entries = _read_index(path)
    if made_with != fingerprint:
        raise _damaged(path, f"was made with another vocabulary ({made_with}, not {fingerprint})")
    arrays = [_map(folder / entry.file, dtype, entry.count, fingerprint) for entry in entries]
    return Shards(folder, dtype, entries, arrays)
