"""Lanes: worker threads that train side by side.

NumPy's element-wise work runs on one thread and BLAS alone on all of them, so the usual way leaves a core idle half
the time. Here each lane takes whole micro-batches on one core: its BLAS is limited to one thread, its workspace is its
own, and NumPy releases the interpreter's lock inside each call. Which lane takes which item is fixed, so that the same
number of lanes always gives the same bits.
"""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lanes:
    """`with Lanes(2) as lanes: lanes.map(function, items)`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._tasks: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._work, args=(tasks,), name=f"lane-{lane}", daemon=True)
            for lane, tasks in enumerate(self._tasks)
        ]

    def __enter__(self) -> "Lanes":
        self._blas = ThreadpoolController().limit(limits=1, user_api="blas")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        for tasks in self._tasks:
            tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._blas.restore_original_limits()

    def map(self, function: Callable[[int, Item], Result], items: Iterable[Item]) -> list[Result]:
        """[function(lane, item), ...] in the order of the items; item i runs on lane i % count.

        Waits for every lane, then raises the first lane's exception if there was one.
        """
        items = list(items)
        busy = range(min(self.count, len(items)))
        done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
        for lane in busy:
            self._tasks[lane].put((function, lane, items[lane :: self.count], done))
        results: list[Any] = [None] * len(items)
        errors: dict[int, BaseException] = {}
        for _ in busy:
            lane, values, error = done.get()
            if error is None:
                results[lane :: self.count] = values
            else:
                errors[lane] = error
        if errors:
            raise errors[min(errors)]
        return results

    def _work(self, tasks: "queue.SimpleQueue[Any]") -> None:
        np.seterr(over="ignore", invalid="ignore")  # of this thread: the trainer looks at what comes out
        while (task := tasks.get()) is not None:
            function, lane, items, done = task
            try:
                done.put((lane, [function(lane, item) for item in items], None))
            except BaseException as error:  # carried to the caller of map, which raises it
                done.put((lane, None, error))
            del task, function, items, done  # an idle lane keeps nothing alive


class OneLane(Lanes):
    """The caller's own thread as the only lane: a GPU is fed by one, and does what it is given in that order."""

    def __init__(self) -> None:
        super().__init__(1)

    def map(self, function: Callable[[int, Item], Result], items: Iterable[Item]) -> list[Result]:
        return [function(0, item) for item in items]
