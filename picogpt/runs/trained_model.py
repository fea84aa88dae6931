"""The model of a checkpoint, as a run left it."""

from pathlib import Path

from picogpt.config import ModelConfig
from picogpt.errors import UserError
from picogpt.model.parameters import Arrays, merged, parameter_shapes
from picogpt.runs.checkpoint import Checkpoint, read
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.registry import from_dict


def read_model(place: Path) -> tuple[Checkpoint, ModelConfig, Arrays, Tokenizer]:
    """Read a checkpoint folder and its model as it is kept: matrices where they lie, low-rank ones added to them.

    Raises DamageError where it is damaged, and UserError where the weights do not fit the configuration.
    """
    found = read(place, optimizer=False, mapped=True)
    config, tokenizer = found.meta.config.model, from_dict(found.meta.tokenizer)
    if {name: array.shape for name, array in found.model.items()} != parameter_shapes(config):
        raise UserError(f"{found.path}: the weights do not fit the configuration beside them: train the run again")
    return found, *merged(config, found.model), tokenizer
