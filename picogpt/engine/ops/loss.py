"""Cross entropy straight from hidden states.

C width   N rows (all leading axes together)   V vocabulary
"""

from picogpt.engine.backend import Array, array_module, check_ids, empty, row_blocks, times, times_transposed
from picogpt.engine.ops.linear import sum_rows
from picogpt.engine.tape import is_recording
from picogpt.engine.tensor import Tensor, apply

LOGITS_BLOCK = 16 * 1024 * 1024  # logits at a time: few additions of the weight's gradient, 64 MB at the most


def cross_entropy(
    hidden: Tensor, weight: Tensor | None, bias: Tensor | None, targets: Array, total: int | None = None
) -> Tensor:  # (..., C), (V, C), (V,), (...) integers -> ()
    """Sum over all rows of -log softmax(hidden @ weight.T + bias)[target], divided by `total` (default: the rows).

    Without a weight the hidden states are the logits. The logits of a block of rows exist only while their gradients
    are made: the loss is a scalar, so the forward pass can finish them and the backward pass only scales. With a
    table of 50,257 tokens all logits are never held at once.
    """
    xp = array_module(hidden.data)
    C = hidden.shape[-1]
    rows, ids = hidden.data.reshape(-1, C), targets.reshape(-1)
    total = total or len(rows)
    nodes = [tensor.node for tensor in (hidden, weight, bias) if tensor is not None]
    recording = is_recording(*nodes)
    table = None if weight is None else weight.data
    V = C if table is None else len(table)
    check_ids(ids, V)

    loss = xp.zeros((), rows.dtype)
    dhidden: Array = empty(rows.shape, rows) if recording else None
    dweight: Array = None
    dbias: Array = None
    for block in row_blocks(len(rows), V, rows, LOGITS_BLOCK):
        p = empty((block.stop - block.start, V), rows)
        if table is None:
            p[...] = rows[block]
        else:
            times_transposed(rows[block], table, p)
        if bias is not None:
            p += bias.data
        loss += _loss_to_gradient(p, ids[block])
        if not recording:
            continue
        p *= 1 / total
        if bias is not None:
            db = sum_rows(p)
            dbias = db if dbias is None else dbias + db
        if table is None:
            dhidden[block] = p
            continue
        times(p, table, dhidden[block])
        dw = xp.matmul(p.T, rows[block], out=empty(table.shape, rows))
        dweight = dw if dweight is None else xp.add(dweight, dw, out=dweight)
    loss /= total

    def backward(dy: Array) -> tuple[Array | None, ...]:  # saves: dhidden, dweight, dbias
        gradients = [g for g in (dhidden.reshape(hidden_shape), dweight, dbias) if g is not None]
        for gradient in gradients:
            gradient *= dy
        return tuple(gradients)

    hidden_shape = hidden.shape
    inputs = tuple(tensor for tensor in (hidden, weight, bias) if tensor is not None)
    return apply(loss, inputs, backward, "cross_entropy")


def _loss_to_gradient(logits: Array, ids: Array) -> Array:  # (n, V), (n,) -> ()
    """The summed loss; `logits` becomes its gradient, softmax - onehot."""
    xp = array_module(logits)
    n = xp.arange(len(ids))
    logits -= logits.max(axis=1, keepdims=True)
    target = logits[n, ids]
    xp.exp(logits, out=logits)
    sums = logits.sum(axis=1, keepdims=True)
    logits /= sums
    logits[n, ids] -= 1
    return xp.log(sums).sum() - target.sum()
