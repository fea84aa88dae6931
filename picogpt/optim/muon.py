"""Muon: momentum made orthogonal, for the matrices of the blocks."""

from picogpt.engine.backend import Array, array_module, empty

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Array) -> Array:  # (..., M, K) -> (..., M, K)
    """About U V^T of the singular value decomposition U S V^T: five steps of a quintic Newton-Schulz iteration.

    A step is x <- (a + b g + c g^2) x with g = x x^T. For x much wider than high the steps run on the small square
    matrices alone, since polynomials of one g commute, and x is multiplied once, by their product. A symmetric matrix
    is multiplied by itself as g g^T: of that BLAS computes only half.
    """
    xp = array_module(matrix)
    flip = matrix.shape[-2] > matrix.shape[-1]
    wide = matrix.swapaxes(-1, -2) if flip else matrix
    norm = xp.sqrt(xp.einsum("...mk,...mk->...", wide, wide)) + 1e-7
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
            if step < 4:
                xp.matmul(factor, factor.swapaxes(-1, -2), out=square)
                gram[...] = xp.matmul(square, gram, out=scratch)
        x = xp.matmul(product, x, out=empty(x.shape, matrix))
    return x.swapaxes(-1, -2) if flip else x


def _quintic(gram: Array, square: Array) -> Array:  # (..., m, m), and room for its square
    """a + b gram + c gram^2, in the place of gram."""
    a, b, c = NEWTON_SCHULZ
    m = gram.shape[-1]
    array_module(gram).matmul(gram, gram.swapaxes(-1, -2), out=square)
    square *= c
    gram *= b
    gram += square
    gram.reshape(-1, m * m)[:, :: m + 1] += a
    return gram
