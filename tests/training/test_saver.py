"""Saving in the background: steps do not wait for the disk, one save at a time, and errors are reported."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from picogpt.runs import checkpoint, checkpoints
from picogpt.runs.log import Evaluation, RunLog, read_log
from picogpt.system.files import sync_file
from picogpt.training import saver
from picogpt.training.saver import Saver
from tests.support.checkpoints import meta


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Make the disk wait until the event is set."""
    ready, fsync = threading.Event(), os.fsync

    def waiting(descriptor: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        ready.wait()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", waiting)
    yield ready
    ready.set()


def save(saver: Saver, run_dir: Path, step: int) -> dict[str, np.ndarray]:
    arrays = {"w": np.full((3, 4), step, np.float32)}
    log = RunLog(run_dir / "log.pkl", {})
    log.evaluation(Evaluation(step, 1.0, 1.0))
    saver.save(step, arrays, {}, meta(1.0, evaluated=True), log.to_bytes())
    return arrays


def test_nothing_waits_for_the_disk(tmp_path: Path, slow_disk: threading.Event) -> None:
    (tmp_path / "checkpoints").mkdir()  # whose name alone would be made durable at once
    saver = Saver(tmp_path)
    arrays = save(saver, tmp_path, 1)
    arrays["w"] += 7  # training continues in the same memory
    assert saver.busy and checkpoints.newest(tmp_path) is None
    slow_disk.set()
    saver.wait()
    assert not saver.busy and saver.problem == ""
    found = checkpoints.latest(tmp_path)
    assert found is not None and (found.model["w"] == 1).all()
    assert read_log(tmp_path / "log.pkl").iter_num == 1


def test_one_at_a_time_and_older_ones_go(tmp_path: Path) -> None:
    saver = Saver(tmp_path)
    for step in range(1, 6):
        save(saver, tmp_path, step)
    saver.wait()
    # the first was no worse than the others, and one of the newest two may turn out to be damaged
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000001", "00000004", "00000005"]


@pytest.mark.parametrize("operation", ["fsync", "replace", "write_safetensors"])
def test_a_full_disk_is_known_and_the_next_save_works(
    tmp_path: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(tmp_path)
    save(saver, tmp_path, 1)
    saver.wait()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint if operation == "write_safetensors" else os, operation, full)
        save(saver, tmp_path, 2)
        saver.wait()
        assert "No space left on device" in saver.problem and "\n" not in saver.problem
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000001"]
    save(saver, tmp_path, 3)
    saver.wait()
    assert saver.problem == "" and checkpoints.newest(tmp_path) == tmp_path / "checkpoints" / "00000003"


def test_the_one_before_stays_where_the_disk_gives_back_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(tmp_path)
    save(saver, tmp_path, 1)
    saver.wait()
    sync = sync_file

    def lying(path: Path) -> None:
        sync(path)
        if path.name == checkpoint.MODEL:
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sync_file", lying)
        save(saver, tmp_path, 2)
        saver.wait()
    assert "what was written cannot be read back" in saver.problem
    found = checkpoints.latest(tmp_path, pytest.fail)
    assert found is not None and found.step == 1


def test_a_folder_that_has_gone_is_not_made_anew(tmp_path: Path) -> None:
    """It may be on a network, and come back."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    saver = Saver(run_dir)
    save(saver, run_dir, 1)
    saver.wait()
    run_dir.rename(tmp_path / "away")
    save(saver, run_dir, 2)
    saver.wait()
    assert "run has gone: bring it back" in saver.problem and not run_dir.exists()
    (tmp_path / "away").rename(run_dir)
    save(saver, run_dir, 3)
    saver.wait()
    assert saver.problem == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_one_that_breaks_off_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: object) -> None:
        raise SystemExit  # it ends a thread without a message

    monkeypatch.setattr(saver, "write_log", ended)
    broken = Saver(tmp_path)
    save(broken, tmp_path, 1)
    broken.wait()
    assert broken.problem == "the last save ended unexpectedly"


def test_a_folder_that_goes_while_it_saves_is_not_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes after the check that finds it, before the arrays and before the log are written."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    saver, write = Saver(run_dir), checkpoints.write
    for after in (False, True):

        def goes(*args: Any, after: bool = after) -> checkpoints.Draft:
            draft = write(*args) if after else None
            run_dir.rename(tmp_path / "away")
            return draft or write(*args)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "write", goes)
            save(saver, run_dir, 1)
            saver.wait()
        assert saver.problem and not run_dir.exists()
        (tmp_path / "away").rename(run_dir)
    save(saver, run_dir, 2)
    saver.wait()
    assert saver.problem == ""
