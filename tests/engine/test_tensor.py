"""Tensor: how arrays, numbers, dtypes and broadcasting join in. (Gradients of each primitive: test_ops.py.)"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.engine import Tape, Tensor, concatenate, no_grad, ops, recompute
from tests.support.gradcheck import check_gradients


def leaf(*shape: int, dtype: Any = np.float32) -> Tensor:
    return Tensor(np.random.default_rng(1).uniform(0.5, 2.0, shape).astype(dtype), requires_grad=True)


@st.composite
def broadcastable(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes that broadcast, each with axes of one or missing in front."""
    full = draw(st.lists(st.integers(1, 3), max_size=4))
    shapes = []
    for _ in range(2):
        kept = [length if draw(st.booleans()) else 1 for length in full]
        shapes.append(tuple(kept[draw(st.integers(0, len(full))) :]))
    return shapes[0], shapes[1]


@settings(max_examples=60, deadline=None)
@given(shapes=broadcastable())
def test_gradients_of_every_broadcast(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (np.asarray(np.random.default_rng(len(shape)).uniform(0.5, 2.0, shape)) for shape in shapes)
    check_gradients(lambda a, b: a * b + a / b - b, a, b)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_gradients_of_every_reduction(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    axes = st.integers(-len(shape), len(shape) - 1)
    axis = data.draw(st.none() | axes | st.lists(axes, min_size=1, unique_by=lambda i: i % len(shape)).map(tuple))
    keepdims = data.draw(st.booleans())
    x = np.random.default_rng(2).standard_normal(shape)
    check_gradients(lambda x: x.sum(axis, keepdims) * x.mean(axis, keepdims), x)
    assert np.allclose(Tensor(x).mean(axis, keepdims).data, x.mean(axis=axis, keepdims=keepdims))


EXPRESSIONS = {
    "numbers": lambda x: 2 - 3 / (0.5 * x + 1) * x / 7 - (-x) ** 2,
    "integer array": lambda x: x * np.arange(3),
    "float64 array": lambda x: x + np.ones(3) - np.float64(2.0),
    "array on the left": lambda x: np.ones((2, 3)) * x + np.float64(3.0) / x,
    "list": lambda x: x * [1, 2, 3],
    "reductions": lambda x: x.sum() / x.mean(axis=0) + x.sum(axis=(0, 1)),
    "functions": lambda x: x.exp().log().tanh() ** 0.5,
    "scalars": lambda x: (x.sum() * x.mean() - 1.0) ** 2 / 3.0 + x.sum().exp().log().tanh(),
    "shapes": lambda x: concatenate([x[0], x[:, 1:].reshape(-1)]) * 2.0,
    "matmul": lambda x: x @ x.transpose(),
    "recompute": lambda x: recompute(lambda y: y * 2.0 + 1, x),
    "dropout": lambda x: ops.dropout(x, 0.3, np.random.default_rng(0)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_dtype_of_the_tensor_wins(expression: str, dtype: Any) -> None:
    x = leaf(2, 3, dtype=dtype)
    with Tape() as tape:
        y = EXPRESSIONS[expression](x)
    assert isinstance(y, Tensor) and y.data.dtype == dtype
    tape.backward(y)
    assert x.grad is not None and x.grad.dtype == dtype and x.grad.shape == x.shape


def test_an_array_on_the_left_is_not_looped_over() -> None:
    x = leaf(3)
    for result, expected in (
        (np.ones((2, 3), np.float32) + x, 1 + np.vstack([x.data] * 2)),
        (np.full(3, 2.0) - x, 2 - x.data),
        (np.full(3, 2.0) / x, 2 / x.data),
    ):
        assert isinstance(result, Tensor) and np.array_equal(result.data, expected.astype(np.float32))


def test_a_tensor_without_gradient_records_nothing() -> None:
    x = Tensor(np.ones((2, 2), np.float32))
    with Tape() as tape:
        y = ops.gelu(x @ x + x * 2).sum()
    assert x.grad is None and y.grad is None and y.node is None and tape.records == []


def test_only_the_inputs_that_need_a_gradient_get_one() -> None:
    x, constant = leaf(2, 3), Tensor(np.ones((2, 3), np.float32))
    with Tape() as tape:
        y = (x * constant).sum()
    tape.backward(y)
    assert np.array_equal(x.grad, constant.data) and constant.grad is None


def test_the_gradient_gathers_in_the_array_given() -> None:
    home = np.full((2, 3), np.nan, np.float32)
    x = Tensor(np.ones((2, 3), np.float32), requires_grad=True, grad=home)
    assert x.grad is home and not home.any()  # zeros before the first
    for times in (1, 2):
        with Tape() as tape:
            y = (x * 3).sum()
        tape.backward(y)
        assert x.grad is home and np.all(home == 3 * times)


def test_an_op_leaves_its_inputs_alone() -> None:
    arrays = [np.random.default_rng(i).standard_normal(shape) for i, shape in enumerate([(4, 6), (6, 6), (6,), (6,)])]
    before = [array.copy() for array in arrays]
    x, w, gain, bias = (Tensor(array, requires_grad=True) for array in arrays)
    upstream = np.random.default_rng(9).standard_normal((1, 4, 2))
    with Tape() as tape:
        h = ops.gelu(ops.layer_norm(ops.linear(x, w, bias), gain, bias)) - x
        y = ops.causal_attention(h.reshape(1, 4, 6), 1, 0.5)
    given_upstream = upstream.copy()
    tape.backward(y, given_upstream)
    assert np.array_equal(given_upstream, upstream)
    for array, original in zip(arrays, before, strict=True):
        assert np.array_equal(array, original)


def test_views_share_memory_and_copies_do_not() -> None:
    x = leaf(2, 6)
    assert all(np.shares_memory(y.data, x.data) for y in (x.reshape(3, 4), x.transpose(), x[1], x[..., ::2]))
    assert not any(np.shares_memory(y.data, x.data) for y in (x + 0, -x, concatenate([x]), x * 1))


def test_indexing_writes_each_gradient_to_its_place() -> None:
    x = leaf(3, 4)
    with Tape() as tape:
        y = x[1:, -2]
    tape.backward(y, np.array([5.0, 7.0], np.float32))
    assert x.grad.tolist() == [[0, 0, 0, 0], [0, 0, 5, 0], [0, 0, 7, 0]]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: leaf(3) @ leaf(3), r"matmul: needs two or more dimensions on both sides, not \(3,\) @ \(3,\)"),
        (lambda: leaf(2, 3) @ leaf(3), "matmul: needs two"),
        (lambda: leaf(2, 3) @ leaf(2, 3), "matmul"),
        (lambda: leaf(2, 3) + leaf(2, 4), "broadcast"),
        (lambda: leaf(2, 3).reshape(4, 2), "reshape"),
        (lambda: concatenate([leaf(2, 3), leaf(2, 4)]), "dimensions"),
    ],
)
def test_shapes_that_do_not_fit(mistake: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mistake()


def test_repr_says_what_it_is() -> None:
    assert repr(Tensor(np.array([1.0]))) == "Tensor(array([1.]))"
    assert repr(Tensor(np.array([1.0]), requires_grad=True)) == "Tensor(array([1.]), requires_grad=True)"


def test_sum_of_tensors_by_the_builtin() -> None:
    x = leaf(3)
    with Tape() as tape:
        y = sum([x, x * 2, x[:1]]).sum()
    tape.backward(y)
    assert x.grad.tolist() == [6, 3, 3]  # the broadcast part counts three times
    with no_grad():
        assert sum([x, x]).node is None
