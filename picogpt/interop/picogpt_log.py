"""PicoGPT's own logs, read and written: `log.pkl`, a pickle with the best weights as tensors of PyTorch's.

{"best_weight": {name: tensor}, "best_loss", "losses": {"train": [...], "val": [...]}, "optimizer", "iter_num"}

The optimizer is PyTorch's AdamW object. A log written here has None in its place: PicoGPT continues from such a log
with its --init_weight, which takes only the weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite, prod
from pathlib import Path
from typing import TypeGuard

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
    """The content of such a log, in picogpt's names and types."""

    model: ModelConfig
    arrays: dict[str, npt.NDArray[np.float32]]
    train_losses: list[float]
    val_losses: list[float]
    best_loss: float | None
    iterations: int


def read_picogpt_log(path: Path, n_head: int) -> Log:
    """Read a log of PicoGPT's. n_head: the heads of its model, which the weights do not tell.

    Raises UserError for a file of another kind, and for weights that are not a model's, with the names of those that
    are missing or unexpected.
    """
    match read_object(path):
        case {"best_weight": dict(weights), **rest} if _are_tensors(weights):
            model = _config(path, weights, n_head)
            train_losses, val_losses = _losses(rest.get("losses"))
            return Log(
                model,
                _arrays(path, model, weights),
                train_losses,
                val_losses,
                _best_loss(rest.get("best_loss")),
                _iterations(rest.get("iter_num")),
            )
    raise UserError(f"{path} has no best_weight of named tensors: it is not a log of PicoGPT's")


def _are_tensors(weights: Mapping[object, object]) -> TypeGuard[Mapping[str, LazyTensor]]:
    """Return whether these are tensors by name, at least one."""
    return bool(weights) and all(type(name) is str and isinstance(value, LazyTensor) for name, value in weights.items())


def _renamed(weights: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return the weights by picogpt's names: nanoGPT's, without the prefixes that other programs put before them."""
    return {_PREFIX.sub("", name): value for name, value in weights.items() if not _BUFFER.search(name)}


def _config(path: Path, weights: Mapping[str, LazyTensor], n_head: int) -> ModelConfig:
    """Return the model that the shapes of the weights describe. Raises UserError where they describe none."""
    tensors = _renamed(weights)
    for name in ("wte.weight", "wpe.weight"):
        if name not in tensors or len(tensors[name].shape) != 2 or not prod(tensors[name].shape):
            raise UserError(f"{path} has no table {name}: it is not a model of PicoGPT's")
    (vocab_size, n_embd), (positions, _) = tensors["wte.weight"].shape, tensors["wpe.weight"].shape
    layers = {int(name.split(".")[1]) for name in tensors if re.match(r"h\.\d{1,4}\.", name)}
    bias = "h.0.attn.c_proj.bias" in tensors
    return ModelConfig(positions - 1, vocab_size, len(layers), n_head, n_embd, bias, bias, init="gpt2")


def _arrays(path: Path, model: ModelConfig, weights: Mapping[str, LazyTensor]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the weights, all of them and no others. Raises UserError with the names of those that do not fit."""
    found = _renamed(weights)
    table, head = found["wte.weight"], found.pop("lm_head.weight", None)  # the head shares the token table
    require_weights(path, model, {name: (value,) for name, value in found.items()})
    if head is not None and (
        head.shape != table.shape or not np.array_equal(head.read(), table.read(), equal_nan=True)
    ):
        raise UserError(f"{path} has a head that is not the token table: it is not a model of PicoGPT's")
    return {name: found[name].read() for name in parameter_shapes(model)}


def _losses(losses: object) -> tuple[list[float], list[float]]:
    """Return the training and the validation losses, as many of each; values that are not numbers are left out."""
    both: list[list[float]] = []
    for side in ("train", "val"):
        values = losses.get(side) if isinstance(losses, dict) else None
        numbers = map(_number, values) if isinstance(values, list) else []
        both.append([value for value in numbers if value is not None])
    count = min(map(len, both))
    return both[0][:count], both[1][:count]


def _best_loss(value: object) -> float | None:
    """Return the best loss, or None where there is none. Before the first evaluation the log has infinity."""
    loss = _number(value)
    return loss if loss is not None and isfinite(loss) else None


def _iterations(value: object) -> int:
    """Return the iterations of the run, or 0 where the log does not say."""
    return value if type(value) is int and 0 <= value < 1 << 40 else 0


def _number(value: object) -> float | None:
    """Return a number, or a tensor of a single one, as a float; None for anything else."""
    if isinstance(value, LazyTensor) and prod(value.shape) == 1 and value.dtype in FLOATING:
        return float(value.read().reshape(())[()])
    if type(value) is float or (type(value) is int and abs(value) < 1 << 53):
        return float(value)
    return None


def write_picogpt_log(path: Path, log: Log) -> None:
    """Write a log of PicoGPT's, which its inference.py and its --init_weight read.

    Raises UserError, and leaves nothing, for a model that PicoGPT does not have, where the file exists already, and
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
    """Return the bytes of the log's file."""
    arrays = {name: np.asarray(log.arrays[name], np.float32) for name in parameter_shapes(log.model)}
    weights = {f"transformer.{name}": pickle_writer.tensor(array) for name, array in arrays.items()}
    weights["transformer.wte.weight"] = pickle_writer.remembered(weights["transformer.wte.weight"])
    weights["lm_head.weight"] = pickle_writer.RECALLED  # the head is the token table itself
    losses = {"train": log.train_losses, "val": log.val_losses}
    content = {
        "best_weight": pickle_writer.ordered_dict(weights),
        "best_loss": pickle_writer.floating(inf if log.best_loss is None else log.best_loss),
        "losses": pickle_writer.dict_of(
            {side: pickle_writer.list_of(map(pickle_writer.floating, losses[side])) for side in losses}
        ),
        "optimizer": pickle_writer.NONE,
        "iter_num": pickle_writer.integer(log.iterations),
    }
    return pickle_writer.pickled(pickle_writer.dict_of(content))
