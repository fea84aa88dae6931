"""Reads token shards: files of raw ids that were appended and sealed.

A shard is a 32-byte little-endian header (magic, version, dtype code, count, hash of the vocabulary) and the ids.
The index.json of a folder names the sealed shards, with a checksum for each block of a million ids and one of its own.
It is replaced in one step: a reader never sees half of one, and a shard that is not in it does not exist.
"""

import zlib
from bisect import bisect_right
from collections.abc import Iterator
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

import numpy as np

from picogpt.data.shards.index import BLOCK_TOKENS, HEADER, INDEX, ShardEntry, check_header, damaged, read_index
from picogpt.data.shards.mapping import Chunk, Part
from picogpt.system.file_systems import may_vanish
from picogpt.tokenizers.base import Ids

_PIECE = 1 << 16  # ids read at once, which stay in the processor's caches


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
        for shard, first, count in parts:
            self._require_sound(shard, first, count)
            for ids in self._stream(shard, first, count):
                result[done : done + len(ids)] = ids
                done += len(ids)
        return result

    def chunk(self, start: int, stop: int) -> Chunk:
        """Return ids start..stop - 1, to take many windows of. Raises UserError for damage, OSError.

        They are read once, in order, so that a disk seeks once and its failure is an exception; the map then finds
        their pages in memory. What the system has taken back by then it reads again.
        """
        if self.read_from:
            return Chunk([Part(self.read(start, stop), self.folder, 0, None)])
        parts = []
        for shard, first, count in self._parts(start, stop):
            if not self._require_sound(shard, first, count):
                for _ in self._stream(shard, first, count):
                    pass
            parts.append(Part.mapped(self.folder / self._entries[shard].file, self.dtype, first, count))
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

    def _require_sound(self, shard: int, start: int, count: int) -> bool:
        """Compare the blocks that hold these ids with their checksums, but none twice. Raises UserError, OSError.

        Returns whether all these ids were read for it now.
        """
        entry = self._entries[shard]
        blocks = range(start // BLOCK_TOKENS, -(-(start + count) // BLOCK_TOKENS))
        unchecked = [block for block in blocks if (shard, block) not in self._checked]
        for block in unchecked:
            first, crc32 = block * BLOCK_TOKENS, 0
            stop = min(first + BLOCK_TOKENS, entry.count)
            for ids in self._stream(shard, first, stop - first):
                crc32 = zlib.crc32(ids.data, crc32)
            if crc32 != entry.crc32[block]:
                raise damaged(self.folder / entry.file, f"has a wrong checksum of ids {first:,} to {stop:,}")
            self._checked.add((shard, block))
        return len(unchecked) == len(blocks)

    def _stream(self, shard: int, start: int, count: int) -> Iterator[Ids]:
        """Yield ids of a shard in order, unchecked, in arrays of which each is overwritten by the next.

        Raises UserError where it is cut short, OSError.
        """
        path, buffer = self.folder / self._entries[shard].file, np.empty(min(count, _PIECE), self.dtype)
        with path.open("rb") as file:
            file.seek(HEADER.size + start * self.dtype.itemsize)
            for done in range(0, count, _PIECE):
                ids = buffer[: count - done]
                if file.readinto(ids.data.cast("B")) < ids.nbytes:
                    raise damaged(path, f"is cut short before id {start + count:,}")
                yield ids

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
            self._require_sound(shard, 0, entry.count)


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
