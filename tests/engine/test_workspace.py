"""Recycled memory: a block comes back when its last view dies, never before; a later step asks for nothing new."""

import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.config import ModelConfig, RunConfig, TrainConfig
from picogpt.engine import workspace
from picogpt.engine.lanes import Lanes
from picogpt.engine.workspace import ARENA_BYTES, SMALL_BYTES, Workspace
from picogpt.model.initialization import initial_arrays
from picogpt.training.trainer import Trainer

LARGE = (SMALL_BYTES // 4,)  # the smallest float32 array that comes from an arena


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.fixture
def arenas(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the arenas made from now on, when everything that asks for memory begins without any."""
    made: list[int] = []
    real = workspace._new_arena

    def counted(nbytes: int) -> Any:
        made.append(nbytes)
        return real(nbytes)

    monkeypatch.setattr(workspace, "_new_arena", counted)
    monkeypatch.setattr(workspace, "_workspace", Workspace())
    return made


# -- arrays ----------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    shape=st.lists(st.integers(0, 60), max_size=4).map(tuple),
    dtype=st.sampled_from([np.float32, np.float64, np.int32, np.uint8, np.bool_, "float32", np.dtype("int64")]),
)
def test_it_is_an_ordinary_array(shape: tuple[int, ...], dtype: Any) -> None:
    array = Workspace().empty(shape, dtype)
    assert type(array) is np.ndarray and array.shape == shape and array.dtype == np.dtype(dtype)
    assert array.flags.c_contiguous and array.flags.aligned and array.flags.writeable
    if array.nbytes >= SMALL_BYTES:
        assert address(array) % 4096 == 0
    array.fill(1)
    assert np.all(array == 1)


def test_small_arrays_come_from_numpy(arenas: list[int]) -> None:
    space = Workspace()
    small = space.empty((LARGE[0] - 1,), np.float32)
    assert small.base is None and arenas == []
    assert space.empty(LARGE, np.float32).base is not None and arenas == [ARENA_BYTES]


@settings(max_examples=300, deadline=None)
@given(nbytes=st.integers(SMALL_BYTES, 1 << 36))
def test_size_classes_cost_an_eighth_at_most(nbytes: int) -> None:
    size = workspace._size_class(nbytes)
    assert nbytes <= size <= nbytes * 9 / 8 and size % 4096 == 0
    assert workspace._size_class(size) == size


# -- recycling -------------------------------------------------------------------------------------------------------


def test_a_block_comes_back_when_its_array_dies() -> None:
    space = Workspace()
    first = space.empty(LARGE, np.float32)
    where = address(first)
    second = space.empty(LARGE, np.float32)
    assert address(second) != where
    del first
    assert address(space.empty(LARGE, np.float32)) == where


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[5:7],
        lambda a: a.reshape(2, -1).T,
        lambda a: a.view(np.int32),
        lambda a: np.asarray(a)[::-2],
        lambda a: np.broadcast_to(a[:1], (4,)),
        memoryview,
    ],
)
def test_a_block_stays_out_while_any_view_lives(view: Any) -> None:
    space = Workspace()
    array = space.empty(LARGE, np.float32)
    where, kept = address(array), view(array)
    del array
    other = space.empty(LARGE, np.float32)
    assert address(other) != where
    del kept
    assert address(space.empty(LARGE, np.float32)) == where


def test_a_block_serves_every_shape_and_dtype_of_its_size_class() -> None:
    space = Workspace()
    where = address(space.empty((1000, 100), np.float32))
    assert address(space.empty((100, 500), np.float64)) == where
    assert address(space.empty((99_500,), np.int32)) == where
    assert address(space.empty((200_000,), np.float32)) != where


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_live_arrays_never_overlap(data: st.DataObject) -> None:
    space, alive = Workspace(), []
    for stamp in range(30):
        if alive and data.draw(st.booleans()):
            array, expected = alive.pop(data.draw(st.integers(0, len(alive) - 1)))
            assert np.all(array == expected)
        else:
            alive.append((space.empty((data.draw(st.integers(15_000, 60_000)),), np.float32), stamp))
            alive[-1][0].fill(stamp)
    assert all(np.all(array == expected) for array, expected in alive)


def test_arenas_are_carved_before_another_is_made(arenas: list[int]) -> None:
    space = Workspace()
    held = [space.empty((1 << 20,), np.float32) for _ in range(8)]  # 8 times 4 MB fill one
    assert arenas == [ARENA_BYTES]
    held.append(space.empty((1 << 20,), np.float32))
    assert arenas == [ARENA_BYTES] * 2


def test_an_array_larger_than_an_arena(arenas: list[int]) -> None:
    space = Workspace()
    array = space.empty((ARENA_BYTES + 1,), np.uint8)
    assert array.nbytes == ARENA_BYTES + 1 and len(arenas) == 1 and arenas[0] > ARENA_BYTES
    del array
    assert space.empty((ARENA_BYTES + 1,), np.uint8).size and len(arenas) == 1


# -- threads ---------------------------------------------------------------------------------------------------------


def test_what_is_released_goes_back_and_what_is_in_use_stays(arenas: list[int]) -> None:
    own = Workspace()
    used, free = own.empty((1 << 20,), np.float32), own.empty((1 << 20,), np.float32)
    used[...], at = 7, address(free)
    del free
    own.release()
    assert (used == 7).all()
    other = own.empty((1 << 20,), np.float32)
    assert len(arenas) == 2 and address(other) != at
    del used  # its block comes back to the list it is from
    again = own.empty((1 << 20,), np.float32)
    assert len(arenas) == 2 and not np.shares_memory(again, other)


def in_thread(function: Any) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results.pop()


def test_threads_do_not_share_blocks(arenas: list[int]) -> None:
    space = Workspace()
    mine = address(space.empty(LARGE, np.float32))  # free again
    theirs = in_thread(lambda: address(space.empty(LARGE, np.float32)))
    assert theirs != mine and len(arenas) == 2
    assert address(space.empty(LARGE, np.float32)) == mine


def test_a_block_freed_elsewhere_goes_home() -> None:
    space = Workspace()
    box = [space.empty(LARGE, np.float32)]
    where = address(box[0])

    def free_and_ask() -> int:
        box.clear()
        return address(space.empty(LARGE, np.float32))

    assert in_thread(free_and_ask) != where
    assert address(space.empty(LARGE, np.float32)) == where


def test_an_array_outlives_its_thread() -> None:
    space = Workspace()

    def make() -> np.ndarray:
        array = space.empty(LARGE, np.float32)
        array.fill(7)
        return array

    array = in_thread(make)
    others = [in_thread(make) for _ in range(3)]
    assert np.all(array == 7) and len({address(a) for a in (array, *others)}) == 4


# -- a training step -------------------------------------------------------------------------------------------------


def training(**changes: Any) -> tuple[RunConfig, np.ndarray, np.ndarray]:
    """A step whose arrays are large enough for the workspace."""
    model = ModelConfig(context_len=32, vocab_size=40, n_layer=3, n_head=4, n_embd=64)
    run = RunConfig(model, train=TrainConfig(batch_size=16, micro_batch=16, context=64, **changes))
    ids = np.random.default_rng(1).integers(0, 40, (16, 65)).astype(np.int32)
    return run, ids[:, :-1], ids[:, 1:]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_later_steps_recycle_the_memory_of_the_first(optimizer: Any, arenas: list[int]) -> None:
    run, x, y = training(optimizer=optimizer)
    with Lanes(1) as lanes:
        trainer = Trainer(run, initial_arrays(run.model, 1), lanes)
        trainer.step(x, y, 0, 1.0)
        first = len(arenas)
        tracemalloc.start()
        try:
            trainer.step(x, y, 1, 1.0)
            start = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            trainer.step(x, y, 2, 1.0)
            end, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert first >= 1 and len(arenas) == first
    assert peak - start < 1 << 20  # beside the arenas; an activation of this model is 132 KB and up
    assert end - start < 64 << 10


def test_recomputing_needs_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = {}
    for recomputing in (False, True):
        run, x, y = training(recompute=recomputing)
        leased = [0, 0]  # bytes out of the workspace now, and at most
        with Lanes(1) as lanes:
            trainer = Trainer(run, initial_arrays(run.model, 1), lanes)
            track(monkeypatch, leased)
            trainer.accumulate(x, y, 0)
        peaks[recomputing] = leased[1]
        assert leased[0] == 0
    assert peaks[True] < 0.5 * peaks[False]


def track(monkeypatch: pytest.MonkeyPatch, leased: list[int]) -> None:
    """Count the bytes of the blocks that are out."""

    class Counting(workspace._Lease):
        __slots__ = ()

        def __init__(self, block: Any, *rest: Any) -> None:
            super().__init__(block, *rest)
            leased[0] += block.nbytes
            leased[1] = max(leased)

        def __del__(self) -> None:
            leased[0] -= self._block.nbytes
            super().__del__()

    monkeypatch.setattr(workspace, "_Lease", Counting)
