"""Local attention: query i sees keys i-255..i, in training, in NumPy and in both dialects of ONNX.

Held against a reference that knows no cache and no blocks: every score of a window, and a mask of ones.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from picogpt.config import ModelConfig
from picogpt.engine import no_grad
from picogpt.inference.numpy_reader import NumpyReader
from picogpt.inference.onnx.export import export
from picogpt.inference.onnx.session import OnnxModel, OnnxReader
from picogpt.inference.windows import Decoder, WindowReader
from picogpt.model.gpt import GPT
from picogpt.model.kv_cache import SlidingWindow
from picogpt.model.parameters import Arrays, as_tensors
from picogpt.tokenizers.characters import PicoTokenizer
from tests.support.models import lively_arrays

# GPT-Neo's shape, small.
NEO = ModelConfig(
    context_len=640,
    vocab_size=50,
    n_layer=4,
    n_head=2,
    n_embd=32,
    activation="gelu_tanh",
    qkv_bias=False,
    attention_scale="none",
    layer_pattern=("global", "local"),
    local_window=256,
    context_slot=False,
)
CONFIGS = {"neo": NEO, "wide": replace(NEO, local_window=1000), "half": replace(NEO, local_window=320)}
LENGTHS = (255, 256, 257, 600)
READERS = ("numpy", "fused", "portable")
# How a text may come: whole, in pieces that meet the lengths above, and token by token.
PIECES = {
    **{f"{length} at once": [length] for length in LENGTHS},
    "in pieces": [100, 155, 1, 1, 200, 143],
    "long after short": [7, 250, 343],
    "token by token": [1] * 600,
}
TOLERANCE = 2e-5


@cache
def arrays(name: str) -> Arrays:
    """Scores that are not scaled must be small enough for more than one key to count."""
    return {
        parameter: array * np.float32(0.3 if "c_attn" in parameter else 1)
        for parameter, array in lively_arrays(CONFIGS[name]).items()
    }


def ids(batch: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, NEO.vocab_size, (batch, 640))


def reference(name: str, tokens: np.ndarray, window: int) -> np.ndarray:  # (B, T) -> (B, T, V)
    """GPT-Neo in float64, each block's scores (T, T) whole."""
    config, (B, T) = CONFIGS[name], tokens.shape
    C, H = config.n_embd, config.n_head
    w = {parameter: array.astype(np.float64) for parameter, array in arrays(name).items()}
    causal = np.tril(np.ones((T, T), bool))
    masks = {"global": causal, "local": causal & ~np.tril(np.ones((T, T), bool), -window)}

    def norm(x: np.ndarray, at: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{at}.weight"] + w[f"{at}.bias"]

    def linear(x: np.ndarray, at: str) -> np.ndarray:
        return x @ w[f"{at}.weight"].T + w.get(f"{at}.bias", 0)

    x = w["wte.weight"][tokens] + w["wpe.weight"][:T]
    for layer in range(config.n_layer):
        h = f"h.{layer}"
        q, k, v = linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").reshape(B, T, 3, H, C // H).transpose(2, 0, 3, 1, 4)
        mask = masks[config.layer_pattern[layer % 2]]
        scores = np.where(mask, q @ k.swapaxes(2, 3), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(B, T, C)
        x = x + linear(y, f"{h}.attn.c_proj")
        m = linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        m = m / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (m + 0.044715 * m**3)))
        x = x + linear(m, f"{h}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


@cache
def expected(name: str, window: int = 256) -> np.ndarray:
    return reference(name, ids(3)[:, :600], window)


@cache
def exported(name: str, portable: bool) -> OnnxModel:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(path, CONFIGS[name], arrays(name), PicoTokenizer(), portable=portable)
        return OnnxModel(path, threads=1)


def reader(name: str, kind: str, batch: int = 1) -> WindowReader:
    if kind == "numpy":
        return NumpyReader(GPT(CONFIGS[name], as_tensors(arrays(name))), batch)
    return OnnxReader(exported(name, kind == "portable"), batch)


def error(found: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(found - right).max())


def test_a_window_of_another_size_would_be_seen() -> None:
    """What the tests below let pass is far less than what one key too few or too many changes, where it can."""
    for window, first in ((255, 256), (257, 257)):
        change = np.abs(expected("neo", window) - expected("neo")).max(axis=(0, 2))
        assert not change[: first - 1].any()
        assert change[[length - 1 for length in LENGTHS if length >= first]].min() > 50 * TOLERANCE


@pytest.mark.parametrize("length", LENGTHS)
def test_training(length: int) -> None:
    model, tokens = GPT(NEO, as_tensors(arrays("neo"))), ids(3)[:, :length]
    with no_grad():
        found = model.logits(model.hidden(tokens)).data
    assert error(found, expected("neo")[:, :length]) < TOLERANCE


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("kind", READERS)
def test_decoding(kind: str, pieces: str, batch: int) -> None:
    one, done = reader("neo", kind, batch), 0
    for size in PIECES[pieces]:
        logits = one.read(ids(batch)[:, done : done + size])
        done += size
        assert error(logits, expected("neo")[:batch, done - 1]) < TOLERANCE, f"after {done}"
    assert done in LENGTHS


@pytest.mark.parametrize("kind", READERS)
def test_what_a_pass_leaves_goes_on_token_by_token(kind: str) -> None:
    """A long prompt, then single tokens past the moment at which the buffers move."""
    one, rows = reader("neo", kind, 2), ids(2)
    one.read(rows[:, :300])
    for t in range(300, 600):
        assert error(one.read(rows[:, t : t + 1]), expected("neo")[:2, t]) < TOLERANCE


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("name", ["wide", "half"])
def test_a_window_as_long_as_the_context_and_half_of_it(name: str, kind: str) -> None:
    right = reference(name, ids(1)[:, :600], CONFIGS[name].local_window)
    for sizes in ([600], [1] * 330, [319, 1, 1, 279]):
        one, done = reader(name, kind), 0
        for size in sizes:
            logits = one.read(ids(1)[:, done : done + size])
            done += size
            assert error(logits, right[:, done - 1]) < TOLERANCE


@pytest.mark.parametrize("kind", READERS)
def test_a_new_window_begins_with_empty_buffers(kind: str) -> None:
    decoder, rows = Decoder(reader("neo", kind), rolling=False, overlap=80), ids(3).reshape(1, -1)
    decoder.feed(rows[:, :640])
    for start, stop in ((640, 641), (641, 1000), (1000, 1200), (1200, 1201)):
        logits = decoder.feed(rows[:, start:stop])
        begin = 560 if stop <= 1200 else 1120
        assert error(logits, reference("neo", rows[:, begin:stop], 256)[:, -1]) < TOLERANCE


def test_local_blocks_keep_two_windows() -> None:
    assert [NEO.cache_of(layer) for layer in range(4)] == [640, 512, 640, 512]
    for kind in READERS:
        one = reader("neo", kind, 3)
        if isinstance(one, NumpyReader):
            shapes = [array.shape for array in one._cache.keys]
        else:
            assert isinstance(one, OnnxReader)
            shapes = [tuple(one._inputs[f"past_key.{layer}"].shape()) for layer in range(4)]
        assert shapes == [(3, 2, 640, 16), (3, 2, 512, 16)] * 2


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_sliding(window: int) -> None:
    """However many positions come, the last window - 1 of those before them are in the buffer, in order."""
    rng = np.random.default_rng(0)
    buffer, done = np.full((1, 1, 2 * window, 1), -1), 0
    sliding = SlidingWindow(window, [buffer])
    for wanted in rng.integers(1, 5 * window, 200):
        room = sliding.make_room(int(wanted))
        assert 1 <= room <= wanted
        seen = min(done, window - 1)
        assert buffer[0, 0, sliding.length - seen : sliding.length, 0].tolist() == list(range(done - seen, done))
        buffer[0, 0, sliding.length : sliding.length + room, 0] = np.arange(done, done + room)
        sliding.length, done = sliding.length + room, done + room
    assert SlidingWindow(window, []).make_room(10**6) == 10**6
