"""Runs on disks that fail: full, vanishing, damaged."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from picogpt.config import MonitoringConfig
from picogpt.data.loader import Loader
from picogpt.errors import UserError
from picogpt.monitoring.observers import Observers
from picogpt.monitoring.screen import Screen
from picogpt.runs import checkpoint, checkpoints
from picogpt.runs import log as log_module
from picogpt.tensorfiles.safetensors import write_safetensors
from picogpt.training import loop, saver
from picogpt.training.trainer import Trainer
from tests.support.checkpoints import forge_meta
from tests.support.paths import ROOT
from tests.support.running import before_step, config_for, log_of, open_run, result_of

pytestmark = pytest.mark.usefixtures("no_plots", "short_samples")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# A disk that is full or missing


@pytest.mark.parametrize("operation", ["fsync", "write_safetensors"])
def test_a_disk_that_is_full_for_a_while(
    text: Path, undisturbed: dict[str, Any], operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training continues; what could not be saved is saved later, and the final bits are the same."""
    owner = os if operation == "fsync" else checkpoint
    original = getattr(owner, operation)
    before_step(monkeypatch, 3, lambda: monkeypatch.setattr(owner, operation, full))
    before_step(monkeypatch, 7, lambda: (run.saver.wait(), monkeypatch.setattr(owner, operation, original))[1])
    run = open_run(config_for(text))
    run.train()
    assert result_of(run) == undisturbed
    failed, again = log_of(run)["notices"]
    assert "No space left on device" in failed and failed.endswith("training continues, and saving is tried again")
    assert again == "saved again"


def test_a_disk_that_stays_full_is_an_error_at_the_end(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_step(monkeypatch, 6, lambda: monkeypatch.setattr(checkpoint, "write_safetensors", full))
    with pytest.raises(UserError, match="No space left on device") as told:
        open_run(config_for(text)).train()
    assert "\n" not in str(told.value)
    monkeypatch.undo()
    assert open_run(config_for(text)).state.step == 4  # the earlier checkpoint is sound


def test_a_disk_that_is_full_from_the_beginning(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "write_safetensors", full)
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("it trains what it cannot save"))
    with pytest.raises(UserError, match=r"00000000 \(No space left on device\): free some disk space"):
        open_run(config_for(text)).train()


def test_somebody_at_a_terminal_can_make_room(
    text: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = write_safetensors
    before_step(monkeypatch, 11, lambda: monkeypatch.setattr(checkpoint, "write_safetensors", full))
    screen, waits = Screen(), list[float]()
    folder = text.parent / "logs" / "run"
    run = open_run(config_for(text), observers=Observers(MonitoringConfig(), folder, screen=screen))

    def make_room(seconds: float, ended: Callable[[], bool]) -> None:
        screen.interactive = False  # it is the last try
        waits.append(seconds)
        monkeypatch.setattr(checkpoint, "write_safetensors", original)

    monkeypatch.setattr(saver, "sleep", make_room)
    monkeypatch.setattr(screen, "close", lambda: None)
    before_step(monkeypatch, 11, lambda: setattr(screen, "interactive", True))
    monkeypatch.setattr(screen, "evaluation", lambda *_: None)
    run.train()
    assert len(waits) == 1 and "step 12 is not saved yet" in capsys.readouterr().out
    assert result_of(run) == undisturbed


def test_a_failed_save_is_tried_again_before_the_next_evaluation(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "RETRY_SECONDS", 0.0)
    original = write_safetensors
    before_step(monkeypatch, 3, lambda: monkeypatch.setattr(checkpoint, "write_safetensors", full))
    before_step(monkeypatch, 5, lambda: monkeypatch.setattr(checkpoint, "write_safetensors", original))
    saved: list[int] = []
    before_step(monkeypatch, 7, lambda: (run.saver.wait(), saved.append(checkpoints.latest(run.dir).step))[1])  # type: ignore[union-attr]
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


def test_a_folder_that_goes_in_the_middle_of_a_save_is_not_made_anew(
    text: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    away, write_log = text.parent / "away", log_module.write_log

    def gone(path: Path, content: bytes) -> None:
        monkeypatch.setattr(saver, "write_log", write_log)
        run.dir.rename(away)
        write_log(path, content)

    def back() -> None:
        run.saver.wait()
        assert not run.dir.exists()
        away.rename(run.dir)

    before_step(monkeypatch, 3, lambda: monkeypatch.setattr(saver, "write_log", gone))
    before_step(monkeypatch, 7, back)
    run = open_run(config_for(text))
    run.train()
    assert result_of(run) == undisturbed


def test_a_network_that_answers_nonsense_ends_nothing(
    text: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(config_for(text))
    stat, stale = os.stat, [False]

    def answered(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if stale[0] and str(path).startswith(str(run.dir)):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", answered)
    before_step(monkeypatch, 3, lambda: (run.saver.wait(), stale.__setitem__(0, True))[0])
    before_step(monkeypatch, 6, lambda: (run.saver.wait(), stale.__setitem__(0, False))[0])
    run.train()
    assert result_of(run) == undisturbed


def test_what_is_wrong_with_the_text_costs_no_step(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Loader.batch

    def damaged(self: Loader, position: int, count: int) -> Any:
        if position == 24:
            raise UserError("its text is damaged")
        return original(self, position, count)

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "batch", damaged)
        with pytest.raises(UserError, match="its text is damaged"):
            open_run(config_for(text)).train()
    assert open_run(config_for(text)).state.step == 6


def test_a_slow_disk_is_waited_for_after_an_error(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = checkpoints.publish

    def slow(draft: checkpoints.Draft) -> Path:
        if draft.step:
            waiting.wait(0.3)
        return publish(draft)

    def die() -> None:
        raise UserError("a lane has died")

    waiting = threading.Event()
    monkeypatch.setattr(checkpoints, "publish", slow)
    before_step(monkeypatch, 4, die)
    with pytest.raises(UserError, match="a lane has died"):
        open_run(config_for(text)).train()
    assert open_run(config_for(text)).state.step == 4


def test_what_a_killed_save_left_makes_room(text: Path) -> None:
    run = open_run(config_for(text))
    run.train()
    left = run.dir / "checkpoints" / ".tmp-00000016"
    left.mkdir()
    (left / checkpoint.MODEL).write_bytes(bytes(1000))
    seen: list[bool] = []
    again = open_run(config_for(text, steps=13))
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 12, lambda: seen.append(left.exists()))
        again.train()
    assert seen == [False]


def test_a_system_without_threads_saves_all_the_same(
    text: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    run = open_run(config_for(text))
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
    monkeypatch.setattr(loop, "RETRY_SECONDS", 0.0)
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
    assert open_run(config_for(text)).state.step == 5


def test_a_screen_that_has_gone_does_not_end_the_run(text: Path) -> None:
    """`train.py > FILE` on a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no disk that is always full")
    argv = ["--context-len", "16", "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--batch-size", "4"]
    program = str(ROOT / "train.py")
    command = f"{sys.executable} {program} {' '.join(argv)} --steps 4 --data easy.txt --run full > /dev/full"
    status = os.waitstatus_to_exitcode(os.system(f"cd {text.parent} && {command} 2> errors"))
    assert (status, (text.parent / "errors").read_text(encoding="utf-8")) == (0, "")
    found = checkpoints.latest(text.parent / "logs" / "full")
    assert found is not None and found.step == 4


# Checkpoints that are damaged


def test_a_damaged_newest_checkpoint_is_left_out(
    text: Path, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    best = config_for(text)
    run = open_run(best)
    run.train()
    folder = checkpoints.newest(run.dir)
    assert folder is not None
    older = folder.with_name("00000008")
    if not older.exists():  # the last one was the best: put one before it
        before = open_run(config_for(text), "before")
        with pytest.MonkeyPatch.context() as patch:
            before_step(patch, 7, lambda: signal.raise_signal(signal.SIGTERM))
            before.train()
        (before.dir / "checkpoints" / "00000008").rename(older)
    content = bytearray((folder / checkpoint.MODEL).read_bytes())
    content[-5] ^= 1
    (folder / checkpoint.MODEL).write_bytes(content)
    capsys.readouterr()
    again = open_run(config_for(text))
    assert again.state.step == 8
    again.train()
    assert f"{folder / checkpoint.MODEL} is damaged" in capsys.readouterr().out
    assert any("is damaged" in notice and "left out" in notice for notice in log_of(again)["notices"])
    assert result_of(again) == undisturbed
    assert not list(folder.parent.glob("*.aside"))  # the run has saved as late a step again


def test_no_sound_checkpoint_at_all_is_refused(text: Path) -> None:
    run = open_run(config_for(text))
    run.train()
    for folder in (run.dir / "checkpoints").iterdir():
        (folder / checkpoint.META).unlink()
    with pytest.raises(UserError, match=r"meta\.json is missing, and there is no other to continue from: give another"):
        open_run(config_for(text, steps=20))


@pytest.mark.parametrize(
    "change",
    [
        {"config": None},
        {"tokenizer": 3},
        {"recent": ["x", 1]},
        {"recent": [1.0, 2.0, 3.0]},
        {"feed": 3},
        {"seconds": "long"},
        {"divergence": {"rate": 0.0, "skipped": 0, "returns": 0, "furthest": 0, "events": []}},
        {"divergence": {"rate": 0.5, "skipped": 0, "returns": 0, "furthest": 0, "events": [{"step": "x", "text": ""}]}},
    ],
)
def test_a_forged_record_is_refused_in_one_line(text: Path, change: dict[str, Any]) -> None:
    run = open_run(config_for(text))
    run.train()
    found = checkpoints.latest(run.dir)
    assert found is not None
    for folder in (run.dir / "checkpoints").iterdir():
        forge_meta(folder, change)
    with pytest.raises(UserError, match="start over with --fresh") as told:
        open_run(config_for(text, steps=20))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_arrays_of_another_shape_are_refused(text: Path, part: str) -> None:
    run = open_run(config_for(text))
    run.train()
    found = checkpoints.latest(run.dir)
    assert found is not None
    arrays = getattr(found, part)
    arrays[next(iter(arrays))] = np.zeros((2, 2), np.float32)
    checkpoints.save(run.dir, found.step, found.model, found.optimizer, found.meta)
    with pytest.raises(UserError, match="no checkpoint that a run can continue from"):
        open_run(config_for(text, steps=20))
