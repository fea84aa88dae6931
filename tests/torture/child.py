"""`python -m tests.torture.child PLAN train ...` is `picogpt train ...` with a fault in it.

The plan is a `Plan` as JSON. The parent is told of what happens by marks, a word a line in a file.
"""

import io
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from errno import EIO, ENOSPC, EROFS
from math import nan
from random import Random
from typing import Any

from picogpt import cli
from picogpt.data.shards.reader import Shards
from picogpt.evaluation import samples
from picogpt.monitoring.plotter import Plotter
from picogpt.runs import checkpoint, checkpoints
from picogpt.system import hardware
from picogpt.training import loop, saver
from picogpt.training.loop import Loop
from picogpt.training.trainer import Trainer

TRAINS, HIT, PASSED = "trains", "hit", "passed"  # it has come to its step; the fault has begun; and is over
_FILE_LIMIT = 16 << 10  # bytes, less than the arrays of a model have and more than a log
_POISONED = 3  # steps in a row that send a run back
_DAY = 86400.0

Action = Callable[[Loop], None]


@dataclass(frozen=True)
class Plan:
    """A plan says what a process does to itself."""

    marks: str
    """The file that takes the marks."""
    fault: str = ""
    """A name in `FAULTS`, or "" for none."""
    after: int = 0
    """How many steps it trains before the fault."""
    poison: int = 0
    """The first step whose loss is not finite, or 0 for none. Once the run learns at a lower rate, all are finite."""
    seed: int = 0
    """Of the random numbers that choose its moments."""
    odds: float = 1.0
    """The probability that an aimed kill takes an opportunity, and does not wait for a later one."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Saboteur:
    """A saboteur waits for its step, then changes what functions of picogpt do, as the plan says."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.random = plan, Random(plan.seed)
        self.armed = False
        self.refusals = self.random.randint(1, 4)  # how often a disk refuses until it is well again
        self.each_step: Action = lambda training: None  # once armed
        self._marks = os.open(plan.marks, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self.told: set[str] = set()
        self._steps, self._poisoned = 0, False
        stand_before(Loop, "_step", self._step)
        stand_before(Trainer, "accumulate", self._accumulate)

    def mark(self, word: str) -> None:
        if word not in self.told:
            self.told.add(word)
            os.write(self._marks, f"{word}\n".encode())

    def die(self) -> None:
        self.mark(HIT)
        os.kill(os.getpid(), signal.SIGKILL)

    def takes(self) -> bool:
        """Choose whether an aimed kill takes this opportunity."""
        return self.armed and self.random.random() < self.plan.odds

    def kills_at(self, owner: Any, name: str) -> None:
        """Let the process die before the function or behind it."""

        def call(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
            taken, before = self.takes(), self.random.random() < 0.5
            if taken and before:
                self.die()
            result = original(*args, **options)
            if taken:
                self.die()
            return result

        stand_before(owner, name, call)

    def refuses(self, code: int, owner: Any, name: str) -> None:
        """Let the function fail as a disk does, until there were enough `refusals`."""

        def call(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
            if self.armed and self.refusals > 0:
                self.refuse(code)
            return original(*args, **options)

        stand_before(owner, name, call)

    def refuses_new_folders(self, code: int) -> None:
        """Let new folders fail. One that is there already needs no space, so it is never refused."""

        def call(original: Callable[..., None], path: Any, *args: Any, **options: Any) -> None:
            if self.armed and self.refusals > 0 and not os.path.exists(path):
                self.refuse(code)
            original(path, *args, **options)

        stand_before(os, "mkdir", call)

    def refuse(self, code: int) -> None:
        self.mark(HIT)
        self.refusals -= 1
        if self.refusals == 0:
            self.mark(PASSED)
        raise OSError(code, os.strerror(code))

    def _step(self, original: Callable[..., bool], training: Loop, *args: Any) -> bool:
        self._steps += 1
        if self._steps > self.plan.after:
            self.armed = True
            self.mark(TRAINS)
            self.each_step(training)
        first, state = self.plan.poison, training._state
        done = state.step
        self._poisoned = first > 0 and (
            done == first // 2 or (first <= done < first + _POISONED and state.divergence.rate == 1)
        )
        return original(training, *args)

    def _accumulate(self, original: Callable[..., Any], *args: Any) -> Any:
        return (nan, nan) if self._poisoned else original(*args)


def stand_before(owner: Any, name: str, call: Callable[..., Any]) -> None:
    """Replace a function of a module, or a method of a class, by call(original, ...)."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **options: call(original, *args, **options))


def in_evaluation(saboteur: Saboteur) -> None:
    saboteur.kills_at(Trainer, "evaluate")
    saboteur.kills_at(loop, "write_sample")


def between_log_and_checkpoint(saboteur: Saboteur) -> None:
    saboteur.kills_at(checkpoints, "publish")


def in_fsync(saboteur: Saboteur) -> None:
    saboteur.kills_at(os, "fsync")


def at_rename(saboteur: Saboteur) -> None:
    saboteur.kills_at(os, "replace")


def while_written(saboteur: Saboteur) -> None:
    """Die when only a part of a file of arrays is written."""

    def write(original: Callable[..., None], path: Any, arrays: Any) -> None:
        original(path, arrays)
        if saboteur.takes():
            os.truncate(path, saboteur.random.randrange(path.stat().st_size))
            saboteur.die()

    stand_before(checkpoint, "write_safetensors", write)


def while_deleted(saboteur: Saboteur) -> None:
    """Die when only some of the files of a folder are deleted."""

    def delete(original: Callable[..., None], folder: Any, *args: Any, **options: Any) -> None:
        if folder.is_dir() and saboteur.takes():
            for path in folder.iterdir():
                if saboteur.random.random() < 0.5:
                    path.unlink()
            saboteur.die()
        original(folder, *args, **options)

    stand_before(shutil, "rmtree", delete)


def interrupt_twice(saboteur: Saboteur) -> None:
    def interrupt(training: Loop) -> None:
        saboteur.mark(HIT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(saboteur.random.uniform(0, 0.05))
        os.kill(os.getpid(), signal.SIGINT)

    saboteur.each_step = interrupt


def disk_full(saboteur: Saboteur) -> None:
    saboteur.refuses(ENOSPC, os, "fsync")
    saboteur.refuses_new_folders(ENOSPC)
    saboteur.refuses(ENOSPC, checkpoint, "write_safetensors")


def full_at_start(saboteur: Saboteur) -> None:
    saboteur.armed, saboteur.refusals = True, 1 << 30
    disk_full(saboteur)


def full_at_end(saboteur: Saboteur) -> None:
    """Stop the run while nothing can be saved."""

    def stop(training: Loop) -> None:
        if HIT not in saboteur.told:
            saboteur.refusals = 1 << 30
            saboteur.mark(HIT)
            os.kill(os.getpid(), signal.SIGINT)

    saboteur.refusals, saboteur.each_step = 0, stop
    disk_full(saboteur)


def file_limit(saboteur: Saboteur) -> None:
    """Let the system itself refuse to write files above a small limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(training: Loop) -> None:
        if HIT not in saboteur.told:
            saboteur.mark(HIT)
            resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_LIMIT, hard))
        elif training._saver._saver.problem and not training._saver._saver.busy:
            saboteur.mark(PASSED)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    saboteur.each_step = limit


def read_only(saboteur: Saboteur) -> None:
    def opened(original: Callable[..., Any], file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if saboteur.armed and saboteur.refusals > 0 and set(mode) & set("wxa+"):
            saboteur.refuse(EROFS)
        return original(file, mode, *args, **options)

    stand_before(io, "open", opened)
    saboteur.refuses_new_folders(EROFS)
    for name in ("replace", "unlink"):
        saboteur.refuses(EROFS, os, name)


def unreadable_text(saboteur: Saboteur) -> None:
    saboteur.refuses(EIO, Shards, "_stream")


def clock_jumps(saboteur: Saboteur) -> None:
    """Change the time of day at every step."""

    def jump(training: Loop) -> None:
        offset = saboteur.random.uniform(-400, 400) * _DAY
        time.time = lambda: now() + offset
        saboteur.mark(HIT)
        saboteur.mark(PASSED)

    now, saboteur.each_step = time.time, jump


def short_memory(saboteur: Saboteur) -> None:
    """Say twice that no memory is free."""

    def available(original: Callable[[], int]) -> int:
        if not saboteur.armed or saboteur.refusals <= 0:
            return original()
        saboteur.mark(HIT)
        saboteur.refusals -= 1
        return 0

    saboteur.refusals = 2
    stand_before(hardware, "available_memory", available)
    hardware._LOOK = hardware._AFTER_SHORTAGE = 0.05


FAULTS: dict[str, Callable[[Saboteur], None]] = {
    function.__name__: function
    for function in (
        in_evaluation,
        between_log_and_checkpoint,
        while_written,
        in_fsync,
        at_rename,
        while_deleted,
        interrupt_twice,
        disk_full,
        full_at_start,
        full_at_end,
        file_limit,
        read_only,
        unreadable_text,
        clock_jumps,
        short_memory,
    )
}


def main(argv: list[str]) -> int:
    plan = Plan(**json.loads(argv[0]))
    Plotter.redraw = lambda self: None  # type: ignore[method-assign]  # a picture takes longer than the training
    samples.SAMPLE_CONFIG = replace(samples.SAMPLE_CONFIG, tokens=6)
    for module in (loop, saver):
        vars(module)["RETRY_SECONDS"] = 0.2
    saboteur = Saboteur(plan)
    if plan.fault:
        FAULTS[plan.fault](saboteur)
    return cli.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
