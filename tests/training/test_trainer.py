"""Training does not depend on how its work is shared: lanes, micro-batches, processes or threads."""

from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np
import pytest

from picogpt.config import ModelConfig, RunConfig, TrainConfig
from picogpt.engine import lanes
from picogpt.engine.lanes import Lanes
from picogpt.model.initialization import initial_arrays
from picogpt.model.parameters import parameter_shapes
from picogpt.optim.optimizer import state_shapes
from picogpt.training import trainer as trainer_module
from picogpt.training.trainer import NotFiniteError, Trainer

MODEL = ModelConfig(context_len=8, vocab_size=13, n_layer=2, n_head=2, n_embd=16, init="gpt2")
TRAIN = TrainConfig(batch_size=7, context=24, micro_batch=7)  # three windows of eight: rolling
IDS = np.random.default_rng(0).integers(0, 13, (7, 25)).astype(np.int32)
X, Y = np.ascontiguousarray(IDS[:, :-1]), np.ascontiguousarray(IDS[:, 1:])


def gradients(
    count: int, model: ModelConfig = MODEL, step: int = 0, **changes: Any
) -> tuple[float, dict[str, np.ndarray]]:
    """Return the loss and the sum of the lanes' gradients; as many lanes work as there are micro-batches."""
    run = RunConfig(model, train=replace(TRAIN, **changes))
    with Lanes(count) as lanes:
        trainer = Trainer(run, initial_arrays(model, 1), lanes)
        loss, norm = trainer.accumulate(X, Y, step)
    busy = min(count, -(-len(X) // trainer.micro_batch))
    assert [bool(own.flat.any()) for own in trainer.optimizer.gradients] == [lane < busy for lane in range(count)]
    total = trainer.gradients
    assert norm == pytest.approx(sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in total.values())), rel=1e-5)
    return loss, total


def assert_close(result: tuple[float, dict[str, np.ndarray]], expected: tuple[float, dict[str, np.ndarray]]) -> None:
    assert result[0] == pytest.approx(expected[0], rel=1e-6)
    assert result[1].keys() == expected[1].keys()
    for name, gradient in result[1].items():
        np.testing.assert_allclose(gradient, expected[1][name], rtol=2e-5, atol=2e-7, err_msg=name)


def assert_same_bits(result: tuple[float, dict[str, np.ndarray]], other: tuple[float, dict[str, np.ndarray]]) -> None:
    assert result[0] == other[0]
    for name, gradient in result[1].items():
        assert np.array_equal(gradient, other[1][name]), name


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7])
def test_gradients_do_not_depend_on_lanes_and_micro_batches(count: int, micro_batch: int) -> None:
    assert_close(gradients(count, micro_batch=micro_batch), gradients(1))


@pytest.mark.parametrize("count", [2, 3])
def test_dropout_follows_the_micro_batch_and_not_the_lane(count: int) -> None:
    model = replace(MODEL, dropout=0.3)
    one = gradients(1, model, micro_batch=2)
    assert_close(gradients(count, model, micro_batch=2), one)
    assert gradients(1, model, micro_batch=2, step=1)[0] != one[0]  # another step drops others
    assert gradients(1, model, micro_batch=2, seed=1)[0] != one[0]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("count", [1, 2])
def test_recomputing_gives_the_same_bits(dropout: float, count: int) -> None:
    model = replace(MODEL, dropout=dropout)
    kept = gradients(count, model, micro_batch=3)
    assert_same_bits(gradients(count, model, micro_batch=3, recompute=True), kept)


def trained(count: int, **changes: Any) -> tuple[float, dict[str, np.ndarray]]:
    """Return the evaluation after three steps, the parameters and the optimizer's state."""
    model = replace(MODEL, dropout=0.1)
    arrays = initial_arrays(model, 1)
    with Lanes(count) as lanes:
        trainer = Trainer(RunConfig(model, train=replace(TRAIN, micro_batch=2, **changes)), arrays, lanes)
        for step in range(3):
            trainer.step(X, Y, step, 1.0)
        loss = trainer.evaluate(X, Y)
    first = initial_arrays(model, 1)
    assert all(np.array_equal(array, first[name]) for name, array in arrays.items()), "the caller's are left alone"
    assert not any(np.array_equal(array, first[name]) for name, array in trainer.arrays.items())
    return loss, {**trainer.arrays, **trainer.optimizer.state}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_same_lanes_give_the_same_bits(count: int, optimizer: Any) -> None:
    assert_same_bits(trained(count, optimizer=optimizer), trained(count, optimizer=optimizer))


@pytest.mark.skipif(not lanes.FORK, reason="lanes are threads here")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("count", [2, 3])
def test_threads_give_the_bits_of_processes(count: int, optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = trained(count, optimizer=optimizer)
    monkeypatch.setattr(lanes, "FORK", False)
    assert_same_bits(trained(count, optimizer=optimizer), processes)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_evaluation_does_not_depend_on_lanes_and_changes_nothing(count: int) -> None:
    model = replace(MODEL, dropout=0.5)  # which evaluation leaves out
    arrays = initial_arrays(model, 1)
    with Lanes(count) as lanes:
        trainer = Trainer(RunConfig(model, train=replace(TRAIN, micro_batch=2)), arrays, lanes)
        loss = trainer.evaluate(X, Y)
    assert loss == pytest.approx(gradients(1)[0], rel=1e-6)
    assert all(np.array_equal(trainer.arrays[name], array) for name, array in arrays.items())
    assert not any(array.any() for array in trainer.optimizer.state.values())


def test_two_trainers_on_the_same_lanes() -> None:
    """Both are made before either is used, and do not share anything."""
    run = RunConfig(MODEL, train=replace(TRAIN, micro_batch=2))
    with Lanes(2) as lanes:
        first, second = (Trainer(run, initial_arrays(MODEL, seed), lanes) for seed in (1, 2))
        losses = [[trainer.step(X, Y, step, 1.0) for trainer in (first, second)] for step in range(2)]
    for number, seed in enumerate((1, 2)):
        with Lanes(2) as lanes:
            alone = Trainer(run, initial_arrays(MODEL, seed), lanes)
            assert [alone.step(X, Y, step, 1.0) for step in range(2)] == [pair[number] for pair in losses]


# -- blocks that come in later -----------------------------------------------------------------------------------------

DEEP = replace(MODEL, n_layer=8, init="zero")


def deep_trainer(lanes: Lanes, arrays: Any = None, **changes: Any) -> Trainer:
    run = RunConfig(DEEP, train=replace(TRAIN, **{"micro_batch": 2, "depth_warmup": 0.6, **changes}))
    return Trainer(run, initial_arrays(DEEP, 1) if arrays is None else arrays, lanes)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_blocks_that_wait_are_the_identity_and_stay_as_they_are(optimizer: Any) -> None:
    with Lanes(2) as lanes:
        trainer = deep_trainer(lanes, optimizer=optimizer)
        before = {name: array.copy() for name, array in trainer.arrays.items()}
        losses = [trainer.step(X, Y, step, 1.0, depth=2) for step in range(3)]
        shallow = trainer.evaluate(X, Y)
        for replica in trainer.replicas:
            replica.depth = DEEP.n_layer
        assert losses[2] < losses[0]
        for name, array in trainer.arrays.items():
            waits = name.startswith("h.") and int(name.split(".")[1]) >= 2
            assert np.array_equal(array, before[name]) == waits, name
    with Lanes(1) as lanes:
        whole = deep_trainer(lanes, {name: array.copy() for name, array in trainer.arrays.items()})
        assert whole.evaluate(X, Y) == pytest.approx(shallow, rel=1e-6)  # with all eight blocks
        loss, _ = whole.accumulate(X, Y, 0, depth=2)
        assert loss == pytest.approx(shallow, rel=1e-6)
        assert not any(whole.gradients[f"h.{layer}.mlp.c_fc.weight"].any() for layer in range(2, 8))


def test_the_depth_follows_the_run() -> None:
    with Lanes(1) as lanes:
        trainer = deep_trainer(lanes)
        depths = [trainer.depth_at(progress) for progress in (0.0, 0.29, 0.3, 0.59, 0.6, 1.0)]
        assert depths == [2, 2, 4, 4, 8, 8]
        assert deep_trainer(lanes, depth_warmup=0.0).depth_at(0.0) == 8


def test_blocks_that_do_something_never_wait() -> None:
    with Lanes(1) as lanes:
        arrays = initial_arrays(DEEP, 1)
        arrays["h.4.mlp.c_proj.bias"][3] = 1e-3
        assert deep_trainer(lanes, arrays).depth_at(0.0) == 5
        run = RunConfig(MODEL, train=replace(TRAIN, depth_warmup=1.0))
        assert Trainer(run, initial_arrays(MODEL, 1), lanes).depth_at(0.0) == MODEL.n_layer


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_restoring_brings_back_everything(optimizer: Any) -> None:
    """That includes how deep the model was: a run that goes back continues as one that was never further."""
    with Lanes(2) as lanes:
        trainer = deep_trainer(lanes, optimizer=optimizer)
        for step in range(2):
            trainer.step(X, Y, step, 1.0, depth=2)
        then = [{name: array.copy() for name, array in arrays.items()} for arrays in (trainer.arrays, state(trainer))]
        expected = [trainer.step(X, Y, step, 1.0, depth=2) for step in (2, 3)]
        trainer.step(X, Y, 4, 1.0, depth=8)
        deep = {name: array.copy() for name, array in trainer.arrays.items()}
        trainer.restore(*then)
        assert [trainer.step(X, Y, step, 1.0, depth=2) for step in (2, 3)] == expected
    with Lanes(2) as lanes:
        other = deep_trainer(lanes, deep, optimizer=optimizer)
        assert other.depth_at(0.0) == 8
        other.restore(*then)
        assert other.depth_at(0.0) == 2
        assert [other.step(X, Y, step, 1.0, depth=2) for step in (2, 3)] == expected


def state(trainer: Trainer) -> dict[str, np.ndarray]:
    return trainer.optimizer.state


def test_the_shapes_of_the_state_are_known_beforehand() -> None:
    for optimizer in ("adamw", "muon"):
        with Lanes(1) as lanes:
            trainer = deep_trainer(lanes, optimizer=optimizer)
            shapes = {name: array.shape for name, array in state(trainer).items()}
            expected = state_shapes(trainer.config.train, parameter_shapes(DEEP))
            assert shapes == expected and shapes


@pytest.mark.parametrize("count", [1, 2])
def test_a_shrunk_micro_batch_gives_its_memory_back(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[int] = []
    monkeypatch.setattr(trainer_module, "release", lambda: released.append(1))
    with Lanes(count) as lanes:
        trainer = deep_trainer(lanes, micro_batch=4)
        losses = [trainer.step(X, Y, 0, 0.0)]
        for expected in ((2, False), (1, False), (1, True)):
            assert trainer.shrink() and (trainer.micro_batch, trainer.recompute) == expected
            losses += [trainer.step(X, Y, 0, 0.0), trainer.step(X, Y, 0, 0.0)]
        assert not trainer.shrink() and (trainer.micro_batch, trainer.recompute) == (1, True)
    assert losses == pytest.approx([losses[0]] * 7, rel=1e-5)
    assert len(released) == 3  # this lane's own; the other is a process


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    with Lanes(2) as lanes:
        trainer = deep_trainer(lanes)
        trainer.arrays["wpe.weight"][0, 0] = np.inf
        before = {name: array.copy() for name, array in (trainer.arrays | state(trainer)).items()}
        with pytest.raises(NotFiniteError, match=r"step 4: loss nan, gradient norm nan: training diverged"):
            trainer.step(X, Y, 3, 1.0)
        for name, array in (trainer.arrays | state(trainer)).items():
            assert np.array_equal(array, before[name]), name
