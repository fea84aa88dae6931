"""A loss over all of a text, where the few windows of an evaluation would not do."""

import numpy as np

from picogpt.config import UserError
from picogpt.data.shards import Shards, Span
from picogpt.training.trainer import Trainer

PASS_TOKENS = 1 << 20  # validated at once


def full_loss(trainer: Trainer, tokens: Shards | Span) -> float:
    """The mean loss over every token but the first, each once, in nats a token.

    Windows lie side by side; the last one may be shorter and counts by its own tokens. Raises UserError for fewer than
    two tokens.
    """
    if len(tokens) < 2:
        raise UserError("the validation text has no token to predict: use more text or a larger --val-fraction")
    context, targets = trainer.config.context, len(tokens) - 1
    whole = targets // context * context
    step = max(1, PASS_TOKENS // context) * context
    spans = [(start, min(start + step, whole)) for start in range(0, whole, step)]
    spans += [(whole, targets)] if whole < targets else []
    total = 0.0
    for start, stop in spans:
        ids = tokens.read(start, stop + 1).astype(np.int32)
        width = min(context, stop - start)
        total += trainer.evaluate(ids[:-1].reshape(-1, width), ids[1:].reshape(-1, width)) * (stop - start)
    return total / targets
