"""Rolling mean context: how a model with a window of W tokens reads sequences of many windows.

A sequence is cut from the left into windows of W tokens. Slot 0 of each window holds a context vector, zeros for the
first one; after a window, the mean of all its output positions (slot 0 included) is the context of the next. Gradients
flow back through it across the windows. A model without a context slot reads one window.

B batch   T tokens of the sequence   W tokens of a window   C width   V vocabulary
"""

from collections.abc import Iterator

import numpy as np

from picogpt.engine import Tensor, concatenate
from picogpt.engine.backend import Array
from picogpt.model.gpt import GPT


def hidden_windows(
    model: GPT, ids: Array, rng: np.random.Generator | None = None
) -> Iterator[tuple[slice, Tensor]]:  # (B, T) -> ((B, W, C), ...)
    """Yield each window's slice of the sequence and the hidden states of its tokens (the slot's is dropped).

    Raises ValueError for more than one window in a model without a context slot.
    """
    W, slot, T = model.config.context_len, model.config.context_slot, ids.shape[1]
    if T > W and not slot and model.h:
        raise ValueError(f"{T} tokens are more than the window of {W}, and this model has no context slot")
    context = None
    for start in range(0, T, W):
        window = slice(start, min(start + W, T))
        hidden = model.hidden(ids[:, window], context, rng)
        if slot and window.stop < T:
            context = hidden.mean(axis=1)
        yield window, hidden[:, 1:] if slot and model.h else hidden


def sequence_logits(model: GPT, ids: Array) -> Tensor:  # (B, T) -> (B, T, V)
    """Return the logits of every token's successor. Raises as `hidden_windows` does."""
    return concatenate([model.logits(hidden) for _, hidden in hidden_windows(model, ids)], axis=1)


def sequence_loss(
    model: GPT, ids: Array, targets: Array, total: int | None = None, rng: np.random.Generator | None = None
) -> Tensor:  # (B, T), (B, T) -> ()
    """Return the cross entropy over all tokens of all windows, divided by `total` (default: their number), in nats."""
    total = total or targets.size
    losses = [model.loss(hidden, targets[:, window], total) for window, hidden in hidden_windows(model, ids, rng)]
    return sum(losses[1:], losses[0])
