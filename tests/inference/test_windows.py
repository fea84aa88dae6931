"""Whatever reads a model, token by token or in passes: the logits are those of reading each window at once.

The readers are NumPy's and ONNX Runtime's, with an exported file in either dialect.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.config import ModelConfig
from picogpt.config.presets import PRESETS
from picogpt.engine import no_grad
from picogpt.inference.numpy_reader import NumpyReader
from picogpt.inference.onnx.export import export
from picogpt.inference.onnx.session import OnnxModel, OnnxReader
from picogpt.inference.windows import REACH, Decoder, Recut, WindowReader
from picogpt.model.gpt import GPT
from picogpt.model.parameters import as_tensors
from picogpt.model.rolling_context import sequence_logits
from picogpt.rng import generator
from picogpt.tokenizers.characters import PicoTokenizer
from tests.support.models import lively_arrays

W = 6
LENGTH = 10 * W + 3
BORDERS = [1, W - 1, W, W + 1, 2 * W - 1, 2 * W, 2 * W + 1, 10 * W - 1, 10 * W, 10 * W + 1]
SLOT = ModelConfig(context_len=W, vocab_size=13, n_layer=2, n_head=2, n_embd=12)
PLAIN = replace(SLOT, context_slot=False)
# Between them every switch of the model.
CONFIGS = {
    "default": SLOT,
    "local": replace(SLOT, layer_pattern=("local", "global"), local_window=3),
    "all local": replace(SLOT, layer_pattern=("local",), local_window=2),
    "untied": replace(SLOT, tied_head=False, head_bias=True, activation="relu", qkv_bias=False),
    "scaled by width": replace(SLOT, attention_scale="width", activation="gelu_tanh", n_embd=16),
    "not scaled": replace(SLOT, attention_scale="none", bias=False, qkv_bias=False, vocab_size=70),
    "dropout is for training": replace(SLOT, dropout=0.5, n_head=1),
    "plain": PLAIN,
    "plain, local": replace(PLAIN, layer_pattern=("local", "global"), local_window=2, activation="gelu_tanh"),
    "odd window": replace(PLAIN, context_len=5, tied_head=False),
    "window of one": replace(PLAIN, context_len=1),
    "one block": replace(SLOT, n_layer=1, bias=False, head_bias=True),
}
READERS = ("numpy", "fused", "portable")
# NumPy runs the training model's own code; ONNX Runtime adds in another order, and 1e-4 is what it is held to.
TOLERANCE = {"numpy": 1e-5, "fused": 1e-4, "portable": 1e-4}


@cache
def build(name: str) -> GPT:
    return GPT(CONFIGS[name], as_tensors(lively_arrays(CONFIGS[name])))


@cache
def exported(name: str, portable: bool) -> OnnxModel:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(path, CONFIGS[name], lively_arrays(CONFIGS[name]), PicoTokenizer(), portable=portable)
        return OnnxModel(path, threads=1)


def reader(name: str, kind: str, batch: int = 1) -> WindowReader:
    return NumpyReader(build(name), batch) if kind == "numpy" else OnnxReader(exported(name, kind == "portable"), batch)


def random_ids(batch: int, length: int) -> np.ndarray:
    return generator(1, "ids").integers(0, SLOT.vocab_size, (batch, length))


def close(found: np.ndarray, expected: np.ndarray, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, atol=atol)


def uncached(model: GPT, ids: np.ndarray, rolling: bool, overlap: int) -> np.ndarray:  # (B, T) -> (B, T, V)
    """The logits of every position, each window read whole by the model that trains."""
    W, slot = model.config.context_len, model.config.context_slot
    found, context, start, known = [], None, 0, 0
    with no_grad():
        while known < ids.shape[1]:
            window = ids[:, start : start + W]
            hidden = model.hidden(window, context)
            found.append(model.logits(hidden).data[:, slot + known - start :])
            known = start + window.shape[1]
            start += W - overlap
            context = hidden.mean(axis=1) if rolling and slot else None
    return np.concatenate(found, axis=1)


def feed_in_chunks(
    feed: Callable[[np.ndarray], np.ndarray], ids: np.ndarray, sizes: list[int]
) -> dict[int, np.ndarray]:
    """The logits after each chunk, by the number of ids read; the last chunk takes what is left."""
    found, start = {}, 0
    for size in [*sizes, ids.shape[1]]:
        if start < ids.shape[1]:
            stop = min(start + size, ids.shape[1])
            found[stop] = feed(ids[:, start:stop]).copy()
            start = stop
    return found


# Token by token, and in passes of all sizes


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_token_by_token(name: str, kind: str) -> None:
    ids = random_ids(2, LENGTH)
    for overlap in {0, CONFIGS[name].context_len // 2}:
        decoder = Decoder(reader(name, kind, batch=2), rolling=CONFIGS[name].context_slot, overlap=overlap)
        expected = uncached(build(name), ids, True, overlap)
        for count, logits in feed_in_chunks(decoder.feed, ids, [1] * LENGTH).items():
            close(logits, expected[:, count - 1], TOLERANCE[kind])


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("length", BORDERS)
def test_one_pass_and_one_token_more(length: int, kind: str) -> None:
    ids = random_ids(2, length + 1)
    decoder, expected = Decoder(reader("local", kind, batch=2), True, 0), sequence_logits(build("local"), ids).data
    close(decoder.feed(ids[:, :length]), expected[:, length - 1])
    close(decoder.feed(ids[:, length:]), expected[:, length])


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    kind=st.sampled_from(READERS),
    rolling=st.booleans(),
    overlap=st.integers(0, W - 1),
    sizes=st.lists(st.integers(1, 2 * W + 2), max_size=30),
    batch=st.integers(1, 3),
)
def test_any_passes(name: str, kind: str, rolling: bool, overlap: int, sizes: list[int], batch: int) -> None:
    config, ids = CONFIGS[name], random_ids(batch, LENGTH)
    rolling, overlap = rolling and config.context_slot, min(overlap, config.context_len - 1)
    expected = uncached(build(name), ids, rolling, overlap)
    decoder = Decoder(reader(name, kind, batch), rolling, overlap)
    for count, logits in feed_in_chunks(decoder.feed, ids, sizes).items():
        close(logits, expected[:, count - 1], TOLERANCE[kind])


@pytest.mark.parametrize("kind", READERS)
def test_what_was_before_counts_only_where_it_rolls(kind: str) -> None:
    ids = random_ids(1, 2 * W)
    other = ids.copy()
    other[:, : W - 2] = 0
    for rolling in (True, False):
        logits = [Decoder(reader("default", kind), rolling, 2).feed(ids[:, : 2 * W - 3]) for ids in (ids, other)]
        assert np.allclose(*logits, atol=1e-4) is not rolling


# PicoGPT's own way: cut from the right, the remainder first


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("name", ["default", "untied", "plain"])
def test_original(name: str, kind: str) -> None:
    config, ids = CONFIGS[name], random_ids(2, 11 * W + 2)
    model, recut = build(name), Recut(reader(name, kind, batch=2))
    reach = REACH * W if config.context_slot else W
    for count, logits in feed_in_chunks(recut.feed, ids, [4] + [1] * 20 + [W] * 6 + [1] * 10).items():
        seen = ids[:, max(0, count - reach) : count]
        first, context = seen.shape[1] % W or W, None
        with no_grad():
            for window in np.split(seen, range(first, seen.shape[1], W), axis=1):
                hidden = model.hidden(window, context)
                context = hidden.mean(axis=1)
            close(logits, model.logits(hidden[:, -1]).data)


@pytest.mark.parametrize("change", ["rolling", "plain", "local", "untied"])
def test_greedy_text_is_the_same_every_way(change: str) -> None:
    """pico's window with fewer and narrower blocks. Where two logits are closer than 1e-5 either may be chosen."""
    pico = replace(PRESETS["pico"].model, n_layer=2, n_embd=64, n_head=4)
    name = f"pico, {change}"
    CONFIGS[name] = {
        "rolling": pico,
        "plain": replace(pico, context_slot=False),
        "local": replace(pico, layer_pattern=("global", "local"), local_window=32),
        "untied": replace(pico, tied_head=False, head_bias=True),
    }[change]
    rolling, texts = CONFIGS[name].context_slot, {}
    for kind in READERS:
        decoder, ids = Decoder(reader(name, kind), rolling, 32), [5]
        for _ in range(400):
            ids.append(int(decoder.feed(np.array([ids[-1:]])).argmax()))
        texts[kind] = ids
    logits = uncached(build(name), np.array([texts["numpy"]]), rolling, 32)[0, :-1]
    best = np.sort(logits, axis=1)
    certain = best[:, -1] - best[:, -2] > 1e-5
    assert certain.mean() > 0.9
    assert np.array_equal(logits.argmax(axis=1)[certain], np.array(texts["numpy"][1:])[certain])
    flip = 400 if certain.all() else int(certain.argmin())
    assert len({tuple(ids[: flip + 1]) for ids in texts.values()}) == 1


# What every reader does


@pytest.mark.parametrize("kind", READERS)
def test_streams_do_not_mix(kind: str) -> None:
    ids = random_ids(2, 3 * W)
    together = Decoder(reader("default", kind, batch=2), True, 1).feed(ids)
    for row in range(2):
        close(Decoder(reader("default", kind), True, 1).feed(ids[row : row + 1]), together[row : row + 1])


@pytest.mark.parametrize("kind", READERS)
def test_any_integer_dtype_and_no_change_of_the_ids(kind: str) -> None:
    ids = random_ids(1, 2 * W).astype(np.uint8)
    before = ids.copy()
    close(Decoder(reader("plain", kind), False, 1).feed(ids), uncached(build("plain"), ids, False, 1)[:, -1])
    assert np.array_equal(ids, before)


@pytest.mark.parametrize("slot", [False, True])
@pytest.mark.parametrize("kind", READERS)
def test_bigram(kind: str, slot: bool) -> None:
    """A table has nothing to carry from window to window, whatever its configuration says."""
    name = f"bigram, {slot}"
    CONFIGS[name] = replace(SLOT, n_layer=0, context_slot=slot)
    table, ids = build(name).wte.weight.data, random_ids(2, 3 * W)
    decoder = Decoder(reader(name, kind, batch=2), CONFIGS[name].can_roll, 2)
    close(decoder.feed(ids), table[ids[:, -1]])
    close(decoder.feed(ids[:, :1]), table[ids[:, 0]])
    close(Recut(reader(name, kind, batch=2)).feed(ids), table[ids[:, -1]])
