"""PicoGPT's own logs: `log.pkl`, a pickle with the best weights as PyTorch's tensors in the middle of it.

{"best_weight": {name: tensor}, "best_loss", "losses": {"train": [...], "val": [...]}, "optimizer", "iter_num"}

The optimizer is PyTorch's AdamW itself. What is written here has None in its place: PicoGPT goes on from such a log by
its --init_weight, which takes the weights alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.config import ModelConfig
from picogpt.errors import UserError
from picogpt.interop.foreign_model import refuse, require_weights
from picogpt.model.parameters import parameter_shapes
from picogpt.system.files import make_folder, write_durably, write_error
from picogpt.tensorfiles import pickle_writer
from picogpt.tensorfiles.lazy_tensor import FLOATING, LazyTensor
from picogpt.tensorfiles.torch_files import read_object

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
    return bool(weights) and all(type(name) is str and isinstance(value, LazyTensor) for name, value in weights.items())


def _named(weights: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """By picogpt's names, which are nanoGPT's without what other programs put before them."""
    return {_PREFIX.sub("", name): value for name, value in weights.items() if not _BUFFER.search(name)}


def _config(path: Path, weights: Mapping[str, LazyTensor], n_head: int) -> ModelConfig:
    """The shape that the weights have."""
    tables = _named(weights)
    for name in ("wte.weight", "wpe.weight"):
        if name not in tables or len(tables[name].shape) != 2 or not prod(tables[name].shape):
            raise UserError(f"{path} has no table {name}: this is no model of PicoGPT's")
    (vocab_size, n_embd), (positions, _) = tables["wte.weight"].shape, tables["wpe.weight"].shape
    layers = {int(name.split(".")[1]) for name in tables if re.match(r"h\.\d{1,4}\.", name)}
    bias = "h.0.attn.c_proj.bias" in tables
    return ModelConfig(positions - 1, vocab_size, len(layers), n_head, n_embd, bias, bias, init="gpt2")


def _arrays(path: Path, model: ModelConfig, weights: Mapping[str, LazyTensor]) -> dict[str, npt.NDArray[np.float32]]:
    """The weights, all of them and no others. Raises UserError with the names of those that do not fit."""
    found = _named(weights)
    table, head = found["wte.weight"], found.pop("lm_head.weight", None)  # the head shares the token table
    require_weights(path, model, {name: (value,) for name, value in found.items()})
    if head is not None and (
        head.shape != table.shape or not np.array_equal(head.read(), table.read(), equal_nan=True)
    ):
        raise UserError(f"{path} has a head that is not the token table: this is no model of PicoGPT's")
    return {name: found[name].read() for name in parameter_shapes(model)}


def _losses(rest: Mapping[Any, Any]) -> tuple[list[float], list[float], float | None, int]:
    """As far as there are any: what is no number is none."""
    losses, best, iterations = (rest.get(name) for name in ("losses", "best_loss", "iter_num"))
    both: list[list[float]] = []
    for side in ("train", "val"):
        values = losses.get(side) if isinstance(losses, dict) else None
        numbers = map(_number, values) if isinstance(values, list) else []
        both.append([value for value in numbers if value is not None])
    count = min(map(len, both))
    done = iterations if type(iterations) is int and 0 <= iterations < 1 << 40 else 0
    lowest = _number(best)
    if lowest is not None and not isfinite(lowest):  # before the first evaluation
        lowest = None
    return both[0][:count], both[1][:count], lowest, done


def _number(value: Any) -> float | None:
    """As a float, also where it is a tensor of one; None where it is none."""
    if isinstance(value, LazyTensor) and prod(value.shape) == 1 and value.dtype in FLOATING:
        return float(value.read().reshape(())[()])
    if type(value) is float or (type(value) is int and abs(value) < 1 << 53):
        return float(value)
    return None


def write_log(path: Path, log: Log) -> None:
    """Write a log as PicoGPT has them, which its inference.py and its --init_weight read.

    Raises UserError, and leaves nothing, for a model that is not as PicoGPT's, where there is the file already, and
    where the disk refuses.
    """
    model = log.model
    refuse(
        "a log of PicoGPT's",
        {
            "a model without a context slot": not model.context_slot,
            "a model without blocks": model.n_layer == 0,
            "a head of its own": not model.tied_head,
            "a bias in the head": model.head_bias,
            f"the activation {model.activation}": model.activation != "gelu",
            f"the attention scale {model.attention_scale}": model.attention_scale != "head",
            "local attention": any(map(model.window_of, range(model.n_layer))),
            "biases in some of the linear layers alone": model.bias != model.qkv_bias,
        },
    )
    try:
        if path.exists():
            raise UserError(f"there is {path} already: name another")
        make_folder(path.parent)
        write_durably(path, _pickled(log))
    except OSError as error:
        raise write_error(path, error) from error


def _pickled(log: Log) -> bytes:
    arrays = {name: np.asarray(log.arrays[name], np.float32) for name in parameter_shapes(log.model)}
    weights = {f"transformer.{name}": pickle_writer.tensor(array) for name, array in arrays.items()}
    weights["transformer.wte.weight"] = pickle_writer.remembered(weights["transformer.wte.weight"])
    weights["lm_head.weight"] = pickle_writer.RECALLED  # the head is the token table itself
    losses = {"train": log.train_losses, "val": log.val_losses}
    content = {
        "best_weight": pickle_writer.ordered_dict(weights),
        "best_loss": pickle_writer.real(inf if log.best_loss is None else log.best_loss),
        "losses": pickle_writer.dict_of(
            {side: pickle_writer.list_of(map(pickle_writer.real, losses[side])) for side in losses}
        ),
        "optimizer": pickle_writer.NONE,
        "iter_num": pickle_writer.whole(log.iterations),
    }
    return pickle_writer.pickled(pickle_writer.dict_of(content))
