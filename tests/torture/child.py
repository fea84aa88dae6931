"""`picogpt train` with a fault in it: `python -m tests.torture.child PLAN train ...`.

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
from picogpt.training import run, saver
from picogpt.training.trainer import Trainer

TRAINS, HIT, PASSED = "trains", "hit", "passed"  # it has come to its step; the fault has begun; and is over
_ODDS = 0.3  # that an aimed kill takes this opportunity, and not a later one
_FILE_LIMIT = 16 << 10  # bytes, less than the arrays of a model have and more than a log
_POISONED = 3  # steps in a row that send a run back
_DAY = 86400.0

Action = Callable[[run.Run], None]


@dataclass(frozen=True)
class Plan:
    """What a process does to itself."""

    marks: str
    """The file for the marks."""
    fault: str = ""
    """A name in `FAULTS`. "": nothing."""
    after: int = 0
    """Steps that it trains before."""
    poison: int = 0
    """The first of the steps whose loss is not finite as long as the run learns at its full rate; 0: none."""
    seed: int = 0
    """Of the moments it chooses."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Saboteur:
    """Waits for its step, then lets `each_step` and the functions it stands before do what the plan says."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.random = plan, Random(plan.seed)
        self.armed = False
        self.refusals = self.random.randint(1, 4)  # how often a disk refuses until it is well again
        self.each_step: Action = lambda run: None  # once armed
        self._marks = os.open(plan.marks, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self.told: set[str] = set()
        self._steps, self._poisoned = 0, False
        stand_before(run.Run, "_step", self._step)
        stand_before(Trainer, "accumulate", self._accumulate)

    def mark(self, word: str) -> None:
        if word not in self.told:
            self.told.add(word)
            os.write(self._marks, f"{word}\n".encode())

    def die(self) -> None:
        self.mark(HIT)
        os.kill(os.getpid(), signal.SIGKILL)

    def takes(self) -> bool:
        """Whether this is the opportunity."""
        return self.armed and self.random.random() < _ODDS

    def kills_at(self, owner: Any, name: str) -> None:
        """Die before the function or behind it."""

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
        """The function fails as the disk does, until there were enough `refusals`."""

        def call(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
            if self.armed and self.refusals > 0:
                self.refuse(code)
            return original(*args, **options)

        stand_before(owner, name, call)

    def refuses_new_folders(self, code: int) -> None:
        """One that is there already is never refused for want of space."""

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

    def _step(self, original: Callable[..., bool], training: run.Run, *args: Any) -> bool:
        self._steps += 1
        if self._steps > self.plan.after:
            self.armed = True
            self.mark(TRAINS)
            self.each_step(training)
        first, done = self.plan.poison, training.done
        self._poisoned = first > 0 and (
            done == first // 2 or (first <= done < first + _POISONED and training.divergence.rate == 1)
        )
        return original(training, *args)

    def _accumulate(self, original: Callable[..., Any], *args: Any) -> Any:
        return (nan, nan) if self._poisoned else original(*args)


def stand_before(owner: Any, name: str, call: Callable[..., Any]) -> None:
    """From now on it is call(original, ...), for a function of a module or a method of a class."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **options: call(original, *args, **options))


def in_evaluation(saboteur: Saboteur) -> None:
    saboteur.kills_at(Trainer, "evaluate")
    saboteur.kills_at(run, "sample")


def between_log_and_checkpoint(saboteur: Saboteur) -> None:
    saboteur.kills_at(checkpoints, "publish")


def in_fsync(saboteur: Saboteur) -> None:
    saboteur.kills_at(os, "fsync")


def at_rename(saboteur: Saboteur) -> None:
    saboteur.kills_at(os, "replace")


def while_written(saboteur: Saboteur) -> None:
    """Half of a file of arrays is all that comes to be."""

    def write(original: Callable[..., None], path: Any, arrays: Any) -> None:
        original(path, arrays)
        if saboteur.takes():
            os.truncate(path, saboteur.random.randrange(path.stat().st_size))
            saboteur.die()

    stand_before(checkpoint, "write_safetensors", write)


def while_deleted(saboteur: Saboteur) -> None:
    """Some of the files of a folder are gone."""

    def delete(original: Callable[..., None], folder: Any, *args: Any, **options: Any) -> None:
        if folder.is_dir() and saboteur.takes():
            for path in folder.iterdir():
                if saboteur.random.random() < 0.5:
                    path.unlink()
            saboteur.die()
        original(folder, *args, **options)

    stand_before(shutil, "rmtree", delete)


def interrupt_twice(saboteur: Saboteur) -> None:
    def interrupt(training: run.Run) -> None:
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
    """Stopped while nothing can be saved."""

    def stop(training: run.Run) -> None:
        if HIT not in saboteur.told:
            saboteur.refusals = 1 << 30
            saboteur.mark(HIT)
            os.kill(os.getpid(), signal.SIGINT)

    saboteur.refusals, saboteur.each_step = 0, stop
    disk_full(saboteur)


def file_limit(saboteur: Saboteur) -> None:
    """The system itself refuses to write: no file may be larger than a small limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(training: run.Run) -> None:
        if HIT not in saboteur.told:
            saboteur.mark(HIT)
            resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_LIMIT, hard))
        elif training.saver.problem and not training.saver.busy:
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
    saboteur.refuses(EIO, Shards, "_ids")


def clock_jumps(saboteur: Saboteur) -> None:
    """The time of day is another one at every step."""

    def jump(training: run.Run) -> None:
        offset = saboteur.random.uniform(-400, 400) * _DAY
        time.time = lambda: now() + offset
        saboteur.mark(HIT)
        saboteur.mark(PASSED)

    now, saboteur.each_step = time.time, jump


def short_memory(saboteur: Saboteur) -> None:
    """Nothing is free, for two looks."""

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
    samples.SAMPLE = replace(samples.SAMPLE, tokens=6)
    for module in (run, saver):
        vars(module)["RETRY_SECONDS"] = 0.2
    saboteur = Saboteur(plan)
    if plan.fault:
        FAULTS[plan.fault](saboteur)
    return cli.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
