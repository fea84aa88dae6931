"""Keys and values of blocks that see only a window of the last positions.

A ring would hold the window and no more, but in two pieces once it has turned. Here they stay in one, in order, as BLAS
and the attention operators want them: a buffer has room for twice the window, and when that is used up, what later
positions still see moves to its front. No position is in the keys themselves, so their order is all that counts.

B batch   H heads   S places of a buffer   D head size
"""

from typing import Any

from picogpt.config import ModelConfig
from picogpt.engine.backend import Array, empty


class SlidingWindow:
    """The buffers (B, H, S, D) of all local blocks of a model, filled alike."""

    def __init__(self, window: int, buffers: list[Any]) -> None:
        self._still_seen, self._buffers = window - 1, buffers
        self.length = 0
        """Places that are filled."""

    def make_room(self, positions: int) -> int:
        """How many of so many more positions may come at once: all that have room, after what need not stay is gone."""
        if not self._buffers:
            return positions
        size, kept = int(self._buffers[0].shape[2]), self._still_seen
        if self.length + positions > size and self.length > kept:
            for buffer in self._buffers:
                buffer[:, :, :kept] = buffer[:, :, self.length - kept : self.length].copy()
            self.length = kept
        return min(positions, size - self.length)


class KVCache:
    """Keys and values of the positions of one window that were already computed, for one stream of decoding.

    Local blocks keep those that are still seen: before more are computed, `local.make_room` says how many may come.
    """

    def __init__(self, config: ModelConfig, batch: int, like: Array) -> None:
        H, D, layers = config.n_head, config.head_size, range(config.n_layer)
        self.keys, self.values = (
            [empty((batch, H, config.cache_of(layer), D), like) for layer in layers] for _ in range(2)
        )
        both = [cache[layer] for cache in (self.keys, self.values) for layer in layers if config.window_of(layer)]
        self.local = SlidingWindow(config.local_window, both)
        self.length = 0
