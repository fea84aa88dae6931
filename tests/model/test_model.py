"""The GPT against a plain float64 reference, and what its parts promise: names, first values, windows, dropout."""

from collections.abc import Iterator
from dataclasses import replace
from math import erf, sqrt
from typing import Any

import numpy as np
import pytest

from picogpt.config import ModelConfig
from picogpt.config.presets import PRESETS
from picogpt.engine import Tape, Tensor
from picogpt.model.gpt import GPT
from picogpt.model.initialization import initial_arrays
from picogpt.model.parameters import Arrays, as_tensors, parameter_shapes
from picogpt.model.rolling_context import hidden_windows, sequence_logits, sequence_loss
from picogpt.rng import generator
from tests.support.gradcheck import check_gradients
from tests.support.models import lively_arrays

W = 8
TINY = ModelConfig(context_len=W, vocab_size=11, n_layer=2, n_head=2, n_embd=12)
PLAIN = replace(TINY, context_slot=False)
VARIANTS = {
    "default": TINY,
    "plain": PLAIN,
    "lecture": replace(
        PLAIN, qkv_bias=False, activation="relu", attention_scale="width", tied_head=False, head_bias=True
    ),
    "local": replace(TINY, layer_pattern=("global", "local"), local_window=3),
    "all local": replace(PLAIN, layer_pattern=("local",), local_window=1),
    "tanh, no scale, no bias": replace(TINY, activation="gelu_tanh", attention_scale="none", bias=False, n_head=3),
    "one block, head bias": replace(TINY, n_layer=1, n_head=1, head_bias=True),
    "bigram": replace(PLAIN, n_layer=0),
}


def random_ids(config: ModelConfig, *shape: int, seed: int = 0) -> np.ndarray:
    return generator(seed, "ids").integers(0, config.vocab_size, shape)


def build(config: ModelConfig, arrays: Arrays | None = None, **options: Any) -> GPT:
    return GPT(config, as_tensors(lively_arrays(config) if arrays is None else arrays), **options)


def gradients_of(config: ModelConfig, arrays: Arrays, ids: np.ndarray, seed: int | None = None, **options: Any):
    """(loss, named gradients) of next-token prediction over `ids`; with a seed, dropout is on."""
    gradients = {name: np.full_like(array, np.nan) for name, array in arrays.items()}
    model = GPT(config, as_tensors(arrays, gradients), **options)
    rng = None if seed is None else generator(seed, "dropout")
    with Tape() as tape:
        loss = sequence_loss(model, ids[:, :-1], ids[:, 1:], rng=rng)
    tape.backward(loss)
    return float(loss.data), gradients


# The reference: a GPT with full masks, every window computed afresh, in float64.


def reference_logits(config: ModelConfig, arrays: Arrays, ids: np.ndarray) -> np.ndarray:  # (B, T) -> (B, T, V)
    p = {name: array.astype(np.float64) for name, array in arrays.items()}
    if config.n_layer == 0:
        return p["wte.weight"][ids]
    return np.concatenate(list(_reference_windows(config, p, ids)), axis=1)


def _reference_windows(config: ModelConfig, p: Arrays, ids: np.ndarray) -> Iterator[np.ndarray]:
    context = np.zeros((len(ids), 1, config.n_embd))
    for start in range(0, ids.shape[1], config.context_len):
        x = p["wte.weight"][ids[:, start : start + config.context_len]]
        if config.context_slot:
            x = np.concatenate([context, x], axis=1)
        x = x + p["wpe.weight"][: x.shape[1]]
        for layer in range(config.n_layer):
            x = _reference_block(config, p, f"h.{layer}", layer, x)
        x = _reference_norm(p, "ln_f", x)
        context = x.mean(axis=1, keepdims=True)
        table = p["wte.weight"] if config.tied_head else p["lm_head.weight"]
        yield x[:, int(config.context_slot) :] @ table.T + p.get("lm_head.bias", 0)


def _reference_block(config: ModelConfig, p: Arrays, h: str, layer: int, x: np.ndarray) -> np.ndarray:
    B, T, C = x.shape
    qkv = _reference_linear(p, f"{h}.attn.c_attn", _reference_norm(p, f"{h}.ln_1", x))
    q, k, v = (part.reshape(B, T, config.n_head, -1).swapaxes(1, 2) for part in np.split(qkv, 3, axis=-1))
    scale = {"head": config.head_size, "width": C, "none": 1}[config.attention_scale] ** -0.5
    rows, keys = np.arange(T)[:, None], np.arange(T)
    reach = {"global": T, "local": config.local_window}[config.layer_pattern[layer % len(config.layer_pattern)]]
    scores = np.where((keys <= rows) & (keys > rows - reach), q @ k.swapaxes(2, 3) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(B, T, C)
    x = x + _reference_linear(p, f"{h}.attn.c_proj", y)
    hidden = _reference_linear(p, f"{h}.mlp.c_fc", _reference_norm(p, f"{h}.ln_2", x))
    if config.activation == "relu":
        hidden = np.maximum(hidden, 0)
    elif config.activation == "gelu":
        hidden = hidden * (1 + np.vectorize(erf)(hidden / sqrt(2))) / 2
    else:
        hidden = hidden * (1 + np.tanh(sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3))) / 2
    return x + _reference_linear(p, f"{h}.mlp.c_proj", hidden)


def _reference_linear(p: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def _reference_norm(p: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return normal * p[f"{name}.weight"] + p[f"{name}.bias"]


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_against_the_reference(name: str) -> None:
    config = VARIANTS[name]
    arrays, ids = lively_arrays(config), random_ids(config, 3, W)
    expected = reference_logits(config, arrays, ids)
    logits = sequence_logits(build(config, arrays), ids).data
    assert logits.dtype == np.float32 and logits.shape == (3, W, config.vocab_size)
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    exact = {key: array.astype(np.float64) for key, array in arrays.items()}
    np.testing.assert_allclose(sequence_logits(build(config, exact), ids).data, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["default", "local", "bigram"])
@pytest.mark.parametrize("length", [1, W + 1, 2 * W, 3 * W + 5])
def test_windows_against_the_reference(name: str, length: int) -> None:
    config = VARIANTS[name]
    arrays, ids = lively_arrays(config, np.float64), random_ids(config, 2, length)
    logits = sequence_logits(build(config, arrays), ids).data
    np.testing.assert_allclose(logits, reference_logits(config, arrays, ids), atol=1e-12)


# Names


@pytest.mark.parametrize("config", [*(run.model for run in PRESETS.values()), *VARIANTS.values()])
def test_named_parameters_are_the_shapes_in_their_order(config: ModelConfig) -> None:
    shapes = parameter_shapes(config)
    # No memory behind these arrays: gpt2 would ask for half a gigabyte.
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    model = GPT(config, as_tensors(arrays))
    found = [(name, tensor.shape) for name, tensor in model.named_parameters()]
    assert dict(found) == shapes
    assert len(found) == len(shapes), "a parameter is named twice"
    assert [name for name, _ in found] == list(shapes)


def test_tensors_are_no_copies() -> None:
    arrays = lively_arrays(TINY)
    model = build(TINY, arrays)
    for name, tensor in model.named_parameters():
        assert tensor.data is arrays[name] and tensor.grad is None


# First values


WIDE = ModelConfig(context_len=64, vocab_size=200, n_layer=3, n_head=4, n_embd=128, tied_head=False, head_bias=True)


def check_normal(array: np.ndarray, std: float) -> None:
    assert abs(array.mean()) < 5 * std / sqrt(array.size)
    assert abs(array.std() / std - 1) < 5 / sqrt(2 * array.size)
    assert np.abs(array).max() > 2.5 * std  # a normal distribution has tails


@pytest.mark.parametrize("init", ["gpt2", "normal"])
def test_normal_first_values(init: Any) -> None:
    arrays = initial_arrays(replace(WIDE, init=init), seed=1)
    for name, array in arrays.items():
        if ".ln_" in f".{name}":
            assert (array == (1 if name.endswith("weight") else 0)).all()
        elif name.endswith("bias"):
            assert not array.any()
        else:
            scaled = init == "gpt2" and name.endswith("c_proj.weight")
            check_normal(array, 0.02 / sqrt(2 * 3) if scaled else 0.02)


def test_torch_first_values() -> None:
    arrays = initial_arrays(replace(WIDE, init="torch"), seed=1)
    for name, array in arrays.items():
        if ".ln_" in f".{name}":
            assert (array == (1 if name.endswith("weight") else 0)).all()
        elif name in ("wte.weight", "wpe.weight"):
            check_normal(array, 1.0)
        else:
            bound = 1 / sqrt(4 * 128 if "mlp.c_proj" in name else 128)
            assert np.abs(array).max() <= bound * 1.000001
            assert np.abs(array).max() > bound * 0.9
            assert abs(array.mean()) < 5 * bound / sqrt(3 * array.size)
            assert abs(array.std() * sqrt(3) / bound - 1) < 5 / sqrt(array.size)


@pytest.mark.parametrize("init", ["gpt2", "normal", "torch"])
def test_first_values_are_float32_in_order_and_follow_the_seed(init: Any) -> None:
    config = replace(WIDE, init=init)
    first, again, other = (initial_arrays(config, seed) for seed in (5, 5, 6))
    assert {name: array.shape for name, array in first.items()} == parameter_shapes(config)
    assert list(first) == list(parameter_shapes(config))
    matrices = [name for name, array in first.items() if array.ndim == 2]
    for name, array in first.items():
        assert array.dtype == np.float32 and array.flags.writeable
        assert np.array_equal(array, again[name])
    for name in matrices:
        assert abs(np.corrcoef(first[name].ravel(), other[name].ravel())[0, 1]) < 0.05
    same_shape = [first[name].ravel() for name in matrices if name.endswith("c_fc.weight")]
    assert np.abs(np.corrcoef(same_shape) - np.eye(3)).max() < 0.05  # the blocks are independent as well


def test_an_untrained_model_knows_nothing() -> None:
    ids = random_ids(WIDE, 4, 65)
    loss = sequence_loss(build(WIDE, initial_arrays(WIDE, 1)), ids[:, :-1], ids[:, 1:])
    assert abs(float(loss.data) - np.log(200)) < 0.1


# Windows


def test_the_first_window_is_a_plain_forward() -> None:
    model, ids = build(TINY), random_ids(TINY, 2, 2 * W)
    plain = model.logits(model.hidden(ids[:, :W])[:, 1:]).data
    assert np.array_equal(sequence_logits(model, ids).data[:, :W], plain)


def test_slot_zero_of_the_second_window_is_the_mean_of_the_first() -> None:
    model, ids = build(TINY), random_ids(TINY, 2, 2 * W)
    context = Tensor(model.hidden(ids[:, :W]).data.mean(axis=1))
    second = model.logits(model.hidden(ids[:, W:], context))[:, 1:].data
    np.testing.assert_allclose(sequence_logits(model, ids).data[:, W:], second, atol=1e-5)


def test_the_context_reaches_the_second_window_and_no_earlier_one() -> None:
    model, ids = build(TINY), random_ids(TINY, 1, 3 * W)
    logits = sequence_logits(model, ids).data
    afresh = sequence_logits(model, ids[:, W:]).data
    assert np.abs(logits[:, W:] - afresh).max() > 1e-3
    changed = ids.copy()
    changed[0, 3] = (ids[0, 3] + 1) % TINY.vocab_size
    difference = np.abs(sequence_logits(model, changed).data - logits).max(axis=-1)[0]
    assert (difference[:3] == 0).all() and (difference[3:] > 1e-6).all()


def test_a_ragged_last_window_is_the_beginning_of_a_full_one() -> None:
    model, ids = build(TINY), random_ids(TINY, 2, 3 * W)
    full = sequence_logits(model, ids).data
    for length in (W + 1, 2 * W - 1, 2 * W + 3):
        np.testing.assert_allclose(sequence_logits(model, ids[:, :length]).data, full[:, :length], atol=1e-5)


def test_windows_say_where_they_are() -> None:
    windows = [
        (part.start, part.stop, hidden.shape) for part, hidden in hidden_windows(build(TINY), np.zeros((2, 19), int))
    ]
    assert windows == [(0, 8, (2, 8, 12)), (8, 16, (2, 8, 12)), (16, 19, (2, 3, 12))]


def test_a_model_without_a_slot_reads_one_window() -> None:
    model = build(PLAIN)
    with pytest.raises(ValueError, match="9 tokens are more than the window of 8"):
        sequence_logits(model, random_ids(PLAIN, 1, W + 1))


def test_gradients_flow_through_the_context() -> None:
    config = replace(TINY, tied_head=False)
    arrays = lively_arrays(config)
    gradients = {name: np.zeros_like(array) for name, array in arrays.items()}
    model = GPT(config, as_tensors(arrays, gradients))
    ids = np.full((1, 2 * W), 3)
    ids[0, :W] = 7  # a token of the first window only
    with Tape() as tape:
        (_, _), (_, second) = hidden_windows(model, ids)
        loss = model.loss(second, ids[:, W:])
    tape.backward(loss)
    assert np.abs(gradients["wte.weight"][7]).max() > 1e-4
    assert not gradients["wte.weight"][5].any()


@pytest.mark.parametrize("name", ["default", "lecture", "local"])
def test_gradients_against_differences(name: str) -> None:
    config = VARIANTS[name]
    if config.activation == "relu":
        config = replace(config, activation="gelu")  # a kink has no derivative
    arrays = lively_arrays(config, np.float64)
    length = 2 * W + 4 if config.context_slot else W
    ids = random_ids(config, 2, length + 1)

    def loss(*tensors: Tensor) -> Tensor:
        return sequence_loss(GPT(config, dict(zip(arrays, tensors, strict=True))), ids[:, :-1], ids[:, 1:])

    check_gradients(loss, *arrays.values())


# Loss


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_is_the_mean_of_minus_log_softmax(name: str) -> None:
    config = VARIANTS[name]
    length = 2 * W + 3 if config.context_slot else W
    ids = random_ids(config, 3, length + 1)
    x, y = ids[:, :-1], ids[:, 1:]
    model = build(config)
    logits = sequence_logits(model, x).data.astype(np.float64)
    top = logits.max(-1, keepdims=True)
    log_softmax = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_softmax, y[..., None], -1).mean()
    np.testing.assert_allclose(sequence_loss(model, x, y).data, expected, rtol=1e-5)
    np.testing.assert_allclose(sequence_loss(model, x, y, total=2 * y.size).data, expected / 2, rtol=1e-5)


def test_bigram_logits_are_rows_of_the_table() -> None:
    config = VARIANTS["bigram"]
    arrays = lively_arrays(config)
    assert parameter_shapes(config) == {"wte.weight": (11, 11)}
    ids = random_ids(config, 2, 3 * W + 1)  # it has no window to outgrow
    assert np.array_equal(sequence_logits(build(config, arrays), ids).data, arrays["wte.weight"][ids])
    loss, gradients = gradients_of(config, arrays, ids)
    assert loss > 0 and np.abs(gradients["wte.weight"].sum(axis=1)).max() < 1e-6  # softmax - onehot sums to zero


def test_bigram_with_a_context_slot_is_the_same() -> None:
    config = VARIANTS["bigram"]
    arrays, ids = lively_arrays(config), random_ids(config, 2, 2 * W + 2)
    assert parameter_shapes(replace(config, context_slot=True)) == {"wte.weight": (11, 11)}
    plain, slotted = (gradients_of(c, arrays, ids) for c in (config, replace(config, context_slot=True)))
    assert plain[0] == pytest.approx(slotted[0], abs=1e-6)
    np.testing.assert_allclose(slotted[1]["wte.weight"], plain[1]["wte.weight"], atol=1e-6)


def test_tied_and_untied_heads() -> None:
    untied = replace(TINY, tied_head=False)
    tied_arrays = lively_arrays(TINY)
    untied_arrays = {**tied_arrays, "lm_head.weight": tied_arrays["wte.weight"].copy()}
    ids = random_ids(TINY, 2, W + 1)
    assert "lm_head.weight" not in parameter_shapes(TINY)
    tied_loss, tied = gradients_of(TINY, tied_arrays, ids)
    untied_loss, apart = gradients_of(untied, untied_arrays, ids)
    assert tied_loss == untied_loss
    np.testing.assert_allclose(tied["wte.weight"], apart["wte.weight"] + apart["lm_head.weight"], atol=1e-6)
    assert np.abs(apart["lm_head.weight"]).max() > 1e-3
    untied_arrays["lm_head.weight"] *= 2
    logits = [
        sequence_logits(build(config, arrays), ids).data
        for config, arrays in ((TINY, tied_arrays), (untied, untied_arrays))
    ]
    np.testing.assert_allclose(logits[1], 2 * logits[0], rtol=1e-5)


# Dropout and recomputation


def test_dropout_needs_a_generator_and_follows_it() -> None:
    config = replace(TINY, dropout=0.3)
    arrays, ids = lively_arrays(config), random_ids(config, 2, 2 * W + 1)
    off = gradients_of(TINY, arrays, ids)
    without_rng = gradients_of(config, arrays, ids)
    assert off[0] == without_rng[0]
    assert all(np.array_equal(off[1][name], without_rng[1][name]) for name in arrays)
    first, again, other = (gradients_of(config, arrays, ids, seed) for seed in (1, 1, 2))
    assert first[0] == again[0] and all(np.array_equal(first[1][name], again[1][name]) for name in arrays)
    assert len({off[0], first[0], other[0]}) == 3
    assert (
        sequence_logits(build(config, arrays), ids).data.tolist()
        == sequence_logits(build(TINY, arrays), ids).data.tolist()
    )


def test_dropout_keeps_the_expectation() -> None:
    """Where the network is linear in what is dropped, the mean over many draws is the value without."""
    config = replace(TINY, dropout=0.2)
    model = build(config)
    x = Tensor(np.ones((200, 500), np.float32))
    dropped = model.drop(x, generator(0, "dropout")).data
    assert set(np.unique(dropped).tolist()) == {0.0, 1.25}
    assert abs(float(dropped.mean()) - 1) < 0.01


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("name", ["default", "lecture", "local"])
def test_recomputed_equals_kept_bit_for_bit(name: str, dropout: float) -> None:
    config = replace(VARIANTS[name], dropout=dropout)
    length = 2 * W + 3 if config.context_slot else W
    arrays, ids = lively_arrays(config), random_ids(config, 2, length + 1)
    kept = gradients_of(config, arrays, ids, seed=4)
    recomputed = gradients_of(config, arrays, ids, seed=4, recompute=True)
    assert kept[0] == recomputed[0]
    for key in arrays:
        assert np.array_equal(kept[1][key], recomputed[1][key]), key
        assert np.isfinite(kept[1][key]).all(), key
