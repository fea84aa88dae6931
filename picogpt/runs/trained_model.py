"""The model of a checkpoint, as a run left it."""

from pathlib import Path
from typing import Any

from picogpt.config import ModelConfig, RunConfig
from picogpt.errors import UserError
from picogpt.model.parameters import Arrays, merged, parameter_shapes
from picogpt.runs.checkpoint import Checkpoint, read
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.registry import from_dict


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
