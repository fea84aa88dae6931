"""Lanes: order, assignment, exceptions, BLAS threads; and that training does not depend on how the work is shared."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from picogpt.config import ModelConfig, RunConfig, TrainConfig
from picogpt.engine.lanes import Lanes
from picogpt.model.parameters import initial_arrays
from picogpt.training.trainer import Trainer

MODEL = ModelConfig(context_len=8, vocab_size=13, n_layer=2, n_head=2, n_embd=16)
TRAIN = TrainConfig(batch_size=7, context=24, micro_batch=7)  # three windows of eight: rolling
IDS = np.random.default_rng(0).integers(0, 13, (7, 25)).astype(np.int32)
X, Y = np.ascontiguousarray(IDS[:, :-1]), np.ascontiguousarray(IDS[:, 1:])


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    with Lanes(3) as opened:
        yield opened


# -- map -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 10])
def test_results_come_in_order_and_item_i_runs_on_lane_i(count: int, lanes: Lanes) -> None:
    names = {}

    def work(lane: int, item: int) -> tuple[int, int]:
        names[lane] = threading.current_thread().name
        return lane, item

    assert lanes.map(work, range(count)) == [(i % 3, i) for i in range(count)]
    assert names == {lane: f"lane-{lane}" for lane in range(min(3, count))}


def test_a_lane_takes_its_items_one_after_another_in_order(lanes: Lanes) -> None:
    started: list[list[int]] = [[], [], []]
    lanes.map(lambda lane, item: started[lane].append(item), iter(range(10)))
    assert started == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]


def test_lanes_work_at_the_same_time(lanes: Lanes) -> None:
    together = threading.Barrier(3, timeout=30)
    assert sorted(lanes.map(lambda lane, item: together.wait(), range(3))) == [0, 1, 2]


def test_the_first_lanes_exception_is_raised_and_the_lanes_live_on(lanes: Lanes) -> None:
    finished = []

    def work(lane: int, item: int) -> int:
        if item in (1, 2):
            raise KeyError(f"lane {lane}") if lane == 1 else RuntimeError(f"lane {lane}")
        finished.append(item)
        return item

    for _ in range(2):
        finished.clear()
        with pytest.raises(KeyError, match="lane 1"):
            lanes.map(work, range(6))
        assert sorted(finished) == [0, 3]  # a lane stops at its exception, the others go on
        assert lanes.map(lambda lane, item: item, range(7)) == list(range(7))


def test_an_exception_inside_with_still_ends_the_threads() -> None:
    before = threading.active_count()
    with pytest.raises(KeyError), Lanes(2):
        assert threading.active_count() == before + 2
        raise KeyError
    assert threading.active_count() == before


# -- BLAS ------------------------------------------------------------------------------------------------------------


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_blas_has_one_thread_inside_and_what_it_had_afterwards() -> None:
    with threadpool_limits(2, "blas"):
        before = blas_threads()  # {2}; fewer where the BLAS has one thread, none where it cannot be asked
        limited = {1 for _ in before}
        with Lanes(2) as lanes:
            assert lanes.map(lambda lane, item: blas_threads(), range(2)) == [limited, limited]
            assert blas_threads() == limited
        assert blas_threads() == before
        with pytest.raises(KeyError), Lanes(1) as lanes:
            lanes.map(lambda lane, item: {}[item], [0])
        assert blas_threads() == before


def test_lanes_that_were_never_entered_leave_blas_alone() -> None:
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        Lanes(2)
        assert blas_threads() == before


# -- training --------------------------------------------------------------------------------------------------------


def gradients(
    count: int, model: ModelConfig = MODEL, step: int = 0, **changes: Any
) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and the sum of the lanes' gradients, for this many lanes."""
    run = RunConfig(model, train=replace(TRAIN, **changes))
    with Lanes(count) as lanes:
        trainer = Trainer(run, initial_arrays(model, 1), lanes)
        losses, parts = trainer.gradients(X, Y, step)
        assert len(parts) == min(count, -(-len(X) // trainer.micro_batch))
        total = {name: np.sum([part[name] for part in parts], axis=0, dtype=np.float64) for name in parts[0]}
        return sum(map(float, losses)), total


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
    model = replace(MODEL, dropout=0.1)
    arrays = initial_arrays(model, 1)
    with Lanes(count) as lanes:
        trainer = Trainer(RunConfig(model, train=replace(TRAIN, micro_batch=2, **changes)), arrays, lanes)
        losses = [trainer.step(X, Y, step, 1.0) for step in range(3)]
    return losses[-1], arrays


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_same_lanes_give_the_same_bits(count: int, optimizer: Any) -> None:
    assert_same_bits(trained(count, optimizer=optimizer), trained(count, optimizer=optimizer))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_evaluation_does_not_depend_on_lanes_and_changes_nothing(count: int) -> None:
    model = replace(MODEL, dropout=0.5)  # which evaluation leaves out
    arrays = initial_arrays(model, 1)
    before = {name: array.copy() for name, array in arrays.items()}
    with Lanes(count) as lanes:
        loss = Trainer(RunConfig(model, train=replace(TRAIN, micro_batch=2)), arrays, lanes).evaluate(X, Y)
    assert loss == pytest.approx(gradients(1)[0], rel=1e-6)
    assert all(np.array_equal(array, before[name]) for name, array in arrays.items())
