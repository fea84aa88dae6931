"""Rows of a table, chosen by ids.

V vocabulary   C width
"""

from picogpt.engine.backend import Array, empty, scatter_add, take_rows
from picogpt.engine.tensor import Tensor, apply


def embedding(ids: Array, table: Tensor) -> Tensor:  # (...) integers, (V, C) -> (..., C)
    """Return table[ids]."""
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
