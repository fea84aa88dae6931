"""Caches of keys and values for decoding, also of blocks that see only a window of the last positions.

A ring buffer would hold such a window in the least memory, but in two pieces once it wraps around. Here the window
stays in one piece and in order, as BLAS and the attention operators need it: a buffer has room for twice the window,
and when it is full, the positions that are still seen move to its front. The keys hold no positions themselves, so
only their order counts.

B batch   H heads   S places of a buffer   D head size
"""

from picogpt.config import ModelConfig
from picogpt.engine.backend import Array, empty


class SlidingWindow:
    """The buffers (B, H, S, D) of all local blocks of a model, which are filled in step."""

    def __init__(self, window: int, buffers: list[Array]) -> None:
        self._still_seen, self._buffers = window - 1, buffers
        self.length = 0
        """Places that are filled."""

    def make_room(self, positions: int) -> int:
        """Return how many of the next `positions` fit into the buffers now.

        Where not all of them fit, positions that are no longer seen are dropped first.
        """
        if not self._buffers:
            return positions
        size, seen = int(self._buffers[0].shape[2]), self._still_seen
        if self.length + positions > size and self.length > seen:
            for buffer in self._buffers:
                buffer[:, :, :seen] = buffer[:, :, self.length - seen : self.length].copy()
            self.length = seen
        return min(positions, size - self.length)


class KVCache:
    """The keys and values of the positions of one window that were already computed, of `batch` streams.

    Local blocks keep only positions that are still seen: before more are computed, `local.make_room` returns how many
    fit.
    """

    def __init__(self, config: ModelConfig, batch: int, like: Array) -> None:
        H, D, layers = config.n_head, config.head_size, range(config.n_layer)
        self.keys, self.values = (
            [empty((batch, H, config.cache_of(layer), D), like) for layer in layers] for _ in range(2)
        )
        both = [cache[layer] for cache in (self.keys, self.values) for layer in layers if config.window_of(layer)]
        self.local = SlidingWindow(config.local_window, both)
        self.length = 0
