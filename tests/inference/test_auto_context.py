"""`--context auto` goes on with the mean of a window where the model was trained to, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
from onnx import helper

import picogpt
from picogpt import cli
from picogpt.config import GenerateConfig
from picogpt.inference.engines import export_checkpoint, open_generator, open_onnx
from picogpt.inference.generator import Generator
from picogpt.inference.windows import Decoder
from picogpt.runs import checkpoints
from picogpt.runs.layout import onnx_path
from tests.support.paths import GOLDEN
from tests.support.running import MODEL, config_for, open_run

PICOGPT_LOG = GOLDEN / "picogpt_log.pkl"
W = MODEL.context_len


def rolls(generator: Generator) -> bool:
    """What `auto` comes to."""
    decoder = generator.begin(GenerateConfig(context="auto"))._decoder
    assert isinstance(decoder, Decoder)
    return decoder._rolling


@pytest.mark.parametrize(("context", "expected"), [(0, False), (W, False), (W // 2, False), (2 * W, True)])
def test_a_run_rolls_where_it_was_trained_to(context: int, expected: bool, text: Path, no_plots: None) -> None:
    run = open_run(config_for(text, context=context, steps=2, eval_interval=1))
    run.train()
    place = checkpoints.newest(run.dir)
    assert place is not None
    assert rolls(picogpt.load(place).generator) is expected
    for portable in (False, True):
        path = export_checkpoint(place, "fp32", portable)
        assert open_onnx(path).rolls is expected
        assert rolls(open_generator(str(path), "onnx", "auto", print)[0]) is expected


def test_plain_windows_write_as_context_window_does(text: Path, no_plots: None) -> None:
    run = open_run(config_for(text, steps=30))
    run.train()
    model = picogpt.load(run.dir)
    first, window, rolling = (
        model.generate("she sells", tokens=5 * W, temperature=0, context=context)  # type: ignore[arg-type]
        for context in ("auto", "window", "rolling")
    )
    assert first == window != rolling


@pytest.mark.parametrize(("context", "expected"), [(0, False), (2 * W, True)])
def test_samples_of_training_roll_likewise(
    context: int, expected: bool, text: Path, no_plots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    original = Generator.begin

    def begin(self: Generator, config: GenerateConfig) -> Any:
        asked.append(rolls_of(self, config))
        return original(self, config)

    def rolls_of(generator: Generator, config: GenerateConfig) -> bool:
        decoder = original(generator, config)._decoder
        return isinstance(decoder, Decoder) and decoder._rolling

    monkeypatch.setattr(Generator, "begin", begin)
    open_run(config_for(text, context=context, steps=2, eval_interval=1)).train()
    assert asked == [expected] * 2


def test_a_log_of_picogpt_rolls_as_it_was_trained_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", "--from", str(PICOGPT_LOG), "--run", "old", "--n-head", "2"]) == 0
    assert rolls(picogpt.load("old").generator)
    assert rolls(open_generator("old", "onnx", "auto", print)[0])


def test_a_file_that_does_not_say_is_made_again(text: Path, no_plots: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those are which were exported before there was a choice; by its path it is opened all the same."""
    run = open_run(config_for(text, context=2 * W, steps=2))
    run.train()
    path = onnx_path(checkpoints.newest(run.dir) or run.dir)
    with monkeypatch.context() as patch:
        original = helper.set_model_props
        patch.setattr(helper, "set_model_props", lambda model, props: original(model, props | {"rolls": "null"}))
        open_generator(str(run.dir), "onnx", "auto", print)
    assert open_onnx(path).rolls is None
    assert not rolls(open_generator(str(path), "onnx", "auto", print)[0])
    assert rolls(open_generator(str(run.dir), "onnx", "auto", print)[0]) and open_onnx(path).rolls
