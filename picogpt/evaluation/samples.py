"""What a model writes while it trains: always after the same words, so that its progress shows."""

from dataclasses import replace

from picogpt.config import GenerateConfig
from picogpt.inference.generator import Generator
from picogpt.inference.numpy_reader import NumpyReader
from picogpt.model.gpt import GPT
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.ids import IdsTokenizer

PROMPT = "He is a"

SAMPLE = GenerateConfig(tokens=128, temperature=0.5)


def sample(model: GPT, tokenizer: Tokenizer, seed: int, rolls: bool, prompt: str = PROMPT) -> str:
    """The prompt, as the tokenizer has it, and 128 tokens after it; a model without words begins with nothing.

    rolls: whether it is trained to go from window to window with the mean.
    """
    prompt = "" if tokenizer.name == IdsTokenizer.name else prompt
    writer = Generator(model.config, tokenizer, lambda batch: NumpyReader(model, batch), rolls)
    return tokenizer.decode(tokenizer.encode(prompt)) + "".join(writer.stream(prompt, replace(SAMPLE, seed=seed)))
