"""Layers: parameters with names, and a forward written with the engine's ops."""

from collections.abc import Iterator, Mapping

import numpy as np

from picogpt.engine import Tensor, ops
from picogpt.engine.backend import Array

NORM_EPSILON = 1e-5  # added to the variance in all layer norms, here and in exported models


class Module:
    """A part of a model that holds parameters. A parameter's dotted name is the path of attributes that leads to it.

    That name is its key everywhere: in the model, the gradients, the optimizer, the checkpoint and the ONNX graph.
    """

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) in the order of definition; tensors without a gradient included."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.named_parameters(f"{prefix}{name}.")
            elif isinstance(value, list):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield from item.named_parameters(f"{prefix}{name}.{i}.")


class Linear(Module):
    """A linear layer: x @ weight.T + bias; weight (M, K), bias (M,) or none.

    With low-rank matrices (r, K) and (M, r) the weight is weight + lora_b @ lora_a: E. Hu et al., LoRA, arXiv
    2106.09685, whose alpha is r here, so that nothing scales the product.
    """

    def __init__(self, parameters: Mapping[str, Tensor], name: str) -> None:
        self.weight = parameters[f"{name}.weight"]
        self.bias = parameters.get(f"{name}.bias")
        self.lora_a = parameters.get(f"{name}.lora_a")
        self.lora_b = parameters.get(f"{name}.lora_b")

    def __call__(self, x: Tensor, replay: bool = False) -> Tensor:  # (..., K) -> (..., M)
        y = ops.linear(x, self.weight, self.bias, replay)
        if self.lora_a is None or self.lora_b is None:
            return y
        return y + ops.linear(ops.linear(x, self.lora_a), self.lora_b, replay=replay)


class LayerNorm(Module):
    """A layer norm over the last axis; weight and bias (C,)."""

    def __init__(self, parameters: Mapping[str, Tensor], name: str) -> None:
        self.weight = parameters[f"{name}.weight"]
        self.bias = parameters[f"{name}.bias"]

    def __call__(self, x: Tensor) -> Tensor:  # (..., C) -> (..., C)
        return ops.layer_norm(x, self.weight, self.bias, NORM_EPSILON)


class Embedding(Module):
    """A table with one row of weight (V, C) for each id."""

    def __init__(self, parameters: Mapping[str, Tensor], name: str) -> None:
        self.weight = parameters[f"{name}.weight"]

    def __call__(self, ids: Array) -> Tensor:  # (...) -> (..., C)
        return ops.embedding(ids, self.weight)


class Dropout(Module):
    """Dropout with this probability while a random generator is given (training), and none without one."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, x: Tensor, rng: np.random.Generator | None) -> Tensor:
        return x if rng is None or self.probability == 0 else ops.dropout(x, self.probability, rng)
