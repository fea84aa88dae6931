"""The same code on device arrays: nothing of NumPy may touch them, and the numbers are NumPy's."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.config import ModelConfig, TrainConfig
from picogpt.engine import Tape, Tensor, backend, no_grad, ops
from picogpt.engine.lanes import Lanes, SharedArrays
from picogpt.engine.tensor import apply
from picogpt.inference.numpy_reader import NumpyReader
from picogpt.inference.windows import Decoder
from picogpt.model.gpt import GPT
from picogpt.model.initialization import initial_arrays
from picogpt.model.parameters import as_tensors
from picogpt.model.rolling_context import sequence_loss
from picogpt.optim.optimizer import Optimizer, in_groups
from tests.engine.test_ops import ROWS, Row
from tests.support import standin
from tests.support.standin import DeviceArray, MixedError, asarray, asnumpy

MODEL = ModelConfig(
    context_len=6, vocab_size=11, n_layer=2, n_head=2, n_embd=8, layer_pattern=("global", "local"), local_window=3
)
IDS = np.random.default_rng(5).integers(0, 11, (5, 13)).astype(np.int32)
X, Y = np.ascontiguousarray(IDS[:, :-1]), np.ascontiguousarray(IDS[:, 1:])


def close(device: Any, host: Any, what: str = "") -> None:
    assert type(device) is DeviceArray, what
    np.testing.assert_allclose(asnumpy(device), host, rtol=1e-5, atol=1e-5, err_msg=what)


# -- the stand-in is strict ------------------------------------------------------------------------------------------

MIXTURES = {
    "asarray": lambda d, h: np.asarray(d),
    "float32": lambda d, h: np.float32(d),
    "ufunc": lambda d, h: np.exp(d),
    "ufunc-out": lambda d, h: np.add(h, h, out=d),
    "ufunc-at": lambda d, h: np.add.at(h, np.array([0]), d),
    "function": lambda d, h: np.concatenate([d, d]),
    "where": lambda d, h: np.where(d, h, h),
    "left": lambda d, h: d + h,
    "right": lambda d, h: h * d,
    "in-place": lambda d, h: d.__isub__(h),
    "host-in-place": lambda d, h: h.__iadd__(d),
    "scalar": lambda d, h: d * np.float32(2),
    "scalar-left": lambda d, h: np.float32(2) / d,
    "matmul": lambda d, h: h @ d,
    "index": lambda d, h: d[np.array([0])],
    "index-of-host": lambda d, h: h[d],
    "assign": lambda d, h: d.__setitem__(0, h[0]),
    "assign-to-host": lambda d, h: h.__setitem__(slice(None), d),
    "device-ufunc": lambda d, h: standin.add(d, h),
    "device-out": lambda d, h: standin.add(d, d, out=h),
    "device-take": lambda d, h: standin.take(d, np.array([0]), axis=0),
    "float64": lambda d, h: standin.zeros(3, np.float64),
    "overwrite": lambda d, h: d.__iadd__(d.T),
    "overwrite-out": lambda d, h: standin.add(d.T, d, out=d),
    "overwrite-part": lambda d, h: d.__setitem__(slice(0, 2), d.T),
    "mode": lambda d, h: standin.take(d, d, mode="clip"),  # numpy has it, CuPy has not
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_the_stand_in_refuses_to_mix(mixture: str) -> None:
    host = np.ones((2, 2), np.float32)
    with pytest.raises((TypeError, ValueError), match=r"device|float64|operation|out=|mode|overwrite"):
        MIXTURES[mixture](asarray(host), host)


def test_an_op_that_reaches_for_numpy_is_found_out() -> None:
    def careless(x: Tensor) -> Tensor:
        return apply(np.tanh(x.data), (x,), lambda dy: (dy,), "careless")

    with pytest.raises(MixedError):
        careless(Tensor(asarray(np.ones(3, np.float32))))


def test_the_stand_in_computes_and_shares_no_memory() -> None:
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    device = asarray(host)
    host += 1
    device[:, 1] *= 2
    assert type(device.sum()) is DeviceArray and float(device.sum()) == 20
    assert asnumpy(2 - device @ device.T).tolist() == [[-6, -24], [-24, -96]]
    assert standin.asarray(device) is device


# -- every op --------------------------------------------------------------------------------------------------------


def run_row(row: Row, place: Any) -> tuple[Any, list[Any]]:
    """The row's result and gradients, float32, from inputs put in place."""
    inputs = [
        place(x) if x.dtype.kind == "i" else Tensor(place(x.astype(np.float32)), requires_grad=row.differentiable)
        for x in row.inputs
    ]
    with Tape() as tape:
        output = row.function(*inputs)
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if row.differentiable:
        upstream = np.random.default_rng(3).standard_normal(output.shape).astype(np.float32)
        tape.backward(output, place(upstream))
    return output.data, [tensor.grad for tensor in tensors if row.differentiable]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_op(row: Row) -> None:
    result, gradients = run_row(row, asarray)
    expected, expected_gradients = run_row(row, np.asarray)
    close(result, expected)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        scale = max(1.0, float(np.abs(expected).max()))  # sums of many terms, in another order
        close(gradient * (1 / scale), expected / np.float32(scale))


# -- a model, its optimizer, a training step -------------------------------------------------------------------------


def shaken(config: ModelConfig) -> dict[str, np.ndarray]:
    """Parameters that are large enough for every gradient to count."""
    rng = np.random.default_rng(2)
    return {
        name: array + rng.standard_normal(array.shape, np.float32) * np.float32(0.3)
        for name, array in initial_arrays(config, 1).items()
    }


def on_device(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: asarray(array) for name, array in arrays.items()}


def losses_and_gradients(config: ModelConfig, arrays: dict[str, Any], recompute: bool, x: Any, y: Any) -> Any:
    leaves = as_tensors(arrays, {name: backend.empty(array.shape, array) for name, array in arrays.items()})
    model = GPT(config, leaves, recompute)
    with Tape() as tape:
        loss = sequence_loss(model, x, y, rng=np.random.default_rng(1) if config.dropout else None)
    tape.backward(loss)
    return loss.data, {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize(
    ("changes", "recompute"),
    [
        ({}, False),
        ({}, True),
        ({"dropout": 0.2, "activation": "relu"}, True),
        ({"tied_head": False, "head_bias": True, "qkv_bias": False, "activation": "gelu_tanh"}, False),
    ],
)
def test_gpt_over_two_windows(changes: dict[str, Any], recompute: bool) -> None:
    config = replace(MODEL, **changes)
    arrays = shaken(config)
    loss, gradients = losses_and_gradients(config, on_device(arrays), recompute, asarray(X), asarray(Y))
    expected_loss, expected = losses_and_gradients(config, arrays, recompute, X, Y)
    close(loss, expected_loss)
    for name, gradient in gradients.items():
        close(gradient, expected[name], name)


def test_bigram_table() -> None:
    config = ModelConfig(context_len=12, vocab_size=11, n_layer=0, context_slot=False)
    arrays = shaken(config)
    loss, gradients = losses_and_gradients(config, on_device(arrays), False, asarray(X), asarray(Y))
    expected_loss, expected = losses_and_gradients(config, arrays, False, X, Y)
    close(loss, expected_loss)
    close(gradients["wte.weight"], expected["wte.weight"])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_optimizer(kind: Any) -> None:
    config, values = TrainConfig(optimizer=kind), shaken(MODEL)
    (host, *gradients), (device, *device_gradients) = (
        [SharedArrays.zeros(in_groups(config, like)) for _ in range(3)] for like in (values, on_device(values))
    )
    for name, array in values.items():
        for place, arrays, own in ((np.asarray, host, gradients), (asarray, device, device_gradients)):
            arrays.named[name][...] = place(array)
            for gradient in own:
                gradient.named[name][...] = place(array[::-1].copy())
    with Lanes(2) as lanes, Lanes(1) as one:
        host_optimizer = Optimizer(config, host, gradients, lanes)
        device_optimizer = Optimizer(config, device, device_gradients, one)
        squares, device_squares = (
            backend.fetch(optimizer.reduce(2)) for optimizer in (host_optimizer, device_optimizer)
        )
        assert sum(device_squares) == pytest.approx(sum(squares), rel=1e-5)
        for optimizer in (host_optimizer, device_optimizer):
            for step in range(2):
                optimizer.step(step, 0.5, 0.9, depth=99)
    for name, array in device.named.items():
        close(array, host.named[name], name)
    for name, array in device_optimizer.state.items():
        close(array, host_optimizer.state[name], name)


@pytest.mark.parametrize("slot", [True, False])
def test_decoder(slot: bool) -> None:
    config = replace(MODEL, context_slot=slot)
    arrays = shaken(config)
    host = Decoder(NumpyReader(GPT(config, as_tensors(arrays)), batch=5), True, 3)
    device = Decoder(NumpyReader(GPT(config, as_tensors(on_device(arrays))), batch=5), True, 3)
    for start, stop in ((0, 4), (4, 5), (5, 12)):
        logits = device.feed(X[:, start:stop])
        assert type(logits) is np.ndarray  # they leave the device: what is chosen from them is the host's business
        np.testing.assert_allclose(logits, host.feed(X[:, start:stop]), atol=1e-5)


# -- backend.py itself -----------------------------------------------------------------------------------------------


def test_array_module_and_moves() -> None:
    host = np.ones((2, 3), np.float32)
    device = backend.to_device(host, standin.zeros((), np.float32))
    assert backend.array_module(device) is standin and backend.array_module(host) is np
    assert backend.to_device(host, host) is host and backend.to_host(host) is host
    assert type(backend.to_host(device)) is np.ndarray and np.array_equal(backend.to_host(device), host)
    made = backend.empty((4, 1), device)
    assert type(made) is DeviceArray and made.shape == (4, 1) and made.dtype == np.float32
    assert backend.array_module(host.sum()) is np  # NumPy's 0-d results are scalars
    with pytest.raises(TypeError, match="needs an array"):
        backend.array_module([1.0])


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(0, 5000), width=st.integers(1, 3 * backend.BLOCK))
def test_row_blocks_cover_every_row_once(rows: int, width: int) -> None:
    blocks = list(backend.row_blocks(rows, width, np.empty(0)))
    assert [row for block in blocks for row in range(rows)[block]] == list(range(rows))
    assert all((block.stop - block.start - 1) * width < 1.5 * backend.BLOCK for block in blocks)
    assert len(list(backend.row_blocks(rows, width, standin.zeros(0, np.float32)))) == (1 if rows else 0)
    bounded = list(backend.row_blocks(rows, width, standin.zeros(0, np.float32), block=1 << 16))  # in memory
    assert bounded == list(backend.row_blocks(rows, width, np.empty(0), block=1 << 16))


@pytest.mark.parametrize("place", [asarray, np.asarray])
def test_fetch_brings_all_numbers_at_once(place: Any) -> None:
    scalars = [place(np.float32(x)) for x in (1.5, -2, np.inf)]
    before = standin.arrivals
    assert backend.fetch(scalars) == [1.5, -2, np.inf]
    assert standin.arrivals - before == (1 if place is asarray else 0)


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.integers(0, 6), min_size=1, max_size=30), width=st.integers(1, 3))
def test_scatter_add_counts_repeated_ids(ids: list[int], width: int) -> None:
    source = np.random.default_rng(len(ids)).standard_normal((len(ids), width)).astype(np.float32)
    target, expected = np.ones((7, width), np.float32), np.ones((7, width))
    for row, i in enumerate(ids):
        expected[i] += source[row]
    device = asarray(target)
    backend.scatter_add(target, np.array(ids, np.uint8), source)
    backend.scatter_add(device, asarray(np.array(ids, np.uint8)), asarray(source))
    np.testing.assert_allclose(target, expected, rtol=1e-5, atol=1e-5)
    close(device, expected)


def test_loss_without_a_tape_stays_on_the_device() -> None:
    with no_grad():
        hidden = Tensor(asarray(np.ones((3, 4), np.float32)))
        loss = ops.cross_entropy(hidden, None, None, asarray(np.array([0, 1, 2])))
    close(loss.data, np.log(4.0))
