"""The MLP's non-linearities.

The derivative is computed in the forward pass, while the block of x is in the cache; x itself is not kept.
"""

from collections.abc import Callable
from math import pi, sqrt

import numpy as np

from picogpt.engine.backend import Array, array_module, empty, erf, row_blocks
from picogpt.engine.tape import is_recording
from picogpt.engine.tensor import Tensor, apply


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0)."""
    xp = array_module(x.data)
    zeros = xp.zeros(x.shape[-1:], x.data.dtype)  # a row of them: NumPy's maximum with a number is three times as slow
    y = xp.maximum(x.data, zeros, out=empty(x.shape, x.data))

    def backward(dy: Array) -> tuple[Array, ...]:  # saves: y
        return (xp.multiply(dy, y > 0, out=empty(dy.shape, dy)),)

    return apply(y, (x,), backward, "relu")


def gelu(x: Tensor) -> Tensor:
    """Return x Phi(x), Phi the normal distribution: the exact form. D. Hendrycks, K. Gimpel, arXiv 1606.08415."""
    return _smooth(x, _gelu_exact64 if x.data.dtype == np.float64 else _gelu_block, "gelu")


def gelu_tanh(x: Tensor) -> Tensor:
    """Return GPT-2's tanh form of gelu: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    return _smooth(x, _gelu_tanh_block, "gelu_tanh")


def _smooth(x: Tensor, kernel: Callable[[Array, Array, Array], None], op: str) -> Tensor:
    """Run kernel(x, y, slope) over cache-sized blocks; it fills y, and slope = dy/dx where that is not None."""
    xp, width = array_module(x.data), x.shape[-1]
    rows = x.data.reshape(-1, width)
    y = empty(rows.shape, rows)
    slope: Array = empty(rows.shape, rows) if is_recording(x.node) else None
    for block in row_blocks(len(rows), width, rows):
        kernel(rows[block], y[block], None if slope is None else slope[block])

    def backward(dy: Array) -> tuple[Array, ...]:  # saves: slope
        dx = empty(dy.shape, dy)
        return (xp.multiply(dy, slope.reshape(dy.shape), out=dx),)

    return apply(y.reshape(x.shape), (x,), backward, op)


# erf(x / sqrt(2)) = tanh(x q(x^2)), and q is so smooth that six powers of x^2 give erf to 1.4e-7 in float32. Fitted
# for the least largest error of the tanh over x^2 <= 27, where erf is 1 to the last bit; beyond it x q only grows, and
# where that overflows, tanh is still 1. NumPy has a fast tanh, no erf, and a slow minimum.
_Q = (
    1.756538507e-09,
    -1.322756674e-07,
    3.964890336e-06,
    -5.530694883e-05,
    -3.259325738e-05,
    3.633308306e-02,
    0.7978849418,
)


def _gelu_block(x: Array, y: Array, slope: Array | None) -> None:
    xp = array_module(x)
    square = xp.multiply(x, x, out=empty(x.shape, x))
    if slope is not None:
        bell = xp.multiply(square, -0.5, out=slope)  # sqrt(2 pi) times the normal density
        xp.exp(bell, out=bell)
    phi = xp.multiply(square, _Q[0], out=y)
    with np.errstate(over="ignore"):
        for q in _Q[1:-1]:
            phi += q
            phi *= square
        phi += _Q[-1]
        phi *= x
    xp.tanh(phi, out=phi)
    phi *= 0.5
    phi += 0.5
    if slope is not None:  # Phi(x) + x phi(x)
        slope *= x
        slope *= 1 / sqrt(2 * pi)
        slope += phi
    phi *= x


def _gelu_exact64(x: Array, y: Array, slope: Array | None) -> None:
    """Compute gelu in float64, for gradient checks, which need every digit."""
    xp = array_module(x)
    phi = 0.5 * (1 + erf(x / sqrt(2)))
    xp.multiply(x, phi, out=y)
    if slope is not None:
        slope[...] = phi + x * xp.exp(-0.5 * x * x) / sqrt(2 * pi)


def _gelu_tanh_block(x: Array, y: Array, slope: Array | None) -> None:
    xp = array_module(x)
    c = sqrt(2 / pi)
    square = xp.multiply(x, x, out=empty(x.shape, x))
    t = xp.multiply(square, 0.044715 * c, out=empty(x.shape, x))
    t += c
    t *= x
    xp.tanh(t, out=t)
    half = xp.multiply(t, 0.5, out=y)
    half += 0.5
    if slope is not None:  # half + x / 2 (1 - t^2) c (1 + 3 * 0.044715 x^2)
        square *= 3 * 0.044715 * 0.5 * c
        square += 0.5 * c
        square *= x
        t *= t
        xp.subtract(1, t, out=t)
        t *= square
        xp.add(half, t, out=slope)
    half *= x
