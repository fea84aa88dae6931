"""Muon: gradient descent with momentum, in which the update of each matrix is made orthogonal.

K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). With g for the gradient and p for
the parameters of a matrix of M rows and K columns, and b for its momentum:

    b <- beta b + g
    p <- (1 - decay) p - rate sqrt(max(1, M / K)) orthogonalise(g + beta b)

P parameter matrices in one array   M rows   K columns
"""

from math import sqrt

from picogpt.engine.backend import Array, array_module, empty

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients a, b, c of the quintic, from the same source: chosen to bring small singular values up quickly."""


def stacked_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:  # (P M, K) -> (P, M, K)
    """Return the shape in which `update` takes the parameter of this name and shape: a stack of P matrices.

    The weight of an attention's query, key and value is one array of three matrices, each made orthogonal by itself.
    """
    rows, columns = shape
    matrices = 3 if name.endswith("c_attn.weight") else 1
    return matrices, rows // matrices, columns


def update(
    parameters: Array,
    gradient: Array,
    momentum: Array,
    *,
    rate: float,
    decay: float,
    beta: float,
    gradient_scale: float,
) -> None:  # (P, M, K) each
    """Update a stack of matrices and their momentum in place, with Nesterov momentum; the gradient is only read.

    rate: the learning rate. decay: the fraction of the weights that is taken off. beta: the decay of the momentum.
    gradient_scale: what the gradient is multiplied with first, for clipping.
    """
    xp, (_, rows, columns) = array_module(parameters), parameters.shape
    direction = xp.multiply(gradient, gradient_scale, out=empty(gradient.shape, gradient))
    momentum *= beta
    momentum += direction
    direction += xp.multiply(momentum, beta, out=empty(gradient.shape, gradient))
    direction = orthogonalise(direction)
    if decay:
        parameters *= 1 - decay
    direction *= rate * sqrt(max(1, rows / columns))
    parameters -= direction


def orthogonalise(matrix: Array) -> Array:  # (..., M, K) -> (..., M, K)
    """Return nearly U V^T, where U S V^T is the singular value decomposition of the matrix, or of each of a stack.

    Five steps of a quintic Newton-Schulz iteration bring the singular values to between about 0.7 and 1.2; those that
    are far smaller than the rest end lower. A matrix of zeros stays zero. The input is only read.

    A step is x <- (a + b g + c g^2) x with g = x x^T, where x is the wide one of the matrix and its transpose. If x is
    much wider than high, the steps run on small square matrices alone, since polynomials of one g commute, and x is
    multiplied once, by their product. A symmetric matrix is multiplied by itself as g g^T, because BLAS computes only
    half of such a product.
    """
    xp = array_module(matrix)
    flip = matrix.shape[-2] > matrix.shape[-1]
    wide = matrix.swapaxes(-1, -2) if flip else matrix
    norm = xp.sqrt(xp.einsum("...mk,...mk->...", wide, wide)) + 1e-7  # zeros are not divided by zero
    x = xp.multiply(wide, 1 / norm[..., None, None], out=empty(wide.shape, matrix))
    m, k = x.shape[-2:]
    gram, square, scratch = (empty((*x.shape[:-1], m), matrix) for _ in range(3))
    if k < 2 * m:
        for _ in range(5):
            xp.matmul(x, x.swapaxes(-1, -2), out=gram)
            x = xp.matmul(_quintic(gram, square), x, out=empty(x.shape, matrix))
    else:
        xp.matmul(x, x.swapaxes(-1, -2), out=gram)
        product = None
        for step in range(5):
            factor = empty(gram.shape, matrix)
            factor[...] = gram
            factor = _quintic(factor, square)
            product = factor if product is None else xp.matmul(factor, product, out=empty(gram.shape, matrix))
            if step < 4:  # x becomes factor x, so its g becomes factor^2 g
                xp.matmul(factor, factor.swapaxes(-1, -2), out=square)
                gram[...] = xp.matmul(square, gram, out=scratch)
        x = xp.matmul(product, x, out=empty(x.shape, matrix))
    return x.swapaxes(-1, -2) if flip else x


def _quintic(gram: Array, square: Array) -> Array:  # (..., m, m), (..., m, m) -> (..., m, m)
    """Overwrite gram with a + b gram + c gram^2 and return it; square is room for gram^2."""
    a, b, c = NEWTON_SCHULZ
    m = gram.shape[-1]
    array_module(gram).matmul(gram, gram.swapaxes(-1, -2), out=square)
    square *= c
    gram *= b
    gram += square
    gram.reshape(-1, m * m)[:, :: m + 1] += a  # the diagonals
    return gram
