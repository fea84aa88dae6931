"""Every variant is trained undisturbed and disturbed, and the two results are compared bit for bit."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count, islice
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
from tests.torture.tally import Part, Tally
from tests.torture.variants import INTERVAL, VARIANTS, Variant, command, new_home, run_folder, steps_done, text

NOT_FINITE, SHORT_MEMORY = "loss that is not finite", "memory runs short"  # kinds of faults beside `faults.FAULTS`
_FAR = 500  # steps: the most before a fault, which is not waited for without end
_ROOM = (
    3 * INTERVAL
)  # steps: some faults wait for an evaluation, a save or a new epoch, so there should be as many left
_ODDS = 0.3  # that an aimed kill takes an opportunity where there is room for more
_WORTH = 3  # faults, for which another disturbed run is begun
_LONG = 3600.0  # seconds that a run may take that nothing disturbs
_EVENT = re.compile(r": step [\d,]+ is left out|: back to step ")
_EVENTS = 4  # of a run that diverges: a step is left out, then two more, and the next one sends the run back
_RESUMED = re.compile(r"continuing run \S+ after step (\d+)$", re.MULTILINE)

Left = Callable[[int], int]
"""Tells how many more faults a variant shall have, given how many it has had."""


@dataclass
class Disturbed:
    """A run whose command is given again and again, each time with a fault."""

    home: Path
    variant: Variant
    starting: float
    """Seconds that a process takes to begin to train."""
    refused: bool = False
    """Whether the disk has refused a save, perhaps that of the best evaluation."""


class Torture:
    """Trains the variants in a folder, undisturbed and disturbed, and counts what happens."""

    def __init__(self, folder: Path, steps: int, wanted: int, random: Random) -> None:
        """steps: of every run. wanted: how many faults, all variants together."""
        self.folder, self.steps, self.tally = folder, steps, Tally()
        self._random, self._text = random, text(random)
        deck = faults.faults(random)
        planned = list(islice(deck, wanted))
        self.tally.wanted = Counter(fault.kind for fault in planned)
        self._deck = chain(planned, deck)
        self._again: list[Fault] = []  # faults that had no effect

    def run(self, variant: Variant, left: Left) -> None:
        """Train it undisturbed, then disturbed until no fault is left, and compare.

        A disturbed run may have all its steps while faults are left. Then it is compared, and another one begins.
        """
        self.tally.names.append(variant.name)
        calm, done = self._home(f"{variant.name}-undisturbed"), 0
        starting = self._train_undisturbed(calm, variant)
        if starting is None:
            return
        for number in count(1):
            torn = Disturbed(self._home(f"{variant.name}-disturbed-{number}"), variant, starting)
            self.tally.wanted[NOT_FINITE] += _EVENTS * variant.diverges
            while (more := left(done)) > 0 and steps_done(torn.home) < self.steps:
                self._disturb(torn, self._next(variant), more)
                done += 1
            with self.tally.timed(Part.LAST_STARTS):
                self._finish(torn)
            with self.tally.timed(Part.COMPARISONS):
                self._compare(calm, torn)
            if left(done) < _WORTH:
                return

    def short_memory(self) -> None:
        """Train a run of its own that runs short of memory, for its smaller micro-batches change the last bits."""
        variant, home = VARIANTS[0], self._home("short-memory")
        self.tally.wanted[SHORT_MEMORY] += 1
        plan = replace(self._plan(home, variant), fault="short_memory")
        child = Child(home, command(variant, self.steps), plan)
        try:
            with self.tally.timed(Part.FAULTS):
                ended = child.end(_LONG)
            if ended.status or ended.complaint or f"{SHORT_MEMORY} (" not in ended.out:
                raise UserError(f"status {ended.status}: {ended.err}")
            self.tally.faults[SHORT_MEMORY] += 1
        except (HungError, UserError) as error:
            self._problem(variant, SHORT_MEMORY, str(error))
        finally:
            child.clear()

    def finished(self) -> Path:
        """Return the folder of a finished run, whose files may be damaged."""
        return self.folder / f"{VARIANTS[0].name}-undisturbed"

    def _home(self, name: str) -> Path:
        return new_home(self.folder, name, self._text)

    def _plan(self, home: Path, variant: Variant, name: str = "first") -> Plan:
        """Return the plan of a process that nothing disturbs."""
        poison = self.steps // 2 + 3 if variant.diverges else 0
        return Plan(str(home / f"{name}.marks"), poison=poison, seed=self._random.getrandbits(32))

    def _train_undisturbed(self, home: Path, variant: Variant) -> float | None:
        """Return the seconds until it began to train, or None where it failed, which is a problem."""
        with self.tally.timed(Part.UNDISTURBED):
            child = Child(home, command(variant, self.steps), self._plan(home, variant))
            try:
                began = time.monotonic()
                child.until_mark(TRAINS)
                starting = time.monotonic() - began
                ended = child.end(_LONG)
                if ended.status or ended.complaint:
                    raise UserError(f"undisturbed, it ended with status {ended.status}: {ended.err}")
            except (HungError, UserError) as error:
                self._problem(variant, "nothing", str(error))
                return None
            finally:
                child.clear()
            return starting

    def _next(self, variant: Variant) -> Fault:
        """Return the next fault of the deck, or now and then one that had no effect when it was its turn.

        A run that diverges goes back to the last evaluation that could be saved. That is another one where the disk
        has failed meanwhile, so such faults are left to the other runs.
        """
        again = [fault for fault in self._again if not (variant.diverges and fault.may_fail)]
        if again and self._random.random() < 0.5:
            self._again.remove(again[-1])
            return again[-1]
        while (fault := next(self._deck)).may_fail and variant.diverges:
            self._again.insert(0, fault)
        return fault

    def _disturb(self, torn: Disturbed, fault: Fault, left: int) -> None:
        """Give the command once, with this fault."""
        run_dir = run_folder(torn.home)
        if fault.damages and not faults.damage_newest(run_dir, self._random):
            self._again.insert(0, fault)
            fault = faults.FAULTS[0]
        began, before = time.monotonic(), steps_done(torn.home)
        took = self._start_with(torn, fault, left, before)
        self.tally.disturbed += 1
        self.tally.spend(Part.FAULTS if took else Part.NO_EFFECT, time.monotonic() - began)

    def _start_with(self, torn: Disturbed, fault: Fault, left: int, before: int) -> bool:
        """Start a process that has done `before` steps, and return whether the fault took effect, or was a problem."""
        run_dir, variant, random = run_folder(torn.home), torn.variant, self._random
        rest, arguments = self.steps - before, command(variant, self.steps)
        after = random.randrange(max(1, min(_FAR, 2 * rest // (left + 1), max(rest // 2, rest - _ROOM))))
        plan = replace(self._plan(torn.home, variant), fault=fault.inside, after=after)
        if rest - after > _ROOM:
            plan = replace(plan, odds=_ODDS)
        context = Context(run_dir, arguments, self._plan(torn.home, variant, "second"), torn.starting)
        child = Child(torn.home, arguments, plan)
        try:
            took = fault.act(child, random, context)
            ended = child.end()
        except (HungError, UserError) as error:
            self._problem(variant, fault.kind, str(error))
            return True
        finally:
            child.clear()
        took = took and faults.took_effect(fault, ended)
        self._count(torn, fault, took, ended)
        self._look(torn, fault, before, ended)
        return took

    def _count(self, torn: Disturbed, fault: Fault, took: bool, ended: Ended) -> None:
        torn.refused |= fault.may_fail
        if problem := faults.wrong(fault, took, ended):
            self._problem(torn.variant, fault.kind, problem)
        if took:
            self.tally.faults[fault.kind] += 1
        else:
            self.tally.no_effect[fault.kind] += 1
            self._again.insert(0, fault)
        self.tally.kills[torn.variant.name] += ended.status == faults.KILLED
        self._count_events(ended)

    def _count_events(self, ended: Ended) -> None:
        if events := len(_EVENT.findall(ended.out)):
            self.tally.faults[NOT_FINITE] += events

    def _look(self, torn: Disturbed, fault: Fault, before: int, ended: Ended) -> None:
        """Check that the run went on from where it was, and lost nothing that was saved."""
        now, variant = steps_done(torn.home), torn.variant
        if (said := _RESUMED.search(ended.out)) and int(said[1]) != before:
            self._problem(variant, fault.kind, f"it went on after step {said[1]}, not {before}")
        if now < before and not variant.diverges:
            self._problem(variant, fault.kind, f"step {before} was saved, and now {now} is the last")
        if ended.status == 0 and f"stopped and saved after step {now}:" not in ended.out and now < self.steps:
            self._problem(variant, fault.kind, f"it did not save the step it was stopped at, but {now}")

    def _finish(self, torn: Disturbed) -> None:
        """Give the command once more, with nothing that disturbs it."""
        child = Child(torn.home, command(torn.variant, self.steps), self._plan(torn.home, torn.variant))
        try:
            ended = child.end(_LONG)
            if ended.status or ended.complaint:
                raise UserError(f"status {ended.status}: {ended.err}")
            self._count_events(ended)
        except (HungError, UserError) as error:
            self._problem(torn.variant, "its last start", str(error))
        finally:
            child.clear()

    def _compare(self, calm: Path, torn: Disturbed) -> None:
        try:
            first, second = (dict(_result(run_folder(home))) for home in (calm, torn.home))
        except UserError as error:
            self._problem(torn.variant, "the end", str(error))
            return
        if torn.refused and first["best step"] != second["best step"]:
            first, second = ({name: of[name] for name in of if not name.startswith("best ")} for of in (first, second))
        for name in first.keys() | second.keys():
            bits, different = _bits(first.get(name, b""), second.get(name, b""))
            self.tally.bits_compared += bits
            self.tally.bits_different += different
            if different:
                self._problem(torn.variant, "the end", f"{name} differs in {different:,} of {bits:,} bits")

    def _problem(self, variant: Variant, kind: str, what: str) -> None:
        self.tally.problems.append(f"{variant.name}, {kind}: {' '.join(what.split())[:300]}")


def _result(run_dir: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of all that must not depend on the faults. What a clock has a part in is left out."""
    for which, place in (("newest", checkpoints.newest(run_dir)), ("best", checkpoints.best(run_dir))):
        if place is None:
            raise UserError(f"there is no {which} checkpoint")
        found = checkpoints.load(place)
        for part, arrays in (("model", found.model), ("optimizer", found.optimizer)):
            yield from ((f"{which} {part} {name}", array.tobytes()) for name, array in arrays.items())
        meta = replace(found.meta, seconds=0.0).to_dict()
        yield f"{which} step", str(found.step).encode()
        yield f"{which} meta", json.dumps([found.step, meta], sort_keys=True).encode()
    log = read_log(run_dir / "log.pkl")
    evaluations = [replace(entry, tokens_per_second=None, memory_mb=None, seconds=None) for entry in log.evaluations]
    log = replace(log, evaluations=evaluations, notices=[])  # notices tell of the faults
    yield from (
        (f"log {name}", json.dumps(value, sort_keys=True, default=vars).encode()) for name, value in vars(log).items()
    )


def _bits(first: bytes, second: bytes) -> tuple[int, int]:
    """Return how many bits there are, and how many of them differ. Bits that only one side has differ."""
    common, longer = min(len(first), len(second)), max(len(first), len(second))
    one, other = (np.frombuffer(side, np.uint8, common) for side in (first, second))
    return 8 * longer, int(np.bitwise_count(one ^ other).sum()) + 8 * (longer - common)
