"""Choosing the next token from logits."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.config import GenerateConfig


def sample(
    logits: npt.NDArray[np.floating], temperature: float, top_k: int, top_p: float, rng: np.random.Generator
) -> int:  # (V,) -> an id
    """Greedy at temperature 0; otherwise a draw from softmax(logits / temperature), cut to top_k and then top_p.

    top_k keeps the k likeliest tokens and every tie with the k-th (0: all). top_p keeps the likeliest tokens up to and
    including the one that brings their probability to top_p (A. Holtzman et al., arXiv 1904.09751).
    """
    if temperature == 0:
        return int(np.argmax(logits))
    scores = logits.astype(np.float64)
    kept = np.ones(len(scores), bool)
    if 0 < top_k < len(scores):
        kept = scores >= np.partition(scores, -top_k)[-top_k]
    with np.errstate(over="ignore"):
        # A temperature near zero sends all but the largest to minus infinity, as it should.
        weights = np.exp((scores[kept] - scores.max()) / temperature)
    p = np.zeros_like(scores)
    p[kept] = weights / weights.sum()
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0
    total = np.cumsum(p)
    # The draw lies below the last sum, so a token of probability 0 is never chosen.
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))


def generate(
    feed: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    prompt: npt.NDArray[Any],
    config: GenerateConfig,
    vocab_size: int,
    rng: np.random.Generator,
) -> Iterator[int]:
    """config.tokens ids that follow the prompt, one by one.

    feed: reads ids (1, T) and answers with the logits (1, V) of the next, as Decoder.feed. prompt: at least one id.
    vocab_size: ids from here on are rows of the table without a token, and never chosen.
    """
    ids = prompt[None]
    for _ in range(config.tokens):
        logits = feed(ids)[0, :vocab_size]
        chosen = sample(logits, config.temperature, config.top_k, config.top_p, rng)
        yield chosen
        ids = np.array([[chosen]], prompt.dtype)
