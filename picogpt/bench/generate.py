"""`picogpt bench generate`: how fast one stream of text is written, with the cache."""

import time
from typing import Any

import numpy as np

from picogpt.api import LanguageModel
from picogpt.config import GenerateConfig, RunConfig, UserError
from picogpt.data.tokenizer import CharTokenizer
from picogpt.model.parameters import initial_arrays, parameter_count
from picogpt.training import monitor

ROUNDS = 5
PROMPT = "She sells sea shells by the sea shore. "
PRINTABLE = 32, 0xD800  # code points from the space up to the first that is no character


def new_model(config: RunConfig) -> LanguageModel:
    """An untrained model of this shape, with a tokenizer that has a character for every row of its table."""
    first, end = PRINTABLE
    characters = "".join(map(chr, range(first, min(first + config.model.vocab_size, end))))
    arrays = initial_arrays(config.model, config.train.seed)
    return LanguageModel(config.model, arrays, CharTokenizer(characters))


def measure(model: LanguageModel, tokens: int, prompt_tokens: int) -> dict[str, Any]:
    """Medians over five streams of so many tokens; a token is a character.

    tokens_per_second counts from the first token to the last; first_token_ms is from the prompt to the first.
    Raises UserError for fewer than two tokens, or no prompt.
    """
    if tokens < 2 or prompt_tokens < 1:
        raise UserError(f"{tokens} tokens after {prompt_tokens} is nothing to measure: --tokens 2 --prompt-tokens 1")
    prompt = (PROMPT * (prompt_tokens // len(PROMPT) + 1))[:prompt_tokens]
    speeds, firsts = [], []
    for round_ in range(ROUNDS + 1):  # the first warms up
        began = time.perf_counter()
        stream = model.stream(prompt, GenerateConfig(tokens, temperature=1.0, seed=round_))
        next(stream)
        first = time.perf_counter()
        for _ in stream:
            pass
        if round_:
            firsts.append(first - began)
            speeds.append((tokens - 1) / (time.perf_counter() - first))
    return {
        "tokens_per_second": round(float(np.median(speeds)), 1),
        "first_token_ms": round(1e3 * float(np.median(firsts)), 3),
        "tokens": tokens,
        "prompt_tokens": prompt_tokens,
        "parameters": parameter_count(model.config)[0],
        "peak_rss_mb": round(monitor.peak_memory() / 2**20, 1),
        "machine": monitor.machine(),
    }
