"""One long run of a very small model, watched from outside: memory, threads, open files, the log."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from benchmarks.torture.process import environment
from picogpt.config import UserError
from picogpt.training.runlog import read_log

_EVERY = 2.0  # seconds between samples
_GROWTH, _SLACK_MB = 1.05, 2.0  # of the memory: beyond both it is a leak
_LANES = 2
_COMMAND = (
    f"train --data text.txt --run load --context-len 8 --n-layer 1 --n-head 1 --n-embd 8 --batch-size 2 "
    f"--lanes {_LANES} --eval-interval 250 --save-minutes 0.05"
)


@dataclass(frozen=True)
class _Sample:
    memory_mb: float  # of the process and its lanes, shared pages once
    threads: int
    files: int
    log_bytes: int
    evaluations: int


@dataclass
class Load:
    """What a run took in the second quarter of its time, and in the last."""

    steps: int
    seconds: float = 0.0
    memory_mb: tuple[float, float] = (0.0, 0.0)
    threads: tuple[float, float] = (0.0, 0.0)
    files: tuple[float, float] = (0.0, 0.0)
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
        _judge(result, samples, log)
    return result


def _samples(process: subprocess.Popen[bytes], log: Path) -> Iterator[_Sample]:
    """What it takes now and then, until its end."""
    while process.poll() is None:
        time.sleep(_EVERY)
        with suppress(psutil.Error, UserError):  # it has just ended, or not begun
            facts = [(p.memory_full_info().pss / 2**20, p.num_threads(), p.num_fds()) for p in _trainers(process.pid)]
            memory, threads, files = map(sum, zip(*facts, strict=True))
            if len(facts) == _LANES:
                yield _Sample(memory, threads, files, log.stat().st_size, len(read_log(log)["evaluations"]))


def _trainers(pid: int) -> list[psutil.Process]:
    """The process and its lanes, but none that draws its picture."""
    found = [one := psutil.Process(pid)]
    for child in one.children():
        with suppress(psutil.Error):  # a picture is ready
            if child.cmdline() == one.cmdline():
                found.append(child)
    return found


def _judge(result: Load, samples: list[_Sample], log: Path) -> None:
    quarter = len(samples) // 4
    if not quarter:
        result.problems.append(f"load was over after {len(samples)} looks: give it more steps")
        return

    def quarters(name: str) -> tuple[float, float]:
        values: list[Any] = [getattr(sample, name) for sample in samples]
        return float(median(values[quarter : 2 * quarter])), float(median(values[-quarter:]))

    result.memory_mb, result.threads, result.files = map(quarters, ("memory_mb", "threads", "files"))
    before, after = result.memory_mb
    if after > _GROWTH * before + _SLACK_MB:
        result.problems.append(f"load: memory grew from {before:.1f} to {after:.1f} MB")
    for name in ("threads", "files"):
        before, after = getattr(result, name)
        if after > before:
            result.problems.append(f"load: {name} grew from {before:g} to {after:g}")
    result.log_bytes = log.stat().st_size
    sizes = np.array([(sample.evaluations, sample.log_bytes) for sample in samples[quarter:]], np.float64)
    result.log_bytes_an_evaluation = float(np.polyfit(sizes[:, 0], sizes[:, 1], 1)[0])
