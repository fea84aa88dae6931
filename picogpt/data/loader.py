"""Makes batches of token shards, in an order that is a pure function of (seed, epoch, position in the epoch).

An epoch cuts the tokens into windows, groups windows into chunks of about a million tokens, permutes the chunks, and
shuffles the windows of eight chunks together. Those eight are read as wholes, each sequentially, and mapped until the
next eight: a spinning disk seeks once a chunk, never once a window.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from picogpt.data.shards.mapping import Chunk
from picogpt.data.shards.reader import Shards, Span
from picogpt.errors import UserError
from picogpt.rng import generator
from picogpt.tokenizers.base import Ids

CHUNK_TOKENS = 1 << 20
GROUP_CHUNKS = 8
_GATHERED_TOKENS = 1 << 17

Batch = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]


@dataclass(frozen=True)
class _Epoch:
    number: int
    offset: int  # of the first window, in tokens
    chunks: npt.NDArray[np.int64]  # their order
    ends: npt.NDArray[np.int64]  # windows up to and including each chunk, in that order


@dataclass(frozen=True)
class _Group:
    epoch: int
    start: int  # position in the epoch of its first window
    chunks: list[Chunk]
    starts: list[int]  # of each chunk, where the chunks follow each other
    windows: npt.NDArray[np.int64]  # where each window starts there, shuffled


def _require_window(shards: Shards | Span, context: int, text: str) -> None:
    if len(shards) <= context:
        raise UserError(
            f"the {text} text has {len(shards):,} tokens, but a window of {context:,} needs {context + 1:,}:"
            " use more text or a smaller --context-len (with --init-from, --context)"
        )


def _split(rows: Ids) -> Batch:
    """Return (x, y) of rows of context + 1 tokens, y one token later."""
    return rows[:, :-1].astype(np.int32), rows[:, 1:].astype(np.int32)


class Loader:
    """Makes batches of windows of `context` tokens; each window is visited once an epoch.

    Its whole state is the position that the caller passes; what it stores is a cache.
    """

    def __init__(self, shards: Shards | Span, context: int, seed: int) -> None:
        """Raises UserError when the text is shorter than one window and the token after it."""
        _require_window(shards, context, "training")
        self._shards = shards
        self._context = context
        self._seed = seed
        # One window fewer where there are several, so that every offset below `context` fits in every epoch.
        self.windows_per_epoch = max(1, (len(shards) - context) // context)
        self._per_chunk = max(1, CHUNK_TOKENS // context)
        self._epoch = self._plan(0)
        self._group: _Group | None = None
        self._per_gathering = max(1, _GATHERED_TOKENS // context)
        self._held: tuple[_Group, int, Ids] | None = None  # windows of a group from one on

    def batch(self, position: int, count: int) -> Batch:
        """Return sequences position..position + count - 1 of the run: x and y, (count, context), y one token later."""
        rows = np.empty((count, self._context + 1), self._shards.dtype)
        done = 0
        while done < count:
            epoch, inside = divmod(position + done, self.windows_per_epoch)
            group = self._group_of(epoch, inside)
            first = inside - group.start
            windows = self._gathered(group, first)[: count - done]
            rows[done : done + len(windows)] = windows
            done += len(windows)
        return _split(rows)

    def _plan(self, number: int) -> _Epoch:
        slack = len(self._shards) - 1 - self.windows_per_epoch * self._context
        offset = generator(self._seed, "offset", number).integers(min(slack, self._context - 1), endpoint=True)
        chunk_count = -(-self.windows_per_epoch // self._per_chunk)
        chunks = generator(self._seed, "chunks", number).permutation(chunk_count)
        return _Epoch(number, int(offset), chunks, np.cumsum(self._chunk_stop(chunks) - chunks * self._per_chunk))

    def _chunk_stop(self, chunk: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the window after the last of each chunk."""
        return np.minimum((chunk + 1) * self._per_chunk, self.windows_per_epoch)

    def _group_of(self, number: int, inside: int) -> _Group:
        """Return the group that holds position `inside` of an epoch."""
        group = self._group
        if group is None or group.epoch != number or not 0 <= inside - group.start < len(group.windows):
            epoch = self._epoch
            if epoch.number != number:
                self._epoch = epoch = self._plan(number)
            self._group = self._held = group = None  # unmapped: two at once would be twice the memory
            self._group = group = self._load(epoch, int(np.searchsorted(epoch.ends, inside, "right")) // GROUP_CHUNKS)
        return group

    def _gathered(self, group: _Group, first: int) -> Ids:
        """Return windows of a group from `first` on: as many as were gathered together, which is quicker than one."""
        held = self._held
        begin = first - first % self._per_gathering
        if held is None or held[0] is not group or held[1] != begin:
            windows = group.windows[begin : begin + self._per_gathering]
            rows = np.empty((len(windows), self._context + 1), self._shards.dtype)
            for chunk, start in zip(group.chunks, group.starts, strict=False):
                of_chunk = (windows >= start) & (windows < start + len(chunk))
                rows[of_chunk] = chunk.windows(windows[of_chunk] - start, self._context + 1)
            self._held = held = group, begin, rows
        return held[2][first - begin :]

    def _load(self, epoch: _Epoch, group: int) -> _Group:
        first = group * GROUP_CHUNKS
        numbers = epoch.chunks[first : first + GROUP_CHUNKS]
        chunks, windows, held = list[Chunk](), [], [0]
        for start, stop in zip(numbers * self._per_chunk, self._chunk_stop(numbers), strict=True):
            begin, end = (epoch.offset + int(window) * self._context for window in (start, stop))
            chunks.append(self._shards.chunk(begin, end + 1))  # the last window's targets end one token later
            windows.append(held[-1] + np.arange(0, end - begin, self._context))
            held.append(held[-1] + len(chunks[-1]))
        order = np.concatenate(windows)
        generator(self._seed, "windows", epoch.number, group).shuffle(order)
        return _Group(epoch.number, int(epoch.ends[first - 1]) if first else 0, chunks, held, order)


def validation_windows(shards: Shards | Span, context: int, count: int) -> Batch:
    """Return `count` windows, or all if fewer, evenly spaced and in order: x and y, (count, context) each.

    Raises UserError when the text is shorter than one window and the token after it.
    """
    _require_window(shards, context, "validation")
    available = (len(shards) - 1) // context
    count = min(count, available)
    starts = [i * available // count * context for i in range(count)]
    return _split(np.stack([shards.read(start, start + context + 1) for start in starts]))
