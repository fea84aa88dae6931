"""Starts one process that trains, and watches it from outside."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.torture.child import Plan

ROOT = Path(__file__).parents[2]
_PATIENCE = 120.0  # seconds in which anything comes to pass
_LOOK = 0.005


def environment() -> dict[str, str]:
    """Return the environment in which a process finds these modules, from any folder."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


class HungError(Exception):
    """Something that was waited for did not happen in time."""


@dataclass(frozen=True)
class Ended:
    """Tells how a process ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """What no run may print, in a line: a traceback, or more than one line of errors. "" for neither."""
        lines = self.err.strip().splitlines()
        traceback = any(line.startswith("Traceback") for line in lines)
        return f"{len(lines)} lines of errors, the last is {lines[-1]!r}" if traceback or len(lines) > 1 else ""


class Child:
    """Runs `picogpt ...` with a plan, in a process group and a folder of its own."""

    def __init__(self, folder: Path, command: list[str], plan: Plan) -> None:
        self.folder, self._marks = folder, Path(plan.marks)
        self._marks.write_text("", encoding="utf-8")
        self._files = [self._marks.with_suffix(suffix) for suffix in (".out", ".err")]
        out, err = (path.open("wb") for path in self._files)
        with out, err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.torture.child", plan.to_json(), *command],
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def until_mark(self, word: str) -> bool:
        """Wait for a mark. Returns whether it came before the process ended. Raises HungError."""
        return self._until(lambda: word in self._marks.read_text(encoding="utf-8").split(), f"the mark {word!r}")

    def until_said(self, words: str) -> bool:
        """Wait for words that it prints. Returns whether they came before it ended. Raises HungError."""
        return self._until(lambda: words in self._files[0].read_text(errors="replace"), f"the words {words!r}")

    def _until(self, come: Callable[[], bool], what: str) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while not come():
            if not self.runs:
                return come()
            if time.monotonic() > deadline:
                raise HungError(f"{what} did not come in {_PATIENCE:.0f} seconds")
            time.sleep(_LOOK)
        return True

    def send(self, number: int) -> None:
        if self.runs:
            os.kill(self.pid, number)

    def send_to_all(self, number: int) -> None:
        """Send a signal to the process and its lanes."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def lanes(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children()
        except psutil.NoSuchProcess:
            return []

    def end(self, seconds: float = _PATIENCE) -> Ended:
        """Wait until the process and its lanes have ended. Raises HungError."""
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise HungError(f"it did not end in {seconds:.0f} seconds") from None
        deadline = time.monotonic() + _PATIENCE
        while left := _group(self.pid):
            if time.monotonic() > deadline:
                raise HungError(f"it left {len(left)} processes behind")
            time.sleep(_LOOK)
        return Ended(status, *(path.read_text(encoding="utf-8", errors="replace") for path in self._files))

    def clear(self) -> None:
        """Kill what is left of it."""
        self.send_to_all(signal.SIGKILL)
        self._process.wait()


def _group(number: int) -> list[psutil.Process]:
    """Return the living processes of a group."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == number and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
