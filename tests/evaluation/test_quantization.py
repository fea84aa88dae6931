"""What few bits cost: the loss that an export of a run in int8 or int4 adds."""

import re
from pathlib import Path
from typing import Any

import pytest

from picogpt.evaluation import quantization
from picogpt.runs import checkpoint, checkpoints
from picogpt.runs.layout import ONNX
from tests.support.running import status_of

FILE = Path("logs/pico-easy") / ONNX


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_what_few_bits_lose_is_measured(precision: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("export", "--run", "pico-easy", "--precision", precision) == 0
    out = capsys.readouterr().out
    assert f"wrote {FILE}: {precision}" in out
    losses = rf"{precision} (\S+), fp32 (\S+); {precision} loses (\S+) nats"
    found = re.search(rf"loss over (\d+) tokens to validate with, of easy.txt: {losses}", out)
    assert found, out
    tokens, few, exact, lost = (float(number) for number in found.groups())
    assert 200 <= tokens <= 234 and abs(few - exact - lost) < 2e-4 and abs(lost) < 0.05
    assert status_of("export") == 0
    assert "loses" not in capsys.readouterr().out


def test_a_loss_that_matters_is_said(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "TOLERANCE", -1.0)
    assert status_of("export", "--precision", "int8") == 0
    assert "fp32 writes better" in capsys.readouterr().out


def test_a_text_that_is_gone_is_replaced_by_the_sample(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("easy.txt").unlink()
    assert status_of("export", "--precision", "int8") == 0
    out = capsys.readouterr().out
    assert "easy.txt" in out and "measuring on the embedded sample" in out
    assert "of the embedded sample: int8" in out


def test_the_windows_to_measure_on_need_no_weights(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = checkpoint._read_arrays

    def noted(path: Path, *rest: Any) -> Any:
        read.append(path.name)
        return original(path, *rest)

    monkeypatch.setattr(checkpoint, "_read_arrays", noted)
    place = Path("logs/pico-easy/checkpoints/00000004")
    name, (x, y) = quantization._validation_windows(place, print)
    assert (name, x.shape[1], y.shape) == ("easy.txt", 16, x.shape) and read == []
    checkpoints.load(place)
    assert checkpoint.MODEL in read  # which is how a read of weights shows
