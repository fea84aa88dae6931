"""The public API: load what was trained, look at its logits, let it write."""

from collections.abc import Iterator
from operator import index
from pathlib import Path

import numpy as np
import numpy.typing as npt

from picogpt.config import Context, GenerateConfig, ModelConfig
from picogpt.engine import no_grad
from picogpt.errors import UserError
from picogpt.inference.generator import Generator
from picogpt.inference.numpy_reader import NumpyReader
from picogpt.model.gpt import GPT
from picogpt.model.parameters import Arrays, as_tensors, is_large
from picogpt.model.rolling_context import sequence_logits
from picogpt.runs.checkpoint import Checkpoint
from picogpt.runs.find import use_checkpoint
from picogpt.runs.trained_model import read_model
from picogpt.system.terminal import to_stderr
from picogpt.tokenizers.base import Tokenizer


class LanguageModel:
    """A trained model with its tokenizer."""

    def __init__(self, config: ModelConfig, arrays: Arrays, tokenizer: Tokenizer, rolls: bool = False) -> None:
        """rolls: it was trained to go from window to window with the mean, so `context="auto"` does."""
        self.config, self.tokenizer = config, tokenizer
        self.model = GPT(config, as_tensors(arrays))
        self.writer = Generator(config, tokenizer, lambda batch: NumpyReader(self.model, batch), rolls)

    def logits(self, ids: npt.ArrayLike) -> npt.NDArray[np.float32]:  # (B, T) or (T,) integers -> (B, T, V)
        """Logits of every position's successor. More ids than a window roll over windows aligned from the left.

        Raises UserError for ids outside the vocabulary, and for more than a window in a model without a context slot.
        """
        array = np.atleast_2d(np.asarray(ids))
        V, W = self.config.vocab_size, self.config.context_len
        if array.ndim != 2 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
            raise UserError(f"logits needs integer ids of shape (batch, time), not {array.dtype} of {array.shape}")
        if array.min() < 0 or array.max() >= V:
            raise UserError(f"ids must lie in 0..{V - 1}, not {array.min()}..{array.max()}")
        if array.shape[1] > W and not self.config.context_slot and self.config.n_layer:
            raise UserError(f"{array.shape[1]} ids are more than the window of {W}, and this model has no context slot")
        with no_grad():
            return np.asarray(sequence_logits(self.model, array).data)

    def generate(
        self,
        prompt: str,
        *,
        tokens: int = GenerateConfig.tokens,
        temperature: float = GenerateConfig.temperature,
        top_k: int | None = GenerateConfig.top_k,
        top_p: float = GenerateConfig.top_p,
        seed: int | None = None,
        stop: str = GenerateConfig.stop,
        context: Context = GenerateConfig.context,
        overlap: int | None = GenerateConfig.overlap,
    ) -> str:
        """`tokens` more tokens after the prompt, as text (the prompt itself is not repeated).

        temperature 0 is greedy; top_k 0 and top_p 1 cut nothing (no top_k is 40 for a byte-level BPE vocabulary); the
        same seed gives the same text; it ends before `stop`, and where the model ends it. context and overlap: what
        happens when a window is full (see inference/windows.py); auto rolls where the model was trained so, and
        with overlap 0 that is the context of `logits`.
        """
        config = GenerateConfig(  # NumPy's numbers are welcome
            index(tokens),
            float(temperature),
            None if top_k is None else index(top_k),
            float(top_p),
            None if seed is None else index(seed),
            stop=stop,
            context=context,
            overlap=None if overlap is None else index(overlap),
        )
        return "".join(self.stream(prompt, config))

    def stream(self, prompt: str, config: GenerateConfig) -> Iterator[str]:
        """`generate`, piece by piece as it comes; an empty prompt begins after the end of a text, or a line break."""
        return self.writer.stream(prompt, config)


def load(run_or_path: str | Path) -> LanguageModel:
    """The best checkpoint of a run in logs/, of a run's folder, or a checkpoint folder itself.

    Where the best one is damaged it is the next best, and a line on stderr says so. Raises UserError where there is
    none, or none is sound.
    """
    return model_of(*use_checkpoint(run_or_path, read_model, to_stderr))


def model_of(found: Checkpoint, config: ModelConfig, arrays: Arrays, tokenizer: Tokenizer) -> LanguageModel:
    """What `read_model` read, ready to write: in memory, where it is not large."""
    if not is_large(config):
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
    return LanguageModel(config, arrays, tokenizer, found.meta.rolls)
