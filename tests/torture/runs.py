"""Runs that nothing disturbs, and the same runs disturbed: what is left of the difference."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from picogpt.errors import UserError
from picogpt.runs import checkpoints
from picogpt.runs.log import read_log
from tests.torture import faults
from tests.torture.child import TRAINS, Plan
from tests.torture.faults import Context, Fault
from tests.torture.process import Child, Ended, HungError

TEXT = "text.txt"
_SENTENCE = "she sells sea shells by the shore and he who reads them keeps all the old words that were"
_INTERVAL = 40  # steps between evaluations
_FAR = 500  # steps: the most before a fault, which is not waited for without end
_CLOCKED = ("tokens_per_second", "memory_mb", "seconds")
_LONG = 3600.0  # seconds that a run may take that nothing disturbs
_EVENT = re.compile(r": step [\d,]+ is left out|: back to step ")
_RESUMED = re.compile(r"going on with run \S+ after step (\d+)$", re.MULTILINE)
_SHAPE = "--context-len 16 --n-head 2 --n-embd 16 --dropout 0.1 --batch-size 5 --micro-batch 2 --lanes 2"
_PACE = f"--eval-interval {_INTERVAL} --save-minutes 0.002"


@dataclass(frozen=True)
class Variant:
    name: str
    options: str
    diverges: bool = False
    """Steps in its middle are not finite: one that is left out, and three that send it back."""


VARIANTS = (
    Variant("plain-adamw", "--n-layer 2 --init gpt2 --optimizer adamw --learning-rate 0.001"),
    Variant("rolling-muon", "--n-layer 4 --context 32 --optimizer muon --depth-warmup 0.6"),
    Variant("rolling-adamw", "--n-layer 2 --context 32 --optimizer adamw --learning-rate 0.001", diverges=True),
    Variant("plain-muon", "--n-layer 3 --optimizer muon --depth-warmup 0.6 --no-context-slot"),
)


def text(random: Random) -> str:
    """So little that epochs pass in a run."""
    words = _SENTENCE.split()
    return " ".join(random.choice(words) for _ in range(1800))


@dataclass
class Tally:
    """What happened."""

    names: list[str] = field(default_factory=list)
    """Of the runs."""
    kills: Counter[str] = field(default_factory=Counter)
    """SIGKILLs that a run survived, by the run."""
    faults: Counter[str] = field(default_factory=Counter)
    """That took effect, by kind."""
    bits_compared: int = 0
    bits_different: int = 0
    problems: list[str] = field(default_factory=list)


class Torture:
    """Runs in a folder."""

    def __init__(self, folder: Path, steps: int, random: Random) -> None:
        self.folder, self.steps, self.tally = folder, steps, Tally()
        self._random, self._deck = random, faults.faults(random)
        self._again: list[Fault] = []  # faults that had no effect
        self._text = text(random)

    def run(self, variant: Variant, count: int, deadline: float) -> None:
        """Train it undisturbed, then with so many faults, or as many as come before the deadline; and compare."""
        self.tally.names.append(variant.name)
        self._refused = False  # whether the disk has refused a save, perhaps that of the best evaluation
        calm, torn = (self._home(f"{variant.name}-{kind}") for kind in ("undisturbed", "disturbed"))
        child = Child(calm, self._command(variant), self._plan(calm, variant))
        try:
            began = time.monotonic()
            child.until_mark(TRAINS)
            starting = time.monotonic() - began
            ended = child.end(_LONG)
            if ended.status or ended.complaint:
                raise UserError(f"undisturbed, it ended with status {ended.status}: {ended.err}")
        except (HungError, UserError) as error:
            self._problem(variant, "nothing", str(error))
            return
        finally:
            child.clear()
        for left in range(count, 0, -1):
            if time.monotonic() > deadline or self._done(torn) >= self.steps:
                break
            self._disturb(torn, variant, self._next(variant), left, starting)
        self._finish(torn, variant)
        self._compare(calm, torn, variant)

    def _next(self, variant: Variant) -> Fault:
        """In between, one that had no effect when it was its turn.

        A run that diverges goes back to the last evaluation that could be saved. That is another one where the disk
        has failed meanwhile, so such faults are the other runs'.
        """
        again = [fault for fault in self._again if not (variant.diverges and fault.may_fail)]
        if again and self._random.random() < 0.5:
            self._again.remove(again[-1])
            return again[-1]
        while (fault := next(self._deck)).may_fail and variant.diverges:
            self._again.insert(0, fault)
        return fault

    def short_memory(self) -> None:
        """A run of its own, for a smaller micro-batch changes the last bits."""
        variant, home, kind = VARIANTS[0], self._home("short-memory"), "memory runs short"
        child = Child(home, self._command(variant), self._plan(home, variant, "short_memory"))
        try:
            ended = child.end(_LONG)
            if ended.status or ended.complaint or f"{kind} (" not in ended.out:
                raise UserError(f"status {ended.status}: {ended.err}")
            self.tally.faults[kind] += 1
        except (HungError, UserError) as error:
            self._problem(variant, kind, str(error))
        finally:
            child.clear()

    def finished(self) -> Path:
        """The folder of a run that is finished, for those who damage it."""
        return self.folder / f"{VARIANTS[0].name}-undisturbed"

    def _home(self, name: str) -> Path:
        home = self.folder / name
        home.mkdir()
        (home / TEXT).write_text(self._text, encoding="utf-8")
        return home

    def _command(self, variant: Variant) -> list[str]:
        options = f"train --data {TEXT} --run run --steps {self.steps} {_SHAPE} {_PACE} {variant.options}"
        return options.split()

    def _plan(self, home: Path, variant: Variant, fault: str = "", after: int = 0, name: str = "first") -> Plan:
        poison = self.steps // 2 + 3 if variant.diverges else 0
        return Plan(str(home / f"{name}.marks"), fault, after, poison, self._random.getrandbits(32))

    def _done(self, home: Path) -> int:
        found = checkpoints.latest(home / "logs" / "run")
        return found.step if found else 0

    def _disturb(self, home: Path, variant: Variant, fault: Fault, left: int, starting: float) -> None:
        run_dir, random = home / "logs" / "run", self._random
        if fault.damages and not faults.damage_newest(run_dir, random):
            self._again.insert(0, fault)
            fault = faults.FAULTS[0]
        before = self._done(home)
        after = random.randrange(min(_FAR, max(1, 2 * (self.steps - before) // (left + 1))))
        command = self._command(variant)
        context = Context(run_dir, command, self._plan(home, variant, name="second"), starting)
        child = Child(home, command, self._plan(home, variant, fault.inside, after))
        try:
            took = fault.act(child, random, context)
            ended = child.end()
        except (HungError, UserError) as error:
            self._problem(variant, fault.kind, str(error))
            return
        finally:
            child.clear()
        self._count(variant, fault, took and faults.took_effect(fault, ended), ended)
        self._look(home, variant, fault, before, ended)

    def _count(self, variant: Variant, fault: Fault, took: bool, ended: Ended) -> None:
        self._refused |= fault.may_fail
        if problem := faults.wrong(fault, took, ended):
            self._problem(variant, fault.kind, problem)
        if took:
            self.tally.faults[fault.kind] += 1
        else:
            self._again.insert(0, fault)
        self.tally.kills[variant.name] += ended.status == faults.KILLED
        if events := len(_EVENT.findall(ended.out)):
            self.tally.faults["loss that is not finite"] += events

    def _look(self, home: Path, variant: Variant, fault: Fault, before: int, ended: Ended) -> None:
        """Whether the run went on from where it was, and lost nothing that was saved."""
        now = self._done(home)
        if (said := _RESUMED.search(ended.out)) and int(said[1]) != before:
            self._problem(variant, fault.kind, f"it went on after step {said[1]}, not {before}")
        if now < before and not variant.diverges:
            self._problem(variant, fault.kind, f"step {before} was saved, and now {now} is the last")
        if ended.status == 0 and f"stopped and saved after step {now}:" not in ended.out and now < self.steps:
            self._problem(variant, fault.kind, f"it did not save the step it was stopped at, but {now}")

    def _finish(self, home: Path, variant: Variant) -> None:
        child = Child(home, self._command(variant), self._plan(home, variant))
        try:
            ended = child.end(_LONG)
            if ended.status or ended.complaint:
                raise UserError(f"status {ended.status}: {ended.err}")
            self.tally.faults["loss that is not finite"] += len(_EVENT.findall(ended.out))
        except (HungError, UserError) as error:
            self._problem(variant, "its last start", str(error))
        finally:
            child.clear()

    def _compare(self, calm: Path, torn: Path, variant: Variant) -> None:
        try:
            first, second = (dict(_result(home / "logs" / "run")) for home in (calm, torn))
        except UserError as error:
            self._problem(variant, "the end", str(error))
            return
        if self._refused and first["best step"] != second["best step"]:
            first, second = ({name: of[name] for name in of if not name.startswith("best ")} for of in (first, second))
        for name in first.keys() | second.keys():
            bits, different = _bits(first.get(name, b""), second.get(name, b""))
            self.tally.bits_compared += bits
            self.tally.bits_different += different
            if different:
                self._problem(variant, "the end", f"{name} differs in {different:,} of {bits:,} bits")

    def _problem(self, variant: Variant, kind: str, what: str) -> None:
        self.tally.problems.append(f"{variant.name}, {kind}: {' '.join(what.split())[:300]}")


def _result(run_dir: Path) -> Iterator[tuple[str, bytes]]:
    """All that must not depend on what befell a run: (name, bytes), but for what a clock has a part in."""
    for which, place in (("newest", checkpoints.newest(run_dir)), ("best", checkpoints.best(run_dir))):
        if place is None:
            raise UserError(f"there is no {which} checkpoint")
        found = checkpoints.load(place)
        for part, arrays in (("model", found.model), ("optimizer", found.optimizer)):
            yield from ((f"{which} {part} {name}", array.tobytes()) for name, array in arrays.items())
        meta = {name: value for name, value in found.meta.items() if name != "seconds"}
        yield f"{which} step", str(found.step).encode()
        yield f"{which} meta", json.dumps([found.step, meta], sort_keys=True).encode()
    log = read_log(run_dir / "log.pkl")
    log.pop("notices")  # they tell of the faults
    for entry in log["evaluations"]:
        for name in _CLOCKED:
            entry.pop(name)
    yield from ((f"log {name}", json.dumps(value, sort_keys=True).encode()) for name, value in log.items())


def _bits(first: bytes, second: bytes) -> tuple[int, int]:
    """How many bits there are, and how many of them differ; those that only one has do."""
    common, longer = min(len(first), len(second)), max(len(first), len(second))
    one, other = (np.frombuffer(side, np.uint8, common) for side in (first, second))
    return 8 * longer, int(np.bitwise_count(one ^ other).sum()) + 8 * (longer - common)
