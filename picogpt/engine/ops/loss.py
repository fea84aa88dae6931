"""Cross entropy straight from hidden states.

C width   N rows (all leading axes together)   V vocabulary
"""

from picogpt.engine.backend import (
    Array,
    add_product,
    array_module,
    check_ids,
    empty,
    row_blocks,
    sum_rows,
    times,
    times_transposed,
)
from picogpt.engine.tape import is_recording
from picogpt.engine.tensor import Tensor, apply

LOGITS_BLOCK = 16 * 1024 * 1024  # logits at a time: few additions of the weight's gradient, 64 MB at the most


def cross_entropy(
    hidden: Tensor, weight: Tensor | None, bias: Tensor | None, targets: Array, total: int | None = None
) -> Tensor:  # (..., C), (V, C), (V,), (...) integers -> ()
    """Return the sum over rows of -log softmax(hidden @ weight.T + bias)[target], divided by `total` (default: rows).

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

    loss, whole, gradients = xp.zeros((), rows.dtype), None, _Gradients(hidden, weight, bias)
    blocks = list(row_blocks(len(rows), V, rows, LOGITS_BLOCK))
    for block in blocks:
        p = empty((block.stop - block.start, V), rows)
        if table is None:
            p[...] = rows[block]
        else:
            times_transposed(rows[block], table, p)
        if bias is not None:
            p += bias.data
        loss += _loss_to_gradient(p, ids[block])
        if recording:
            p *= 1 / total
            if len(blocks) == 1:
                whole = p
            else:
                gradients.add(p, block)
        del p  # the next block takes its memory
    loss /= total

    def backward(dy: Array) -> tuple[Array | None, ...]:  # saves: hidden and the logits' gradient, or all gradients
        if whole is None:
            return gradients.scaled(dy)
        return gradients.at_once(xp.multiply(whole, dy, out=whole))

    return apply(loss, inputs, backward, "cross_entropy")


class _Gradients:
    """The gradients of the hidden states, the table and the bias, as far as wanted, from that of the logits."""

    def __init__(self, hidden: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        self.hidden, self.weight, self.bias = hidden, weight, bias
        self.rows = hidden.data.reshape(-1, hidden.shape[-1])
        self.dhidden: Array = None
        self.dweight: Array = None
        self.dbias: Array = None

    def add(self, p: Array, block: slice) -> None:  # (n, V)
        """Add the share of these rows."""
        self._add_states(p, block)
        if self.weight is not None and self.weight.node is not None:
            if self.dweight is None:
                self.dweight = empty(self.weight.shape, p)
                array_module(p).matmul(p.T, self.rows[block], out=self.dweight)
            else:
                add_product(self.dweight, p.T, self.rows[block])

    def at_once(self, p: Array) -> tuple[Array | None, ...]:  # (N, V)
        """Return the gradients from all rows; what the table has gathered already grows in place."""
        self._add_states(p, slice(0, len(p)))
        if self.weight is not None and (node := self.weight.node) is not None:
            if node.gathered is None:
                self.dweight = array_module(p).matmul(p.T, self.rows, out=node.destination(p))
            else:
                add_product(node.gathered, p.T, self.rows)
        return self._of_inputs()

    def scaled(self, dy: Array) -> tuple[Array | None, ...]:
        """Return the sums of all shares times dy."""
        for gradient in (self.dhidden, self.dweight, self.dbias):
            if gradient is not None:
                gradient *= dy
        return self._of_inputs()

    def _add_states(self, p: Array, block: slice) -> None:
        """Add the share of these rows to the gradients of the hidden states and the bias."""
        if self.bias is not None and self.bias.node is not None:
            db = sum_rows(p)
            self.dbias = db if self.dbias is None else self.dbias + db
        if self.hidden.node is not None:
            self.dhidden = empty(self.rows.shape, p) if self.dhidden is None else self.dhidden
            if self.weight is None:
                self.dhidden[block] = p
            else:
                times(p, self.weight.data, self.dhidden[block])

    def _of_inputs(self) -> tuple[Array | None, ...]:
        dhidden = None if self.dhidden is None else self.dhidden.reshape(self.hidden.shape)
        pairs = ((self.hidden, dhidden), (self.weight, self.dweight), (self.bias, self.dbias))
        return tuple(gradient for tensor, gradient in pairs if tensor is not None)


def _loss_to_gradient(logits: Array, ids: Array) -> Array:  # (n, V), (n,) -> ()
    """Return the summed loss; `logits` becomes its gradient, softmax - onehot."""
    xp = array_module(logits)
    n = xp.arange(len(ids))
    logits -= logits.max(axis=1, keepdims=True)
    target = logits[n, ids]
    xp.exp(logits, out=logits)
    sums = logits.sum(axis=1, keepdims=True)
    logits /= sums
    logits[n, ids] -= 1
    return xp.log(sums).sum() - target.sum()
