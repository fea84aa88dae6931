"""The loss over a whole text, where the few windows of an evaluation are not enough."""

from math import log
from typing import Protocol

import numpy as np
import numpy.typing as npt

from picogpt.config import RunConfig
from picogpt.errors import UserError
from picogpt.tokenizers.base import Ids, TextSize

PASS_TOKENS = 1 << 20  # that are evaluated at once


class Evaluator(Protocol):
    """Evaluates windows, as a `Trainer` does on its lanes."""

    @property
    def config(self) -> RunConfig:
        """The run's configuration, which says how long a sequence is."""
        ...

    def evaluate(self, x: npt.NDArray[np.int32], y: npt.NDArray[np.int32]) -> float:  # (B, T), (B, T)
        """Return the mean loss over all tokens, in nats a token."""
        ...


class Tokens(Protocol):
    """A text as ids, such as shards or a part of them."""

    def __len__(self) -> int:
        """Return the number of tokens."""
        ...

    def read(self, start: int, stop: int) -> Ids:
        """Return ids start..stop - 1: (stop - start,)."""
        ...


def token_losses(logits: npt.NDArray[np.floating], targets: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Return the cross entropy of each token, in nats. (..., V), (...) -> (...)"""
    scores = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(scores, targets[..., None].astype(np.int64), axis=-1)[..., 0]
    return np.asarray(np.log(np.exp(scores).sum(axis=-1)) - chosen)


def text_bits(loss: float, tokens: int, size: TextSize) -> tuple[float | None, float | None]:
    """Return the mean loss of these tokens, in nats a token, in bits a character and in bits a byte of their text.

    None where they stand for no text. Unlike nats a token, these compare models with different tokenizers.
    """
    bits = loss / log(2) * tokens
    return bits / size.characters if size.characters else None, bits / size.bytes if size.bytes else None


def frequency_bits(ids: npt.NDArray[np.integer], characters: int) -> float:  # (n,)
    """Return the bits a character of a code that knows nothing but how frequent each token of this text is."""
    counts = np.unique(ids, return_counts=True)[1]
    shares = counts / max(1, len(ids))
    return float(-(shares * np.log2(shares)).sum() * len(ids) / max(1, characters))


def full_loss(model: Evaluator, tokens: Tokens) -> float:
    """Return the mean loss over every token but the first, in nats a token.

    Windows do not overlap; the last one may be shorter, and counts by its own tokens. Raises UserError for fewer than
    two tokens.
    """
    if len(tokens) < 2:
        raise UserError("the validation text has no token to predict: use more text or a larger --val-fraction")
    context, targets = model.config.context, len(tokens) - 1
    whole = targets // context * context
    step = max(1, PASS_TOKENS // context) * context
    spans = [(start, min(start + step, whole)) for start in range(0, whole, step)]
    spans += [(whole, targets)] if whole < targets else []
    total = 0.0
    for start, stop in spans:
        ids = tokens.read(start, stop + 1).astype(np.int32)
        width = min(context, stop - start)
        total += model.evaluate(ids[:-1].reshape(-1, width), ids[1:].reshape(-1, width)) * (stop - start)
    return total / targets
