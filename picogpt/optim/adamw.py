"""AdamW: gradient descent in which every weight has a step size of its own, and weight decay stands apart from it.

I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", arXiv 1711.05101. With g for the gradient, p for the
parameters, m and v for the running means of g and g^2, and t for the number of the step, counted from 1:

    m <- beta1 m + (1 - beta1) g
    v <- beta2 v + (1 - beta2) g^2
    p <- (1 - decay) p - rate / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + 1e-8)

Each element is updated independently of the others, so the arrays can be cut anywhere.
"""

from math import sqrt

from picogpt.engine.backend import Array, array_module, empty, row_blocks

EPSILON = 1e-8


def slices(start: int, stop: int, like: Array) -> list[slice]:
    """Cut the elements from start to stop of a flat array into slices that `update` takes one at a time.

    like: an array on the device where the update will run. On a CPU a slice is sized for the cache; on a GPU one slice
    holds everything.
    """
    return [slice(start + rows.start, start + rows.stop) for rows in row_blocks(stop - start, 1, like)]


def update(
    parameters: Array,
    gradient: Array,
    mean: Array,
    square: Array,
    *,
    step: int,
    rate: float,
    decay: float,
    betas: tuple[float, float],
    gradient_scale: float,
) -> None:
    """Update the parameters, and the running means of the gradient and of its square, in place.

    parameters, gradient, mean, square: arrays of one shape; the gradient is only read. step: the number of steps done
    before this one. rate: the learning rate. decay: the fraction of the weights that is taken off. betas: the decay
    of the two running means. gradient_scale: what the gradient is multiplied with first, for clipping.
    """
    xp, (beta1, beta2) = array_module(parameters), betas
    # Scaling is folded into the factors, and one scratch array serves for all terms: each pass over memory costs time.
    scratch = xp.multiply(gradient, gradient_scale * (1 - beta1), out=empty(parameters.shape, parameters))
    mean *= beta1
    mean += scratch
    xp.multiply(gradient, gradient, out=scratch)
    scratch *= gradient_scale * gradient_scale * (1 - beta2)
    square *= beta2
    square += scratch
    xp.sqrt(square, out=scratch)
    scratch *= 1 / sqrt(1 - beta2 ** (step + 1))
    scratch += EPSILON
    xp.divide(mean, scratch, out=scratch)
    scratch *= rate / (1 - beta1 ** (step + 1))
    if decay:
        parameters *= 1 - decay
    parameters -= scratch
