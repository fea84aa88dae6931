"""Writes token shards: ids are appended, and exist for readers once they are sealed."""

import zlib
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from picogpt.data.shards.index import (
    BLOCK_TOKENS,
    HEADER,
    INDEX,
    SHARD_TOKENS,
    VERSION,
    ShardEntry,
    ShardIndex,
    Source,
    check_header,
    damaged,
    header_bytes,
    read_index,
    write_index,
)
from picogpt.system.files import flush, make_folder, sync_folder
from picogpt.tokenizers.base import Ids


class ShardWriter:
    """Writes a folder of shards. As a context manager it seals at the end, and drops what is not sealed on an error."""

    def __init__(self, folder: Path, dtype: npt.DTypeLike, fingerprint: str, signature: str) -> None:
        """fingerprint: the tokenizer's. signature: the corpus'. Raises FileExistsError where `folder` exists."""
        make_folder(folder.parent)
        folder.mkdir()
        sync_folder(folder.parent)
        self._begin(folder, ShardIndex(np.dtype(dtype).newbyteorder("<"), fingerprint, signature, (), ()))

    @classmethod
    def resume(cls, folder: Path, fingerprint: str, sources: Collection[Source | None]) -> "ShardWriter":
        """Continue after the sealed shards that were made from these sources; others are deleted.

        sources: None for shards without one. Raises UserError for a damaged index, and for missing shards.
        """
        index = read_index(folder / INDEX, fingerprint)
        shards = tuple(entry for entry in index.shards if entry.source in sources)
        if shards != index.shards[: len(shards)]:
            raise damaged(folder / INDEX, "names shards in another order")
        for entry in shards:
            check_header(folder / entry.file, index.dtype, entry.count, fingerprint)
        cut = replace(index, shards=shards, sources=tuple(name for name in index.sources if name in sources))
        writer = cls.__new__(cls)
        writer._begin(folder, cut)
        if cut != index:
            writer._write_index()  # first, because what an index names has to exist
        for path in folder.glob("*.bin"):
            if path.name not in {entry.file for entry in shards}:
                path.unlink()
        return writer

    def _begin(self, folder: Path, index: ShardIndex) -> None:
        self.folder, self._index = folder, index
        self._sealed, self.sources = list(index.shards), list(index.sources)
        self._file: BinaryIO | None = None
        self._source: Source | None = None
        self._clear()

    def _clear(self) -> None:
        self._count, self._crc32 = 0, [0]

    @property
    def tokens(self) -> int:
        """The number of ids in sealed shards."""
        return sum(entry.count for entry in self._sealed)

    def append(self, ids: Ids, source: Source | None = None) -> None:
        """Add ids (n,) of the writer's dtype to the shard being written; a full shard is sealed.

        source: what they were made from. Readers see them once it is sealed.
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
            self._file.write(bytes(HEADER.size))  # without magic it is no shard until it is sealed
        elif self._count % BLOCK_TOKENS == 0:
            self._crc32.append(0)
        self._file.write(ids.data)
        self._crc32[-1] = zlib.crc32(ids.data, self._crc32[-1])
        self._count += len(ids)

    def _next_path(self) -> Path:
        return self.folder / f"{len(self._sealed):05d}.bin"

    def seal(self, source: Source | None = None) -> None:
        """Make all that was appended durable and visible to readers. source: the one that is complete with it."""
        if self._file is not None:
            self._file.seek(0)
            self._file.write(header_bytes(self._index.dtype, self._count, self._index.fingerprint))
            self._file.flush()
            flush(self._file.fileno())
            self._file.close()
            sync_folder(self.folder)  # first, because what an index names has to exist
            self._sealed.append(ShardEntry(self._next_path().name, self._count, tuple(self._crc32), self._source))
            self._file = None
            self._clear()
        if source is not None:
            self.sources.append(source)
        self._write_index()

    def _write_index(self) -> None:
        index: dict[str, object] = {
            "version": VERSION,
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
        """Delete what is not sealed, and the full shards of a source that is not."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._clear()
            self._next_path().unlink()
        unfinished = [entry for entry in self._sealed if entry.source is not None and entry.source not in self.sources]
        if unfinished:
            self._sealed = [entry for entry in self._sealed if entry not in unfinished]
            self._write_index()  # first, because what an index names has to exist
            for entry in unfinished:
                (self.folder / entry.file).unlink()
