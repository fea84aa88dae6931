"""Trains a very small model for many steps, and looks whether memory, threads, open files or the log grow."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from picogpt.errors import UserError
from picogpt.runs.log import read_log
from tests.torture.process import environment

_EVERY = 2.0  # seconds between samples
_GROWTH, _SLACK_MB = 1.05, 2.0  # of the memory: beyond both it is a leak
_LANES = 2
_COMMAND = (
    f"train --preset pico --data text.txt --run load --context-len 8 --n-layer 1 --n-head 1 --n-embd 8 --batch-size 2 "
    f"--lanes {_LANES} --eval-interval 250 --save-minutes 0.05"
)


@dataclass(frozen=True)
class Sample:
    """What one look at the processes found."""

    memory_mb: float  # of the process and its lanes
    threads: int
    files: int
    log_bytes: int
    evaluations: int


@dataclass
class Load:
    """Compares what a run took in the second quarter of its time and in the last."""

    steps: int
    seconds: float = 0.0
    memory_mb: tuple[float, float] = (0.0, 0.0)
    threads: tuple[int, int] = (0, 0)
    files: tuple[int, int] = (0, 0)
    log_bytes: int = 0
    log_bytes_an_evaluation: float = 0.0
    problems: list[str] = field(default_factory=list)


def load(folder: Path, text: str, steps: int) -> Load:
    """Train so many steps in `folder`, which is there and empty."""
    (folder / "text.txt").write_text(text, encoding="utf-8")
    began, result, log = time.monotonic(), Load(steps), folder / "logs" / "load" / "log.pkl"
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "picogpt", *_COMMAND.split(), "--steps", str(steps)],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        try:
            samples = list(_samples(process, log))
        finally:
            process.kill()
            process.wait()
    result.seconds = time.monotonic() - began
    said = (folder / "err").read_text(encoding="utf-8", errors="replace")
    if process.returncode or said:
        result.problems.append(f"load ended with status {process.returncode}: {said[-300:]}")
    else:
        judge(result, samples, log.stat().st_size)
    return result


def _samples(process: subprocess.Popen[bytes], log: Path) -> Iterator[Sample]:
    """Look at the processes now and then, until they end."""
    while process.poll() is None:
        time.sleep(_EVERY)
        with suppress(psutil.Error, UserError, OSError):  # it has just ended, or not begun
            facts = [(_memory(p.pid) / 1024, p.num_threads(), p.num_fds()) for p in _trainers(process.pid)]
            memory, threads, files = map(sum, zip(*facts, strict=True))
            if len(facts) == _LANES:
                yield Sample(memory, threads, files, log.stat().st_size, len(read_log(log).evaluations))


def _memory(pid: int) -> int:
    """Return the kilobytes in memory that belong to no file. A page that processes share counts a part for each.

    Pages of files count less or more as other programs come and go, which would be megabytes.
    """
    facts = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return sum(int(kilobytes) for kilobytes in re.findall(r"^Pss_(?:Anon|Shmem): +(\d+) kB$", facts, re.MULTILINE))


def _trainers(pid: int) -> list[psutil.Process]:
    """Return the process and its lanes, but not the one that draws its picture."""
    found = [one := psutil.Process(pid)]
    for child in one.children():
        with suppress(psutil.Error):  # a picture is ready
            if child.cmdline() == one.cmdline():
                found.append(child)
    return found


def judge(result: Load, samples: list[Sample], log_bytes: int) -> None:
    """Fill in the figures and the problems that the samples show."""
    quarter = len(samples) // 4
    if not quarter:
        result.problems.append(f"load was over after {len(samples)} looks: give it more steps")
        return

    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    result.memory_mb = median(s.memory_mb for s in second), median(s.memory_mb for s in last)
    # The fewest: a save that is going on has a thread and files of its own.
    result.threads = min(s.threads for s in second), min(s.threads for s in last)
    result.files = min(s.files for s in second), min(s.files for s in last)
    if result.memory_mb[1] > _GROWTH * result.memory_mb[0] + _SLACK_MB:
        result.problems.append("load: memory grew from {:.1f} to {:.1f} MB".format(*result.memory_mb))
    for name, (before, after) in (("threads", result.threads), ("open files", result.files)):
        if after > before:
            result.problems.append(f"load: {name} grew from {before} to {after}")
    result.log_bytes = log_bytes
    sizes = np.array([(sample.evaluations, sample.log_bytes) for sample in samples[quarter:]], np.float64)
    result.log_bytes_an_evaluation = float(np.polyfit(sizes[:, 0], sizes[:, 1], 1)[0])
