"""Linear layers.

N rows (all leading axes together)   K inputs   M outputs
"""

from picogpt.engine.backend import Array, array_module, empty, sum_rows, times, times_transposed
from picogpt.engine.tensor import Tensor, apply


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, replay: bool = False
) -> Tensor:  # (..., K), (M, K), (M,) -> (..., M)
    """Return x @ weight.T + bias. A replay only records: nobody reads its values, so they are not computed."""
    xp = array_module(x.data)
    (M, K), lead = weight.shape, x.shape[:-1]
    rows = x.data.reshape(-1, K)
    y = empty((len(rows), M), rows)
    if replay:
        y.fill(0)  # not what memory happens to hold, which may be no number
    else:
        times_transposed(rows, weight.data, y)
        if bias is not None:
            y += bias.data

    def backward(dy: Array) -> tuple[Array | None, ...]:  # saves: x, where the weight needs a gradient
        dy = dy.reshape(-1, M)
        dx = dw = None
        if needs_dx:
            dx = times(dy, weight.data, empty((len(dy), K), dy)).reshape(*lead, K)
        if weight.node is not None:
            dw = xp.matmul(dy.T, saved, out=weight.node.destination(dy))
        if bias is None:
            return dx, dw
        return dx, dw, None if bias.node is None else sum_rows(dy)

    needs_dx, saved = x.node is not None, None if weight.node is None else rows
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return apply(y.reshape(*lead, M), inputs, backward, "linear")
