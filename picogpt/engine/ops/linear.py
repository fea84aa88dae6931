"""Linear layers, table look-ups and dropout.

B batch   T positions   C width   N rows (all leading axes together)   K inputs   M outputs   V vocabulary
"""

import numpy as np

from picogpt.engine.backend import (
    Array,
    array_module,
    empty,
    row_blocks,
    scatter_add,
    take_rows,
    times,
    times_transposed,
    to_device,
)
from picogpt.engine.tensor import Tensor, apply

PRODUCT_BLOCK = 1 << 20  # elements that `add_product` makes at a time


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, replay: bool = False
) -> Tensor:  # (..., K), (M, K), (M,) -> (..., M)
    """x @ weight.T + bias. In a replay, where nobody reads them, the values are left out: it only goes on the tape."""
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


def embedding(ids: Array, table: Tensor) -> Tensor:  # (...) integers, (V, C) -> (..., C)
    """table[ids]."""
    C = table.shape[1]
    y = take_rows(table.data, ids, empty((*ids.shape, C), table.data))

    def backward(dy: Array) -> tuple[Array | None, ...]:  # saves: ids
        assert table.node is not None
        if (gathered := table.node.gathered) is not None:  # the table may be large, and few of its rows are touched
            scatter_add(gathered, ids.reshape(-1), dy.reshape(-1, C))
            return (None,)
        dtable = table.node.destination(dy)
        dtable.fill(0)
        scatter_add(dtable, ids.reshape(-1), dy.reshape(-1, C))
        return (dtable,)

    return apply(y, (table,), backward, "embedding")


def dropout(x: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    """Zero each element with this probability and scale up the others. N. Srivastava et al., JMLR 15 (2014)."""
    xp = array_module(x.data)
    mask = dropout_mask(x.shape, probability, rng, x.data)

    def backward(dy: Array) -> tuple[Array, ...]:  # saves: mask
        return (xp.multiply(dy, mask, out=empty(dy.shape, dy)),)

    return apply(xp.multiply(x.data, mask, out=empty(x.shape, x.data)), (x,), backward, "dropout")


def dropout_mask(shape: tuple[int, ...], probability: float, rng: np.random.Generator, like: Array) -> Array:
    """0 with this probability, else 1 / (1 - probability)."""
    keep = to_device(rng.random(shape, dtype=np.float32) >= probability, like)  # drawn on the host: the same everywhere
    return array_module(like).multiply(keep, 1 / (1 - probability), dtype=like.dtype)


def add_product(total: Array, a: Array, b: Array) -> None:  # (M, K), (M, N), (N, K)
    """total += a @ b, without another array of its size."""
    xp = array_module(total)
    for block in row_blocks(len(total), total.shape[1], total, PRODUCT_BLOCK if type(total) is np.ndarray else None):
        total[block] += xp.matmul(a[block], b, out=empty(total[block].shape, total))


def sum_rows(x: Array) -> Array:  # (N, C) -> (C,)
    """Column sums, by BLAS: quicker than a reduction over the first axis."""
    xp = array_module(x)
    return xp.matmul(xp.ones(len(x), x.dtype), x)
