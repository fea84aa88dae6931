"""Choose the next token from logits."""

import numpy as np
import numpy.typing as npt

from picogpt.errors import UserError


def sample(
    logits: npt.NDArray[np.floating], temperature: float, top_k: int, top_p: float, rng: np.random.Generator
) -> int:  # (V,) -> an id
    """Choose greedily at temperature 0, else draw from softmax(logits / temperature), cut to top_k and then to top_p.

    top_k keeps the k likeliest tokens and every tie with the k-th (0: all). top_p keeps the likeliest tokens up to and
    including the one that brings their probability to top_p (A. Holtzman et al., arXiv 1904.09751).
    Raises UserError for logits that are not finite.
    """
    if not np.isfinite(logits.max()):
        raise UserError("the output of the model is not a number: its training diverged; train it again, more slowly")
    if temperature == 0:
        return int(logits.argmax())
    scores = logits.astype(np.float64)
    scores -= scores.max()
    weights = np.exp(scores / max(temperature, 1e-250))  # which leaves nothing but the largest, and does not overflow
    if 0 < top_k < len(scores):
        weights[scores < np.partition(scores, -top_k)[-top_k]] = 0
    if top_p < 1:
        order = np.argsort(-weights, kind="stable")
        likeliest = weights[order] / weights.sum()
        weights[order[likeliest.cumsum() - likeliest >= top_p]] = 0
    total = weights.cumsum()
    # The draw lies below the last sum, so a token of weight 0 is never chosen.
    return int(total.searchsorted(rng.random() * total[-1], side="right"))
