"""The checkpoints of a run: which one is used, which stay, and that one is sound after a kill at any moment."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from picogpt.errors import UserError
from picogpt.runs import checkpoint, checkpoints
from picogpt.tensorfiles.safetensors import write_safetensors
from tests.support.checkpoints import arrays, flip, meta, same, save


def test_latest_and_best(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None and checkpoints.best(tmp_path) is None
    paths = {
        step: save(tmp_path, step, loss) for step, loss in ((100, 2.0), (50, 1.5), (150, float("nan")), (200, None))
    }
    assert checkpoints.newest(tmp_path) == paths[200]
    assert checkpoints.best(tmp_path) == paths[50]
    (paths[200] / checkpoint.META).unlink()
    assert checkpoints.newest(tmp_path) == paths[150]
    save(tmp_path, 123_456_789, 3.0)
    assert checkpoints.load(checkpoints.newest(tmp_path) or tmp_path).step == 123_456_789


def test_prune_keeps_the_two_newest_and_the_best_and_what_is_not_ours(tmp_path: Path) -> None:
    checkpoints.prune(tmp_path)  # nothing there yet
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        save(tmp_path, step, loss)
    root = tmp_path / "checkpoints"
    (root / ".tmp-00000005").mkdir()
    (root / ".tmp-00000005" / checkpoint.MODEL).write_bytes(b"half")
    (root / "00000006").mkdir()
    (root / "my notes").mkdir()
    checkpoints.prune(tmp_path)
    assert sorted(entry.name for entry in root.iterdir()) == ["00000002", "00000003", "00000004", "my notes"]


def evaluated(run: Path, step: int, val_loss: float | None) -> Path:
    content = arrays(step)
    return checkpoints.save(run, step, content, content, meta(val_loss, evaluated=True))


def test_latest_is_the_newest_that_verifies_and_says_what_it_left_out(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    flip(tmp_path / "checkpoints" / "00000004" / checkpoint.OPTIMIZER)
    (tmp_path / "checkpoints" / "00000003" / checkpoint.META).unlink()
    skipped: list[str] = []
    found = checkpoints.latest(tmp_path, skipped.append)
    assert found is not None and found.step == 2 and same(found.model, arrays(2))
    assert ["is damaged" in skipped[0], "is missing" in skipped[1], len(skipped)] == [True, True, 2]
    assert "00000004" in skipped[0] and "00000003" in skipped[1]
    assert checkpoints.latest(tmp_path / "nowhere", skipped.append) is None


def test_a_bad_place_on_the_disk_is_damage_and_a_refusal_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    original = checkpoint._measure
    number = 5

    def failing(file: Any) -> dict[str, int]:
        if "00000002" in file.name:
            raise OSError(number, os.strerror(number))
        return original(file)

    monkeypatch.setattr(checkpoint, "_measure", failing)
    skipped: list[str] = []
    found = checkpoints.latest(tmp_path, skipped.append)
    assert found is not None and found.step == 1 and "Input/output error" in skipped[0]
    number = 13
    with pytest.raises(UserError, match=f"{newest}.* cannot be read \\(Permission denied\\): look at the folder"):
        checkpoints.latest(tmp_path)


def test_what_is_set_aside_counts_no_more_and_goes_when_the_run_has_come_as_far(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    checkpoints.set_aside(tmp_path, after=1)
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoints" / "00000001"
    save(tmp_path, 2, 1.0)
    checkpoints.prune(tmp_path)
    names = sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000001", "00000002", "00000003.aside"]
    save(tmp_path, 3, 2.0)
    checkpoints.prune(tmp_path)
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["00000002", "00000003"]


def test_a_run_that_diverged_goes_back_to_its_last_evaluation_then_to_its_best(tmp_path: Path) -> None:
    assert checkpoints.before_divergence(tmp_path, again=False) is None
    for step, loss in ((0, None), (10, 1.0), (20, 2.0)):
        evaluated(tmp_path, step, loss)
    save(tmp_path, 25)

    def back(again: bool) -> int | None:
        found = checkpoints.before_divergence(tmp_path, again)
        return found.step if found else None

    assert [back(False), back(True)] == [20, 10]
    flip(tmp_path / "checkpoints" / "00000020" / checkpoint.MODEL)
    assert [back(False), back(True)] == [10, 10]
    flip(tmp_path / "checkpoints" / "00000010" / checkpoint.MODEL)
    assert [back(False), back(True)] == [0, 0]


def test_prune_keeps_the_last_evaluation(tmp_path: Path) -> None:
    for step, loss in ((0, None), (10, 1.0), (20, 2.0)):
        evaluated(tmp_path, step, loss)
    for step in (21, 22, 23):
        save(tmp_path, step)
    checkpoints.prune(tmp_path)
    names = sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000010", "00000020", "00000022", "00000023"]


def test_clear_deletes_every_checkpoint_and_what_a_kill_left_but_nothing_else(tmp_path: Path) -> None:
    checkpoints.clear(tmp_path)  # nothing there yet
    root = save(tmp_path, 1, 1.0).parent
    save(tmp_path, 123_456_789, 2.0)
    for name in ("00000001.old", ".tmp-00000003", "00000004", "my notes", "4"):
        (root / name).mkdir()
        (root / name / checkpoint.MODEL).write_bytes(b"half")
    (root / "00000005").write_text("a file", encoding="utf-8")
    (tmp_path / "log.pkl").write_bytes(b"log")
    checkpoints.clear(tmp_path)
    assert checkpoints.newest(tmp_path) is None
    assert sorted(entry.name for entry in root.iterdir()) == ["00000005", "4", "my notes"]
    assert (root / "my notes" / checkpoint.MODEL).exists() and (tmp_path / "log.pkl").exists()


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5, 1.0, seed=1)
    path = save(tmp_path, 5, 2.0, seed=2)
    assert same(checkpoints.load(path).model, arrays(2))
    assert [entry.name for entry in path.parent.iterdir()] == ["00000005"]


class Killed(BaseException):
    """Stands for the death of the process: nothing may catch it."""


def die_at(patch: pytest.MonkeyPatch, moment: int, error: type[BaseException]) -> Callable[[], int]:
    """Raise `error` at the `moment`-th file operation and, as after a kill, at all later ones."""
    count = 0

    def guard(original: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment or (count > moment and error is Killed):
                raise error("the disk is gone")
            return original(*args, **kwargs)

        return guarded

    for owner, name in (
        (checkpoint, "write_safetensors"),
        (os, "fsync"),
        (os, "replace"),
        (shutil, "rmtree"),
        (Path, "mkdir"),
        (Path, "open"),
        (Path, "unlink"),
    ):
        patch.setattr(owner, name, guard(getattr(owner, name)))
    return lambda: count


@pytest.mark.parametrize("error", [Killed, OSError])
@pytest.mark.parametrize("again", [False, True], ids=["next step", "same step"])
def test_a_sound_checkpoint_survives_a_death_at_any_file_operation(
    tmp_path: Path, error: type[BaseException], again: bool
) -> None:
    moment, finished = 0, False
    while not finished:
        moment += 1
        run = tmp_path / str(moment)
        run.mkdir()
        save(run, 10, 2.0, seed=1)
        with pytest.MonkeyPatch.context() as patch:
            operations = die_at(patch, moment, error)
            try:
                save(run, 10 if again else 20, 1.0, seed=2)
                checkpoints.prune(run)
            except (Killed, OSError, UserError) as death:
                assert not isinstance(death, UserError) or re.search("free some disk space|cannot be read", str(death))
            finished = operations() < moment
        survivor = checkpoints.load(checkpoints.newest(run) or run)
        assert same(survivor.model, arrays(1)) or same(survivor.model, arrays(2))
        assert checkpoints.best(run) is not None
        resumed = save(run, 20, 0.5, seed=3)  # and the run continues
        checkpoints.prune(run)
        assert checkpoints.newest(run) == checkpoints.best(run) == resumed
        assert same(checkpoints.load(resumed).model, arrays(3))
        assert sorted(entry.name[:8] for entry in resumed.parent.iterdir()) == ["00000010", "00000020"]
    assert moment > 10


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"00000002 \(No space left on device\): free some disk space"):
        save(tmp_path, 2)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["00000001"]


def test_a_folder_that_goes_while_it_is_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = save(tmp_path, 1)

    def without_its_folder(path: Path, content: dict[str, np.ndarray]) -> None:
        shutil.rmtree(path.parent)
        write_safetensors(path, content)

    monkeypatch.setattr(checkpoint, "write_safetensors", without_its_folder)
    with pytest.raises(UserError, match=r"00000002 \(.+\): free some disk space"):
        save(tmp_path, 2)
    assert same(checkpoints.load(older).model, arrays(1))
    assert [entry.name for entry in older.parent.iterdir()] == ["00000001"]


def test_a_damaged_record_is_tried_first_only_where_it_is_the_newest(tmp_path: Path) -> None:
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0)):
        save(tmp_path, step, loss)

    def order() -> list[int]:
        return [int(folder.name) for folder in checkpoints.ranked(tmp_path)]

    assert order() == [2, 3, 1]
    flip(tmp_path / "checkpoints" / "00000001" / checkpoint.META)
    assert order() == [2, 3, 1]
    flip(tmp_path / "checkpoints" / "00000003" / checkpoint.META)
    assert order() == [3, 2, 1]
