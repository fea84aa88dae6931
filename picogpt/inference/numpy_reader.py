"""Reading a window with NumPy (or CuPy) and cached keys and values: the reference for every other way.

The same model code runs here as in training, without a tape and with a `KVCache`.

B batch   T tokens   C width   V vocabulary
"""

from picogpt.engine import Tensor, no_grad
from picogpt.engine.backend import Array, array_module, to_device, to_host
from picogpt.model.gpt import GPT
from picogpt.model.kv_cache import KVCache


class NumpyReader:
    """A `WindowReader` (inference/windows.py) over the model."""

    def __init__(self, model: GPT, batch: int = 1) -> None:
        self.model, self.config, self.batch = model, model.config, batch
        self._like = model.wte.weight.data
        self.begin(None)

    def begin(self, context: Array | None) -> None:  # (B, C)
        """Start an empty window, as every WindowReader does."""
        self._context = None if context is None else Tensor(context)
        self._cache = KVCache(self.config, self.batch, self._like)
        self._sum = array_module(self._like).zeros((self.batch, self.config.n_embd), self._like.dtype)

    def read(self, ids: Array) -> Array:  # (B, T) -> (B, V)
        """Read T more tokens. Returns the logits of the one after them."""
        with no_grad():
            if not self.model.h:  # a bigram table looks at one token
                return to_host(self.model.hidden(to_device(ids[:, -1:], self._like)).data[:, -1])
            while ids.shape[1]:
                slot = self.config.context_slot and self._cache.length == 0
                count = self._cache.local.make_room(ids.shape[1] + slot) - slot
                now, ids = ids[:, :count], ids[:, count:]
                hidden = self.model.hidden(to_device(now, self._like), self._context, cache=self._cache)
                self._sum += hidden.data.sum(axis=1)
            return to_host(self.model.logits(hidden[:, -1]).data)

    def mean(self) -> Array:  # -> (B, C)
        """Return the mean of the window's output vectors so far."""
        return self._sum / self._cache.length
