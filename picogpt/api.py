"""The public API: load what was trained, look at its logits, let it write."""

import os
from collections.abc import Callable, Iterator
from operator import index
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from picogpt.config import Context, GenerateConfig, ModelConfig, RunConfig, UserError
from picogpt.data.tokenizer import Tokenizer, from_dict
from picogpt.engine import no_grad
from picogpt.inference.writer import Writer
from picogpt.model.gpt import GPT
from picogpt.model.parameters import Arrays, as_tensors, is_large, merged, parameter_shapes
from picogpt.model.reader import NumpyReader
from picogpt.model.rolling import sequence_logits
from picogpt.training import checkpoint
from picogpt.training.checks import rolled
from picogpt.training.monitor import to_stderr
from picogpt.training.snapshot import META, Checkpoint, DamageError, read

Result = TypeVar("Result")

LOGS, DATASET = Path("logs"), Path("dataset")


class LanguageModel:
    """A trained model with its tokenizer."""

    def __init__(self, config: ModelConfig, arrays: Arrays, tokenizer: Tokenizer, rolls: bool = False) -> None:
        """rolls: it was trained to go from window to window with the mean, so `context="auto"` does."""
        self.config, self.tokenizer = config, tokenizer
        self.model = GPT(config, as_tensors(arrays))
        self.writer = Writer(config, tokenizer, lambda batch: NumpyReader(self.model, batch), rolls)

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
        happens when a window is full (see inference/decoding.py); auto rolls where the model was trained so, and
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
    return LanguageModel(config, arrays, tokenizer, rolled(found))


def read_model(place: Path) -> tuple[Checkpoint, ModelConfig, Arrays, Tokenizer]:
    """A checkpoint folder with its model as it is kept: matrices where they lie, low-rank ones added to them.

    Raises DamageError where it is damaged, and UserError where it is another program's.
    """
    found = read(place, optimizer=False, mapped=True)
    try:
        config = RunConfig.from_dict(found.meta["config"]).model
        tokenizer = from_dict(found.meta["tokenizer"])
    except KeyError as error:
        raise UserError(f"{found.path} lacks {error}: it is no checkpoint of a picogpt run") from None
    shapes: dict[str, Any] = {name: array.shape for name, array in found.model.items()}
    if shapes != parameter_shapes(config):
        raise UserError(f"{found.path}: the weights do not fit the configuration beside them: train the run again")
    return found, *merged(config, found.model), tokenizer


def find_checkpoint(run_or_path: str | Path) -> Path:
    """The checkpoint folder that a run's name, its folder or its own path stands for, the best. Raises UserError."""
    return _candidates(run_or_path)[0]


def use_checkpoint(run_or_path: str | Path, use: Callable[[Path], Result], notify: Callable[[str], None]) -> Result:
    """What `use` makes of the best checkpoint that a name stands for; of the next best where it finds that damaged.

    notify: told which is used in place of which. Raises UserError where there is none, or none is sound.
    """
    tried: dict[Path, DamageError] = {}
    while place := next((place for place in _candidates(run_or_path) if place not in tried), None):
        for other in list(tried)[-1:]:
            if other.exists():  # else a run that trains has deleted it meanwhile, as it does
                notify(f"{tried[other]}: step {int(place.name)} is used in its place")
        try:
            return use(place)
        except DamageError as damage:
            tried[place] = damage
    first = next(iter(tried))
    raise UserError(f"{tried[first]}: {checkpoint.way_out(first)}")


def _candidates(run_or_path: str | Path) -> list[Path]:
    """The checkpoint folders that a run's name, its folder or its own path stands for. Raises UserError for none."""
    for folder in (LOGS / run_or_path, Path(run_or_path)):
        if (folder / META).is_file():
            return [folder]
        if found := checkpoint.ranked(folder):
            return found
    runs = ", ".join(sorted(run.name for run in trained_runs())) or "none yet: python train.py makes one"
    raise UserError(f"no trained run is called {str(run_or_path)!r}; there are: {runs}")


def newest_run() -> str:
    """The name of the run that was saved last. Raises UserError where there is none."""
    saved = [(newest / META, run) for run in trained_runs() if (newest := checkpoint.newest(run))]
    if not saved:
        raise UserError(f"no run was trained yet in {LOGS.resolve()}: python train.py --data sample makes one")
    return max(saved, key=lambda item: item[0].stat().st_mtime)[1].name


def trained_runs() -> list[Path]:
    """Folders in logs/ with a checkpoint of more than the beginning."""
    if not LOGS.is_dir():
        return []
    folders = [folder for folder in LOGS.iterdir() if os.access(folder, os.R_OK | os.X_OK)]
    return [folder for folder in folders if (found := checkpoint.newest(folder)) and found.name.strip("0")]
