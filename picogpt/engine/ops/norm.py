"""Layer normalisation.

C width   N rows (all leading axes together)
"""

from picogpt.engine.backend import Array, array_module, empty, row_blocks, sum_rows
from picogpt.engine.tensor import Tensor, apply


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:  # (..., C), (C,), (C,) -> (..., C)
    """Return (x - mean) / sqrt(variance + eps) * gain + bias over the last axis. J. L. Ba et al., arXiv 1607.06450."""
    xp = array_module(x.data)
    C = x.shape[-1]
    rows = x.data.reshape(-1, C)
    N = len(rows)
    y, normal, rstd = empty((N, C), rows), empty((N, C), rows), empty((N, 1), rows)
    average = xp.full((C, 1), 1 / C, rows.dtype)
    for block in row_blocks(N, C, rows):
        mean = xp.matmul(rows[block], average)
        n = xp.subtract(rows[block], mean, out=normal[block])
        variance = xp.einsum("nc,nc->n", n, n)[:, None] / C
        xp.divide(1, xp.sqrt(variance + eps), out=rstd[block])
        n *= rstd[block]
        xp.multiply(n, gain.data, out=y[block])
        y[block] += bias.data

    def backward(dy: Array) -> tuple[Array | None, ...]:  # saves: normal, rstd
        dy = dy.reshape(-1, C)
        dx = empty((N, C), dy)
        dgain, g = xp.zeros(C, dy.dtype), gain.data[:, None]
        for block in row_blocks(N, C, dy):
            d, n, dn = dy[block], normal[block], dx[block]
            xp.multiply(d, n, out=dn)
            if gain.node is not None:
                dgain += sum_rows(dn)
            if not needs_dx:
                continue
            mean_d, mean_dn = xp.matmul(d, g) / C, xp.matmul(dn, g) / C  # of dy * gain, and of that times normal
            xp.multiply(d, gain.data, out=dn)
            dn -= mean_d
            dn -= xp.multiply(n, mean_dn, out=empty(n.shape, dy))
            dn *= rstd[block]
        return (
            dx.reshape(x_shape) if needs_dx else None,
            None if gain.node is None else dgain,
            None if bias.node is None else sum_rows(dy),
        )

    x_shape, needs_dx = x.shape, x.node is not None
    return apply(y.reshape(x_shape), (x, gain, bias), backward, "layer_norm")
