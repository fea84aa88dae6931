"""Reads token shards: files of raw ids that were appended and sealed.

A shard is a 32-byte little-endian header (magic, version, dtype code, count, hash of the vocabulary) and the ids.
The index.json of a folder names the sealed shards, with a checksum for each block of a million ids and one of its own.
It is replaced in one step: a reader never sees half of one, and a shard that is not in it does not exist.
"""

import zlib
from bisect import bisect_right
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

import numpy as np

from picogpt.data.shards.index import BLOCK_TOKENS, HEADER, INDEX, ShardEntry, check_header, damaged, read_index
from picogpt.data.shards.mapping import Chunk, Part
from picogpt.system.file_systems import may_vanish
from picogpt.tokenizers.base import Ids


class Shards:
    """The sealed shards of a folder as one sequence of ids.

    A block of ids is compared with its checksum when it is read for the first time. Memory holds only what is read,
    however large the folder.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """fingerprint: the tokenizer's. Raises UserError for damage, and for shards of another tokenizer."""
        self.folder, self._fingerprint = folder, fingerprint
        self._checked: set[tuple[int, int]] = set()
        self._entries: tuple[ShardEntry, ...] = ()
        self.refresh()
        self.read_from = may_vanish(folder)
        """The type of file system that is read and not mapped, as it may vanish; "" for others."""

    def refresh(self) -> int:
        """Look for shards that were sealed meanwhile. Returns the number of ids now. Raises UserError for damage."""
        path = self.folder / INDEX
        index = read_index(path, self._fingerprint)
        sealed = {None, *index.sources}
        entries = tuple(entry for entry in index.shards if entry.source in sealed)
        if entries[: len(self._entries)] != self._entries:
            raise damaged(path, "no longer names the shards it did")
        for entry in entries[len(self._entries) :]:
            check_header(self.folder / entry.file, index.dtype, entry.count, self._fingerprint)
        self.dtype, self._entries, self.sources = index.dtype, entries, frozenset(index.sources)
        self._starts = [0, *accumulate(entry.count for entry in entries)]
        return len(self)

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> Ids:
        """Return ids start..stop - 1, also across shards: (stop - start,). Raises UserError for damage, OSError."""
        parts, done = self._parts(start, stop), 0
        result = np.empty(stop - start, self.dtype)
        for shard, inside, count in parts:
            self._read(shard, inside, result[done : done + count])
            done += count
        return result

    def chunk(self, start: int, stop: int) -> Chunk:
        """Return ids start..stop - 1, to be looked at many times. Raises UserError for damage, OSError.

        They are read once, in order, so that a disk seeks once and its failure is an exception; the map then finds
        their pages in memory. What the system has taken back by then it reads again.
        """
        parts = []
        for shard, inside, count in self._parts(start, stop):
            path, ids = self.folder / self._entries[shard].file, np.empty(count, self.dtype)
            self._read(shard, inside, ids)
            parts.append(Part(ids, path, 0, None) if self.read_from else Part.mapped(path, self.dtype, inside, count))
        return Chunk(parts)

    def _parts(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Return the shards that hold ids start..stop - 1: the number of each, the first of its ids, and how many."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start}:{stop} of {len(self)}")
        parts = []
        while start < stop:
            shard = bisect_right(self._starts, start) - 1
            end = min(stop, self._starts[shard + 1])
            parts.append((shard, start - self._starts[shard], end - start))
            start = end
        return parts

    def _read(self, shard: int, start: int, result: Ids) -> None:
        """Fill `result` with the ids of a shard from `start` on. Raises UserError for damage, OSError."""
        done = 0
        while done < len(result):
            block, inside = divmod(start + done, BLOCK_TOKENS)
            count = min(len(result) - done, self._size(shard, block) - inside)
            if (shard, block) in self._checked:
                ids = self._ids(shard, start + done, count)
            else:
                ids = self._block(shard, block)[inside : inside + count]
            result[done : done + count] = ids
            done += count

    def _size(self, shard: int, block: int) -> int:
        """Return the number of ids in a block."""
        return min(BLOCK_TOKENS, self._entries[shard].count - block * BLOCK_TOKENS)

    def _block(self, shard: int, block: int) -> Ids:
        """Return the ids of a block. Raises UserError where their checksum is wrong."""
        entry, start = self._entries[shard], block * BLOCK_TOKENS
        ids = self._ids(shard, start, self._size(shard, block))
        if zlib.crc32(ids.data) != entry.crc32[block]:
            path = self.folder / entry.file
            raise damaged(path, f"has a wrong checksum of ids {start:,} to {start + len(ids):,}")
        self._checked.add((shard, block))
        return ids

    def _ids(self, shard: int, start: int, count: int) -> Ids:
        """Return ids of a shard, unchecked."""
        path, ids = self.folder / self._entries[shard].file, np.empty(count, self.dtype)
        with path.open("rb") as file:
            file.seek(HEADER.size + start * self.dtype.itemsize)
            if file.readinto(ids.data.cast("B")) < ids.nbytes:
                raise damaged(path, f"is cut short before id {start + count:,}")
        return ids

    @property
    def note(self) -> str:
        """Words for users about how the ids are read, to follow a sentence; "" where that is as usual."""
        return f"; they are read, not mapped, because {self.read_from} may vanish" if self.read_from else ""

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of the ids: of each shard's count and checksums."""
        facts = [(entry.count, entry.crc32) for entry in self._entries]
        return sha256(repr((self.dtype.name, facts)).encode()).hexdigest()[:16]

    def verify(self) -> None:
        """Read everything and compare the checksums. Raises UserError where one is wrong."""
        self._checked.clear()
        for shard, entry in enumerate(self._entries):
            for block in range(len(entry.crc32)):
                self._block(shard, block)


class Span:
    """A part of shards as a sequence of its own: ids start..stop - 1."""

    def __init__(self, shards: Shards, start: int, stop: int) -> None:
        self.dtype, self._shards, self._start, self._stop = shards.dtype, shards, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def read(self, start: int, stop: int) -> Ids:
        """Return ids start..stop - 1 of the span: (stop - start,). Raises UserError for damage, OSError."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start}:{stop} of {len(self)}")
        return self._shards.read(self._start + start, self._start + stop)

    def chunk(self, start: int, stop: int) -> Chunk:
        """Return ids start..stop - 1 of the span, to be looked at many times. Raises UserError for damage, OSError."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start}:{stop} of {len(self)}")
        return self._shards.chunk(self._start + start, self._start + stop)
