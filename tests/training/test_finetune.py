"""Training a part of the parameters: for the rest nothing changes, is computed or takes memory."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest

from picogpt.config import ModelConfig, RunConfig, TrainConfig
from picogpt.engine import Tape, Tensor, backend, ops
from picogpt.engine.lanes import Lanes
from picogpt.errors import UserError
from picogpt.inference.language_model import load
from picogpt.model.gpt import GPT
from picogpt.model.initialization import initial_arrays
from picogpt.model.memory import estimate_memory
from picogpt.model.parameters import Arrays, as_tensors, merged, parameter_count, parameter_shapes, trained_shapes
from picogpt.model.rolling_context import sequence_logits, sequence_loss
from picogpt.rng import generator
from picogpt.runs import checkpoints
from picogpt.training.trainer import Trainer
from tests.support.gradcheck import check_gradients
from tests.support.models import lively_arrays
from tests.support.running import MODEL, before_step, config_for, open_run, result_of, status_of

MODES = ["last-1", "biases", "lora"]
TINY = ModelConfig(context_len=8, vocab_size=13, n_layer=3, n_head=2, n_embd=16, dropout=0.1)
LORA = replace(TINY, lora_rank=2)
IDS = generator(0, "ids").integers(0, 13, (6, 17)).astype(np.int32)
X, Y = np.ascontiguousarray(IDS[:, :-1]), np.ascontiguousarray(IDS[:, 1:])


def run_config(mode: str, model: ModelConfig = TINY, **train: Any) -> RunConfig:
    settings = {"context": 16, "batch_size": 6, "micro_batch": 2, "optimizer": "adamw", **train}
    return RunConfig(model, train=TrainConfig(train=mode, **settings))


def arrays_for(config: RunConfig) -> Arrays:
    return lively_arrays(config.model)


def gradients(config: RunConfig, arrays: Arrays, lanes: int = 1) -> tuple[float, Arrays]:
    with Lanes(lanes) as opened:
        trainer = Trainer(config, arrays, opened)
        loss, _ = trainer.accumulate(X, Y, 0)
        return loss, {name: gradient.copy() for name, gradient in trainer.gradients.items()}


# What is trained


def test_names() -> None:
    shapes = parameter_shapes(TINY)
    assert trained_shapes(run_config("all")) == shapes
    last = list(trained_shapes(run_config("last-2")))
    assert last == [name for name in shapes if name.startswith(("h.1.", "h.2.", "ln_f."))]
    assert list(trained_shapes(run_config("biases"))) == [name for name in shapes if name.endswith(".bias")]
    lora = trained_shapes(run_config("lora", replace(TINY, lora_rank=4)))
    assert lora["h.1.mlp.c_fc.lora_a"] == (4, 16) and lora["h.1.mlp.c_fc.lora_b"] == (64, 4)
    assert len(lora) == 3 * 4 * 2
    assert run_config("lora").model.lora_rank == 8


@pytest.mark.parametrize(
    ("mode", "model", "message"),
    [
        ("last-4", TINY, "--train last-4 is for a model of more blocks: this one has 3"),
        ("biases", replace(TINY, n_layer=0), "--train biases is for a model of more blocks: this one has 0"),
        ("lora", replace(TINY, n_layer=0), "is for a model of more blocks"),
        ("all", LORA, "lora_rank is for --train lora"),
        ("last-0", TINY, "train must be all, last-N"),
        ("heads", TINY, "train must be all, last-N .* not 'heads'"),
    ],
)
def test_what_cannot_be_trained(mode: str, model: ModelConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trained_shapes(run_config(mode, model))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_nothing_else_changes_or_takes_memory(mode: str, optimizer: str) -> None:
    config = run_config(mode, optimizer=optimizer, learning_rate=0.1)
    arrays, names = arrays_for(config), trained_shapes(config).keys()
    before = {name: array.copy() for name, array in arrays.items()}
    with Lanes(2) as lanes:
        trainer = Trainer(config, arrays, lanes)
        for step in range(2):
            trainer.step(X, Y, step, 1.0)
    for name, array in trainer.arrays.items():
        assert np.array_equal(array, before[name]) == (name not in names), name
        assert (array is arrays[name]) == (name not in names)  # not even a copy
    assert {name.partition(".")[2] for name in trainer.optimizer.state} == names
    assert trainer.gradients.keys() == names
    for replica in trainer.replicas:
        assert {name for name, tensor in replica.named_parameters() if tensor.node} == names
    muon = {name for name in trainer.optimizer.state if name.startswith("momentum.")}
    assert bool(muon) == (optimizer == "muon" and mode == "last-1")  # LoRA's matrices are AdamW's
    cost = estimate_memory(config := replace(config, train=replace(config.train, lanes=2)))
    assert cost.gradients == 2 * 4 * sum(array.size for array in trainer.gradients.values())
    assert cost.optimizer == 4 * sum(array.size for array in trainer.optimizer.state.values())
    assert cost.weights == 4 * parameter_count(config.model)[0]


def test_low_rank_matrices_do_not_decay() -> None:
    decayed, kept = ({}, {}), ({}, {})
    for decay, arrays in ((0.0, kept), (0.5, decayed)):
        config = run_config("lora", weight_decay=decay, learning_rate=0.1)
        with Lanes(1) as lanes:
            trainer = Trainer(config, arrays_for(config), lanes)
            trainer.step(X, Y, 0, 1.0)
            arrays[0].update({name: array.copy() for name, array in trainer.trained.items()})
    assert all(np.array_equal(array, decayed[0][name]) for name, array in kept[0].items())


class Elsewhere:
    """An array in another form, as weights in 16 bits are."""

    def __init__(self, array: np.ndarray) -> None:
        self._array, self.shape, self.size, self.ndim, self.dtype = (
            array,
            array.shape,
            array.size,
            array.ndim,
            array.dtype,
        )

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self._array.copy()


def test_what_is_trained_is_in_memory_that_the_lanes_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backend._modules, Elsewhere, np)
    config, arrays = run_config("all"), lively_arrays(TINY)
    trained = []
    for given in (arrays, {name: Elsewhere(array) for name, array in arrays.items()}):
        with Lanes(2) as lanes:
            trainer = Trainer(config, given, lanes)
            trainer.step(X, Y, 0, 1.0)
            trained.append(trainer.arrays)
    assert all(np.array_equal(trained[1][name], array) for name, array in trained[0].items())
    assert not any(np.array_equal(trained[0][name], array) for name, array in arrays.items())


def test_info_of_what_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        status_of("info", "--preset", "gpt-neo-125m", "--train", "biases", "--optimizer", "adamw", "--lanes", "1") == 0
    )
    biases = 12 * (2 * 768 + 768 + 4 * 768 + 768) + 768
    rows = capsys.readouterr().out
    assert f"biases: {biases:,} of 125,198,592 parameters" in rows
    assert f"{4 * biases:,} bytes" in rows and f"{8 * biases:,} bytes" in rows  # gradients, optimizer


# Its gradients


@pytest.mark.parametrize("mode", ["last-1", "last-3", "biases"])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_training_all(mode: str, recompute: bool) -> None:
    """They are equal to the bit, with two windows, uneven micro-batches and dropout."""
    arrays = lively_arrays(TINY)
    whole = gradients(run_config("all", micro_batch=4), arrays)
    part = gradients(run_config(mode, micro_batch=4, recompute=recompute), arrays)
    assert part[0] == whole[0]
    for name, gradient in part[1].items():
        assert np.array_equal(gradient, whole[1][name]), name


@pytest.mark.parametrize("mode", MODES)
def test_lanes_and_recomputing_do_not_matter(mode: str) -> None:
    arrays = arrays_for(run_config(mode))
    one = gradients(run_config(mode), arrays)
    again = gradients(run_config(mode, recompute=True), arrays)
    assert again[0] == one[0] and all(np.array_equal(again[1][name], one[1][name]) for name in one[1])
    two = gradients(run_config(mode), arrays, lanes=2)
    for name, gradient in two[1].items():
        np.testing.assert_allclose(gradient, one[1][name], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("recompute", [False, True])
def test_low_rank_gradients_against_differences(recompute: bool) -> None:
    config = run_config("lora", replace(LORA, dropout=0.0))
    arrays = lively_arrays(config.model, np.float64)
    names = list(trained_shapes(config))

    def loss(*own: Tensor) -> Tensor:
        tensors = {**as_tensors(arrays), **dict(zip(names, own, strict=True))}
        return sequence_loss(GPT(config.model, tensors, recompute), X[:2], Y[:2])

    check_gradients(loss, *(arrays[name] for name in names))


@pytest.mark.parametrize("recompute", [False, True])
def test_frozen_blocks_below_leave_nothing_on_the_tape(recompute: bool) -> None:
    config = run_config("last-1")
    names, arrays = trained_shapes(config), lively_arrays(TINY)
    model = GPT(TINY, as_tensors(arrays, {name: np.empty_like(arrays[name]) for name in names}), recompute)
    with Tape() as tape:
        sequence_loss(model, X[:, :8], Y[:, :8])
    seen = [op for *_, op in tape.records]
    assert seen[0] == ("recompute" if recompute else "layer_norm")  # of the last block
    assert seen.count("recompute") == 2 * recompute and seen.count("causal_attention") == (not recompute)
    assert "embedding" not in seen


def tensor(*shape: int, trained: bool = False) -> Tensor:
    return Tensor(generator(0, str(shape)).standard_normal(shape, np.float32), trained)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (ops.linear, [(5, 4), (3, 4), (3,)]),
        (ops.layer_norm, [(5, 4), (4,), (4,)]),
        (lambda h, w, b: ops.cross_entropy(h, w, b, np.arange(5) % 3), [(5, 4), (3, 4), (3,)]),
    ],
)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_op_computes_the_gradients_that_are_wanted(function: Any, shapes: list[Any], which: int) -> None:
    inputs = [tensor(*shape, trained=i == which) for i, shape in enumerate(shapes)]
    with Tape() as tape:
        output = function(*inputs)
    [(_, _, backward, _)] = tape.records
    found = backward(np.ones(output.shape, np.float32))
    assert [gradient is not None for gradient in found] == [i == which for i in range(3)]


def test_a_frozen_matrix_does_not_keep_its_input() -> None:
    for trained in (False, True):
        x, weight = tensor(5, 4, trained=True), tensor(3, 4, trained=trained)
        with Tape() as tape:
            middle = x + 1.0
            alive = ref(middle.data)
            ops.linear(middle, weight)
            del middle
        assert (alive() is not None) == trained and len(tape.records) == 2


# Low-rank matrices


def test_they_add_nothing_at_first() -> None:
    config = run_config("lora").model
    plain = lively_arrays(TINY)
    arrays = initial_arrays(config, 1, plain)
    assert all(arrays[name] is array for name, array in plain.items())
    ones, others = (sequence_logits(GPT(c, as_tensors(a)), X).data for c, a in ((config, arrays), (TINY, plain)))
    assert np.array_equal(ones, others)
    assert arrays["h.0.mlp.c_proj.lora_a"].std() == pytest.approx(1 / 8, rel=0.1)  # of 64 inputs


def test_merged_is_the_same_model() -> None:
    arrays = lively_arrays(LORA)
    before = {name: array.copy() for name, array in arrays.items()}
    config, plain = merged(LORA, arrays)
    assert config == TINY and {name: array.shape for name, array in plain.items()} == parameter_shapes(TINY)
    found, expected = (sequence_logits(GPT(c, as_tensors(a)), X).data for c, a in ((config, plain), (LORA, arrays)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(plain["h.0.attn.c_attn.weight"], arrays["h.0.attn.c_attn.weight"])
    assert all(np.array_equal(array, before[name]) for name, array in arrays.items())
    assert merged(TINY, plain) == (TINY, plain)


# Runs


@pytest.mark.usefixtures("no_plots", "short_samples")
class TestRuns:
    def config(self, text: Path, mode: str, **changes: Any) -> RunConfig:
        train = {"train": mode, "optimizer": "adamw", "learning_rate": 0.01, "depth_warmup": 0.6, **changes}
        return config_for(text, replace(MODEL, n_layer=3), **train)

    @pytest.fixture
    def origin(self, text: Path) -> Path:
        base = open_run(self.config(text, "all", steps=8), "base")
        base.train()
        found = checkpoints.newest(base.dir)
        assert found is not None
        return found

    @pytest.mark.parametrize("mode", MODES)
    def test_killed_and_continued(
        self,
        text: Path,
        origin: Path,
        mode: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        config = self.config(text, mode)
        whole = open_run(config, "whole", init_from=origin)
        whole.train()
        with monkeypatch.context() as patch:
            before_step(patch, 6, lambda: (_ for _ in ()).throw(RuntimeError("the power went")))
            with pytest.raises(RuntimeError, match="the power went"):
                open_run(config, "killed", init_from=origin).train()
        again = open_run(config, "killed", init_from=origin)
        assert again.state.step == 4
        told = "run killed continues from its own checkpoint: --init-from was needed only once"
        assert capsys.readouterr().out.count(told) == 1
        again.train()
        assert result_of(again) == result_of(whole)
        last, first = checkpoints.load(checkpoints.newest(whole.dir) or origin), checkpoints.load(origin)
        for name, array in first.model.items():
            assert np.array_equal(last.model[name], array) == (name not in trained_shapes(config)), name
        losses = [entry.val_loss or math.inf for entry in whole.log.evaluations]
        assert losses[-1] < min(losses[0], first.meta.val_loss)

    def test_a_run_with_low_rank_matrices_ends_as_a_plain_model(self, text: Path, origin: Path) -> None:
        run = open_run(self.config(text, "lora"), "lora", init_from=origin)
        run.train()
        saved = checkpoints.load(checkpoints.newest(run.dir) or origin)
        model = load(run.dir)
        assert model.config.lora_rank == 0 and saved.meta.config.model.lora_rank == 8
        unmerged = sequence_logits(GPT(run.config.model, as_tensors(saved.model)), X).data
        np.testing.assert_allclose(model.logits(X), unmerged, rtol=1e-5, atol=1e-5)
        onward = open_run(self.config(text, "lora", steps=1), "onward", init_from=saved.path)
        for name, array in model.model.named_parameters():
            assert np.array_equal(onward.start.arrays[name], array.data), name  # merged
        assert not any(
            onward.start.arrays[name].any() for name in onward.start.arrays if name.endswith(".lora_b")
        )  # and anew
        with pytest.raises(UserError, match="train was lora, now all"):
            open_run(self.config(text, "all"), "lora")

    @pytest.mark.parametrize("mode", ["all", *MODES])
    def test_a_run_begun_from_another_trains_all_its_blocks(self, text: Path, origin: Path, mode: str) -> None:
        config = self.config(text, mode)
        arrays = initial_arrays(config.model, 0, checkpoints.load(origin).model)
        with Lanes(1) as lanes:
            assert Trainer(config, arrays, lanes).depth_at(0.0) == 3

    def test_blocks_that_are_trained_do_not_wait(self, text: Path) -> None:
        config = self.config(text, "last-1")
        with Lanes(1) as lanes:
            assert Trainer(config, initial_arrays(config.model, 0), lanes).depth_at(0.0) == 3

    def test_sequences_shorter_than_the_window(self, text: Path) -> None:
        run = open_run(config_for(text, replace(MODEL, init="gpt2"), context=6))
        x, y = run.feed.batch(0, 4)
        assert x.shape == (4, 6) and run.feed.validation[0].shape[1] == 6
        before = run.start.arrays["wpe.weight"].copy()
        with Lanes(1) as lanes:
            trainer = Trainer(run.config, run.start.arrays, lanes)
            trainer.accumulate(x, y, 0)
        assert [bool(row.any()) for row in trainer.gradients["wpe.weight"]] == [True] * 7 + [False] * 10
        run.train()
        last = checkpoints.load(checkpoints.newest(run.dir) or run.dir).model["wpe.weight"]
        assert not np.array_equal(last[:7], before[:7])
        short, whole = (
            estimate_memory(replace(run.fitted, train=replace(run.fitted.train, context=n))) for n in (6, 16)
        )
        assert short.activations < whole.activations * 0.6
