"""PicoGPT's own logs: `log.pkl`, a pickle with the best weights as PyTorch's tensors in the middle of it.

{"best_weight": {name: tensor}, "best_loss", "losses": {"train": [...], "val": [...]}, "optimizer", "iter_num"}
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from picogpt.config import ModelConfig, UserError
from picogpt.interop.stored import Stored
from picogpt.interop.torchfile import read_object
from picogpt.model.parameters import parameter_shapes

_PREFIX = re.compile(r"^(_orig_mod\.|module\.)*(transformer\.)?")
_BUFFER = re.compile(r"\.attn\.(bias|masked_bias)$")  # the mask, which is no weight


@dataclass(frozen=True)
class Log:
    """What such a log holds, as picogpt has it."""

    model: ModelConfig
    arrays: dict[str, npt.NDArray[np.float32]]
    train_losses: list[float]
    val_losses: list[float]
    best_loss: float | None
    iterations: int


def read_log(path: Path, n_head: int) -> Log:
    """A log of PicoGPT's. n_head: of its model, which the weights do not tell.

    Raises UserError for a file that is none, or whose weights are no model: with what is missing, and what is foreign.
    """
    match read_object(path):
        case {"best_weight": dict(weights), **rest} if _tensors(weights):
            model = _config(path, weights, n_head)
            return Log(model, _arrays(path, model, weights), *_losses(rest))
    raise UserError(f"{path} has no best_weight of named tensors: this is no log of PicoGPT's")


def _tensors(weights: Mapping[Any, Any]) -> bool:
    return bool(weights) and all(type(name) is str and isinstance(value, Stored) for name, value in weights.items())


def _named(weights: Mapping[str, Stored]) -> dict[str, Stored]:
    """By picogpt's names, which are nanoGPT's without what other programs put before them."""
    return {_PREFIX.sub("", name): value for name, value in weights.items() if not _BUFFER.search(name)}


def _config(path: Path, weights: Mapping[str, Stored], n_head: int) -> ModelConfig:
    """The shape that the weights have."""
    tables = _named(weights)
    for name in ("wte.weight", "wpe.weight"):
        if name not in tables or len(tables[name].shape) != 2 or not prod(tables[name].shape):
            raise UserError(f"{path} has no table {name}: this is no model of PicoGPT's")
    (vocab_size, n_embd), (positions, _) = tables["wte.weight"].shape, tables["wpe.weight"].shape
    layers = {int(name.split(".")[1]) for name in tables if re.match(r"h\.\d{1,4}\.", name)}
    bias = "h.0.attn.c_proj.bias" in tables
    return ModelConfig(positions - 1, vocab_size, len(layers), n_head, n_embd, bias, bias, init="gpt2")


def _arrays(path: Path, model: ModelConfig, weights: Mapping[str, Stored]) -> dict[str, npt.NDArray[np.float32]]:
    """The weights, all of them and no others. Raises UserError with the names of those that do not fit."""
    found, shapes = _named(weights), parameter_shapes(model)
    table, head = found["wte.weight"], found.pop("lm_head.weight", None)  # the head shares the token table
    if head is not None and not np.array_equal(head.read(), table.read()):
        raise UserError(f"{path} has a head that is not the token table: this is no model of PicoGPT's")
    wrong = [name for name in found.keys() & shapes.keys() if found[name].shape != shapes[name]]
    faults = {"missing": shapes.keys() - found.keys(), "unexpected": found.keys() - shapes.keys(), "misshapen": wrong}
    if any(faults.values()):
        told = "; ".join(f"{what}: {', '.join(sorted(names)[:5])}" for what, names in faults.items() if names)
        raise UserError(f"{path} is no model of PicoGPT's ({told[:300]})")
    return {name: found[name].read() for name in shapes}


def _losses(rest: Mapping[Any, Any]) -> tuple[list[float], list[float], float | None, int]:
    """As far as there are any: what is no number is none."""
    losses, best, iterations = (rest.get(name) for name in ("losses", "best_loss", "iter_num"))
    both: list[list[float]] = []
    for side in ("train", "val"):
        values = losses.get(side) if isinstance(losses, dict) else None
        both.append([float(value) for value in values if _is_number(value)] if isinstance(values, list) else [])
    count = min(map(len, both))
    done = iterations if type(iterations) is int and 0 <= iterations < 1 << 40 else 0
    return both[0][:count], both[1][:count], float(best) if _is_number(best) else None, done


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) is float or (type(value) is int and abs(value) < 1 << 53)
