"""The first values of a model's parameters."""

from collections.abc import Mapping
from math import sqrt

import numpy as np
import numpy.typing as npt

from picogpt.config import ModelConfig
from picogpt.engine.backend import Array
from picogpt.model.parameters import LORA, Arrays, parameter_shapes
from picogpt.rng import generator


def initial_arrays(config: ModelConfig, seed: int, given: Mapping[str, Array] | None = None) -> Arrays:
    """Return the first values of every parameter, float32; arrays that are given stay as they are.

    gpt2: N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 n_layer)) (A. Radford et al., 2019). zero: as gpt2, but
    the residual projections are zero, so that every block begins as the identity. normal: N(0, 0.02).
    torch: PyTorch's defaults, U(-1/sqrt(inputs), 1/sqrt(inputs)) for linear layers and N(0, 1) for tables.
    Low-rank matrices add nothing at first: A is N(0, 1/sqrt(inputs)), and B is zero.
    """
    arrays = dict(given or {})
    for i, (name, shape) in enumerate(parameter_shapes(config).items()):
        if name not in arrays:
            arrays[name] = _initial(config, name, shape, generator(seed, "initial", i))
    return arrays


def _initial(
    config: ModelConfig, name: str, shape: tuple[int, ...], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    if name.endswith(LORA):
        scale = np.float32(1 / sqrt(shape[1]) if name.endswith(LORA[0]) else 0)
        return rng.standard_normal(shape, np.float32) * scale
    if ".ln_" in name or name.startswith("ln_"):
        return np.full(shape, name.endswith(".weight"), np.float32)
    if config.init == "torch":
        if name in ("wte.weight", "wpe.weight"):
            return rng.standard_normal(shape, np.float32)
        inputs = 4 * config.n_embd if ".mlp.c_proj" in name else config.n_embd
        return (rng.random(shape, np.float32) * 2 - 1) / np.float32(sqrt(inputs))
    if name.endswith(".bias"):
        return np.zeros(shape, np.float32)
    if config.init == "zero" and name.endswith("c_proj.weight"):
        return np.zeros(shape, np.float32)
    scaled = config.init == "gpt2" and name.endswith("c_proj.weight")
    return rng.standard_normal(shape, np.float32) * np.float32(0.02 / (sqrt(2 * config.n_layer) if scaled else 1))
