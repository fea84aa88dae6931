"""The pace of this machine is measured first, and the sizes of all runs are chosen by it."""

import re
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

from picogpt.errors import UserError
from tests.torture.child import TRAINS, Plan
from tests.torture.faults import FAULTS
from tests.torture.process import Child, HungError
from tests.torture.variants import INTERVAL, SLOWEST, VARIANTS, command, new_home

FAULTS_SHARE = 2 / 3  # of the time, at least
_PLANNED_SHARE = 0.75  # of it, because some faults have no effect, and the pace changes
FEWEST_STEPS = 2 * INTERVAL  # of a run, for there must be an evaluation before its middle
MEASURED_STEPS = 2 * INTERVAL
_FILES_SHARE = 0.05  # of the time, for damaged files
_STEPS_A_FAULT = 50  # that a run goes on between two faults, where there is time for so many
_WAITS = 0.25  # seconds that are waited until a fault, and for its end
_ENDLESS = 10_000_000  # steps, so that the first run is not over before it is stopped


@dataclass(frozen=True)
class Pace:
    """How many seconds things take on this machine, saves to its disk included."""

    first_start: float
    """From the start of a process in a new folder to its first step. It makes the tokens."""
    start: float
    """The same for a later start."""
    step: float
    """One step of the slowest run, with its part of the evaluations and saves."""
    save: float
    """From a signal to stop until the process has saved and ended."""

    @property
    def fault(self) -> float:
        """One process with a fault, without the steps it trains before: it starts, waits, and saves."""
        return self.start + _WAITS + self.save

    def run(self, steps: int) -> float:
        """One process that trains so many steps in a new folder and ends."""
        return self.first_start + self.last_start(steps) - self.start

    def last_start(self, steps: int) -> float:
        """One later process that trains so many steps and ends."""
        return self.start + steps * self.step + self.save

    @property
    def measuring(self) -> float:
        """What it took to find all this."""
        return self.run(MEASURED_STEPS) + self.last_start(0)


@dataclass(frozen=True)
class Sizes:
    """How much is done in the time asked for."""

    variants: int
    """How many of the variants are trained."""
    steps: int
    """Of every run."""
    faults: int
    """How many are wanted, all variants together. There are more where time is left."""
    files: float
    """Seconds for damaging files."""

    def without_faults(self, pace: Pace) -> float:
        """Return the seconds of all that is no fault, at worst.

        That is the first run, the damaged files, and for each variant its undisturbed run and the last start of the
        disturbed one. The last start has all steps to do, where no fault let one be saved.
        """
        a_variant = pace.run(self.steps) + pace.last_start(self.steps)
        return pace.measuring + self.files + self.variants * a_variant

    def for_faults(self, pace: Pace, seconds: float) -> float:
        """Return the seconds that are left for faults. One of them, the short memory, takes a whole run."""
        return seconds - self.without_faults(pace) - pace.run(self.steps)


def sizes(pace: Pace, minutes: float) -> Sizes:
    """Choose the sizes so that faults have at least two thirds of the time.

    As many variants are trained as leave time for every kind of fault. If there is not even time for one of them, the
    smallest run is chosen, with as many faults as fit beside it: perhaps none.
    """
    seconds = 60 * minutes
    files = _FILES_SHARE * seconds
    without_faults = (1 - _PLANNED_SHARE) * seconds - files - pace.measuring
    most_faults = int(_PLANNED_SHARE * seconds / (pace.fault + _STEPS_A_FAULT * pace.step))
    best = _with_faults(Sizes(1, FEWEST_STEPS, 0, files), pace, seconds)
    for variants in range(1, len(VARIANTS) + 1):
        for_steps = without_faults / variants - pace.run(0) - pace.last_start(0)
        useful = max(FEWEST_STEPS, _STEPS_A_FAULT * most_faults // variants)
        steps = min(int(for_steps / pace.step / 2), useful)
        found = _with_faults(Sizes(variants, steps, 0, files), pace, seconds)
        if steps >= FEWEST_STEPS and (variants == 1 or found.faults >= len(FAULTS)):
            best = found
    return best


def _with_faults(chosen: Sizes, pace: Pace, seconds: float) -> Sizes:
    """Fill in how many faults fit, after the steps that the disturbed runs train between them."""
    left = chosen.for_faults(pace, seconds) - chosen.variants * chosen.steps * pace.step
    return replace(chosen, faults=max(0, int(left / pace.fault)))


def measure_pace(folder: Path, text: str) -> Pace:
    """Train a first run for a few steps, stop it and start it again. Raises UserError where it does not obey."""
    home = new_home(folder, SLOWEST.name, text)
    try:
        first = _timed_process(home, f"\nstep {MEASURED_STEPS}/")
        again = _timed_process(home, "")
    except HungError as error:
        raise UserError(f"the run that measures the pace hung: {error}") from None
    return Pace(first.start, again.start, first.training / first.steps, first.stop)


@dataclass(frozen=True)
class _Timed:
    """How many seconds a process took to begin to train, trained, and took to stop; and after which step that was."""

    start: float
    training: float
    stop: float
    steps: int


def _timed_process(home: Path, words: str) -> _Timed:
    """Start the run, and stop it when it trains and has said these words."""
    began = time.monotonic()
    child = Child(home, command(SLOWEST, _ENDLESS), Plan(str(home / "first.marks")))
    try:
        child.until_mark(TRAINS)
        trains = time.monotonic()
        child.until_said(words)
        asked = time.monotonic()
        child.send(signal.SIGTERM)
        ended = child.end()
        stopped = time.monotonic()
    finally:
        child.clear()
    saved = re.search(r"stopped and saved after step (\d+)", ended.out)
    if ended.status or saved is None:
        raise UserError(f"the run that measures the pace ended with status {ended.status}: {ended.err}")
    return _Timed(trains - began, asked - trains, stopped - asked, int(saved[1]))
