"""Decoding token by token, with cached keys and values.

The same model code runs here as in training, without a tape and with a `Cache`. Windows are aligned from the left as
in training: when one is full, its mean output is slot 0 of the next, which then begins empty. A model without a context
slot cannot roll; when its window is full it reads the last half of it again in one pass and goes on.

B batch   T tokens   V vocabulary
"""

import numpy as np

from picogpt.engine import Tensor, no_grad
from picogpt.engine.backend import Array, array_module, to_device
from picogpt.model.gpt import GPT, Cache


class Decoder:
    """Reads ids, answers with the logits of what comes next."""

    def __init__(self, model: GPT, batch: int = 1) -> None:
        self.model, self.batch = model, batch
        self._like = model.wte.weight.data
        self._recent = np.empty((batch, 0), np.int64)  # the ids in the cache
        self._start_window(None)

    def feed(self, ids: Array) -> Array:  # (B, T), T >= 1 -> (B, V)
        """Read T more tokens. Returns the logits of the one after them."""
        W = self.model.config.context_len
        if not self.model.h:
            return self.model.logits(self.model.hidden(to_device(ids[:, -1:], self._like))).data[:, -1]
        hidden = None
        while ids.shape[1]:
            if self._recent.shape[1] == W:
                ids = self._next_window(ids)
            room = W - self._recent.shape[1]
            hidden = self._forward(ids[:, :room])
            ids = ids[:, room:]
        assert hidden is not None, "feed: no ids"
        with no_grad():
            return self.model.logits(hidden[:, -1]).data

    def _forward(self, ids: Array) -> Tensor:
        with no_grad():
            hidden = self.model.hidden(to_device(ids, self._like), self._context, cache=self._cache)
        self._recent = np.concatenate([self._recent, ids], axis=1)
        self._sum += hidden.data.sum(axis=1)
        return hidden

    def _next_window(self, ids: Array) -> Array:
        """Begin a window. Returns the ids still to read."""
        if self.model.config.context_slot:
            self._start_window(Tensor(self._sum / self.model.config.n_position))
            return ids
        kept = self.model.config.context_len // 2
        keep = self._recent[:, self._recent.shape[1] - kept :]
        self._start_window(None)
        return np.concatenate([keep, ids], axis=1)

    def _start_window(self, context: Tensor | None) -> None:
        config = self.model.config
        self._context, self._cache = context, Cache(config, self.batch, self._like)
        self._sum = array_module(self._like).zeros((self.batch, config.n_embd), self._like.dtype)
        self._recent = self._recent[:, :0]
