"""A gradient check: the analytic directional derivative against a central difference, in float64."""

from collections.abc import Callable

import numpy as np

from picogpt.engine import Tape, Tensor, no_grad


def check_gradients(function: Callable[..., Tensor], *arrays: np.ndarray, tolerance: float = 1e-6) -> None:
    """Compare d<u, function(arrays)> along a random direction, for a random upstream gradient u.

    arrays: float64 inputs that require gradients. A random direction sees every element of every gradient at once;
    a random (non-constant) u keeps symmetric mistakes from cancelling.
    """
    rng = np.random.default_rng(7)
    inputs = [Tensor(array.copy(), requires_grad=True) for array in arrays]
    with Tape() as tape:
        output = function(*inputs)
    upstream = np.asarray(rng.standard_normal(output.shape))
    tape.backward(output, upstream)
    directions = [rng.standard_normal(array.shape) for array in arrays]
    gradients = [np.asarray(x.grad) for x in inputs]
    analytic = sum(float(np.sum(g * d)) for g, d in zip(gradients, directions, strict=True))

    def along(step: float) -> float:
        moved = [Tensor(array + step * d) for array, d in zip(arrays, directions, strict=True)]
        with no_grad():
            return float(np.sum(upstream * function(*moved).data))

    eps = 1e-5
    numeric = (along(eps) - along(-eps)) / (2 * eps)
    error = abs(analytic - numeric) / max(1.0, abs(analytic), abs(numeric))
    assert error < tolerance, f"analytic {analytic:.10g}, numeric {numeric:.10g}: relative error {error:.2g}"
    for x, g, array in zip(inputs, gradients, arrays, strict=True):
        assert g.shape == array.shape and g.dtype == np.float64
        assert np.array_equal(x.data, array), "an op changed its input"
