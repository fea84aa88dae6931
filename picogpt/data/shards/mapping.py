"""Parts of shards that are read many times: mapped into memory, where the file system allows it.

The system fills a page of a map from the file when it is looked at, and takes it back when memory is short, so no
copy of the ids is made. Where that cannot be filled, the process gets SIGBUS and ends. So ids are mapped only after
they were read without an error, and only on a file system that stays, and their file must still be whole.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from picogpt.data.shards.index import HEADER, damaged
from picogpt.tokenizers.base import Ids


@dataclass(frozen=True)
class Part:
    """Ids of one shard. They are mapped as long as any array of them lives."""

    ids: Ids
    path: Path
    end: int
    """The bytes of the file up to the last of them."""
    file: mmap.mmap | None
    """None where they are not mapped, but in memory."""

    @classmethod
    def mapped(cls, path: Path, dtype: np.dtype[Any], start: int, count: int) -> Self:
        """Map ids start..start + count - 1 of a shard. Raises UserError where it is cut short, OSError."""
        begin = HEADER.size + start * dtype.itemsize
        end, first = begin + count * dtype.itemsize, begin - begin % mmap.ALLOCATIONGRANULARITY
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), end - first, access=mmap.ACCESS_READ, offset=first)
        except ValueError:  # the file ends before
            raise damaged(path, f"is cut short before id {start + count:,}") from None
        return cls(np.frombuffer(mapped, dtype, count, begin - first), path, end, mapped)

    def windows(self, starts: npt.NDArray[np.integer], count: int) -> Ids:
        """Return `count` ids from each start on: (starts, count)."""
        shape, step = (len(self.ids) - count + 1, count), self.ids.itemsize
        every: Ids = np.ndarray(shape, self.ids.dtype, self.ids.data, strides=(step, step))
        taken: Ids = every[starts]
        return taken

    def require_whole(self) -> None:
        """Raise UserError where the file has been cut short: to look at what is gone would end the process."""
        if self.file is not None and self.file.size() < self.end:
            raise damaged(self.path, "has been cut short")


class Chunk:
    """A stretch of ids as a sequence: parts of shards one after the other."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(len(part.ids) for part in parts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def windows(self, starts: npt.NDArray[np.integer], count: int) -> Ids:
        """Return `count` ids from each start on: (starts, count). Raises UserError where a file has been cut short."""
        for part in self._parts:
            part.require_whole()
        if len(self._parts) == 1:
            return self._parts[0].windows(starts, count)
        result, is_left = np.empty((len(starts), count), self._parts[0].ids.dtype), np.ones(len(starts), np.bool_)
        for part, begin in zip(self._parts, self._starts, strict=False):
            inside = (starts >= begin) & (starts + count <= begin + len(part.ids))
            if inside.any():
                result[inside] = part.windows(starts[inside] - begin, count)
            is_left &= ~inside
        for row in np.flatnonzero(is_left):  # from one part into another
            result[row] = self._across(int(starts[row]), int(starts[row]) + count)
        return result

    def _across(self, start: int, stop: int) -> Ids:
        pieces = (
            part.ids[max(0, start - begin) : max(0, stop - begin)]
            for part, begin in zip(self._parts, self._starts, strict=False)
        )
        return np.concatenate(list(pieces))
