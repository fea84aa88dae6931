"""`picogpt bench` on small configurations: what it prints, and that its loss is that of the whole split."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from picogpt.bench import time_to_loss
from picogpt.bench.matmul_bound import MatmulBound
from picogpt.bench.time_to_loss import race
from picogpt.config import ModelConfig, RunConfig
from picogpt.config.presets import PRESETS, preset
from picogpt.data.loader import validation_windows
from picogpt.data.prepare import prepare
from picogpt.data.shards.reader import Shards
from picogpt.engine.lanes import Lanes
from picogpt.evaluation.loss import full_loss
from picogpt.model.flops import flops_per_token
from picogpt.model.parameters import parameter_shapes
from picogpt.runs import checkpoints
from picogpt.training.trainer import Trainer
from tests.support.running import EASY, config_for, open_run, status_of

SHAPE = ["--context-len", "16", "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--lanes", "2"]
RACE = ["time-to-loss", *SHAPE, "--batch-size", "4", "--steps", "12", "--eval-interval", "4"]


@pytest.fixture(autouse=True)
def small_sgemm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("picogpt.bench.matmul_bound.SGEMM_SIZE", 64)  # the real one takes seconds


def result_of(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """Return the JSON object that the measurement prints, on one line."""
    assert status_of("bench", *argv, "--json") == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    result: dict[str, Any] = json.loads(printed)
    assert isinstance(result["machine"], str)
    return result


def assert_positive(result: dict[str, Any], *names: str) -> None:
    values = {name: result[name] for name in names}
    assert all(math.isfinite(value) and value > 0 for value in values.values()), values


# train


def test_train(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", *SHAPE, "--batch-size", "4", "--seconds", "0.1"]
    result = result_of(capsys, *argv)
    assert_positive(result, "tokens_per_second", "sgemm_gflops", "peak_fraction", "peak_rss_mb", "mflop_per_token")
    assert_positive(result, "matmul_bound_tokens_per_second", "matmul_fraction")
    facts = ("lanes", "micro_batch", "optimizer", "batch_size", "context")
    assert [result[name] for name in facts] == [2, 2, "adamw", 4, 16]
    assert status_of("bench", *argv, "--optimizer", "muon") == 0
    out = capsys.readouterr().out
    assert "tokens_per_second" in out and "muon" in out


@pytest.mark.parametrize(
    "options",
    [
        ["--context", "64"],
        ["--no-tied-head", "--activation", "relu", "--no-bias", "--no-qkv-bias", "--head-bias"],
        ["--layer-pattern", "local", "--local-window", "4", "--attention-scale", "none"],
        ["--no-context-slot", "--n-head", "1"],
    ],
)
def test_train_any_model(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(capsys, "train", *SHAPE, "--batch-size", "2", "--seconds", "0.1", *options)
    assert_positive(result, "tokens_per_second", "matmul_bound_tokens_per_second", "matmul_fraction")


def test_a_bigram_table_has_no_matrix_product(capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(capsys, "train", "--preset", "bigram", "--seconds", "0.1")
    assert_positive(result, "tokens_per_second", "peak_fraction")
    assert (result["matmul_bound_tokens_per_second"], result["matmul_fraction"]) == (None, None)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "gpt2"])
def test_the_bound_does_the_arithmetic_of_the_model(name: str) -> None:
    """Two FLOPs a multiplication, summed over the products, are the FLOPs that `flops_per_token` gives."""
    config = preset(name)
    with Lanes(1) as lanes:
        bound = MatmulBound(config, 2, lanes)
    done = sum(2 * times * math.prod(left) * right[-1] for left, right, times in bound.shapes)
    model = config.model
    if model.n_layer == 0:
        assert done == 0
        return
    matrices = sum(
        math.prod(shape) for name, shape in parameter_shapes(model).items() if len(shape) == 2 and name[0] == "h"
    )
    P, W, C, L = model.n_position, model.context_len, model.n_embd, model.n_layer
    a_window = 6 * P * matrices + 6 * W * C * model.vocab_size + 12 * L * C * P * P
    assert done == 2 * config.context // W * a_window
    assert done / bound.tokens == pytest.approx(flops_per_token(model), rel=0.1)  # which leaves out the context slot


def test_the_bound_of_many_windows() -> None:
    config = RunConfig(ModelConfig(16, 20, 3, 2, 8))
    rolling = replace(config, train=replace(config.train, context=64))
    with Lanes(2) as lanes:
        one, four = MatmulBound(config, 3, lanes), MatmulBound(rolling, 3, lanes)
        assert (one.tokens, four.tokens) == (48, 192)
        assert [(*shapes, 4 * times) for *shapes, times in one.shapes] == [tuple(shape) for shape in four.shapes]
        assert (four.tokens_per_second(0.01) or 0) > 0


# time-to-loss


def test_an_easy_target_is_reached_early(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(capsys, *RACE, "--data", str(text), "--target", "4.45", "--seeds", "5", "6")
    assert result["reached"] == [True, True] and result["seeds"] == [5, 6] and result["target"] == 4.45
    assert all(0 < steps < 12 and steps % 4 == 0 for steps in result["steps"])
    assert all(0 < loss <= 4.45 for loss in result["val_loss"]) and len(set(result["val_loss"])) == 2
    for seconds, total in zip(result["seconds"], result["total_seconds"], strict=True):
        assert 0 < seconds <= total
    assert_positive(result, "parameters", "peak_rss_mb")


def test_an_impossible_target_is_not_reached(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*RACE, "--data", str(text), "--target", "0", "--seeds", "5"]
    result = result_of(capsys, *argv)
    assert (result["reached"], result["steps"]) == ([False], [12]) and result["val_loss"][0] > 0
    assert status_of("bench", *argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("seed 5: NOT REACHED: validation loss ") and "after 12 steps" in out.splitlines()[0]
    assert f"{result['val_loss'][0]}\n" in out  # the same seed, the same loss


def test_nothing_stays_behind(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert status_of("bench", *RACE, "--data", str(text), "--seeds", "1") == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_the_race_is_the_run(text: Path, tmp_path: Path) -> None:
    """It has the same weights, so the same loss, as a run with the same settings after its last step."""
    config = config_for(text)
    run = open_run(config)
    run.train()
    outcome = race(config, 0.0, tmp_path / "other")
    val = prepare(config.data, tmp_path / "other", print).val
    with Lanes(2) as lanes:
        arrays = checkpoints.load(checkpoints.newest(run.dir) or Path()).model
        assert outcome.val_loss == full_loss(Trainer(run.config, arrays, lanes), val)
    assert (outcome.reached, outcome.steps) == (False, 12)


def test_the_whole_split_is_read_only_when_a_slice_is_near(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, read = [], []
    real_full, real_evaluate = full_loss, Trainer.evaluate

    def full(*args: Any) -> float:
        read.append(1)
        return real_full(*args)

    def evaluate(self: Trainer, x: Any, y: Any) -> float:
        looked.append(x.shape)
        return real_evaluate(self, x, y)

    monkeypatch.setattr(time_to_loss, "full_loss", full)
    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    config = config_for(text)
    race(config, 0.0, tmp_path / "a")
    assert len(read) == 1  # at the end
    windows = validation_windows(open_shards_of(tmp_path / "a"), 16, 10**6)[0].shape[0]
    assert looked[:2] == [(max(1, windows // 16), 16)] * 2


def open_shards_of(dataset: Path) -> Shards:
    [index] = dataset.glob("tokens/*/val/index.json")
    return Shards(index.parent, json.loads(index.read_text())["tokenizer"])


def test_the_race_preset() -> None:
    race = preset("race")
    assert (race.data.data, race.data.tokenizer) == ("shakespeare", "chars")
    assert (race.model.vocab_size, race.model.context_slot) == (65, False)


# data and generate


@pytest.mark.parametrize("tokenizer", ["picogpt", "chars"])
def test_data(tokenizer: str, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["data", "--data", str(text), "--seconds", "0.05", "--tokenizer", tokenizer, *SHAPE]
    result = result_of(capsys, *argv, "--megabytes", "1")
    names = [name for name in result if "_per_second" in name]
    assert_positive(result, *names, "text_mb")
    assert len(names) == 6 and math.isfinite(result["rss_growth_mb"])
    assert 2**20 <= result["tokens"] < 2**20 + len(EASY) and result["tokenizer"] == tokenizer
    assert result_of(capsys, *argv, "--megabytes", "0")["tokens"] == len(EASY)


@pytest.mark.parametrize("name", ["exercise-base", "bigram"])
def test_generate(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(capsys, "generate", "--preset", name, "--tokens", "3", "--prompt-tokens", "50")
    assert_positive(result, "fp32", "int8", "fp32_at_1280", "numpy", "matrix_vector_bound", "at_1280_over_empty")
    assert_positive(result, "first_token_ms", "peak_rss_mb", "parameters", "threads")
    assert (result["tokens"], result["prompt_tokens"]) == (3, 50) and "peer" not in result


def test_generate_beside_a_peer(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", "--preset", "bigram", "--tokens", "3", "--peer"]
    result = result_of(capsys, *argv, "echo 'achieved tok/s: 12.5' >&2")
    assert result["peer"] == 12.5
    assert_positive(result, "fp32_over_peer", "int8_over_peer")
    for peer, message in (("exit 3", "status 3"), ("echo hello", "status 0 and printed no")):
        assert status_of("bench", *argv, peer) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error


def test_generate_from_a_run(
    text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_plots: None
) -> None:
    monkeypatch.chdir(text.parent)
    assert status_of("train", *SHAPE, "--preset", "pico", "--data", str(text), "--steps", "1", "--run", "mine") == 0
    capsys.readouterr()
    result = result_of(capsys, "generate", "--run", "mine", "--tokens", "20")
    assert result["parameters"] == 88 * 16 + 17 * 16 + 12 * 16 * 16 + 13 * 16 + 2 * 16
    assert_positive(result, "fp32", "int8")
