"""Cross entropy straight from hidden states.

C width   N rows (all leading axes together)   V vocabulary
"""

from picogpt.engine.backend import Array, array_module, check_ids, empty, row_blocks
from picogpt.engine.ops.linear import add_product, sum_rows
from picogpt.engine.tape import is_recording
from picogpt.engine.tensor import Tensor, apply

LOGITS_BLOCK = 16 * 1024 * 1024  # logits at a time: few additions of the weight's gradient, 64 MB at the most


def cross_entropy(
    hidden: Tensor, weight: Tensor | None, bias: Tensor | None, targets: Array, total: int | None = None
) -> Tensor:  # (..., C), (V, C), (V,), (...) integers -> ()
    """Sum over all rows of -log softmax(hidden @ weight.T + bias)[target], divided by `total` (default: the rows).

    Without a weight the hidden states are the logits. The logits of a block of rows exist only while their gradients
    are made: the loss is a scalar, so the forward pass can finish them and the backward pass only scales. With a
    table of 50,257 tokens all logits are never held at once. Where all rows are one block its logits' gradient is kept
    instead, for it is smaller than the table's, which the backward pass then makes where it gathers.
    """
    xp = array_module(hidden.data)
    C = hidden.shape[-1]
    rows, ids = hidden.data.reshape(-1, C), targets.reshape(-1)
    total = total or len(rows)
    inputs = tuple(tensor for tensor in (hidden, weight, bias) if tensor is not None)
    recording = is_recording(*(tensor.node for tensor in inputs))
    table = None if weight is None else weight.data
    V = C if table is None else len(table)
    check_ids(ids, V)

    loss = xp.zeros((), rows.dtype)
    dhidden = dweight = dbias = whole = None
    blocks = list(row_blocks(len(rows), V, rows, LOGITS_BLOCK))

    def gather(p: Array, block: slice) -> None:
        """The part of each gradient that is wanted which comes from the logits of these rows."""
        nonlocal dhidden, dweight, dbias
        if bias is not None and bias.node is not None:
            db = sum_rows(p)
            dbias = db if dbias is None else dbias + db
        if hidden.node is not None:
            dhidden = empty(rows.shape, rows) if dhidden is None else dhidden
            if table is None:
                dhidden[block] = p
            else:
                xp.matmul(p, table, out=dhidden[block])
        if weight is None or weight.node is None:
            return
        if dweight is None:
            out = empty(weight.shape, rows) if whole is None else weight.node.destination(rows)
            dweight = xp.matmul(p.T, rows[block], out=out)
        else:
            add_product(dweight, p.T, rows[block])

    for block in blocks:
        p = empty((block.stop - block.start, V), rows)
        if table is None:
            p[...] = rows[block]
        else:
            xp.matmul(rows[block], table.T, out=p)
        if bias is not None:
            p += bias.data
        loss += _loss_to_gradient(p, ids[block])
        if not recording:
            continue
        p *= 1 / total
        if len(blocks) == 1:
            whole = p
        else:
            gather(p, block)
    loss /= total

    def backward(dy: Array) -> tuple[Array | None, ...]:  # saves: rows and whole; or dhidden, dweight, dbias
        nonlocal dweight
        if whole is None:
            for gradient in (dhidden, dweight, dbias):
                if gradient is not None:
                    gradient *= dy
        else:
            gathered = dweight = None if weight is None or weight.node is None else weight.node.gathered
            gather(xp.multiply(whole, dy, out=whole), blocks[0])
            dweight = None if gathered is not None else dweight
        gradients = (None if dhidden is None else dhidden.reshape(hidden_shape), dweight, dbias)
        return tuple(g for g, tensor in zip(gradients, (hidden, weight, bias), strict=True) if tensor is not None)

    hidden_shape = hidden.shape
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
