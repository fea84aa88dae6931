"""A model's parameters as named arrays: their shapes, their first values, and tensors over them."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np

from picogpt.config import ModelConfig, RunConfig
from picogpt.engine import Tensor
from picogpt.engine.backend import Array
from picogpt.errors import UserError

Arrays = dict[str, Array]

LARGE = 2 << 30
"""The float32 bytes above which a model's weights stay in their file, or are used in fewer bits."""

LORA = (".lora_a", ".lora_b")
"""Ends of the names of low-rank matrices: A (r, inputs) and B (outputs, r); B A is added to a weight."""


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every parameter, in the order of the model. Linear weights are (outputs, inputs)."""
    C, V = config.n_embd, config.vocab_size
    if config.n_layer == 0:
        return {"wte.weight": (V, V)}  # a bigram table: its rows are the logits
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (V, C), "wpe.weight": (config.n_position, C)}

    def linear(name: str, outputs: int, inputs: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)
        if config.lora_rank:
            shapes[f"{name}{LORA[0]}"] = (config.lora_rank, inputs)
            shapes[f"{name}{LORA[1]}"] = (outputs, config.lora_rank)

    def layer_norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (C,)

    for layer in range(config.n_layer):
        h = f"h.{layer}"
        layer_norm(f"{h}.ln_1")
        linear(f"{h}.attn.c_attn", 3 * C, C, config.qkv_bias)
        linear(f"{h}.attn.c_proj", C, C, config.bias)
        layer_norm(f"{h}.ln_2")
        linear(f"{h}.mlp.c_fc", 4 * C, C, config.bias)
        linear(f"{h}.mlp.c_proj", C, 4 * C, config.bias)
    layer_norm("ln_f")
    if not config.tied_head:
        shapes["lm_head.weight"] = (V, C)
    if config.head_bias:
        shapes["lm_head.bias"] = (V,)
    return shapes


def parameter_count(config: ModelConfig) -> tuple[int, int]:
    """Return the number of all parameters, and PicoGPT's and nanoGPT's count: without the position table."""
    sizes = {name: prod(shape) for name, shape in parameter_shapes(config).items()}
    total = sum(sizes.values())
    return total, total - sizes.get("wpe.weight", 0)


def is_large(config: ModelConfig) -> bool:
    """Return whether a model's float32 weights are too large to be kept in memory without need."""
    return 4 * parameter_count(config)[0] > LARGE


def is_hidden_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a parameter is a matrix inside a block, which Muon trains.

    Not so: tables, the head, gains, biases and low-rank matrices.
    """
    return len(shape) == 2 and name.startswith("h.") and not name.endswith(LORA)


def trained_shapes(config: RunConfig) -> dict[str, tuple[int, ...]]:
    """Return the part of `parameter_shapes` that the run trains; the others are frozen.

    biases: E. Ben Zaken et al., BitFit, arXiv 2106.10199. Raises UserError where the model has too few blocks.
    """
    train, layers = config.train.train, config.model.n_layer
    if train != "all" and layers < max(1, last_blocks(config)):
        raise UserError(f"--train {train} is for a model of more blocks: this one has {layers}")
    ends = {"all": ("",), "biases": (".bias",), "lora": LORA}.get(train)
    last = tuple(f"h.{layer}." for layer in range(layers - last_blocks(config), layers))
    shapes = parameter_shapes(config.model).items()
    return {name: s for name, s in shapes if (name.endswith(ends) if ends else name.startswith((*last, "ln_f.")))}


def last_blocks(config: RunConfig) -> int:
    """Return N where only the last N blocks are trained, else 0."""
    train = config.train.train
    return int(train.removeprefix("last-")) if train.startswith("last-") else 0


def merged(config: ModelConfig, arrays: Mapping[str, Array]) -> tuple[ModelConfig, dict[str, Array]]:
    """Return the model without low-rank matrices: their products are added to the weights beside them."""
    plain = replace(config, lora_rank=0)
    return plain, {name: _merged(arrays, name) for name in parameter_shapes(plain)}


def _merged(arrays: Mapping[str, Array], name: str) -> Array:
    a, b = (arrays.get(name.removesuffix(".weight") + end) for end in LORA)
    return arrays[name] if a is None or b is None else np.asarray(arrays[name]) + np.asarray(b) @ np.asarray(a)


def as_tensors(arrays: Mapping[str, Array], gradients: Mapping[str, Array] | None = None) -> dict[str, Tensor]:
    """Return tensors over the arrays, which are not copied.

    A tensor with an array in `gradients` is a leaf whose gradient is added to that array.
    """
    own = gradients or {}
    return {name: Tensor(array, name in own, own.get(name)) for name, array in arrays.items()}
