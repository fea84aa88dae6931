"""The report on contexts reads a window at once; its losses must be those of a decoder that reads token by token."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import context
from benchmarks.context import Setting, draw, main, measure
from picogpt import LanguageModel
from picogpt.config import ModelConfig
from picogpt.evaluation.loss import token_losses
from picogpt.inference.numpy_reader import NumpyReader
from picogpt.inference.windows import REACH, Decoder, Recut
from picogpt.rng import generator
from picogpt.tokenizers.characters import PicoTokenizer
from tests.support.models import lively_arrays

W = 8
CONFIG = ModelConfig(context_len=W, vocab_size=20, n_layer=2, n_head=2, n_embd=16)
IDS = generator(0, "context").integers(0, 20, (2, REACH * W + 1))
X, Y = IDS[:, :-1], IDS[:, 1:]


def model_of(slot: bool) -> LanguageModel:
    config = replace(CONFIG, context_slot=slot)
    return LanguageModel(config, lively_arrays(config), PicoTokenizer())


def decoded(feed: Decoder | Recut) -> np.ndarray:  # -> (B, T)
    """Return the loss of every token, read one by one."""
    return np.stack([token_losses(feed.feed(X[:, t : t + 1]), Y[:, t]) for t in range(X.shape[1])], axis=1)


@pytest.mark.parametrize("slot", [True, False])
def test_windows(slot: bool) -> None:
    model = model_of(slot)
    settings = {(setting.context, setting.overlap): setting for setting in measure(model, X, Y)}
    assert len(settings) == (2 if slot else 1) * 5
    for (name, overlap), setting in settings.items():
        if overlap < W - 1:
            losses = decoded(Decoder(NumpyReader(model.model, 2), name == "rolling", overlap))
            new = W - overlap  # tokens that each window adds; the last may not be full
            behind = losses[:, W : W + (X.shape[1] - W) // new * new].reshape(2, -1, new)
            np.testing.assert_allclose(setting.curve, behind.mean(axis=(0, 1)), rtol=1e-5)
            assert np.isclose(setting.loss, behind.mean(), rtol=1e-5)


def test_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a remainder of one token first, the losses are those of the last tokens of the windows after it."""
    monkeypatch.setattr(context, "CUTS", 1)
    model = model_of(True)
    found = next(setting for setting in measure(model, X, Y) if setting.context == "original")
    losses = decoded(Recut(NumpyReader(model.model, 2)))
    assert np.isclose(found.loss, losses[:, W::W].mean(), rtol=1e-5)


def test_a_picture(tmp_path: Path) -> None:
    settings = [Setting("rolling", 16, 1.5, [2.0] + [1.5] * 111), Setting("window", 127, 1.4, [1.4])]
    draw(settings, "a run", tmp_path / "context.png")
    assert (tmp_path / "context.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--runs", "nobody"], "no trained run is called 'nobody'"),
        ([], "runs"),
        (["--runs", "a", "--sequences", "x"], "sequences"),
    ],
)
def test_bad_options(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("context: ") and error.count("\n") == 1 and message in error
