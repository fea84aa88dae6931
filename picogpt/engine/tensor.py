"""Tensor: an array and, if it needs one, the node where its gradient gathers. With it, the generic primitives.

A primitive is a method: its forward, and right below it its backward, which maps the output's gradient (an array) to
the inputs' (arrays). Broadcasting follows NumPy; `_unbroadcast` sums a gradient back to the input's shape.
"""

from collections.abc import Callable
from itertools import pairwise
from types import EllipsisType
from typing import TypeAlias

from picogpt.engine.backend import Array, array_module, empty
from picogpt.engine.tape import Backward, Node, Tape, no_grad, record

Axis = int | tuple[int, ...] | None
Index = int | slice | EllipsisType | None
Operand: TypeAlias = "Tensor | Array | float"


class Tensor:
    """An array that ops record on the tape.

    data: a NumPy (or CuPy) array. requires_grad: gather a gradient in `.grad`. grad: an array of the same shape to
    gather it in (allocated when none is given).
    """

    __slots__ = ("data", "node")
    __array_ufunc__ = None  # an array on the left leaves the operation to Tensor

    def __init__(self, data: Array, requires_grad: bool = False, grad: Array | None = None) -> None:
        self.data: Array = data
        self.node: Node | None = Node(data, is_leaf=True, grad=grad) if requires_grad else None

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.data.shape
        return shape

    @property
    def grad(self) -> Array | None:
        """The gradient gathered so far (zeros before the first), None for a tensor that has none."""
        if self.node is None:
            return None
        self.node.settle()
        return self.node.grad

    def zero_grad(self) -> None:
        """Make the gradient count as zero again."""
        if self.node is not None:
            self.node.clear()

    def __repr__(self) -> str:
        return f"Tensor({self.data!r}{', requires_grad=True' if self.node is not None else ''})"

    # -- arithmetic, with broadcasting ------------------------------------------------------------------------------

    def __add__(self, other: "Operand") -> "Tensor":
        a, b = self, _as_tensor(other, self)
        xp = array_module(a.data)
        y = xp.add(a.data, b.data, out=empty(a.shape, a.data)) if a.shape == b.shape else a.data + b.data

        def backward(dy: Array) -> tuple[Array, ...]:  # saves: nothing
            return _unbroadcast(dy, a_shape), _unbroadcast(dy, b_shape)

        a_shape, b_shape = a.shape, b.shape
        return apply(y, (a, b), backward, "add")

    def __mul__(self, other: "Operand") -> "Tensor":
        a, b = self, _as_tensor(other, self)

        def backward(dy: Array) -> tuple[Array, ...]:  # saves: a, b
            return _unbroadcast(dy * b.data, a.shape), _unbroadcast(dy * a.data, b.shape)

        return apply(a.data * b.data, (a, b), backward, "mul")

    def __truediv__(self, other: "Operand") -> "Tensor":
        a, b = self, _as_tensor(other, self)
        y = a.data / b.data

        def backward(dy: Array) -> tuple[Array, ...]:  # saves: b, y
            da = dy / b.data
            return _unbroadcast(da, a_shape), _unbroadcast(-da * y, b.shape)

        a_shape = a.shape
        return apply(y, (a, b), backward, "div")

    def __pow__(self, exponent: float) -> "Tensor":
        x = self

        def backward(dy: Array) -> tuple[Array, ...]:  # saves: x
            return (dy * (exponent * x.data ** (exponent - 1)),)

        return apply(x.data**exponent, (x,), backward, "pow")

    def __matmul__(self, other: "Tensor") -> "Tensor":  # (..., N, K) @ (..., K, M) -> (..., N, M)
        a, b = self, other

        def backward(dy: Array) -> tuple[Array, ...]:  # saves: a, b
            da, db = dy @ b.data.swapaxes(-1, -2), a.data.swapaxes(-1, -2) @ dy
            return _unbroadcast(da, a.shape), _unbroadcast(db, b.shape)

        if a.data.ndim < 2 or b.data.ndim < 2:
            raise ValueError(f"matmul: needs two or more dimensions on both sides, not {a.shape} @ {b.shape}")
        return apply(a.data @ b.data, (a, b), backward, "matmul")

    def __neg__(self) -> "Tensor":
        return self * -1.0

    def __sub__(self, other: "Operand") -> "Tensor":
        return self + (-_as_tensor(other, self))

    def __rsub__(self, other: "Operand") -> "Tensor":
        return _as_tensor(other, self) - self

    def __rtruediv__(self, other: "Operand") -> "Tensor":
        return _as_tensor(other, self) / self

    __radd__ = __add__
    __rmul__ = __mul__

    # -- element by element -----------------------------------------------------------------------------------------

    def exp(self) -> "Tensor":
        y = array_module(self.data).exp(self.data)

        def backward(dy: Array) -> tuple[Array, ...]:  # saves: y
            return (dy * y,)

        return apply(y, (self,), backward, "exp")

    def log(self) -> "Tensor":
        x = self

        def backward(dy: Array) -> tuple[Array, ...]:  # saves: x
            return (dy / x.data,)

        return apply(array_module(x.data).log(x.data), (x,), backward, "log")

    def tanh(self) -> "Tensor":
        y = array_module(self.data).tanh(self.data)

        def backward(dy: Array) -> tuple[Array, ...]:  # saves: y
            return (dy * (1 - y * y),)

        return apply(y, (self,), backward, "tanh")

    # -- reductions -------------------------------------------------------------------------------------------------

    def sum(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        x_shape, xp = self.shape, array_module(self.data)

        def backward(dy: Array) -> tuple[Array, ...]:  # saves: nothing
            spread = dy if axis is None or keepdims else xp.expand_dims(dy, axis)
            return (xp.broadcast_to(spread, x_shape),)

        return apply(xp.asarray(self.data.sum(axis=axis, keepdims=keepdims)), (self,), backward, "sum")

    def mean(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        total = self.sum(axis, keepdims)
        share: float = total.data.size / self.data.size
        return total * share

    # -- shape ------------------------------------------------------------------------------------------------------

    def reshape(self, *shape: int) -> "Tensor":
        x_shape = self.shape

        def backward(dy: Array) -> tuple[Array, ...]:  # saves: nothing
            return (dy.reshape(x_shape),)

        return apply(self.data.reshape(shape), (self,), backward, "reshape")

    def transpose(self, *axes: int) -> "Tensor":
        order = axes or tuple(range(self.data.ndim))[::-1]
        inverse = sorted(range(len(order)), key=order.__getitem__)

        def backward(dy: Array) -> tuple[Array, ...]:  # saves: nothing
            return (dy.transpose(inverse),)

        return apply(self.data.transpose(order), (self,), backward, "transpose")

    def __getitem__(self, index: Index | tuple[Index, ...]) -> "Tensor":
        """Index with integers, slices, None and Ellipsis. Raises TypeError for ids, which ops.embedding takes."""
        if any(
            not isinstance(i, int | slice | EllipsisType | None) for i in (index if type(index) is tuple else (index,))
        ):
            raise TypeError("a Tensor is indexed with integers and slices; ops.embedding takes rows by ids")
        x_shape, xp = self.shape, array_module(self.data)

        def backward(dy: Array) -> tuple[Array, ...]:  # saves: nothing
            dx = xp.zeros(x_shape, dy.dtype)
            dx[index] = dy
            return (dx,)

        return apply(self.data[index], (self,), backward, "getitem")


def concatenate(tensors: list[Tensor], axis: int = 0) -> Tensor:
    """Join tensors along an existing axis."""
    xp = array_module(tensors[0].data)
    stops = [0]
    for tensor in tensors:
        stops.append(stops[-1] + tensor.shape[axis])

    def backward(dy: Array) -> tuple[Array, ...]:  # saves: nothing
        front = (slice(None),) * (axis % dy.ndim)
        return tuple(dy[(*front, slice(start, stop))] for start, stop in pairwise(stops))

    return apply(xp.concatenate([tensor.data for tensor in tensors], axis), tuple(tensors), backward, "concatenate")


def apply(data: Array, inputs: tuple[Tensor, ...], backward: Backward, op: str) -> Tensor:
    """Return the result of an op as a tensor, recorded on the open tape."""
    output = Tensor(data)
    output.node = record(data, tuple(tensor.node for tensor in inputs), backward, op)
    return output


def recompute(
    function: Callable[[Tensor], Tensor], x: Tensor, replay: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return function(x), keeping only x: the backward pass runs the function again to get what it needs.

    replay: what it runs instead, if that is cheaper. It must record the same; the values of its result are not read.
    T. Chen et al., "Training deep nets with sublinear memory cost", arXiv 1604.06174.
    """
    with no_grad():
        y = function(x).data

    def backward(dy: Array) -> tuple[Array | None, ...]:  # saves: x
        again = Tensor(x.data, x.node is not None, empty(x.shape, x.data))
        with Tape() as tape:
            output = (replay or function)(again)
        if output.node is not None:
            tape.backward(output, dy)
        return (again.grad,)

    output = Tensor(y)  # recorded even where x needs no gradient: the function may use leaves that do
    output.node = record(y, (x.node or Node(x.data),), backward, "recompute")
    return output


def _as_tensor(value: Operand, like: Tensor) -> Tensor:
    """Return a number or array as a tensor with the dtype of `like`, so that a Python float never widens float32."""
    if isinstance(value, Tensor):
        return value
    return Tensor(array_module(like.data).asarray(value, dtype=like.data.dtype))


def _unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum a gradient over the axes along which an input of this shape was broadcast."""
    if gradient.shape == shape:
        return gradient
    lead = gradient.ndim - len(shape)
    stretched = tuple(i + lead for i, n in enumerate(shape) if n == 1 and gradient.shape[i + lead] != 1)
    return gradient.sum(axis=(*range(lead), *stretched), keepdims=True).reshape(shape)
