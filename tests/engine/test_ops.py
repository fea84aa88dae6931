"""Every op and primitive: one table of rows, each checked against finite differences and against plain NumPy.

test_backend.py runs the same rows on device arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import erf
from typing import Any
from unittest import mock

import numpy as np
import pytest

from picogpt.engine import Tape, Tensor, backend, concatenate, ops, recompute, workspace
from picogpt.engine.ops import loss
from tests.support.gradcheck import check_gradients

Function = Callable[..., Any]
_rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return np.asarray(_rng.standard_normal(shape))


def positive(*shape: int) -> np.ndarray:
    return np.asarray(_rng.uniform(0.5, 2.0, shape))


def integers(high: int, *shape: int) -> np.ndarray:
    return _rng.integers(0, high, shape)


@dataclass(frozen=True)
class Row:
    """op: the name it covers. function: of tensors (the float inputs) and arrays of ids (the integer ones).

    reference: the same of float64 arrays, in plain NumPy; None where only the gradient can be checked.
    """

    op: str
    function: Function
    reference: Function | None
    inputs: tuple[np.ndarray, ...]
    differentiable: bool = True

    def __str__(self) -> str:
        return f"{self.op}-{'-'.join('x'.join(map(str, array.shape)) for array in self.inputs)}"


# -- the references: what each op means, slowly ----------------------------------------------------------------------


def layer_norm(x, gain, bias, eps=1e-5):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps) * gain + bias


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(erf, otypes=[np.float64])(x / np.sqrt(2)))


def gelu_tanh(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def linear(x, weight, bias=0.0):
    return np.einsum("...k,mk->...m", x, weight) + bias


def dropout(x, probability):
    keep = np.random.default_rng(1).random(x.shape, dtype=np.float32) >= probability
    return np.where(keep, x / (1 - probability), 0.0)


def attention(qkv, n_head, scale, window=0, drop=0.0):
    """Row by row: softmax over the keys a position sees, and the weighted mean of their values."""
    B, T, C3 = qkv.shape
    q, k, v = (part.reshape(B, T, n_head, -1) for part in np.split(qkv, 3, axis=2))
    kept = np.random.default_rng(1).random((B, n_head, T, T), dtype=np.float32) >= drop
    y = np.zeros_like(q)
    for t in range(T):
        seen = slice(max(0, t - window + 1) if window else 0, t + 1)
        scores = scale * np.einsum("bhd,bshd->bhs", q[:, t], k[:, seen])
        weights = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
        y[:, t] = np.einsum("bhs,bshd->bhd", weights * kept[:, :, t, seen] / (1 - drop), v[:, seen])
    return y.reshape(B, T, C3 // 3)


def cross_entropy(hidden, targets, weight=None, bias=0.0, total=None):
    logits = hidden + bias if weight is None else linear(hidden, weight, bias)
    logits = logits.reshape(-1, logits.shape[-1])
    each = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), targets.reshape(-1)]
    return each.sum() / (total or each.size)


# -- the table -------------------------------------------------------------------------------------------------------


def same(op: str, function: Function, *inputs: np.ndarray) -> Row:
    """The same expression is right for tensors and for arrays."""
    return Row(op, function, function, inputs)


def cross_entropy_in_blocks(h: Tensor, t: Any, w: Tensor, b: Tensor) -> Tensor:
    with mock.patch.object(loss, "LOGITS_BLOCK", 50_000):
        return ops.cross_entropy(h, w, b, t, 20)


def attention_row(T: int, window: int, n_head: int = 2, scale: float = 0.5, drop: float = 0.0) -> Row:
    def function(qkv: Tensor) -> Tensor:
        return ops.causal_attention(qkv, n_head, scale, window, drop, np.random.default_rng(1))

    def reference(qkv: np.ndarray) -> np.ndarray:
        return attention(qkv, n_head, scale, window, drop)

    one_block = T <= 65  # with more, dropout draws block by block
    return Row("causal_attention", function, reference if one_block or not drop else None, (normal(2, T, 12),))


def cached(qkv: Tensor, window: int, *steps: int) -> Tensor:
    """causal_attention, so many positions at a time, with caches longer than needed."""
    B, T, C3 = qkv.shape
    keys, values = (backend.empty((B, 2, T + 3, C3 // 6), qkv.data) for _ in range(2))
    done, parts = 0, []
    for step in steps:
        new = qkv.data[:, done : done + step]
        parts.append(Tensor(ops.cached_attention(new, keys, values, done, 2, 0.5, window)))
        done += step
    return concatenate(parts, 1)


def recomputed(function: Function, x: Any) -> Any:
    return recompute(function, x) if isinstance(x, Tensor) else function(x)


TIED = normal(5, 5)
TARGETS = integers(5, 2, 3)
REPEATED = np.array([[0, 1, 1], [3, 1, 0]])

ROWS = [
    same("__add__", lambda a, b: a + b, normal(3, 4), normal(3, 4)),
    same("__add__", lambda a, b: a + b, normal(3, 1), normal(2, 1, 4)),
    same("__add__", lambda a: a + a + 2, normal(3)),
    same("__radd__", lambda a: 1.5 + a, normal(3, 4)),
    same("__sub__", lambda a, b: a - b, normal(4), normal(3, 4)),
    same("__sub__", lambda a: a - a * 3, normal(2, 3)),
    same("__rsub__", lambda a: 2 - a, normal(3)),
    same("__mul__", lambda a, b: a * b, normal(2, 3, 4), normal(3, 1)),
    same("__mul__", lambda a: a * a * a, normal(3, 4)),
    same("__mul__", lambda a, b: a * b, normal(), normal(3, 4)),
    same("__rmul__", lambda a: -0.5 * a, normal()),
    same("__truediv__", lambda a, b: a / b, normal(3, 4), positive(4)),
    same("__truediv__", lambda a, b: a / b, normal(4), positive(2, 3, 1)),
    same("__truediv__", lambda a: (a + 1) / a, positive(3)),
    same("__rtruediv__", lambda a: 3 / a, positive(3, 2)),
    same("__pow__", lambda a: a**2 + a**3, normal(3, 4)),
    same("__pow__", lambda a: a**-0.5, positive(3, 4)),
    same("__neg__", lambda a: -a, normal(3, 4)),
    same("__matmul__", lambda a, b: a @ b, normal(3, 4), normal(4, 5)),
    same("__matmul__", lambda a, b: a @ b, normal(2, 3, 4), normal(2, 4, 5)),
    same("__matmul__", lambda a, b: a @ b, normal(2, 1, 3, 4), normal(6, 4, 5)),
    same("__matmul__", lambda a, b: a @ b, normal(2, 3, 4), normal(4, 1)),
    same("__matmul__", lambda a: a @ a.transpose() @ a, normal(3, 4)),
    Row("exp", lambda a: a.exp(), np.exp, (normal(3, 4),)),
    Row("exp", lambda a: (a.exp() + a) * a.exp(), lambda a: (np.exp(a) + a) * np.exp(a), (normal(),)),
    Row("log", lambda a: a.log(), np.log, (positive(3, 4),)),
    Row("tanh", lambda a: a.tanh(), np.tanh, (normal(3, 4),)),
    same("sum", lambda a: a.sum(), normal(3, 4)),
    same("sum", lambda a: a.sum(axis=1) * 2.0, normal(3, 4, 2)),
    same("sum", lambda a: a.sum(axis=(-1, 0)), normal(3, 4, 2)),
    same("sum", lambda a: a / a.sum(axis=-1, keepdims=True), positive(3, 4)),
    same("mean", lambda a: a.mean(), normal(3, 4)),
    same("mean", lambda a: a.mean(axis=1), normal(2, 3, 4)),
    same("mean", lambda a: a - a.mean(axis=(0, 2), keepdims=True), normal(2, 3, 4)),
    same("reshape", lambda a: a.reshape(6, 2) * 2.0, normal(3, 4)),
    same("reshape", lambda a: a.reshape(2, -1), normal(3, 4)),
    same("transpose", lambda a: a.transpose() * 2.0, normal(2, 3, 4)),
    same("transpose", lambda a: a.transpose(1, 2, 0), normal(2, 3, 4)),
    same("__getitem__", lambda a: a[1] * a[0], normal(3, 4)),
    same("__getitem__", lambda a: a[:, 1:3], normal(3, 4)),
    same("__getitem__", lambda a: a[..., None, ::-2], normal(3, 4)),
    same("__getitem__", lambda a: a[-1, 2] * a[1:], normal(3, 4)),
    Row("concatenate", lambda a, b: concatenate([a, b]), lambda a, b: np.concatenate([a, b]), (TIED, normal(2, 5))),
    Row("concatenate", lambda a: concatenate([a, a * 2, a], -1), lambda a: np.hstack([a, a * 2, a]), (normal(3, 2),)),
    Row("recompute", lambda a: recompute(lambda x: ops.gelu_tanh(x) * x, a), lambda a: gelu_tanh(a) * a, (TIED,)),
    same("recompute", lambda a, w: recomputed(lambda x: (x @ w) * x @ w, a), TIED, normal(5, 5)),
    same("recompute", lambda a: recomputed(lambda x: recomputed(lambda y: y * y, x) * x, a), normal(3)),
    same("recompute", lambda a: recomputed(lambda x: x, a) * a, normal(3)),
    Row("relu", ops.relu, lambda x: np.maximum(x, 0), (normal(3, 4),)),
    Row("gelu", ops.gelu, gelu, (normal(2, 3, 4),)),
    Row("gelu", ops.gelu, gelu, (normal(600, 512),)),  # two blocks of rows
    Row("gelu", lambda x: ops.gelu(x.transpose()), lambda x: gelu(x.T), (normal(4, 3),)),
    Row("gelu_tanh", ops.gelu_tanh, gelu_tanh, (normal(3, 4),)),
    Row("gelu_tanh", lambda x: ops.gelu_tanh(x) * x, lambda x: gelu_tanh(x) * x, (normal(7),)),
    Row("linear", ops.linear, linear, (normal(2, 3, 4), normal(5, 4), normal(5))),
    Row("linear", ops.linear, linear, (normal(3, 4), normal(1, 4))),
    Row("linear", ops.linear, linear, (normal(4), normal(5, 4), normal(5))),
    Row("linear", lambda x, w: ops.linear(ops.linear(x, w), w), lambda x, w: x @ w.T @ w.T, (normal(3, 5), TIED)),
    Row("linear", lambda x: ops.linear(x, x), lambda x: x @ x.T, (normal(4, 3),)),
    Row("embedding", lambda ids, t: ops.embedding(ids, t), lambda ids, t: t[ids], (REPEATED, normal(5, 4))),
    Row("embedding", lambda ids, t: ops.embedding(ids, t), lambda ids, t: t[ids], (integers(9, 7), normal(9, 1))),
    Row(
        "embedding",
        lambda ids, t: ops.embedding(ids, t) * 2.0 + ops.linear(ops.embedding(ids, t), t),
        lambda ids, t: t[ids] * 2 + t[ids] @ t.T,
        (REPEATED, TIED),
    ),
    Row(
        "dropout", lambda x: ops.dropout(x, 0.3, np.random.default_rng(1)), lambda x: dropout(x, 0.3), (normal(30, 4),)
    ),
    Row("layer_norm", ops.layer_norm, layer_norm, (normal(2, 3, 4), normal(4), normal(4))),
    Row("layer_norm", ops.layer_norm, layer_norm, (normal(600, 512), normal(512), normal(512))),  # two blocks
    Row(
        "layer_norm", lambda x, g: ops.layer_norm(x, g, g, 0.1), lambda x, g: layer_norm(x, g, g, 0.1), (TIED, TIED[0])
    ),
    attention_row(1, window=0),
    attention_row(5, window=0, n_head=4),
    attention_row(5, window=1),
    attention_row(5, window=3, scale=1.0),
    attention_row(9, window=0, drop=0.3),
    attention_row(100, window=0, scale=1.5),  # two blocks of queries
    attention_row(131, window=0, n_head=1),  # three, of unequal height
    attention_row(131, window=3),
    attention_row(131, window=70),
    attention_row(70, window=500),
    attention_row(131, window=20, drop=0.2),
    Row(
        "causal_attention",
        lambda x: ops.causal_attention(x, 2, 0.5) * ops.causal_attention(x, 1, 0.5),
        lambda x: attention(x, 2, 0.5) * attention(x, 1, 0.5),
        (normal(2, 4, 12),),
    ),
    Row("cached_attention", lambda x: cached(x, 0, 9), lambda x: attention(x, 2, 0.5), (normal(2, 9, 12),), False),
    Row("cached_attention", lambda x: cached(x, 3, 9), lambda x: attention(x, 2, 0.5, 3), (normal(2, 9, 12),), False),
    Row("cross_entropy", lambda h, t: ops.cross_entropy(h, None, None, t), cross_entropy, (normal(2, 3, 5), TARGETS)),
    Row(
        "cross_entropy",  # logits and a bias, no weight
        lambda h, t, b: ops.cross_entropy(h, None, b, t),
        lambda h, t, b: cross_entropy(h, t, None, b),
        (normal(2, 3, 5), TARGETS, normal(5)),
    ),
    Row(
        "cross_entropy",
        lambda h, t, w: ops.cross_entropy(h, w, None, t),
        cross_entropy,
        (normal(2, 3, 4), TARGETS, normal(5, 4)),
    ),
    Row(
        "cross_entropy",
        lambda h, t, w, b: ops.cross_entropy(h, w, b, t, 11) * 3.0,
        lambda h, t, w, b: cross_entropy(h, t, w, b, 11) * 3,
        (normal(2, 3, 4), TARGETS, normal(5, 4), normal(5)),
    ),
    Row(
        "cross_entropy",  # three blocks of rows
        cross_entropy_in_blocks,
        lambda h, t, w, b: cross_entropy(h, t, w, b, 20),
        (normal(150, 3), integers(1000, 150), normal(1000, 3), normal(1000)),
    ),
    Row(
        "cross_entropy",  # a tied table: once for the inputs, once for the logits
        lambda i, t, w: ops.cross_entropy(ops.embedding(i, w), w, None, t),
        lambda i, t, w: cross_entropy(w[i], t, w),
        (REPEATED, TARGETS, TIED),
    ),
    Row(
        "cross_entropy",
        lambda h, t: ops.cross_entropy(h, h, None, t),
        lambda h, t: cross_entropy(h, t, h),
        (TIED, TARGETS[0].repeat(2)[:5]),
    ),
]


# -- the checks ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory holds NaN, so that whoever reads it is found out."""
    monkeypatch.setattr(
        workspace, "empty", lambda shape, dtype: np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 1, dtype)
    )


def bind(row: Row, *tensors: Tensor) -> Tensor:
    """The row's function of its tensors; the ids go in between as they are."""
    floats = iter(tensors)
    result: Tensor = row.function(*(x if x.dtype.kind == "i" else next(floats) for x in row.inputs))
    return result


def floats_of(row: Row, dtype: Any = np.float64) -> list[np.ndarray]:
    return [x.astype(dtype) for x in row.inputs if x.dtype.kind == "f"]


def gradients(row: Row, dtype: Any) -> list[np.ndarray]:
    """Of the output times a fixed upstream gradient."""
    tensors = [Tensor(x, requires_grad=True) for x in floats_of(row, dtype)]
    with Tape() as tape:
        output = bind(row, *tensors)
    tape.backward(output, np.random.default_rng(3).standard_normal(output.shape).astype(dtype))
    return [np.asarray(tensor.grad) for tensor in tensors]


def test_every_public_op_and_primitive_has_a_row() -> None:
    methods = {name for name, value in vars(Tensor).items() if callable(value)} - {"__init__", "__repr__", "zero_grad"}
    assert methods >= {"__add__", "exp", "mean", "__getitem__"}
    assert {row.op for row in ROWS} == methods | set(ops.__all__) | {"concatenate", "recompute"}


@pytest.mark.parametrize("row", [row for row in ROWS if row.differentiable], ids=str)
def test_gradient(row: Row) -> None:
    check_gradients(lambda *tensors: bind(row, *tensors), *floats_of(row))


@pytest.mark.parametrize("row", [row for row in ROWS if row.reference], ids=str)
def test_float32_result(row: Row) -> None:
    arrays = floats_of(row, np.float32)
    inputs = iter(arrays)
    expected = row.reference(*(x if x.dtype.kind == "i" else next(inputs).astype(np.float64) for x in row.inputs))
    result = bind(row, *map(Tensor, arrays)).data
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("row", [row for row in ROWS if row.differentiable], ids=str)
def test_float32_gradient(row: Row) -> None:
    for single, double in zip(gradients(row, np.float32), gradients(row, np.float64), strict=True):
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, double, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(double).max())))


def test_gelu_is_exact_to_a_millionth() -> None:
    x = np.concatenate([np.linspace(-8, 8, 100_001), [-1e9, -100.0, -30.0, -0.0, 1e-30, 30.0, 100.0, 1e9]]).astype(
        np.float32
    )
    leaf = Tensor(x, requires_grad=True)
    with Tape() as tape:
        y = ops.gelu(leaf)
    tape.backward(y)
    exact = x.astype(np.float64)
    slope = gelu(exact) / np.where(exact == 0, 1, exact) + exact * np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    slope[exact == 0] = 0.5
    np.testing.assert_allclose(y.data, gelu(exact), rtol=0, atol=1e-6)
    np.testing.assert_allclose(leaf.grad, slope, rtol=0, atol=1e-6)
    assert np.array_equal(y.data, ops.gelu(Tensor(x)).data)  # recorded or not


@pytest.mark.parametrize("window", [0, 1, 3, 50])
def test_cached_attention_is_causal_attention_in_pieces(window: int) -> None:
    T = 9
    qkv = Tensor(normal(2, T, 12).astype(np.float32))
    whole = ops.causal_attention(qkv, 2, 0.5, window).data
    for steps in [*((at, T - at) for at in range(1, T)), (1,) * T, (2, 3, 4), (T,)]:
        np.testing.assert_allclose(cached(qkv, window, *steps).data, whole, rtol=1e-5, atol=1e-6, err_msg=str(steps))


def test_attention_never_looks_ahead() -> None:
    qkv = normal(1, 130, 12)
    before = ops.causal_attention(Tensor(qkv), 2, 0.5).data
    qkv[:, 100:] += 5.0
    after = ops.causal_attention(Tensor(qkv), 2, 0.5).data
    assert np.array_equal(before[:, :100], after[:, :100]) and not np.allclose(before[:, 100:], after[:, 100:])


def test_large_scores_and_logits_do_not_overflow() -> None:
    huge = Tensor(np.full((1, 3, 12), 1e4, np.float32))
    assert np.isfinite(ops.causal_attention(huge, 2, 1.0).data).all()
    logits = Tensor(np.array([[1e4, -1e4], [0.0, 88.0]], np.float32))
    np.testing.assert_allclose(ops.cross_entropy(logits, None, None, np.array([0, 1])).data, 0.0)


def test_dropout_keeps_the_mean_and_follows_its_generator() -> None:
    x = Tensor(np.ones((100, 100), np.float32))
    first, again, other = (ops.dropout(x, 0.25, np.random.default_rng(seed)).data for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert set(np.unique(first)) == {np.float32(0), np.float32(4 / 3)}
    assert abs(first.mean() - 1) < 0.03


def test_cross_entropy_without_a_tape_is_the_same_loss() -> None:
    hidden, weight, targets = normal(7, 3), normal(5, 3), integers(5, 7)
    leaf = Tensor(hidden, requires_grad=True)
    with Tape():
        recorded = ops.cross_entropy(leaf, Tensor(weight), None, targets).data
    assert recorded == ops.cross_entropy(Tensor(hidden), Tensor(weight), None, targets).data


def test_targets_outside_the_vocabulary_are_refused() -> None:
    for target in (-1, 5):
        with pytest.raises(IndexError, match="5 rows"):
            ops.cross_entropy(Tensor(np.zeros((1, 5), np.float32)), None, None, np.array([target]))
