"""The tape: what it drains, what it adds to the leaves, what it keeps alive, and what a training step costs."""

import gc
import threading
import types
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from picogpt.config import ModelConfig, RunConfig, TrainConfig
from picogpt.engine import Tape, Tensor, concatenate, lanes, no_grad, ops, recompute, tensor, workspace
from picogpt.engine.tape import Node, is_recording, record
from picogpt.engine.tensor import apply
from picogpt.model.gpt import GPT
from picogpt.model.initialization import initial_arrays
from picogpt.model.parameters import as_tensors
from picogpt.model.rolling_context import sequence_loss
from picogpt.training.trainer import Trainer

MODEL = ModelConfig(context_len=8, vocab_size=13, n_layer=2, n_head=2, n_embd=16, dropout=0.1)
IDS = np.random.default_rng(0).integers(0, 13, (4, 17)).astype(np.int32)
X, Y = IDS[:, :-1], IDS[:, 1:]


def leaf(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32), requires_grad=True)


def backward(function: Any, *leaves: Tensor) -> None:
    with Tape() as opened:
        output = function(*leaves)
    opened.backward(output, np.random.default_rng(8).standard_normal(output.shape).astype(np.float32))
    assert opened.records == []


def gradients(function: Any, *leaves: Tensor) -> list[np.ndarray]:
    """On leaves of their own, from scratch."""
    own = [Tensor(x.data, requires_grad=True) for x in leaves]
    backward(function, *own)
    return [np.asarray(x.grad) for x in own]


# -- what reaches the leaves -----------------------------------------------------------------------------------------

TIED_IDS = np.array([[0, 2], [2, 1]])
# Functions of h (3, 4) and w (4, 4); w's gradient is written in place (linear, embedding), added (the others), or both.
SHARED = {
    "linear once": lambda h, w: ops.linear(h, w),
    "linear twice": lambda h, w: ops.linear(ops.linear(h, w), w),
    "linear and embedding": lambda h, w: ops.linear(ops.embedding(TIED_IDS, w), w).sum() + h.sum(),
    "embedding and head": lambda h, w: ops.cross_entropy(ops.embedding(TIED_IDS, w), w, None, TIED_IDS) * h,
    "embedding twice": lambda h, w: ops.embedding(TIED_IDS, w) * ops.embedding(TIED_IDS[::-1], w) + h[0],
    "mixed with a product": lambda h, w: ops.linear(h, w) @ w + ops.linear(h @ w, w),
    "both inputs": lambda h, w: ops.linear(w, w) + h[0],
    "input and bias": lambda h, w: ops.linear(h, w, w[0]) + w[1],
    "slices": lambda h, w: concatenate([h, w]) + ops.layer_norm(w, w[0], w[1])[:1],
    "residuals": lambda h, w: (h + ops.linear(h, w)) + ops.linear(h + ops.linear(h, w), w),
    "recomputed": lambda h, w: recompute(lambda x: ops.linear(x, w) + x, h) + ops.linear(h, w),
}


@pytest.mark.parametrize("name", SHARED)
def test_shared_leaves_get_the_sum_of_their_parts(name: str) -> None:
    """The parts: the same function of arrays that are equal, but not one leaf, found by perturbing the tied one."""
    h, w = (x.data.astype(np.float64) for x in (leaf(3, 4), leaf(4, 4)))
    tied = Tensor(w, requires_grad=True)
    with Tape() as opened:
        output = SHARED[name](Tensor(h), tied)
    upstream = np.random.default_rng(4).standard_normal(output.shape)
    opened.backward(output, np.asarray(upstream))
    direction, eps = np.random.default_rng(5).standard_normal(w.shape), 1e-6
    plus, minus = (np.sum(upstream * SHARED[name](Tensor(h), Tensor(w + s * direction)).data) for s in (eps, -eps))
    assert np.sum(tied.grad * direction) == pytest.approx((plus - minus) / (2 * eps), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", SHARED)
def test_two_backward_passes_add_up(name: str) -> None:
    leaves = leaf(3, 4), leaf(4, 4)
    once = gradients(SHARED[name], *leaves)
    backward(SHARED[name], *leaves)
    backward(SHARED[name], *leaves)
    for x, gradient in zip(leaves, once, strict=True):
        np.testing.assert_allclose(x.grad, 2 * gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SHARED)
def test_stale_gradients_never_leak(name: str) -> None:
    leaves = leaf(3, 4), leaf(4, 4)
    expected = gradients(SHARED[name], *leaves)
    for x in leaves:
        x.grad.fill(np.nan)
    backward(SHARED[name], *leaves)  # a first pass: NaN from before it must not show
    for x, gradient in zip(leaves, expected, strict=True):
        assert np.array_equal(x.grad, gradient)
        x.grad.fill(np.nan)
        x.zero_grad()
    backward(SHARED[name], *leaves)
    for x, gradient in zip(leaves, expected, strict=True):
        assert np.array_equal(x.grad, gradient)


def test_a_leaf_without_a_contribution_reads_zeros() -> None:
    used, unused = leaf(3), leaf(3)
    for x in (used, unused):
        x.grad.fill(np.nan)
        x.zero_grad()
    backward(lambda a: a * 2, used)
    assert np.isfinite(used.grad).all() and not unused.grad.any()
    used.zero_grad()
    assert not used.grad.any()
    backward(lambda a: a * 2, used)
    assert used.grad.all()


def test_an_upstream_gradient_that_is_shared_is_not_written_to() -> None:
    x = leaf(3, 4)
    for function, factor in (
        (lambda a: a + a, 2),
        (lambda a: (a + a) + a + (a + 0), 4),
        (lambda a: a.reshape(4, 3).reshape(3, 4) + a + a, 3),
        (lambda a: concatenate([a, a])[:3] + a[:] + a, 3),
        (lambda a: (lambda b: (b + b.exp() * 0) + (b + b))(a + 0), 3),
        (lambda a: a, 1),
        (lambda a: recompute(lambda b: b, a) + a, 2),
    ):
        upstream = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
        x.zero_grad()
        with Tape() as opened:
            output = function(x)
        given = upstream.copy()
        opened.backward(output, given)
        assert np.array_equal(given, upstream)
        np.testing.assert_allclose(x.grad, factor * upstream, rtol=1e-6)


@pytest.mark.parametrize("function", [SHARED["linear once"], lambda h, w: ops.embedding(TIED_IDS, w)])
def test_the_first_contribution_is_written_where_it_belongs(function: Any) -> None:
    h, w = leaf(3, 4), leaf(4, 4)
    with Tape() as opened:
        function(h, w)
        function(h, w)
    (_, _, first, _), (_, _, second, _) = opened.records
    home, ones = w.node.grad, np.ones(opened.records[0][0].shape, np.float32)
    assert first(ones)[-1] is home
    assert not np.shares_memory(second(ones)[-1], home)
    w.zero_grad()
    assert second(ones)[-1] is home


@pytest.mark.parametrize(
    "function",
    [
        lambda w: ops.embedding(TIED_IDS, w),
        lambda w: ops.cross_entropy(Tensor(np.ones((2, 4), np.float32)), w, None, TIED_IDS[0]),
    ],
)
def test_what_a_table_has_gathered_grows_where_it_is(function: Any) -> None:
    """No second array of its size comes to be."""
    w = leaf(5, 4)
    backward(function, w)
    once, home = w.grad.copy(), w.node.grad
    with Tape() as opened:
        output = function(w)
    [(_, _, gather, _)] = opened.records
    upstream = np.random.default_rng(8).standard_normal(output.shape).astype(np.float32)  # as `backward` has it
    assert all(gradient is None for gradient in gather(upstream))
    assert w.node.grad is home
    np.testing.assert_allclose(home, 2 * once, rtol=1e-6)


def test_only_what_the_output_depends_on_gets_a_gradient() -> None:
    x, aside = leaf(3), leaf(3)
    with Tape() as opened:
        early = x * 2
        late = early.exp() * aside
    opened.backward(early)
    assert x.grad.tolist() == [2, 2, 2] and not aside.grad.any() and opened.records == []
    assert early.grad is None and late.grad is None


# -- what is recorded ------------------------------------------------------------------------------------------------


def test_nothing_is_recorded_without_a_tape_or_under_no_grad() -> None:
    x = leaf(3)
    assert (x * 2).node is None and not is_recording(x.node)
    with Tape() as opened:
        with pytest.raises(KeyError), no_grad():
            assert (x * 2).node is None
            raise KeyError
        assert opened.records == [] and is_recording(x.node) and not is_recording(None)
        assert (x * 2).node is not None and len(opened.records) == 1
    assert (x * 2).node is None


def test_tapes_nest() -> None:
    x = leaf(3)
    with Tape() as outer:
        before = x * 2
        with Tape() as inner:
            aside = x * 5
        after = before * 3
    assert [len(t.records) for t in (outer, inner)] == [2, 1]
    inner.backward(aside)
    outer.backward(after)
    assert x.grad.tolist() == [11, 11, 11]


def test_a_tape_is_closed_by_an_exception() -> None:
    x = leaf(3)
    with pytest.raises(KeyError), Tape():
        raise KeyError
    assert (x * 2).node is None


def test_each_thread_has_its_own_tape() -> None:
    x, nodes = leaf(3), []
    with Tape() as opened:
        thread = threading.Thread(target=lambda: nodes.append((x * 2).node))
        thread.start()
        thread.join()
    assert nodes == [None] and opened.records == []


def test_recompute_runs_again_instead_of_keeping() -> None:
    calls = []

    def function(x: Tensor) -> Tensor:
        calls.append(x.node is not None and is_recording(x.node))
        return x.exp() * x

    x, y = leaf(3, 4), leaf(3, 4)
    expected = gradients(lambda a, b: (a + b).exp() * (a + b), x, y)
    with Tape() as opened:
        output = recompute(function, x + y)
        assert [op for *_, op in opened.records] == ["add", "recompute"]
    opened.backward(output, np.random.default_rng(8).standard_normal((3, 4)).astype(np.float32))
    assert calls == [False, True]
    assert np.array_equal(x.grad, expected[0]) and np.array_equal(y.grad, expected[1])


# -- mistakes --------------------------------------------------------------------------------------------------------


def test_backward_of_an_output_without_gradient() -> None:
    with Tape() as opened:
        output = Tensor(np.ones(3)) * 2
    with pytest.raises(ValueError, match="depends on no tensor that requires a gradient"):
        opened.backward(output)


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda dy: dy[:1], r"bad_op: gradient of shape \(1, 4\) for a tensor \(3, 4\)"),
        (lambda dy: dy.astype(np.float64), "bad_op: gradient of float64 for a tensor of float32"),
    ],
)
def test_a_gradient_that_does_not_fit_names_its_op(wrong: Any, message: str, inner: bool) -> None:
    x = leaf(3, 4)
    with Tape() as opened:
        source = x * 2 if inner else x
        output = apply(source.data, (source,), lambda dy: (wrong(dy),), "bad_op")
    with pytest.raises(AssertionError, match=message):
        opened.backward(output)


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_gc() -> Iterator[None]:
    """Only reference counts free anything: a cycle would stay."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def live() -> Counter[str]:
    """Tensors, nodes, tapes and the backward functions of ops that exist now."""
    counts: Counter[str] = Counter()
    for thing in gc.get_objects():
        if isinstance(thing, Tensor | Node | Tape):
            counts[type(thing).__name__] += 1
        elif (
            isinstance(thing, types.FunctionType) and thing.__name__ == "backward" and "<locals>" in thing.__qualname__
        ):
            counts["backward"] += 1
    return counts


@pytest.mark.parametrize("keep", [True, False])
def test_a_step_leaves_nothing_alive(keep: bool, without_gc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = initial_arrays(MODEL, 1)
    model = GPT(MODEL, as_tensors(arrays, {k: np.empty_like(v) for k, v in arrays.items()}), recompute=not keep)
    outputs: list[weakref.ref[Any]] = []
    real = record

    def watched(output: Any, *rest: Any) -> Node | None:
        if isinstance(output, np.ndarray):
            outputs.append(weakref.ref(output))
        return real(output, *rest)

    monkeypatch.setattr(tensor, "record", watched)
    before = live()
    with Tape() as opened:
        loss = sequence_loss(model, X, Y, rng=np.random.default_rng(0))
    assert opened.records and live() != before
    opened.backward(loss)
    assert opened.records == []
    del loss, opened
    assert live() == before
    assert len(outputs) > 30 and [ref() for ref in outputs if ref() is not None] == []


def test_memory_falls_while_the_tape_is_walked(without_gc: None) -> None:
    seen: list[bool] = []

    def probe(x: Tensor, later: list[Any]) -> Tensor:
        def backward(dy: Any) -> tuple[Any]:
            seen.append(all(ref() is None for ref in later))
            return (dy,)

        return apply(x.data + 0, (x,), backward, "probe")

    saved: list[Any] = []
    with Tape() as opened:
        x = probe(leaf(3, 4), saved)
        for _ in range(3):
            x = x.tanh()  # saves its output
            saved.append(weakref.ref(x.data))
        loss = x.sum()
        del x
    assert all(ref() is not None for ref in saved)
    opened.backward(loss)
    assert seen == [True]


# -- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        ModelConfig(16, 13, 1, 2, 16, activation="relu", tied_head=False, head_bias=True, context_slot=False),
        ModelConfig(8, 13, 2, 2, 16, activation="gelu_tanh", layer_pattern=("local",), local_window=3, dropout=0.2),
    ],
    ids=["rolling", "untied", "local"],
)
def test_nothing_in_a_training_step_is_float64(
    model: ModelConfig, optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()

    def watch(owner: Any, name: str, dtypes: Any) -> None:
        real = getattr(owner, name)

        def watched(*args: Any) -> Any:
            seen[f"{name} {np.dtype(dtypes(*args))}"] += 1
            return real(*args)

        monkeypatch.setattr(owner, name, watched)

    monkeypatch.setattr(lanes, "FORK", False)  # threads, whose doings are seen here
    watch(Node, "add", lambda node, gradient, op: gradient.dtype)
    watch(tensor, "record", lambda output, inputs, backward, op: output.dtype)
    watch(workspace, "empty", lambda shape, dtype: dtype)
    run = RunConfig(model, train=TrainConfig(batch_size=4, micro_batch=2, context=16, optimizer=optimizer, lanes=2))
    arrays = initial_arrays(model, 1)
    with lanes.Lanes(2) as two:
        trainer = Trainer(run, arrays, two)
        loss = trainer.step(X, Y, 0, 1.0)
        trainer.evaluate(X, Y)
    assert type(loss) is float
    assert set(seen) == {"add float32", "record float32", "empty float32"}
    gathered = [array for own in trainer.optimizer.gradients for array in own.named.values()]
    for array in [*trainer.arrays.values(), *trainer.optimizer.state.values(), *gathered]:
        assert array.dtype == np.float32


def test_a_tape_that_does_not_hold_the_output_says_so() -> None:
    x = Tensor(np.ones(3), requires_grad=True)
    with Tape() as tape:
        y = (x * x).sum()
    with Tape() as other:
        z = (x + x).sum()
    with pytest.raises(ValueError, match="another tape's, or it was drained"):
        other.backward(y)
    tape.backward(y)
    with pytest.raises(ValueError, match="another tape's, or it was drained"):
        tape.backward(y)
    assert x.node is not None and np.array_equal(x.node.grad, [2.0, 2.0, 2.0])
    other.backward(z)
    assert np.array_equal(x.node.grad, [4.0, 4.0, 4.0])
