"""Lanes: workers that train side by side, one a core.

NumPy's element-wise work runs on one thread and BLAS alone on all of them, so the usual way leaves a core idle half
the time. Here each lane takes whole micro-batches on one core, with one BLAS thread and a workspace of its own. Which
lane takes which item is fixed, so that the same number of lanes always gives the same bits.

A lane is a process, made by fork: it has an interpreter lock of its own, and begins with everything that was there.
Threads would hand one lock back and forth thousands of times a step, which costs a small model a third of its speed and
a large one the more, the faster its products are. Lane 0 is the caller itself. What lanes write for each other lies in
`SharedArrays`. Where fork is not safe (Windows, macOS) the other lanes are threads, with the same
code and the same bits.
"""

import mmap
import multiprocessing
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from picogpt.engine.backend import Array, array_module
from picogpt.errors import UserError

Result = TypeVar("Result")
Answer = tuple[list[object], Exception | None]  # the results of a lane, or what it raised

FORK = sys.platform == "linux"
_ALIGN = 16  # elements: a cache line


@dataclass(frozen=True)
class SharedArrays:
    """Named arrays that lie side by side in one, in memory that stays one and the same in all lanes."""

    flat: Array  # (all elements, and zeros between the arrays)
    named: dict[str, Array]

    @classmethod
    def zeros(cls, like: Mapping[str, Array]) -> "SharedArrays":
        """Make zeros of these shapes, in this order; all of one dtype and on one device (a GPU has one lane)."""
        if not like:
            return cls(np.empty(0, np.float32), {})
        first = next(iter(like.values()))
        if array_module(first) is np:
            size = extent(like) * first.dtype.itemsize
            try:
                memory = mmap.mmap(-1, size)  # taken from the machine only where it is written to
            except OSError as error:
                raise MemoryError(f"{size >> 20} MB for the model") from error
            flat = np.frombuffer(memory, first.dtype)
        else:
            flat = array_module(first).zeros(extent(like), first.dtype)
        named, start = {}, 0
        for name, array in like.items():
            named[name] = flat[start : start + array.size].reshape(array.shape)
            start += extent({name: array})
        return cls(flat, named)


def extent(arrays: Mapping[str, Array]) -> int:
    """Return how many elements `SharedArrays` of these have, with the zeros between them."""
    return sum(-(-array.size // _ALIGN) * _ALIGN for array in arrays.values())


class Lanes:
    """Workers that run tasks side by side: `with Lanes(2) as lanes:`, then tasks, then calls of them.

    square = lanes.task(lambda lane, item, power: item**power)
    square([1, 2, 3], 2)  # [1, 4, 9]
    """

    def __init__(self, count: int, blas_threads: int = 1) -> None:
        """Set up lanes that begin with the first call of a task. blas_threads: of each lane."""
        self.count, self.blas_threads = count, blas_threads
        self._blas: Any = None  # the limits to restore; None outside the `with`
        self._begun = self._waiting = False
        self._tasks: list[Callable[..., object]] = []
        self._links: list[Connection] = []
        self._workers: list[Any] = []

    def __enter__(self) -> "Lanes":
        self._blas = ThreadpoolController().limit(limits=self.blas_threads, user_api="blas")
        return self

    def __exit__(self, *exc: object) -> None:
        for link in self._links:
            link.close()  # which tells an idle lane to end
        if FORK:
            for worker in self._workers:
                worker.kill()  # one that is busy has nothing worth waiting for
        for worker in self._workers:
            worker.join()
        self._blas.restore_original_limits()
        self._links, self._workers, self._tasks = [], [], []
        self._blas, self._begun, self._waiting = None, False, False

    def task(self, function: Callable[..., Result]) -> Callable[..., list[Result]]:
        """Return a callable that calls function(lane, item, *args) for items: item i runs on lane i % count.

        It takes (items, *args), waits for all lanes, and returns the results in the order of the items, or raises the
        first lane's exception; all of these must be picklable. Tasks are made before the first one is called: the lanes
        begin there, and know what exists by then. What a task changes outside `SharedArrays` may stay in its lane.
        Raises UserError if a lane was ended from outside.
        """
        if self._begun:
            raise RuntimeError("tasks are made before the first of them is called")
        self._tasks.append(function)
        number = len(self._tasks) - 1
        return lambda items, *args: self._call(number, list(items), args)

    def _call(self, number: int, items: Sequence[object], args: tuple[object, ...]) -> list[Any]:
        self.begin()
        if self._waiting:
            raise RuntimeError("an earlier call was broken off: what lanes answer now could be meant for that one")
        self._waiting = True
        shares = [items[lane :: self.count] for lane in range(min(self.count, len(items)))]
        for lane, link in enumerate(self._links[: max(0, len(shares) - 1)], start=1):
            with _in_reach(lane):
                link.send_bytes(pickle.dumps((number, shares[lane], args)))
        answers = [self._work(lane, number, share, args) for lane, share in enumerate(shares[:1])]
        answers += [self._answer(lane) for lane in range(1, len(shares))]
        self._waiting = False
        for _, error in answers:
            if error is not None:
                try:
                    raise error
                finally:
                    del answers, error  # else the error would keep itself alive, and all that was in hand with it
        results: list[object] = [None] * len(items)
        for lane, (values, _) in enumerate(answers):
            results[lane :: self.count] = values
        return results

    def _answer(self, lane: int) -> Answer:
        with _in_reach(lane):
            answer: Answer = self._links[lane - 1].recv()
        return answer

    def begin(self) -> None:
        """Begin now, not with the first call: processes are made before there are threads, whose locks they inherit."""
        if not self._begun:
            self._begin()

    def _begin(self) -> None:
        if self.count > 1 and self._blas is None:
            raise RuntimeError("lanes work inside their `with`, which ends them")
        self._begun = True
        for lane in range(1, self.count):
            ours, theirs = multiprocessing.Pipe()
            self._links.append(ours)
            if FORK:
                kind: Any = multiprocessing.get_context("fork").Process
            else:
                kind = threading.Thread
            worker = kind(target=self._serve, args=(lane, theirs), name=f"lane-{lane}", daemon=True)
            worker.start()
            if FORK:
                theirs.close()
            self._workers.append(worker)

    def _serve(self, lane: int, link: Connection) -> None:
        """Do the tasks that arrive until the caller closes the link."""
        if FORK:
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the caller handles them
                signal.signal(getattr(signal, name), signal.SIG_IGN)
            for other in self._links:  # held open here too, the others would not see the caller's end
                other.close()
        while True:
            try:
                number, share, args = link.recv()
                # Not `send`: where it breaks off, its buffer may end in a cycle, which crashes Python 3.12 and 3.13.
                link.send_bytes(pickle.dumps(self._work(lane, number, share, args)))
            except (EOFError, OSError):
                return

    def _work(self, lane: int, number: int, share: Sequence[object], args: tuple[object, ...]) -> Answer:
        with np.errstate(over="ignore", invalid="ignore"):  # the trainer looks at what comes out
            try:
                return [self._tasks[number](lane, item, *args) for item in share], None
            except Exception as error:  # carried to the caller, which raises it
                if lane:
                    error.add_note(f"in lane {lane}:\n{traceback.format_exc()}")
                return [], error


@contextmanager
def _in_reach(lane: int) -> Iterator[None]:
    """Raise UserError if the lane has ended: nothing can be sent to it, or nothing comes from it."""
    try:
        yield
    except (EOFError, OSError):  # OSError: in the middle of a message
        raise UserError(
            f"training process {lane} was ended from outside, perhaps because memory ran out: "
            "earlier checkpoints are intact; try --lanes 1 or --low-memory"
        ) from None
