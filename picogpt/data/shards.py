"""Token shards: files of raw ids, appended, sealed, and read a piece at a time.

A shard is a 32-byte little-endian header (magic, version, dtype code, count, hash of the vocabulary) and the ids.
A folder's index.json names the sealed shards, with a checksum for each block of a million ids and one of its own, and
is replaced in one step: a reader never sees a half-written one, and what is not in it does not exist.
"""

import json
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from picogpt.config import UserError, shown
from picogpt.data.tokenizer import Ids
from picogpt.files import flush, make_folder, read_bytes, sync_folder, write_durably

SHARD_TOKENS = 1 << 26  # a shard is sealed when it holds so many
INDEX = "index.json"
BLOCK_TOKENS = 1 << 20  # a checksum is of so many ids, the last one's of fewer

_INDEX_LIMIT = 256 << 20  # bytes; one of a terabyte of tokens has about 20 MB
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_HEADER = struct.Struct("<8sHH4xQ8s")
_MAGIC = b"picogpt\0"
_VERSION = 2

Source = tuple[str, int]
"""What a streamed shard was made from: a file of the corpus, and a row group of it."""


@dataclass(frozen=True)
class _Entry:
    """A sealed shard as the index names it."""

    file: str
    count: int
    crc32: tuple[int, ...]  # of each block
    source: Source | None


@dataclass(frozen=True)
class _Index:
    """What index.json says."""

    dtype: np.dtype[Any]
    fingerprint: str  # the tokenizer's
    signature: str  # the corpus'
    shards: tuple[_Entry, ...]
    sources: tuple[Source, ...]  # all that were sealed, those without a token included


def _header(dtype: np.dtype[Any], count: int, fingerprint: str) -> bytes:
    return _HEADER.pack(_MAGIC, _VERSION, dtype.itemsize, count, sha256(fingerprint.encode()).digest()[:8])


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} {reason}: delete {path.parent}; it is made again")


class ShardWriter:
    """Writes a folder of shards. As a context manager it seals at the end, or drops the unsealed on an error."""

    def __init__(self, folder: Path, dtype: npt.DTypeLike, fingerprint: str, signature: str) -> None:
        """`fingerprint` is the tokenizer's, `signature` the corpus'. Raises FileExistsError when `folder` exists."""
        make_folder(folder.parent)
        folder.mkdir()
        sync_folder(folder.parent)
        self._begin(folder, _Index(np.dtype(dtype).newbyteorder("<"), fingerprint, signature, (), ()))

    @classmethod
    def resume(cls, folder: Path, fingerprint: str, sources: Collection[Source | None]) -> "ShardWriter":
        """Go on after the sealed shards made from these sources (None: from no one in particular); others are deleted.

        Raises UserError for a damaged index, or one that names what is gone.
        """
        index = _read_index(folder / INDEX, fingerprint)
        shards = tuple(entry for entry in index.shards if entry.source in sources)
        if shards != index.shards[: len(shards)]:
            raise _damaged(folder / INDEX, "names shards in another order")
        for entry in shards:
            _check_header(folder / entry.file, index.dtype, entry.count, fingerprint)
        cut = replace(index, shards=shards, sources=tuple(name for name in index.sources if name in sources))
        writer = cls.__new__(cls)
        writer._begin(folder, cut)
        if cut != index:
            writer._write_index()  # first, for what an index names has to be there
        for path in folder.glob("*.bin"):
            if path.name not in {entry.file for entry in shards}:
                path.unlink()
        return writer

    def _begin(self, folder: Path, index: _Index) -> None:
        self.folder, self._index = folder, index
        self._sealed, self.sources = list(index.shards), list(index.sources)
        self._file: BinaryIO | None = None
        self._source: Source | None = None
        self._clear()

    def _clear(self) -> None:
        self._count, self._crc32 = 0, [0]

    @property
    def tokens(self) -> int:
        """Ids in sealed shards."""
        return sum(entry.count for entry in self._sealed)

    def append(self, ids: Ids, source: Source | None = None) -> None:
        """Add ids (n,) of the writer's dtype to the shard being written; a full shard is sealed.

        source: what they were made from. Readers see them only when it was sealed.
        """
        self._source = source
        if ids.dtype != self._index.dtype:
            raise TypeError(f"shards of {self._index.dtype} were given {ids.dtype}")
        while len(ids):
            part = ids[: min(SHARD_TOKENS, self._count - self._count % BLOCK_TOKENS + BLOCK_TOKENS) - self._count]
            self._write(np.ascontiguousarray(part, self._index.dtype))
            ids = ids[len(part) :]
            if self._count == SHARD_TOKENS:
                self.seal()

    def _write(self, ids: Ids) -> None:
        if self._file is None:
            self._file = self._next_path().open("xb")
            self._file.write(bytes(_HEADER.size))  # no magic, so no shard until it is sealed
        elif self._count % BLOCK_TOKENS == 0:
            self._crc32.append(0)
        self._file.write(ids.data)
        self._crc32[-1] = zlib.crc32(ids.data, self._crc32[-1])
        self._count += len(ids)

    def _next_path(self) -> Path:
        return self.folder / f"{len(self._sealed):05d}.bin"

    def seal(self, source: Source | None = None) -> None:
        """Make everything appended so far durable, and visible to readers. source: one that all was appended of."""
        if self._file is not None:
            self._file.seek(0)
            self._file.write(_header(self._index.dtype, self._count, self._index.fingerprint))
            self._file.flush()
            flush(self._file.fileno())
            self._file.close()
            sync_folder(self.folder)  # first, for what an index names has to be there
            self._sealed.append(_Entry(self._next_path().name, self._count, tuple(self._crc32), self._source))
            self._file = None
            self._clear()
        if source is not None:
            self.sources.append(source)
        self._write_index()

    def _write_index(self) -> None:
        index = {
            "version": _VERSION,
            "dtype": self._index.dtype.name,
            "tokenizer": self._index.fingerprint,
            "corpus": self._index.signature,
            "shards": [asdict(entry) for entry in self._sealed],
            "sources": self.sources,
        }
        write_index(self.folder, index)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.seal()
        finally:
            self.drop()

    def drop(self) -> None:
        """Forget what is not sealed, and the full shards of a source that is not."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._clear()
            self._next_path().unlink()
        begun = [entry for entry in self._sealed if entry.source is not None and entry.source not in self.sources]
        if begun:
            self._sealed = [entry for entry in self._sealed if entry not in begun]
            self._write_index()  # first, for what an index names has to be there
            for entry in begun:
                (self.folder / entry.file).unlink()


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Replace a folder's index in one step; its checksum is added here."""
    write_durably(folder / INDEX, json.dumps({**index, "sha256": _digest(index)}).encode())


def _digest(index: dict[str, Any]) -> str:
    return sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


class Shards:
    """The sealed shards of a folder as one sequence of ids.

    A block of ids is checked against its checksum when it is read for the first time. What is read costs its own size
    in memory, however much there is. It is read, not mapped: where a disk or a network fails, that is an error to wait
    out, and in a map it would be the end of the process.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder, self._fingerprint = folder, fingerprint
        self._checked: set[tuple[int, int]] = set()
        self._entries: tuple[_Entry, ...] = ()
        self.refresh()

    def refresh(self) -> int:
        """Look for shards that were sealed meanwhile. Returns the ids there are now. Raises UserError for damage."""
        path = self.folder / INDEX
        index = _read_index(path, self._fingerprint)
        sealed = {None, *index.sources}
        entries = tuple(entry for entry in index.shards if entry.source in sealed)
        if entries[: len(self._entries)] != self._entries:
            raise _damaged(path, "no longer names the shards it did")
        for entry in entries[len(self._entries) :]:
            _check_header(self.folder / entry.file, index.dtype, entry.count, self._fingerprint)
        self.dtype, self._entries, self.sources = index.dtype, entries, frozenset(index.sources)
        self._starts = [0, *accumulate(entry.count for entry in entries)]
        return len(self)

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> Ids:
        """Ids start..stop - 1 across shard borders: (stop - start,). Raises UserError for a damaged block, OSError."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start}:{stop} of {len(self)}")
        result, done = np.empty(stop - start, self.dtype), 0
        while done < len(result):
            shard = bisect_right(self._starts, start + done) - 1
            block, inside = divmod(start + done - self._starts[shard], BLOCK_TOKENS)
            count = min(len(result) - done, self._size(shard, block) - inside)
            if (shard, block) in self._checked:
                ids = self._ids(shard, block * BLOCK_TOKENS + inside, count)
            else:
                ids = self._block(shard, block)[inside : inside + count]
            result[done : done + count] = ids
            done += count
        return result

    def _size(self, shard: int, block: int) -> int:
        """Ids of a block."""
        return min(BLOCK_TOKENS, self._entries[shard].count - block * BLOCK_TOKENS)

    def _block(self, shard: int, block: int) -> Ids:
        """The ids of a block, checked."""
        entry, start = self._entries[shard], block * BLOCK_TOKENS
        ids = self._ids(shard, start, self._size(shard, block))
        if zlib.crc32(ids.data) != entry.crc32[block]:
            path = self.folder / entry.file
            raise _damaged(path, f"has a wrong checksum of ids {start:,} to {start + len(ids):,}")
        self._checked.add((shard, block))
        return ids

    def _ids(self, shard: int, start: int, count: int) -> Ids:
        """Ids of a shard as the disk has them."""
        path, ids = self.folder / self._entries[shard].file, np.empty(count, self.dtype)
        with path.open("rb") as file:
            file.seek(_HEADER.size + start * self.dtype.itemsize)
            if file.readinto(ids.data.cast("B")) < ids.nbytes:
                raise _damaged(path, f"is cut short before id {start + count:,}")
        return ids

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the ids: of each shard's count and checksums."""
        facts = [(entry.count, entry.crc32) for entry in self._entries]
        return sha256(repr((self.dtype.name, facts)).encode()).hexdigest()[:16]

    def verify(self) -> None:
        """Read everything and compare checksums. Raises UserError for ids that are not the ones written."""
        self._checked.clear()
        for shard, entry in enumerate(self._entries):
            for block in range(len(entry.crc32)):
                self._block(shard, block)


def _read_index(path: Path, fingerprint: str) -> _Index:
    """An index made with the tokenizer of that fingerprint. Raises UserError."""
    try:
        if path.stat().st_size > _INDEX_LIMIT:
            raise _damaged(path, "is too large for an index of shards")
        index = json.loads(read_bytes(path))
        digest = _digest({name: value for name, value in dict(index).items() if name != "sha256"})
    except _GONE as error:  # other errors of the disk or a network are no damage, and may pass
        raise _damaged(path, f"cannot be read ({error.strerror})") from None
    except (TypeError, ValueError, RecursionError):  # the first and the second also for what is no object
        raise _damaged(path, "is not JSON of an index") from None
    match index:
        case {"version": int(version)} if version != _VERSION:
            raise _damaged(path, f"has version {shown(version)}, not {_VERSION}")
        case {
            "version": int(_),
            "dtype": "uint8" | "uint16" | "uint32" as dtype,
            "tokenizer": str(made_with),
            "corpus": str(signature),
            "shards": list(shards),
            "sources": list(sources),
            "sha256": str(found),
        }:
            if found != digest:
                raise _damaged(path, "has a wrong checksum")
            if made_with != fingerprint:
                raise _damaged(path, f"was made with another vocabulary ({shown(made_with)}, not {fingerprint})")
            entries = tuple(_entry(path, number, shard) for number, shard in enumerate(shards))
            groups = tuple(_source(path, source) for source in sources)
            if len(set(groups)) < len(groups):
                raise _damaged(path, "has a source twice")
            return _Index(np.dtype(dtype).newbyteorder("<"), made_with, signature, entries, groups)
    raise _damaged(path, "is not an index of shards")


def _entry(path: Path, number: int, shard: Any) -> _Entry:
    """The index's `number`-th entry. A file has one name it can have, so no entry leads out of the folder."""
    match shard:
        case {"file": str(file), "count": count, "crc32": list(crc32), "source": source} if (
            file == f"{number:05d}.bin"
            and _is_count(count, SHARD_TOKENS)
            and count > 0
            and len(crc32) == -(-count // BLOCK_TOKENS)
            and all(_is_count(value, 0xFFFFFFFF) for value in crc32)
        ):
            return _Entry(file, count, tuple(crc32), None if source is None else _source(path, source))
    raise _damaged(path, f"has a damaged entry {number}")


def _source(path: Path, source: Any) -> Source:
    match source:
        case [str(file), group] if _is_count(group, 1 << 31):
            return file, group
    raise _damaged(path, "has a damaged source")


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _check_header(path: Path, dtype: np.dtype[Any], count: int, fingerprint: str) -> None:
    """Every check of a shard that takes its header alone. Raises UserError."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            size = os.fstat(file.fileno()).st_size
    except _GONE as error:  # other errors of the disk or a network are no damage, and may pass
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


class Span:
    """Ids start..stop - 1 of shards, as if they were all there are."""

    def __init__(self, shards: Shards, start: int, stop: int) -> None:
        self.dtype, self._shards, self._start, self._stop = shards.dtype, shards, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def read(self, start: int, stop: int) -> Ids:
        """Ids start..stop - 1 of the span: (stop - start,). Raises UserError for a damaged block."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start}:{stop} of {len(self)}")
        return self._shards.read(self._start + start, self._start + stop)
