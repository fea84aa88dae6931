"""Lanes, as processes and as threads: order, assignment, exceptions, signals, their end, and BLAS threads."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from picogpt.engine import lanes as lanes_module
from picogpt.engine.lanes import Lanes, SharedArrays, extent
from picogpt.errors import UserError
from tests.support import standin

forks = pytest.mark.skipif(not lanes_module.FORK, reason="lanes are threads here")


@pytest.fixture(params=[pytest.param("processes", marks=forks), "threads"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Lanes of both kinds; whichever they are, none is left at the end."""
    threads = threading.active_count()
    monkeypatch.setattr(lanes_module, "FORK", request.param == "processes")
    yield request.param
    assert multiprocessing.active_children() == [] and threading.active_count() == threads


@pytest.fixture
def lanes(kind: str) -> Iterator[Lanes]:
    with Lanes(3) as opened:
        yield opened


def me(*_: Any) -> tuple[int, int]:
    """The process and thread that asks."""
    return os.getpid(), threading.get_ident()


# -- calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 10])
def test_results_come_in_order_and_item_i_runs_on_lane_i(count: int, lanes: Lanes) -> None:
    work = lanes.task(lambda lane, item: (lane, item))
    for _ in range(2):
        assert work(range(count)) == [(i % 3, i) for i in range(count)]


def test_lane_0_is_the_caller_and_each_other_a_worker_that_stays(lanes: Lanes, kind: str) -> None:
    ask = lanes.task(me)
    workers = ask(range(7))
    assert workers[0] == me() and len(set(workers[:3])) == 3
    assert workers == [workers[i % 3] for i in range(7)] == ask(range(7))
    assert len({pid for pid, _ in workers}) == (3 if kind == "processes" else 1)


def test_a_lane_takes_its_items_one_after_another_in_order(lanes: Lanes) -> None:
    seen = SharedArrays.zeros({"number": np.zeros(10, np.int64), "of lane": np.zeros(3, np.int64)}).named

    def work(lane: int, item: int) -> None:
        seen["number"][item] = seen["of lane"][lane]
        seen["of lane"][lane] += 1

    lanes.task(work)(iter(range(10)))
    assert seen["number"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_lanes_work_at_the_same_time(lanes: Lanes, kind: str) -> None:
    context: Any = multiprocessing.get_context("fork") if kind == "processes" else threading
    together = context.Barrier(3)
    assert sorted(lanes.task(lambda lane, item: together.wait(30))(range(3))) == [0, 1, 2]


def test_every_task_is_given_its_own_arguments(lanes: Lanes) -> None:
    power, minus = lanes.task(lambda _, item, exponent: item**exponent), lanes.task(lambda _, item, a, b: item - a - b)
    assert [power(range(4), 2), minus(range(4), 1, 2), power(range(4), 3)] == [
        [0, 1, 4, 9],
        [-3, -2, -1, 0],
        [0, 1, 8, 27],
    ]


def test_arguments_and_results_of_any_size(lanes: Lanes) -> None:
    """Larger than what fits between two processes, both ways."""
    big = np.arange(1 << 20, dtype=np.float32)
    results = lanes.task(lambda lane, item, array: array + item)(range(6), big)
    assert all(np.array_equal(result, big + item) for item, result in enumerate(results))


def test_overflow_is_left_to_the_trainer(lanes: Lanes) -> None:
    assert lanes.task(lambda lane, item: float(np.exp(np.float32(item))))([1000, 1000, 1000]) == [np.inf] * 3


@pytest.mark.parametrize("count", [1, 2])
def test_tasks_are_made_before_the_first_call(count: int, kind: str) -> None:
    with Lanes(count) as lanes:
        ask = lanes.task(me)
        ask([])
        with pytest.raises(RuntimeError, match="before the first"):
            lanes.task(me)
        assert ask([0]) == [me()]


def test_lanes_work_inside_their_with(kind: str) -> None:
    lanes = Lanes(2)
    ask = lanes.task(me)
    with pytest.raises(RuntimeError, match="inside their `with`"):
        ask(range(2))
    with lanes:
        assert len(ask(range(2))) == 2
    with pytest.raises(RuntimeError, match="inside their `with`"):
        ask(range(2))


def test_lanes_of_another_thread_than_the_first(kind: str) -> None:
    """Which may not set signal handlers."""
    results: list[Any] = []

    def train() -> None:
        with Lanes(2) as lanes:
            results.extend(lanes.task(lambda lane, item: (lane, item))(range(3)))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert results == [(0, 0), (1, 1), (0, 2)]


# -- shared memory ---------------------------------------------------------------------------------------------------


def test_shared_arrays_are_zero_and_the_same_memory_in_all_lanes(lanes: Lanes) -> None:
    like = {"a": np.ones((3, 5), np.float32), "b": np.ones(3, np.float32), "one": np.array(7, np.float32)}
    shared = SharedArrays.zeros(like)
    zeros = shared.named
    for name, array in zeros.items():
        assert (array.shape, array.dtype) == (like[name].shape, like[name].dtype) and not array.any()
        assert array.flags.c_contiguous and array.flags.writeable and np.shares_memory(array, shared.flat)
    assert list(zeros) == list(like) and shared.flat.size == extent(like)
    ours = lanes.task(lambda lane, item, value: zeros["a"][item].fill(value + item))
    theirs = lanes.task(lambda lane, item: zeros["a"][(item + 1) % 3].tolist())  # what another lane wrote
    for value in (10, 20):
        ours(range(3), value)
        assert zeros["a"].tolist() == [[value + row] * 5 for row in range(3)]
        assert theirs(range(3)) == [[value + row] * 5 for row in (1, 2, 0)]
    zeros["a"][:] = 4  # and what the caller wrote
    assert theirs(range(3)) == [[4] * 5] * 3
    assert not zeros["b"].any() and not zeros["one"].any()


def test_arrays_side_by_side_do_not_meet() -> None:
    like = {f"{i}": np.empty((i, 3), np.float32) for i in range(1, 12)}
    shared = SharedArrays.zeros(like)
    for i, array in enumerate(shared.named.values(), start=1):
        array += i
    assert all((array == int(name)).all() for name, array in shared.named.items())
    assert shared.flat.sum() == sum(3 * i * i for i in range(1, 12)), "nothing but zeros between them"
    assert SharedArrays.zeros({}).flat.size == 0


def test_shared_arrays_like_device_arrays_are_the_devices() -> None:
    shared = SharedArrays.zeros({"x": standin.ones((2, 3), np.float32)})
    assert type(shared.flat) is type(shared.named["x"]) is standin.DeviceArray
    assert standin.asnumpy(shared.named["x"]).tolist() == [[0] * 3] * 2


# -- exceptions ------------------------------------------------------------------------------------------------------


def test_the_first_lanes_exception_is_raised_and_the_lanes_live_on(lanes: Lanes) -> None:
    done = SharedArrays.zeros({"times": np.zeros(6)}).flat[:6]

    def work(lane: int, item: int) -> int:
        if item in (1, 2):
            raise KeyError(f"lane {lane}") if lane == 1 else RuntimeError(f"lane {lane}")
        done[item] += 1
        return item

    failing, echo = lanes.task(work), lanes.task(lambda lane, item: item)
    for times in (1, 2):
        with pytest.raises(KeyError, match="lane 1"):
            failing(range(6))
        assert done.tolist() == [times, 0, 0, times, 0, 0]  # a lane stops at its exception, the others go on
        assert echo(range(7)) == list(range(7))  # nothing left over from the call before
        assert failing([0]) == [0]
        done[0] -= 1


def test_an_exception_says_what_the_lane_was_doing(lanes: Lanes) -> None:
    def stumble(lane: int, item: int, at: int) -> None:
        if lane == at:
            raise UserError("too small", lane)

    work, echo = lanes.task(stumble), lanes.task(lambda lane, item: item)
    with pytest.raises(UserError) as error:
        work(range(3), 2)
    assert error.value.args == ("too small", 2)
    [note] = error.value.__notes__
    assert note.startswith("in lane 2:\nTraceback") and "in stumble" in note
    with pytest.raises(UserError) as error:
        work(range(3), 0)
    assert error.traceback[-1].name == "stumble" and not hasattr(error.value, "__notes__")
    assert echo(range(3)) == [0, 1, 2]


def test_a_call_that_was_broken_off_is_the_last(lanes: Lanes) -> None:
    """What the other lanes answer to it must not pass for the answer to the next."""

    def interrupted(lane: int, item: int) -> None:
        if lane == 0:
            raise KeyboardInterrupt

    work, echo = lanes.task(interrupted), lanes.task(lambda lane, item: item)
    with pytest.raises(KeyboardInterrupt):
        work(range(3))
    with pytest.raises(RuntimeError, match="broken off"):
        echo(range(3))


@pytest.mark.parametrize("used", [True, False])
def test_an_exception_inside_with_still_ends_the_lanes(kind: str, used: bool) -> None:
    with pytest.raises(KeyError), Lanes(3) as lanes:
        ask = lanes.task(me)
        if used:
            ask(range(3))
            workers = multiprocessing.active_children() if kind == "processes" else threading.enumerate()
            assert {"lane-1", "lane-2"} <= {worker.name for worker in workers}
        raise KeyError


# -- processes that are ended ----------------------------------------------------------------------------------------


@forks
def test_a_busy_lane_is_not_waited_for() -> None:
    """As after a second Ctrl-C: this one would never be done."""
    never, held = os.pipe()

    def work(lane: int, item: int) -> None:
        if lane == 0:
            raise KeyboardInterrupt
        os.read(never, 1)

    with pytest.raises(KeyboardInterrupt), Lanes(2) as lanes:
        lanes.task(work)(range(2))
    assert multiprocessing.active_children() == []
    os.close(never)
    os.close(held)


@forks
def test_a_lane_that_is_killed_while_it_waits_is_told_in_one_line() -> None:
    with Lanes(3) as lanes, pytest.raises(UserError, match="process 2 was ended from outside") as error:
        ask = lanes.task(me)
        ask(range(3))
        [child] = [child for child in multiprocessing.active_children() if child.name == "lane-2"]
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        assert len(ask(range(2))) == 2  # the others do not need it
        ask(range(3))
    assert "\n" not in str(error.value) and multiprocessing.active_children() == []


@forks
def test_a_lane_that_is_killed_while_it_works_is_told_in_one_line() -> None:
    with Lanes(2) as lanes, pytest.raises(UserError, match="process 1 was ended from outside") as error:
        lanes.task(lambda lane, item: os.kill(os.getpid(), signal.SIGKILL) if lane else None)(range(2))
    assert "\n" not in str(error.value) and multiprocessing.active_children() == []


@forks
def test_a_lane_that_is_killed_in_the_middle_of_its_answer_is_told_in_one_line() -> None:
    def work(lane: int, item: int) -> bytes:
        if lane == 0:  # which keeps the caller from reading more of the other's answer than that it began
            assert lanes._links[0].poll(30)
            [child] = multiprocessing.active_children()
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
        return bytes(1 << 24)

    with Lanes(2) as lanes, pytest.raises(UserError, match="process 1 was ended from outside"):
        lanes.task(work)(range(2))


@forks
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_the_callers(number: signal.Signals) -> None:
    """Ctrl-C in a terminal goes to all processes, and one of them decides."""
    with Lanes(2) as lanes:
        ask = lanes.task(me)
        before = ask(range(2))
        os.kill(before[1][0], number)
        assert ask(range(2)) == before


ORPHANS = """
import os, sys
from picogpt.engine.lanes import Lanes

released = os.dup(0)  # readable once the test closes its end

def wait(lane, item):
    os.write(1, b"busy\\n")
    os.read(released, 1)

with Lanes(3) as lanes:
    ask, work = lanes.task(lambda *_: os.getpid()), lanes.task(wait)
    print(*ask(range(3)), flush=True)
    if sys.argv[1] == "busy":
        work(range(3))
    os.write(1, b"idle\\n" * 3)
    os.read(released, 1)
"""


@forks
@pytest.mark.parametrize("state", ["busy", "idle"])
def test_a_killed_caller_leaves_no_orphans(state: str) -> None:
    """Its output ends when the last process that holds it has gone."""
    command = [sys.executable, "-W", "error", "-c", ORPHANS, state]
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    pids = [int(pid) for pid in program.stdout.readline().split()]
    assert pids[0] == program.pid and len(set(pids)) == 3
    assert [program.stdout.readline() for _ in range(3)] == [f"{state}\n".encode()] * 3
    program.kill()
    try:
        _, errors = program.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        for pid in pids[1:]:
            os.kill(pid, signal.SIGKILL)
        raise
    assert program.returncode == -signal.SIGKILL and errors == b""


# -- BLAS ------------------------------------------------------------------------------------------------------------


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_blas_has_one_thread_inside_and_what_it_had_afterwards(kind: str) -> None:
    with threadpool_limits(2, "blas"):
        before = blas_threads()  # {2}; fewer where the BLAS has one thread, none where it cannot be asked
        limited = {1 for _ in before}
        with Lanes(2) as lanes:
            assert lanes.task(lambda lane, item: blas_threads())(range(2)) == [limited, limited]
            assert blas_threads() == limited
        assert blas_threads() == before
        with pytest.raises(KeyError), Lanes(1) as lanes:
            lanes.task(lambda lane, item: {}[item])([0])
        assert blas_threads() == before


@forks
def test_blas_has_its_threads_again_after_a_lane_was_killed() -> None:
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        with pytest.raises(UserError), Lanes(2) as lanes:
            lanes.task(lambda lane, item: os.kill(os.getpid(), signal.SIGKILL) if lane else None)(range(2))
        assert blas_threads() == before


def test_lanes_that_were_never_entered_leave_blas_alone() -> None:
    with threadpool_limits(2, "blas"):
        before = blas_threads()
        Lanes(2)
        assert blas_threads() == before


def test_what_a_failed_call_had_in_hand_is_let_go(lanes: Lanes) -> None:
    """At once, not when the garbage is collected: the memory is wanted for another try."""
    held: list[weakref.ref[np.ndarray]] = []

    def work(lane: int, item: int) -> None:
        array = np.zeros(1000)
        if lane == 0:
            held.append(weakref.ref(array))
        raise MemoryError("there is no more")

    call = lanes.task(work)
    gc.disable()
    try:
        with pytest.raises(MemoryError, match="there is no more"):
            call(range(3))
        assert held and held[0]() is None
    finally:
        gc.enable()
