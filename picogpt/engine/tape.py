"""The tape: a list of records, drained in reverse.

While a `Tape` is open every op that touches a tensor with a gradient appends one record: which node its output feeds,
which nodes its inputs are, and how to turn the output's gradient into theirs. `backward` pops records from the end.
Popping is the whole algorithm: the list is already in a topological order, each record dies as soon as it is used, and
what it saved goes back to the workspace while the walk goes on. There are no reference cycles and no recursion.

Reverse-mode differentiation on a tape: R. E. Wengert, "A simple automatic derivative evaluation program" (1964);
S. Linnainmaa (1970).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from picogpt.engine.backend import Array, array_module, empty

Backward = Callable[[Array], tuple[Array | None, ...]]


class Node:
    """The place where the gradient of one tensor gathers.

    A leaf's gradient is one array for life, added to in place: gradient accumulation is nothing but not clearing it.
    `fresh` says that it counts as zero, whatever it holds; so clearing costs nothing, and the first contribution may
    be written straight into it (`destination`). Any other node drops its gradient as soon as it was passed on.
    """

    __slots__ = ("_claimed", "_owned", "dtype", "fresh", "grad", "is_leaf", "shape")

    def __init__(self, like: Array, is_leaf: bool = False, grad: Array | None = None) -> None:
        self.shape, self.dtype, self.is_leaf = like.shape, like.dtype, is_leaf
        self.grad: Array = grad if grad is not None or not is_leaf else array_module(like).empty_like(like)
        self.fresh, self._claimed, self._owned = is_leaf, False, False

    def clear(self) -> None:
        """Make the gradient count as zero."""
        self.fresh, self._claimed = True, False
        if not self.is_leaf:
            self.grad = None

    def settle(self) -> None:
        """Write out the zeros of a gradient that counts as zero."""
        if self.fresh and self.grad is not None:
            self.grad.fill(0)

    def destination(self, like: Array) -> Array:
        """Return an array for an op's gradient of this node: the leaf's own the first time, else a new one.

        What is written there has to be what the op returns.
        """
        if self.is_leaf and self.fresh and not self._claimed:
            self._claimed = True
            return self.grad
        return empty(self.shape, like)

    @property
    def gathered(self) -> Array | None:
        """A leaf's gradient, or None while it counts as zero: an op may add its share to it, and return None."""
        return self.grad if self.is_leaf and not self.fresh else None

    def add(self, gradient: Array, op: str) -> None:
        """Add one contribution; `op` names its author in the error if it does not fit."""
        assert gradient.shape == self.shape, f"{op}: gradient of shape {gradient.shape} for a tensor {self.shape}"
        assert gradient.dtype == self.dtype, f"{op}: gradient of {gradient.dtype} for a tensor of {self.dtype}"
        if self.is_leaf:
            if gradient is not self.grad:
                if self.fresh and not self._claimed:  # claimed: an op has written its share already
                    self.grad[...] = gradient
                else:
                    self.grad += gradient
            self.fresh = False
        elif self.grad is None:
            self.grad, self._owned = gradient, False
        elif self._owned:
            self.grad += gradient
        else:  # the first contribution may be shared with another node: never write into it
            total = empty(self.shape, gradient)
            self.grad, self._owned = array_module(gradient).add(self.grad, gradient, out=total), True


class Differentiable(Protocol):
    """What `Tape.backward` takes: a Tensor, which is defined one module further up."""

    data: Array
    node: Node | None


class Tape:
    """A list of records: `with Tape() as tape:` fills it, `tape.backward(loss)` drains it. A thread has one open."""

    def __init__(self) -> None:
        self.records: list[tuple[Node, tuple[Node | None, ...], Backward, str]] = []
        self._outer: Tape | None = None

    def __enter__(self) -> "Tape":
        self._outer, _state.tape = _state.tape, self
        return self

    def __exit__(self, *exc: object) -> None:
        _state.tape = self._outer

    def backward(self, output: Differentiable, gradient: Array | None = None) -> None:
        """Add d(output)/d(leaf) to the gradient of every leaf `output` was computed from.

        output: a Tensor recorded on this tape, or a leaf. gradient: d(something)/d(output) in its shape; 1 where it is
        None. Raises ValueError for a tensor that this tape does not hold: of another tape, or of one that is drained.
        """
        if output.node is None:
            raise ValueError("backward: the output depends on no tensor that requires a gradient")
        if not output.node.is_leaf and all(node is not output.node for node, *_ in reversed(self.records)):
            raise ValueError("backward: this tape does not hold the output: it is another tape's, or it was drained")
        ones = array_module(output.data).ones_like
        output.node.add(ones(output.data) if gradient is None else gradient, "backward")
        while self.records:
            node, inputs, backward, op = self.records.pop()
            upstream, node.grad = node.grad, None
            if upstream is None:
                continue  # the output does not depend on this one
            gradients = backward(upstream)
            for input_node, input_gradient in zip(inputs, gradients, strict=True):
                if input_node is not None and input_gradient is not None:
                    input_node.add(input_gradient, op)
            del backward, upstream, gradients, input_gradient  # give the memory back before the next op asks for some


class _State(threading.local):
    tape: Tape | None = None


_state = _State()


@contextmanager
def no_grad() -> Iterator[None]:
    """Record none of the ops inside."""
    tape, _state.tape = _state.tape, None
    try:
        yield
    finally:
        _state.tape = tape


def is_recording(*nodes: Node | None) -> bool:
    """Return whether an op on these nodes will be on a tape, and so must save what its backward needs."""
    return _state.tape is not None and any(node is not None for node in nodes)


def record(output: Array, inputs: tuple[Node | None, ...], backward: Backward, op: str) -> Node | None:
    """Put an op on the open tape. Returns the output's node, None where nothing is recorded."""
    if not is_recording(*inputs):
        return None
    assert _state.tape is not None
    node = Node(output)
    _state.tape.records.append((node, inputs, backward, op))
    return node
