"""Dropping activations at random."""

import numpy as np

from picogpt.engine.backend import Array, array_module, empty, to_device
from picogpt.engine.tensor import Tensor, apply


def dropout(x: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    """Zero each element with this probability and scale up the others. N. Srivastava et al., JMLR 15 (2014)."""
    xp = array_module(x.data)
    mask = dropout_mask(x.shape, probability, rng, x.data)

    def backward(dy: Array) -> tuple[Array, ...]:  # saves: mask
        return (xp.multiply(dy, mask, out=empty(dy.shape, dy)),)

    return apply(xp.multiply(x.data, mask, out=empty(x.shape, x.data)), (x,), backward, "dropout")


def dropout_mask(shape: tuple[int, ...], probability: float, rng: np.random.Generator, like: Array) -> Array:
    """Draw a mask: 0 with this probability, else 1 / (1 - probability)."""
    keep = to_device(rng.random(shape, dtype=np.float32) >= probability, like)  # drawn on the host: the same everywhere
    return array_module(like).multiply(keep, 1 / (1 - probability), dtype=like.dtype)
