"""Keys and values of blocks that see only a window of the last positions.

A ring would hold the window and no more, but in two pieces once it has turned. Here they stay in one, in order, as BLAS
and the attention operators want them: a buffer has room for twice the window, and when that is used up, what later
positions still see moves to its front. No position is in the keys themselves, so their order is all that counts.

B batch   H heads   S places of a buffer   D head size
"""

from typing import Any

from picogpt.config import ModelConfig

LOCAL = "local_"


def spans(config: ModelConfig) -> dict[str, int]:
    """The attention spans of a model, as the graph's inputs that tell places in caches begin: a block of each."""
    return {LOCAL if config.window_of(layer) else "": layer for layer in range(config.n_layer)}


class Sliding:
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
