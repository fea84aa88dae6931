"""The public API: load a trained model, look at its logits, let it write."""

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
from picogpt.runs.find import use_checkpoint
from picogpt.runs.trained_model import TrainedModel, read_model
from picogpt.system.terminal import to_stderr
from picogpt.tokenizers.base import Tokenizer


class LanguageModel:
    """A trained model with its tokenizer."""

    def __init__(self, config: ModelConfig, arrays: Arrays, tokenizer: Tokenizer, rolls: bool = False) -> None:
        """rolls: it was trained to continue from the mean of the window before, so `context="auto"` does that."""
        self.config, self.tokenizer = config, tokenizer
        self.model = GPT(config, as_tensors(arrays))
        self.generator = Generator(config, tokenizer, lambda batch: NumpyReader(self.model, batch), rolls)

    def logits(self, ids: npt.ArrayLike) -> npt.NDArray[np.float32]:  # (B, T) or (T,) integers -> (B, T, V)
        """Return the logits of every position's successor. More ids than a window are read as rolling windows.

        The windows are aligned from the left, as in training.

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
        """Return `tokens` more tokens after the prompt, as text (the prompt itself is not repeated).

        temperature 0 is greedy; top_k 0 and top_p 1 cut nothing (top_k None is 40 for a byte-level BPE vocabulary, else
        0); the same seed gives the same text, which ends before `stop`, or where the model ends it. context and
        overlap: what happens when a window is full (see inference/windows.py); auto rolls where the model was trained
        to, and with overlap 0 that is the context of `logits`. Raises UserError for a setting out of its range.
        """
        config = GenerateConfig(  # `index` and `float` accept NumPy's numbers too
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
        """Yield the text of `generate` piece by piece, as it is written.

        An empty prompt stands for the end of a text, or for a line break where the tokenizer has none.
        """
        return self.generator.stream(prompt, config)


def load(run_or_path: str | Path) -> LanguageModel:
    """Load the best checkpoint of a run, by its name in logs/ or its folder, or a checkpoint by its folder.

    Where the best one is damaged, the next best is loaded and a line on stderr says so. Raises UserError where there is
    none, or all are damaged.
    """
    return model_of(use_checkpoint(run_or_path, read_model, to_stderr))


def model_of(found: TrainedModel) -> LanguageModel:
    """Return the model that `read_model` read, ready to write. The weights of a large one stay in their file."""
    arrays = found.arrays
    if not is_large(found.config):
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
    return LanguageModel(found.config, arrays, found.tokenizer, found.checkpoint.meta.rolls)
