"""Runs on a machine that fails: full and vanishing disks, divergence, little memory, sleep, a second process."""

import errno
import itertools
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import is_one_line, shell
from running import before_step, config_for, log_of, open_run, result_of

from picogpt.config import UserError
from picogpt.data.loader import Loader
from picogpt.training import checkpoint, monitor, saver, snapshot
from picogpt.training import run as run_module
from picogpt.training.run import Run
from picogpt.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("no_plots", "short_samples")


@pytest.fixture
def undisturbed(text: Path) -> dict[str, Any]:
    run = open_run(config_for(text), "undisturbed")
    run.train()
    return result_of(run)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# A disk that is full, or gone


@pytest.mark.parametrize("operation", ["fsync", "save_file"])
def test_a_disk_that_is_full_for_a_while(
    text: Path, undisturbed: dict[str, Any], operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on; what could not be saved is saved later, and the end is the same bits."""
    owner = os if operation == "fsync" else snapshot
    original = getattr(owner, operation)
    before_step(monkeypatch, 3, lambda: monkeypatch.setattr(owner, operation, full))
    before_step(monkeypatch, 7, lambda: monkeypatch.setattr(owner, operation, original))
    run = open_run(config_for(text))
    run.train()
    assert result_of(run) == undisturbed
    failed, again = log_of(run)["notices"]
    assert "No space left on device" in failed and failed.endswith("training goes on, and saving is tried again")
    assert again == "saved again"


def test_a_disk_that_stays_full_is_an_error_at_the_end(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_step(monkeypatch, 6, lambda: monkeypatch.setattr(snapshot, "save_file", full))
    with pytest.raises(UserError, match="No space left on device") as told:
        open_run(config_for(text)).train()
    assert "\n" not in str(told.value)
    monkeypatch.undo()
    assert open_run(config_for(text)).done == 4  # what was saved before is sound


def test_a_disk_that_is_full_from_the_beginning(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "save_file", full)
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("it trains what it cannot save"))
    with pytest.raises(UserError, match=r"00000000 \(No space left on device\): free some disk space"):
        open_run(config_for(text)).train()


def test_somebody_at_a_terminal_can_make_room(
    text: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = snapshot.save_file
    before_step(monkeypatch, 11, lambda: monkeypatch.setattr(snapshot, "save_file", full))
    run = open_run(config_for(text))
    waits: list[float] = []

    def make_room(seconds: float, ended: Callable[[], bool]) -> None:
        run.screen.interactive = False  # it is the last try
        waits.append(seconds)
        monkeypatch.setattr(snapshot, "save_file", original)

    monkeypatch.setattr(run_module, "_sleep", make_room)
    monkeypatch.setattr(run.screen, "close", lambda: None)
    before_step(monkeypatch, 11, lambda: setattr(run.screen, "interactive", True))
    monkeypatch.setattr(run.screen, "evaluation", lambda entry: None)
    run.train()
    assert len(waits) == 1 and "step 12 is not saved yet" in capsys.readouterr().out
    assert result_of(run) == undisturbed


def test_a_failed_save_is_tried_again_before_the_next_evaluation(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "RETRY_SECONDS", 0.0)
    original = snapshot.save_file
    before_step(monkeypatch, 3, lambda: monkeypatch.setattr(snapshot, "save_file", full))
    before_step(monkeypatch, 5, lambda: monkeypatch.setattr(snapshot, "save_file", original))
    saved: list[int] = []
    before_step(monkeypatch, 7, lambda: (run.saver.wait(), saved.append(checkpoint.latest(run.dir).step))[1])  # type: ignore[union-attr]
    run = open_run(config_for(text))
    run.train()
    assert saved[0] in (6, 7)


def test_the_runs_folder_goes_and_comes_back(
    text: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = text.parent / "away"
    run = open_run(config_for(text))
    run.saver.wait()
    before_step(monkeypatch, 2, lambda: (run.saver.wait(), run.dir.rename(away))[0])
    before_step(monkeypatch, 6, lambda: (run.saver.wait(), away.rename(run.dir))[0])
    run.train()
    assert result_of(run) == undisturbed


def test_text_that_cannot_be_read_is_waited_for(
    text: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, failures = Loader.batch, [errno.EIO, errno.ESTALE]

    def batch(self: Loader, position: int, count: int) -> Any:
        if position == 20 and failures:
            raise OSError(failures[0], os.strerror(failures.pop(0)))
        return original(self, position, count)

    monkeypatch.setattr(Loader, "batch", batch)
    monkeypatch.setattr(run_module, "RETRY_SECONDS", 0.0)
    run = open_run(config_for(text))
    run.train()
    assert result_of(run) == undisturbed
    (notice,) = log_of(run)["notices"]
    assert notice == f"the text cannot be read ({os.strerror(errno.EIO)}): waiting for it; Ctrl-C stops"


def test_a_stop_while_waiting_for_text_saves(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Loader, position: int, count: int) -> Any:
        if position < 20:
            return original(self, position, count)
        signal.raise_signal(signal.SIGTERM)
        raise OSError(errno.EIO, "Input/output error")

    original = Loader.batch
    with monkeypatch.context() as patch:
        patch.setattr(Loader, "batch", gone)
        open_run(config_for(text)).train()
    assert open_run(config_for(text)).done == 5


def test_a_screen_that_has_gone_does_not_end_the_run(text: Path) -> None:
    """`train.py > FILE` on a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no disk that is always full")
    argv = ["--context-len", "16", "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--batch-size", "4"]
    program = str(Path(__file__).parents[1] / "train.py")
    command = f"{sys.executable} {program} {' '.join(argv)} --steps 4 --data easy.txt --run full > /dev/full"
    status = os.waitstatus_to_exitcode(os.system(f"cd {text.parent} && {command} 2> errors"))
    assert (status, (text.parent / "errors").read_text(encoding="utf-8")) == (0, "")
    found = checkpoint.latest(text.parent / "logs" / "full")
    assert found is not None and found.step == 4


# Checkpoints that are damaged


def test_a_damaged_newest_checkpoint_is_left_out(
    text: Path, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    best = config_for(text)
    run = open_run(best)
    run.train()
    folder = checkpoint.newest(run.dir)
    assert folder is not None
    older = folder.with_name("00000008")
    if not older.exists():  # the last one was the best: put one before it
        before = open_run(config_for(text), "before")
        with pytest.MonkeyPatch.context() as patch:
            before_step(patch, 7, lambda: signal.raise_signal(signal.SIGTERM))
            before.train()
        (before.dir / "checkpoints" / "00000008").rename(older)
    content = bytearray((folder / snapshot.MODEL).read_bytes())
    content[-5] ^= 1
    (folder / snapshot.MODEL).write_bytes(content)
    capsys.readouterr()
    again = open_run(config_for(text))
    assert again.done == 8
    again.train()
    assert f"{folder / snapshot.MODEL} is damaged" in capsys.readouterr().out
    assert any("is damaged" in notice and "left out" in notice for notice in log_of(again)["notices"])
    assert result_of(again) == undisturbed
    assert not list(folder.parent.glob("*.aside"))  # the run has come as far again


def test_no_sound_checkpoint_at_all_is_refused(text: Path) -> None:
    run = open_run(config_for(text))
    run.train()
    for folder in (run.dir / "checkpoints").iterdir():
        (folder / snapshot.META).unlink()
    with pytest.raises(UserError, match=r"meta\.json is missing, and there is no other to go on from: start over"):
        open_run(config_for(text, steps=20))


@pytest.mark.parametrize(
    "change",
    [
        {"config": None},
        {"tokenizer": 3},
        {"recent": ["x"]},
        {"feed": 3},
        {"seconds": "long"},
        {"divergence": {"rate": 0.0, "skipped": 0, "returns": 0, "events": []}},
        {"divergence": {"rate": 0.5, "skipped": 0, "returns": 0, "events": [{"step": "x", "text": ""}]}},
    ],
)
def test_a_forged_record_is_refused_in_one_line(text: Path, change: dict[str, Any]) -> None:
    run = open_run(config_for(text))
    run.train()
    found = checkpoint.latest(run.dir)
    assert found is not None
    checkpoint.save(run.dir, found.step, found.model, found.optimizer, {**found.meta, **change})
    with pytest.raises(UserError, match="start over with --fresh") as told:
        open_run(config_for(text, steps=20))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_arrays_of_another_shape_are_refused(text: Path, part: str) -> None:
    run = open_run(config_for(text))
    run.train()
    found = checkpoint.latest(run.dir)
    assert found is not None
    arrays = getattr(found, part)
    arrays[next(iter(arrays))] = np.zeros((2, 2), np.float32)
    checkpoint.save(run.dir, found.step, found.model, found.optimizer, found.meta)
    with pytest.raises(UserError, match="no checkpoint that a run can go on from"):
        open_run(config_for(text, steps=20))


# Losses that are not finite


def poison(monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...], below_rate: float = 1.0) -> None:
    """The loss of these steps is not a number, as long as the learning rates are what was configured."""
    original = Trainer.accumulate

    def poisoned(self: Trainer, x: Any, y: Any, step: int, depth: int | None = None) -> tuple[float, float]:
        loss, norm = original(self, x, y, step, depth)
        return (math.nan, norm) if step in steps and rates[-1] >= below_rate else (loss, norm)

    rates: list[float] = [1.0]
    divergence = run_module.Divergence

    def noted(*arguments: Any) -> Any:
        made = divergence(*arguments)
        rates.append(made.rate)
        return made

    noted.from_dict = divergence.from_dict  # type: ignore[attr-defined]
    monkeypatch.setattr(run_module, "Divergence", noted)
    monkeypatch.setattr(Trainer, "accumulate", poisoned)


def test_a_step_that_is_not_finite_is_left_out(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, (5, 7, 8))
    run = open_run(config_for(text))
    run.train()
    log = log_of(run)
    assert [event["step"] for event in log["divergence"]] == [6, 8, 9]
    assert all(event["text"].endswith("is left out") for event in log["divergence"])
    assert all(math.isfinite(loss) for loss in log["losses"]["train"] + log["losses"]["val"])
    assert checkpoint.newest(run.dir) == run.dir / "checkpoints" / "00000012"


def test_three_in_a_row_go_back_and_learn_slower(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, (5, 6, 7))
    run = open_run(config_for(text))
    run.train()
    log = log_of(run)
    assert log["divergence"][-1]["text"].endswith("at step 8: back to step 4, with 0.5 of the learning rates")
    # Wherever the steps are tried again they are the same poison but for the rate.
    assert [entry["step"] for entry in log["evaluations"]] == [4, 8, 12]
    rate = run.config.train.learning_rate
    assert log["evaluations"][0]["lr"] == pytest.approx(rate) and log["evaluations"][1]["lr"] <= rate / 2


def test_what_goes_back_takes_the_same_way_after_a_kill(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, (5, 6, 7))
    whole = open_run(config_for(text), "whole")
    whole.train()

    def die() -> None:
        raise RuntimeError("the power went")

    for step in (4, 6, 7, 9):
        with monkeypatch.context() as patch:
            poison(patch, (5, 6, 7))
            before_step(patch, step, die)
            with pytest.raises(RuntimeError, match="the power went"):
                open_run(config_for(text)).train()
    poison(monkeypatch, (5, 6, 7))
    run = open_run(config_for(text))
    run.train()
    assert result_of(run) == result_of(whole)
    assert log_of(run)["divergence"] == log_of(whole)["divergence"]


def test_what_never_gets_better_is_given_up(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, tuple(range(6, 100)), below_rate=0.0)
    run = open_run(config_for(text))
    with pytest.raises(UserError, match=r"step 11: loss nan, .* training diverged"):
        run.train()
    assert len([event for event in run.log.divergence if "back to step" in event["text"]]) == 5
    found = checkpoint.latest(run.dir)
    assert found is not None and all(np.isfinite(array).all() for array in found.model.values())


def test_the_second_time_it_goes_back_to_the_best(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([2.0, 3.0, *[1.0] * 10])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, x, y: next(losses))
    poison(monkeypatch, (9, 10, 11), below_rate=0.5)
    run = open_run(config_for(text))
    run.train()
    backs = [event["text"] for event in log_of(run)["divergence"] if "back to" in event["text"]]
    assert ["back to step 8" in backs[0], "back to step 4" in backs[1]] == [True, True]


# Memory, time, and others


def test_little_memory_means_smaller_micro_batches(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10**12, 0, 0, 0, 0] + [10**12] * 100)
    monkeypatch.setattr(monitor, "_LOOK", 0.0)
    monkeypatch.setattr(monitor, "_AFTER_SHORTAGE", 0.0)
    monkeypatch.setattr(monitor, "total_memory", lambda: 10**12)
    watch = monitor.MemoryWatch.is_short
    monkeypatch.setattr(monitor.MemoryWatch, "is_short", lambda self: next(free) == 0 and watch(self))
    monkeypatch.setattr(monitor, "available_memory", lambda: 10**9)
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
    assert checkpoint.newest(run.dir) == run.dir / "checkpoints" / "00000012"


def test_saves_by_the_minute(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    original = Run._save
    monkeypatch.setattr(Run, "_save", lambda self, trainer: (saved.append(self.done), original(self, trainer))[1])
    run = open_run(config_for(text, eval_interval=100, save_minutes=1e-9))
    for step in range(12):
        before_step(monkeypatch, step, run.saver.wait)
    run.train()
    assert saved == list(range(13))


def test_the_clock_may_jump(text: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """By years, both ways, at every look."""
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
    assert "stopped and saved after step 6: the same command without --fresh goes on" in capsys.readouterr().out


def test_the_meta_says_where_the_run_stands(text: Path) -> None:
    run = open_run(config_for(text))
    run.train()
    folder = checkpoint.newest(run.dir)
    assert folder is not None
    meta = json.loads((folder / snapshot.META).read_text(encoding="utf-8"))["meta"]
    assert meta["evaluated"] is True and meta["val_loss"] == log_of(run)["losses"]["val"][-1]
    assert meta["divergence"] == {"rate": 1.0, "skipped": 0, "returns": 0, "events": []}
