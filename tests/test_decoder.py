"""Decoding with a cache gives the logits of reading everything at once."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import lively_arrays
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.config import ModelConfig
from picogpt.model.decoder import Decoder
from picogpt.model.gpt import GPT
from picogpt.model.parameters import as_tensors
from picogpt.model.rolling import sequence_logits
from picogpt.rng import generator

W = 6
LENGTH = 10 * W + 3
BORDERS = [1, W - 1, W, W + 1, 2 * W - 1, 2 * W, 2 * W + 1, 10 * W, LENGTH]
SLOT = ModelConfig(context_len=W, vocab_size=13, n_layer=2, n_head=2, n_embd=12)
ROLLING = {
    "default": SLOT,
    "local": replace(SLOT, layer_pattern=("local", "global"), local_window=3),
    "all local": replace(SLOT, layer_pattern=("local",), local_window=2),
    "untied": replace(SLOT, tied_head=False, head_bias=True, activation="relu", qkv_bias=False),
    "scaled by width": replace(SLOT, attention_scale="width", activation="gelu_tanh"),
    "dropout is for training": replace(SLOT, dropout=0.5),
}
PLAIN = {
    "default": replace(SLOT, context_slot=False),
    "local": replace(SLOT, context_slot=False, layer_pattern=("local", "global"), local_window=2),
    "odd window": replace(SLOT, context_slot=False, context_len=5),
    "window of one": replace(SLOT, context_slot=False, context_len=1),
}


def build(config: ModelConfig) -> GPT:
    return GPT(config, as_tensors(lively_arrays(config)))


def random_ids(batch: int, length: int) -> np.ndarray:
    return generator(1, "ids").integers(0, SLOT.vocab_size, (batch, length))


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ROLLING)
def test_token_by_token(name: str) -> None:
    model, ids = build(ROLLING[name]), random_ids(2, LENGTH)
    decoder = Decoder(model, batch=2)
    found = np.stack([decoder.feed(ids[:, i : i + 1]) for i in range(LENGTH)], axis=1)
    assert found.dtype == np.float32 and found.shape == (2, LENGTH, 13)
    close(found, sequence_logits(model, ids).data)


@pytest.mark.parametrize("name", ROLLING)
@pytest.mark.parametrize("length", BORDERS)
def test_one_prefill_and_one_token_more(name: str, length: int) -> None:
    model, ids = build(ROLLING[name]), random_ids(2, LENGTH + 1)
    decoder, expected = Decoder(model, batch=2), sequence_logits(model, ids).data
    close(decoder.feed(ids[:, :length]), expected[:, length - 1])
    close(decoder.feed(ids[:, length : length + 1]), expected[:, length])


def feed_in_chunks(decoder: Decoder, ids: np.ndarray, sizes: list[int]) -> dict[int, np.ndarray]:
    """The logits after each chunk, by the number of ids read; the last chunk takes what is left."""
    found, start = {}, 0
    for size in [*sizes, ids.shape[1]]:
        if start < ids.shape[1]:
            stop = min(start + size, ids.shape[1])
            found[stop] = decoder.feed(ids[:, start:stop])
            start = stop
    return found


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(ROLLING)), sizes=st.lists(st.integers(1, 2 * W + 2), max_size=20))
def test_random_chunks(name: str, sizes: list[int]) -> None:
    model, ids = build(ROLLING[name]), random_ids(2, LENGTH)
    expected = sequence_logits(model, ids).data
    for count, logits in feed_in_chunks(Decoder(model, batch=2), ids, sizes).items():
        close(logits, expected[:, count - 1])


def test_two_streams_do_not_mix() -> None:
    model, ids = build(SLOT), random_ids(2, 3 * W)
    together = Decoder(model, batch=2).feed(ids)
    for row in range(2):
        close(Decoder(model).feed(ids[row : row + 1]), together[row : row + 1])


def test_any_integer_dtype_and_no_change_of_the_ids() -> None:
    model, ids = build(SLOT), random_ids(1, 2 * W).astype(np.uint8)
    before = ids.copy()
    close(Decoder(model).feed(ids), Decoder(model).feed(ids.astype(np.int64)))
    assert np.array_equal(ids, before)


# Without a context slot: within the window as at once; then the last half of the window is read again.


@pytest.mark.parametrize("name", PLAIN)
def test_plain_model_inside_its_window(name: str) -> None:
    config = PLAIN[name]
    model, ids = build(config), random_ids(2, config.context_len)
    expected = sequence_logits(model, ids).data
    decoder = Decoder(model, batch=2)
    for i in range(config.context_len):
        close(decoder.feed(ids[:, i : i + 1]), expected[:, i])
    close(Decoder(model, batch=2).feed(ids), expected[:, -1])


def kept_after(window: int, length: int) -> int:
    """How many of the last ids a plain model still sees after `length` ids."""
    kept = 0
    for _ in range(length):
        kept = (window // 2 if kept == window else kept) + 1
    return kept


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(PLAIN)), sizes=st.lists(st.integers(1, 2 * W + 2), max_size=60))
def test_plain_model_beyond_its_window(name: str, sizes: list[int]) -> None:
    config = PLAIN[name]
    model, ids = build(config), random_ids(2, LENGTH)
    for count, logits in feed_in_chunks(Decoder(model, batch=2), ids, sizes).items():
        kept = ids[:, count - kept_after(config.context_len, count) : count]
        close(logits, sequence_logits(model, kept).data[:, -1])


@pytest.mark.parametrize("name", PLAIN)
def test_plain_model_token_by_token_beyond_its_window(name: str) -> None:
    config = PLAIN[name]
    model, ids = build(config), random_ids(1, LENGTH)
    for count, logits in feed_in_chunks(Decoder(model), ids, [1] * LENGTH).items():
        kept = ids[:, count - kept_after(config.context_len, count) : count]
        assert 1 <= kept.shape[1] <= config.context_len
        close(logits, sequence_logits(model, kept).data[:, -1])


def test_bigram() -> None:
    config = replace(SLOT, n_layer=0, context_slot=False)
    model, ids = build(config), random_ids(2, 3 * W)
    decoder = Decoder(model, batch=2)
    close(decoder.feed(ids), model.wte.weight.data[ids[:, -1]])
    close(decoder.feed(ids[:, :1]), model.wte.weight.data[ids[:, 0]])
