"""The model of a checkpoint, as a run left it."""

from dataclasses import dataclass
from pathlib import Path

from picogpt.config import ModelConfig
from picogpt.errors import UserError
from picogpt.model.parameters import Arrays, merged, parameter_shapes
from picogpt.runs.checkpoint import Checkpoint, read
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.registry import from_dict


@dataclass(frozen=True)
class TrainedModel:
    """The model of a checkpoint, ready to be used: low-rank matrices are merged."""

    checkpoint: Checkpoint
    """The checkpoint as it was read, without the optimizer."""
    config: ModelConfig
    arrays: Arrays
    """The weights by name; matrices are mapped from the file."""
    tokenizer: Tokenizer


def read_model(place: Path) -> TrainedModel:
    """Read the model of a checkpoint folder.

    Raises DamageError where it is damaged, and UserError where the weights do not fit the configuration.
    """
    found = read(place, optimizer=False, mapped=True)
    config, tokenizer = found.meta.config.model, from_dict(found.meta.tokenizer)
    if {name: array.shape for name, array in found.model.items()} != parameter_shapes(config):
        raise UserError(f"{found.path}: the weights do not fit the configuration beside them: train the run again")
    return TrainedModel(found, *merged(config, found.model), tokenizer)
