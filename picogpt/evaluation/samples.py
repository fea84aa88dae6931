"""Samples of what a model writes while it trains: always after the same words, so that its progress shows."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from picogpt.config import GenerateConfig
from picogpt.inference.generator import Generator
from picogpt.inference.numpy_reader import NumpyReader
from picogpt.model.gpt import GPT
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.characters import PicoTokenizer

PROMPT = "He is a"
_PROMPT_CHARACTERS = 12
SAMPLE_CONFIG = GenerateConfig(tokens=128, temperature=0.5)


def sample_prompt(tokenizer: Tokenizer, ids: npt.NDArray[np.integer]) -> str:
    """Return what samples of a run begin with: PROMPT for PicoGPT's tokenizer, else words of its text.

    ids: of the text, (T,), in whatever language it is.
    """
    if isinstance(tokenizer, PicoTokenizer):
        return PROMPT
    ids = ids[~np.isin(ids, list(tokenizer.special.values()))]
    lines = [line.strip() for line in tokenizer.decode(ids).replace("\ufffd", "").splitlines()]
    line = max(lines, key=len, default="")
    start = line[:_PROMPT_CHARACTERS]
    return line if start == line else start.rpartition(" ")[0] or start


def write_sample(model: GPT, tokenizer: Tokenizer, seed: int, rolls: bool, prompt: str = PROMPT) -> str:
    """Return the prompt, as the tokenizer decodes it, and 128 tokens after it; without words the prompt is empty.

    rolls: whether the model is trained to carry the mean from window to window.
    """
    prompt = prompt if tokenizer.has_words else ""
    generator = Generator(model.config, tokenizer, lambda batch: NumpyReader(model, batch), rolls)
    continuation = generator.stream(prompt, replace(SAMPLE_CONFIG, seed=seed))
    return tokenizer.decode(tokenizer.encode(prompt)) + "".join(continuation)
