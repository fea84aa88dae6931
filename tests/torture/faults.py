"""Every kind of fault is listed here, with what is done to the process and how it must end."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from picogpt.errors import UserError
from picogpt.runs import checkpoints
from picogpt.runs.checkpoint import META
from picogpt.runs.layout import CHECKPOINTS
from tests.torture.child import HIT, PASSED, TRAINS, Plan
from tests.torture.process import Child, Ended

KILLED = -signal.SIGKILL
_SPREAD = 0.25  # seconds: in so many there is a save, and often an evaluation
_SAVING = "training continues, and saving is tried again"
_STOPPED = "stopped and saved after step"
_DONE = "done: best validation loss"
_OVER = "steps already: raise --steps"
_LEFT_OUT = "it is left out"
_TEXT = "the text cannot be read"

Act = Callable[[Child, Random, "Context"], bool]
"""Does something to a process that trains, and waits for what follows. Returns whether it did anything."""


@dataclass(frozen=True)
class Context:
    """What an action needs to know beside the process."""

    run_dir: Path
    command: list[str]
    second: Plan
    """The plan of a second process."""
    starting: float
    """Seconds that a process takes to begin to train."""


@dataclass(frozen=True)
class Fault:
    kind: str
    """Its name in the report."""
    act: Act
    """What is done from outside."""
    status: int = KILLED
    """The exit status of the process, if the fault has taken effect."""
    says: str = ""
    """Words that it prints then."""
    inside: str = ""
    """The name of what the process does to itself, in child.py."""
    damages: bool = False
    """Whether the newest checkpoint is damaged before the start."""
    may_fail: bool = False
    """Whether saves fail. Where that is the last one, the process ends with status 2."""


def kill(child: Child, random: Random, context: Context) -> bool:
    if not child.until_mark(TRAINS):
        return False
    time.sleep(random.uniform(0, _SPREAD))
    child.send(signal.SIGKILL)
    return True


def kill_starting(child: Child, random: Random, context: Context) -> bool:
    time.sleep(random.uniform(0, context.starting))
    child.send(signal.SIGKILL)
    return True


def by_itself(child: Child, random: Random, context: Context) -> bool:
    return child.until_mark(HIT)


def at_start(child: Child, random: Random, context: Context) -> bool:
    return True


def stop_with(number: int) -> Act:
    def stop(child: Child, random: Random, context: Context) -> bool:
        if not child.until_mark(TRAINS):
            return False
        time.sleep(random.uniform(0, _SPREAD))
        child.send(number)
        return child.until_said(_STOPPED)

    return stop


def suspend(child: Child, random: Random, context: Context) -> bool:
    if not child.until_mark(TRAINS):
        return False
    time.sleep(random.uniform(0, _SPREAD))
    child.send_to_all(signal.SIGSTOP)
    time.sleep(random.uniform(0, 4 * _SPREAD))
    child.send_to_all(signal.SIGCONT)
    return kill(child, random, context)


def move_away(child: Child, random: Random, context: Context) -> bool:
    """Move the folder of the run away and back, as a network does that fails."""
    if not child.until_mark(TRAINS):
        return False
    away = context.run_dir.with_name(f"{context.run_dir.name}.away")
    os.rename(context.run_dir, away)
    try:
        noticed = child.until_said(_SAVING)
    finally:
        anew = context.run_dir.exists()
        if anew:
            child.send(signal.SIGKILL)
            child.end()
            shutil.rmtree(context.run_dir)
        os.rename(away, context.run_dir)
    if anew:
        raise UserError("the folder was made anew while it was away")
    return noticed and kill(child, random, context)


def second(child: Child, random: Random, context: Context) -> bool:
    """Give the same command again, beside the first."""
    if not child.until_mark(TRAINS):
        return False
    other = Child(child.folder, context.command, context.second)
    try:
        ended = other.end()
    finally:
        other.clear()
    if not child.runs or _OVER in ended.out:  # the first was just ending: it lets go of the run a little before
        return False
    if ended.status != 2 or f"is being trained by process {child.pid} on" not in ended.err or ended.complaint:
        raise UserError(f"a second process ended with status {ended.status}: {ended.err or ended.out}")
    return kill(child, random, context)


def kill_lane(child: Child, random: Random, context: Context) -> bool:
    if not child.until_mark(TRAINS):
        return False
    time.sleep(random.uniform(0, _SPREAD))
    for lane in child.lanes():
        lane.kill()
    return child.end().status != 0


def survive(words: str = "") -> Act:
    """Wait until a trouble has passed and the process has said these words of it; kill it some time later."""

    def wait(child: Child, random: Random, context: Context) -> bool:
        if not child.until_mark(PASSED):
            return False
        if not child.until_said(words):
            raise UserError(f"it never said {words!r}")
        return kill(child, random, context)

    return wait


FAULTS = (
    Fault("SIGKILL at any moment", kill),
    Fault("SIGKILL while it starts", kill_starting),
    Fault("SIGKILL in an evaluation", by_itself, inside="in_evaluation"),
    Fault("SIGKILL between log and checkpoint", by_itself, inside="between_log_and_checkpoint"),
    Fault("SIGKILL while arrays are written", by_itself, inside="while_written"),
    Fault("SIGKILL at a flush to the disk", by_itself, inside="in_fsync"),
    Fault("SIGKILL at a rename", by_itself, inside="at_rename"),
    Fault("SIGKILL while checkpoints are deleted", by_itself, inside="while_deleted"),
    Fault("Ctrl-C", stop_with(signal.SIGINT), 0, _STOPPED),
    Fault("Ctrl-C twice", by_itself, 130, "once more to stop at once", inside="interrupt_twice"),
    Fault("SIGTERM", stop_with(signal.SIGTERM), 0, _STOPPED),
    Fault("SIGHUP, a closed terminal", stop_with(signal.SIGHUP), 0, _STOPPED),
    Fault("suspended and resumed", suspend),
    Fault("clock jumps", survive(), inside="clock_jumps"),
    Fault("disk full for a while", survive(_SAVING), says=_SAVING, inside="disk_full", may_fail=True),
    Fault("disk full from the start", at_start, 2, "cannot", inside="full_at_start"),
    Fault("disk full at the end", by_itself, 2, "cannot write", inside="full_at_end"),
    Fault("files limited in size for a while", survive(_SAVING), says=_SAVING, inside="file_limit", may_fail=True),
    Fault("read-only folder for a while", survive(_SAVING), says=_SAVING, inside="read_only", may_fail=True),
    Fault("folder gone for a while", move_away, says=_SAVING, may_fail=True),
    Fault("text unreadable for a while", survive(_TEXT), says=_TEXT, inside="unreadable_text"),
    Fault("a lane killed", kill_lane, 2, "was ended from outside"),
    Fault("a second process", second),
    Fault("newest checkpoint damaged", kill, says=_LEFT_OUT, damages=True),
)
_MORE_KILLS = 8  # at any moment, in each round but the first


def faults(random: Random) -> Iterator[Fault]:
    """Yield faults without end: each kind once, then rounds with each kind once and more kills, all in random order."""
    yield from random.sample(FAULTS, len(FAULTS))
    while True:
        once = [*FAULTS, *[FAULTS[0]] * _MORE_KILLS]
        random.shuffle(once)
        yield from once


def damage_newest(run_dir: Path, random: Random) -> bool:
    """Spoil a file of the newest checkpoint, if there is an older one. Returns whether there is."""
    newest = checkpoints.newest(run_dir)
    older = [record for record in (run_dir / CHECKPOINTS).glob(f"[0-9]*[0-9]/{META}") if record.parent != newest]
    if newest is None or not older:
        return False
    path = random.choice(sorted(path for path in newest.iterdir() if path.is_file()))
    content = path.read_bytes()
    while True:  # a bit that means nothing, as that between 1e-5 and 1E-5, is no damage
        spoilt = bytearray(content)
        spoilt[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(spoilt)
        try:
            checkpoints.load(newest)
        except UserError:
            return True


def took_effect(fault: Fault, ended: Ended) -> bool:
    """Return whether it ended with the fault, and not before it because all steps were done."""
    failed = fault.may_fail and ended.status == 2 != fault.status
    return not failed and _DONE not in ended.out


def wrong(fault: Fault, took: bool, ended: Ended) -> str:
    """Return what is not as promised in how a process ended, or ""."""
    if ended.complaint:
        return ended.complaint
    said = ended.err.strip() or ended.out[-200:].strip()
    if not took:
        ok = _DONE in ended.out or (fault.may_fail and ended.status == 2)
        return "" if ok else f"status {ended.status}, without the fault: {said}"
    if ended.status != fault.status:
        return f"status {ended.status}, not {fault.status}: {said}"
    return "" if fault.says in ended.out + ended.err else f"it did not say {fault.says!r}: {said}"
