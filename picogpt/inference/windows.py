"""Reading more ids than a window has room for: rolling mean context, a plain window, and PicoGPT's own way.

A model reads windows of W tokens. What happens when one is full is decided here, for every way of running the model:

rolling   The mean of the window's output vectors, slot included, is the context slot of the next window, which reads
          the last `overlap` tokens again in one pass and continues. With overlap 0 this is how training cuts a
          sequence.
window    The same with an empty slot, or without one: only the overlap remains of the window before.
original  PicoGPT's own way: after every token the last ten windows' worth of tokens are cut again from the right, so
          that the remainder comes first, and all of it is read again. Slow; for comparison.

B batch   T tokens   W tokens of a window   C width   V vocabulary
"""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from picogpt.config import ModelConfig
from picogpt.engine.backend import Array as DeviceArray

Array = npt.NDArray[Any]

REACH = 10  # windows that PicoGPT looks back at


class WindowReader(Protocol):
    """An engine that reads one window from the left, token by token or many at once, and can start another."""

    config: ModelConfig
    batch: int

    def begin(self, context: DeviceArray | None) -> None:  # (B, C)
        """Start an empty window with the `mean` of another window, or nothing, in its slot."""

    def read(self, ids: Array) -> Array:  # (B, T), T >= 1 -> (B, V)
        """Read T more tokens; the window has room for them. Returns the logits of the one after them."""
        ...

    def mean(self) -> DeviceArray:  # -> (B, C)
        """Return the mean of the window's output vectors so far. Only a model with a context slot has it."""
        ...


class Decoder:
    """The way to read texts of any length for `--context rolling` and `--context window`: window after window.

    Each token is read once, those of the overlap twice.
    """

    def __init__(self, reader: WindowReader, rolling: bool, overlap: int) -> None:
        """overlap: the number of tokens that a window reads again, fewer than it has room for."""
        self._reader, self._rolling, self._overlap = reader, rolling, overlap
        self._recent = np.empty((reader.batch, reader.config.context_len), np.int64)  # the ids in the window
        self._length = 0

    def feed(self, ids: Array) -> Array:  # (B, T), T >= 1 -> (B, V)
        """Read T more tokens. Returns the logits of the one after them."""
        W = self._recent.shape[1]
        while True:
            if self._length == W:
                ids = self._turn_over(ids)
            stop = min(W, self._length + ids.shape[1])
            now, ids = np.split(ids, [stop - self._length], axis=1) if ids.shape[1] > 1 else (ids, ids[:, :0])
            self._recent[:, self._length : stop] = now
            self._length = stop
            logits = self._reader.read(now)
            if not ids.shape[1]:
                return logits

    def _turn_over(self, ids: Array) -> Array:
        """Begin the next window. Returns the ids that are still to be read, the overlap first."""
        W, overlap = self._recent.shape[1], self._overlap
        self._reader.begin(self._reader.mean() if self._rolling else None)
        self._length = 0
        ids = np.concatenate([self._recent[:, W - overlap :], ids], axis=1)
        if not self._rolling:  # windows that leave nothing behind need not be read
            ids = ids[:, max(0, -(-(ids.shape[1] - W) // (W - overlap))) * (W - overlap) :]
        return ids


class Recut:
    """The way to read texts of any length for `--context original`: all windows again after every token."""

    def __init__(self, reader: WindowReader) -> None:
        self._reader, self._ids = reader, np.empty((reader.batch, 0), np.int64)

    def feed(self, ids: Array) -> Array:  # (B, T), T >= 1 -> (B, V)
        """Read T more tokens. Returns the logits of the one after them."""
        config = self._reader.config
        W = config.context_len
        reach = W * REACH if config.can_roll else W
        self._ids = np.concatenate([self._ids, ids], axis=1)[:, -reach:]
        stop = self._ids.shape[1] % W or W
        self._reader.begin(None)
        logits = self._reader.read(self._ids[:, :stop])
        for start in range(stop, self._ids.shape[1], W):
            self._reader.begin(self._reader.mean())
            logits = self._reader.read(self._ids[:, start : start + W])
        return logits
