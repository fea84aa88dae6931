"""Causal self-attention.

B batch   T positions   C width   H heads   D head size (C = H D)   S cached positions
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from picogpt.engine.backend import Array, array_module, empty, to_device
from picogpt.engine.ops.dropout import dropout_mask
from picogpt.engine.tape import is_recording
from picogpt.engine.tensor import Tensor, apply

QUERY_BLOCK = 65  # query rows at a time, at most: keys after the last of them are never touched


def causal_attention(
    qkv: Tensor,
    n_head: int,
    scale: float,
    window: int = 0,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Tensor:  # (B, T, 3C) -> (B, T, C)
    """Return softmax(scale Q K^T) V per head; a position sees itself and those before it (the last `window`, if any).

    Queries go in blocks, each against only the keys it may see; the softmax stays unnormalised until the output, whose
    rows are divided by its sums (as in T. Dao et al., arXiv 2205.14135). `dropout` drops attention weights, with `rng`.
    """
    xp = array_module(qkv.data)
    B, T, C3 = qkv.shape
    C, H = C3 // 3, n_head
    q, k, v = _heads(qkv.data, 3, H)  # (B, H, T, D) each, views
    y = empty((B, T, C), qkv.data)
    (o,) = _heads(y, 1, H)
    recording = is_recording(qkv.node)
    scaled_q = xp.multiply(q, scale, out=empty(q.shape, q))
    saved = []
    for rows, keys in _blocks(T, window):
        weights, inverse = _unnormalised(scaled_q[:, :, rows], k[:, :, keys], rows, keys, window)
        drop = None
        if dropout > 0 and rng is not None:
            drop = dropout_mask(weights.shape, dropout, rng, q)
        xp.matmul(weights if drop is None else weights * drop, v[:, :, keys], out=o[:, :, rows])
        o[:, :, rows] *= inverse
        if recording:
            saved.append((rows, keys, weights, inverse, drop))

    def backward(dy: Array) -> tuple[Array, ...]:  # saves: qkv, y, and each block's weights
        (do,) = _heads(dy.reshape(B, T, C), 1, H)
        dqkv = empty((B, T, C3), dy)
        dq, dk, dv = _heads(dqkv, 3, H)
        fresh = saved[-1][1] == slice(0, T)  # the block drained first covers all keys: it writes, the others add
        if not fresh:
            dqkv[:, :, C:].fill(0)
        while saved:
            rows, keys, weights, inverse, drop = saved.pop()
            d_out = xp.multiply(do[:, :, rows], inverse, out=empty(do[:, :, rows].shape, dy))
            # sum over keys of (weight * its gradient), per query: the same as output times its gradient
            delta = xp.einsum("bhtd,bhtd->bht", d_out, o[:, :, rows])[..., None]
            dropped = weights if drop is None else weights * drop
            _gather(dv[:, :, keys], dropped.swapaxes(2, 3), d_out, fresh)
            ds = xp.matmul(d_out, v[:, :, keys].swapaxes(2, 3), out=empty(weights.shape, dy))
            if drop is not None:
                ds *= drop
            ds -= delta
            ds *= weights
            xp.matmul(ds, k[:, :, keys], out=dq[:, :, rows])
            _gather(dk[:, :, keys], ds.swapaxes(2, 3), q[:, :, rows], fresh)
            fresh = False
        dqkv[:, :, : 2 * C] *= scale
        return (dqkv,)

    return apply(y, (qkv,), backward, "causal_attention")


def _unnormalised(
    q: Array, k: Array, rows: slice, keys: slice, window: int
) -> tuple[Array, Array]:  # (B, H, rows, D), (B, H, keys, D) -> (B, H, rows, keys), (B, H, rows, 1)
    """Return exp(Q K^T) up to a factor a row, and one over its row sums. rows, keys: the positions of q and k."""
    xp = array_module(q)
    weights = empty((*q.shape[:3], k.shape[2]), q)
    ones = xp.ones((k.shape[2], 1), q.dtype)
    # Finding each row's largest score takes longer than exp: first without, which nearly always stays in range. A GPU
    # would have to be waited for to know.
    for shifted in (False, True) if type(q) is np.ndarray else (True,):
        xp.matmul(q, k.swapaxes(2, 3), out=weights)
        _mask(weights, rows, keys, window)
        if shifted:
            weights -= weights.max(axis=-1, keepdims=True)
        with np.errstate(over="ignore", invalid="ignore"):
            xp.exp(weights, out=weights)
            sums = xp.matmul(weights, ones)  # BLAS is four times as fast as sum()
        if shifted or (sums.min() > 1e-20 and sums.max() < 1e20):
            break
    return weights, 1 / sums


def _gather(total: Array, a: Array, b: Array, fresh: bool) -> None:
    """Compute total = a @ b where it is fresh, else total += a @ b."""
    xp = array_module(a)
    if fresh:
        xp.matmul(a, b, out=total)
    else:
        total += xp.matmul(a, b, out=empty(total.shape, a))


def cached_attention(
    qkv: Array, keys: Array, values: Array, length: int, n_head: int, scale: float, window: int = 0
) -> Array:  # (B, T, 3C), (B, H, S, D), (B, H, S, D) -> (B, T, C)
    """Attend from T new positions to `length` cached ones and each other, and cache the new keys and values."""
    xp = array_module(qkv)
    B, T, C3 = qkv.shape
    q, k, v = _heads(qkv, 3, n_head)
    stop = length + T
    keys[:, :, length:stop] = k
    values[:, :, length:stop] = v
    start = max(0, length - window + 1) if window else 0
    weights, inverse = _unnormalised(q * scale, keys[:, :, start:stop], slice(length, stop), slice(start, stop), window)
    y = xp.matmul(weights, values[:, :, start:stop])
    y *= inverse
    return y.transpose(0, 2, 1, 3).reshape(B, T, C3 // 3)


def _heads(x: Array, parts: int, n_head: int) -> tuple[Array, ...]:  # (B, T, parts C) -> parts views (B, H, T, D)
    B, T, width = x.shape
    split = x.reshape(B, T, parts, n_head, width // parts // n_head)
    return tuple(split[:, :, part].transpose(0, 2, 1, 3) for part in range(parts))


def _blocks(T: int, window: int) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of query rows of about equal height, each with the range of keys that any of its rows may see."""
    count = -(-T // QUERY_BLOCK)
    height = -(-T // count)
    for start in range(0, T, height):
        stop = min(start + height, T)
        yield slice(start, stop), slice(max(0, start - window + 1) if window else 0, stop)


def _mask(scores: Array, rows: slice, keys: slice, window: int) -> None:
    """Set the scores of keys a row must not see to minus infinity. scores: (B, H, rows, keys)."""
    # Without a window only the square over the rows' own positions has anything to hide.
    first = keys.start if window else rows.start
    hidden = _hidden(rows.stop - rows.start, keys.stop - first, rows.start - first, window)
    if hidden is not None:
        scores[..., first - keys.start :] += to_device(hidden.astype(scores.dtype, copy=False), scores)


@lru_cache(maxsize=256)
def _hidden(rows: int, keys: int, offset: int, window: int) -> np.ndarray | None:  # -> (rows, keys), 0 or -inf
    """Return the mask of rows at positions offset.. against keys at positions 0..; None if every key is seen."""
    distance = np.arange(rows)[:, None] + offset - np.arange(keys)
    visible = (distance >= 0) & (distance < window) if window else distance >= 0
    return None if visible.all() else np.where(visible, np.float32(0), np.float32(-np.inf))
