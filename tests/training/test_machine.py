"""Runs on a machine with little memory, a clock that jumps, other cores than before, and a second process."""

import itertools
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from picogpt.errors import UserError
from picogpt.runs import checkpoint, checkpoints
from picogpt.system import hardware
from picogpt.training.saver import RunSaver
from picogpt.training.trainer import Trainer
from tests.support.commands import is_one_line, shell
from tests.support.running import before_step, config_for, log_of, open_run, result_of

pytestmark = pytest.mark.usefixtures("no_plots", "short_samples")


def test_little_memory_means_smaller_micro_batches(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10**12, 0, 0, 0, 0] + [10**12] * 100)
    monkeypatch.setattr(hardware, "_LOOK", 0.0)
    monkeypatch.setattr(hardware, "_AFTER_SHORTAGE", 0.0)
    monkeypatch.setattr(hardware, "total_memory", lambda: 10**12)
    watch = hardware.MemoryWatch.is_short
    monkeypatch.setattr(hardware.MemoryWatch, "is_short", lambda self: next(free) == 0 and watch(self))
    monkeypatch.setattr(hardware, "available_memory", lambda: 10**9)
    sizes: list[int] = []
    original = Trainer.step

    def noted(self: Trainer, *how: Any) -> float:
        sizes.append(self.micro_batch)
        return original(self, *how)

    monkeypatch.setattr(Trainer, "step", noted)
    run = open_run(config_for(text, micro_batch=4, lanes=1))
    run.train()
    assert sizes[:5] == [4, 4, 2, 1, 1] and sizes[-1] == 1
    notices = log_of(run)["notices"]
    said = (
        "2 at a time in each lane, which",
        "1 at a time in each lane, which",
        "lane, recomputed, which",
        "close other",
    )
    assert len(notices) == 4 and all(words in notice for words, notice in zip(said, notices, strict=True))
    assert checkpoints.newest(run.dir) == run.dir / "checkpoints" / "00000012"


def test_no_memory_for_a_step_means_a_smaller_way(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, refused = Trainer.accumulate, [3, 3]

    def accumulate(self: Trainer, x: Any, y: Any, step: int, *how: Any) -> tuple[float, float]:
        if refused and step == refused[0]:
            refused.pop()
            raise MemoryError("32 MB more for training")
        return original(self, x, y, step, *how)

    monkeypatch.setattr(Trainer, "accumulate", accumulate)
    run = open_run(config_for(text, micro_batch=4, lanes=1))
    run.train()
    (notice,) = log_of(run)["notices"]
    assert notice.startswith("there was no memory left: until the next start 1 at a time in each lane, which changes")
    assert checkpoints.newest(run.dir) == run.dir / "checkpoints" / "00000012"


def test_other_lanes_than_before_are_told(text: Path) -> None:
    open_run(config_for(text)).train()
    run = open_run(config_for(text, steps=14, lanes=1))
    run.train()
    assert log_of(run)["notices"] == [
        "it trained with device cpu, tf32 False, lanes 2, micro_batch 2 before, "
        "now with device cpu, tf32 False, lanes 1, micro_batch 4: "
        "the last bits will differ"
    ]


def test_saves_by_the_minute(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    original = RunSaver.save
    monkeypatch.setattr(RunSaver, "save", lambda self: (saved.append(run.state.step), original(self))[1])
    run = open_run(config_for(text, eval_interval=100, save_minutes=1e-9))
    for step in range(12):
        before_step(monkeypatch, step, run.saver.wait)
    run.train()
    assert saved == list(range(13))


def test_the_clock_may_jump(text: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It jumps by years, in both directions, at every call."""
    jumps = itertools.cycle((0.0, 1e9, -1e9))
    original = time.time
    monkeypatch.setattr(time, "time", lambda: original() + next(jumps))
    run = open_run(config_for(text, minutes=600.0))
    run.train()
    assert result_of(run)["losses"] == undisturbed["losses"]
    assert 0 < log_of(run)["evaluations"][-1]["seconds"] < 600


def test_a_second_process_is_refused_and_the_first_goes_on(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[tuple[int, str, str]] = []
    shape = ["--context-len", "16", "--n-layer", "2", "--n-head", "2", "--n-embd", "16"]
    small = ["--batch-size", "4", "--lanes", "2", "--steps", "12", "--eval-interval", "4", "--warmup-steps", "2"]

    def second() -> None:
        refused.append(shell(text.parent, "train.py", *shape, *small, "--data", str(text), "--run", "run"))

    before_step(monkeypatch, 6, second)
    run = open_run(config_for(text))
    run.train()
    ((status, _, error),) = refused
    assert status == 2 and is_one_line(error)
    assert f"run run is being trained by process {os.getpid()} on " in error
    assert log_of(run)["iter_num"] == 12


def test_one_that_another_process_trained_meanwhile_is_not_gone_on_with(text: Path) -> None:
    early = open_run(config_for(text))
    open_run(config_for(text)).train()
    with pytest.raises(UserError, match="was trained by another process meanwhile: give the command again"):
        early.train()


def test_a_log_is_whole_or_refused(text: Path) -> None:
    run = open_run(config_for(text))
    run.train()
    path = run.dir / "log.pkl"
    content = bytearray(path.read_bytes())
    content[content.index(b"val_loss") + 14] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"log\.pkl"):
        open_run(config_for(text, steps=20))


def test_going_on_without_fresh_is_said(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before_step(monkeypatch, 5, lambda: signal.raise_signal(signal.SIGINT))
    open_run(config_for(text), fresh=True).train()
    assert "stopped and saved after step 6: the same command without --fresh continues" in capsys.readouterr().out


def test_the_meta_says_where_the_run_stands(text: Path) -> None:
    run = open_run(config_for(text))
    run.train()
    folder = checkpoints.newest(run.dir)
    assert folder is not None
    meta = json.loads((folder / checkpoint.META).read_text(encoding="utf-8"))["meta"]
    assert meta["evaluated"] is True and meta["val_loss"] == log_of(run)["losses"]["val"][-1]
    assert meta["divergence"] == {"rate": 1.0, "skipped": 0, "returns": 0, "furthest": 0, "events": []}
    assert meta["way"] == {"device": "cpu", "tf32": False, "lanes": 2, "micro_batch": 2}
