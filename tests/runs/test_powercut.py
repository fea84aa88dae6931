"""A power cut at any moment: the run is whole afterwards, and continues."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import numpy as np
import pytest

from picogpt.config import MonitoringConfig
from picogpt.monitoring.observers import Observers
from picogpt.runs import checkpoint, checkpoints, log
from picogpt.runs.checkpoint import finish
from picogpt.runs.checkpoint_meta import CheckpointMeta
from picogpt.runs.log import Evaluation, RunLog, read_log, write_log
from picogpt.system.files import make_folder, sync_file
from picogpt.training import saver
from picogpt.training.run import Run
from picogpt.training.saver import Saver
from tests.support.checkpoints import meta
from tests.support.powercut import Disk, build, leave_out
from tests.support.running import config_for, result_of

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="Windows makes no promise about names"),
    pytest.mark.usefixtures("no_plots", "short_samples"),
]

Saved = tuple[int, str]  # a step, and a hash of the arrays
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Promise:
    """What a run's folder must hold after a power cut."""

    sound: frozenset[Saved | None]  # one of these checkpoints is the latest; None: there may be none
    logged: bool = False  # there is a log
    remains: bool = False  # there may be notices about the remains of deleted checkpoints


def hashed(model: Arrays, optimizer: Arrays) -> str:
    facts = [[(name, a.shape, a.tobytes()) for name, a in sorted(arrays.items())] for arrays in (model, optimizer)]
    return sha256(repr(facts).encode()).hexdigest()


class Witness:
    """Sets the disk's promise at each call that a run makes."""

    def __init__(self, disk: Disk) -> None:
        self._disk, self._saved = disk, list[Saved]()

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        for module, name in (
            (checkpoints, "write"),
            (checkpoints, "publish"),
            (checkpoints, "set_aside"),
            (checkpoints, "clear"),
            (log, "write_log"),
            (saver, "write_log"),
        ):
            patch.setattr(module, name, self._watched(getattr(self, name), getattr(module, name)))

    @staticmethod
    def _watched(told: Callable[..., Iterator[None]], original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            with contextmanager(told)(*arguments):
                return original(*arguments)

        return watched

    def _promise(self, *sound: Saved | None, now: bool, **fields: bool) -> None:
        promise = replace(self._disk.promise, sound=frozenset(sound), **fields)
        if now:
            self._disk.promised(promise)
        else:
            self._disk.promise = promise

    def write(self, run: Path, step: int, model: Arrays, optimizer: Arrays, meta: CheckpointMeta) -> Iterator[None]:
        self._making = step, hashed(model, optimizer)
        self._promise(*self._disk.promise.sound, self._making, now=False)
        yield

    def publish(self, draft: checkpoints.Draft) -> Iterator[None]:
        yield
        self._saved = [saved for saved in self._saved if saved[0] != draft.step] + [self._making]
        self._promise(self._making, now=True)

    def set_aside(self, run: Path, after: int) -> Iterator[None]:
        kept = [saved for saved in self._saved if saved[0] <= after]
        self._promise(*kept[-1:], *self._saved[len(kept) :], now=False, remains=True)
        yield
        self._saved = kept
        self._promise(*kept[-1:], now=True, remains=False)

    def clear(self, run: Path) -> Iterator[None]:
        self._promise(None, *self._saved, now=False, remains=True)
        yield
        self._saved = []
        self._promise(None, now=True, remains=False, logged=False)

    def write_log(self, path: Path, content: bytes) -> Iterator[None]:
        yield
        self._disk.promised(replace(self._disk.promise, logged=True))


@pytest.fixture
def disk(memory: Path) -> Disk:
    """Return the disk of a run at disk.root / "run"."""
    (memory / "disk").mkdir()
    return Disk(memory / "disk", Promise(frozenset({None})))


@contextmanager
def watched(disk: Disk) -> Iterator[Path]:
    """Watch the disk while a run is made in its folder."""
    with pytest.MonkeyPatch.context() as patch, disk:
        Witness(disk).watch(patch)
        yield disk.root / "run"


def arrays(seed: int) -> Arrays:
    return {"weight": np.random.default_rng(seed).standard_normal((2, 3), dtype=np.float32)}


def meta_of(val_loss: float) -> CheckpointMeta:
    return meta(val_loss, evaluated=True)


def log_at(run: Path, step: int) -> RunLog:
    """Return the run's log, whose last evaluation is at this step."""
    log = RunLog.open(run / "log.pkl", {})
    log.rewind(step - 1, [])
    log.evaluation(Evaluation(step, 1.0, 1.0))
    return log


def save(run: Path, step: int, val_loss: float = 1.0, seed: int | None = None) -> Path:
    """Save as a run does after an evaluation."""
    make_folder(run)
    log_at(run, step).save()
    content = arrays(step if seed is None else seed)
    path = checkpoints.save(run, step, content, {"m.weight": 2 * content["weight"]}, meta_of(val_loss))
    checkpoints.prune(run)
    return path


def look_at_run(place: Path, promise: Promise) -> None:
    """Check that the promise holds, and that a run continues from there."""
    run, skipped = place / "run", list[str]()
    found = checkpoints.latest(run, skipped.append)
    assert (found and (found.step, hashed(found.model, found.optimizer))) in promise.sound, "another checkpoint"
    assert promise.remains or not skipped, skipped
    has_log = promise.logged or (run / "log.pkl").exists()
    last = read_log(run / "log.pkl").iter_num if has_log else -1
    if found and found.meta.evaluated and found.step:
        assert last >= found.step, f"the log ends at step {last}, the checkpoint is of step {found.step}"
    if found:
        checkpoints.set_aside(run, found.step)
    else:
        checkpoints.clear(run)
    path = save(run, found.step + 1 if found else 1, seed=99)
    skipped.clear()
    assert checkpoints.newest(run) == path and not any(path.parent.glob(".tmp-*"))
    after = checkpoints.latest(run, skipped.append)
    assert after and after.path == path and after.model["weight"].tobytes() == arrays(99)["weight"].tobytes()
    assert not skipped and read_log(run / "log.pkl").iter_num == after.step


# What is done while the power may fail. Each begins without a run.


def first_saves(run: Path) -> None:
    for step, val_loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0)):  # from the third on, the best is not the newest
        save(run, step, val_loss)


def same_step_again(run: Path) -> None:
    save(run, 5, seed=1)
    save(run, 5, seed=2)
    save(run, 5, seed=3)


def a_course_given_up(run: Path) -> None:
    """Go back to the best after a divergence, and continue from there."""
    for step, val_loss in ((4, 1.0), (8, 2.0), (12, 3.0)):
        save(run, step, val_loss)
    checkpoints.set_aside(run, 4)
    for step in (8, 12):
        save(run, step, 1.0, seed=100 + step)


def started_over(run: Path) -> None:
    """Start over, as with --fresh."""
    save(run, 4, 1.0)
    save(run, 8, 2.0)
    checkpoints.clear(run)
    (run / "log.pkl").unlink()
    RunLog(run / "log.pkl", {}).save()
    save(run, 0, seed=7)
    save(run, 4, seed=8)


def through_the_saver(run: Path) -> None:
    make_folder(run)
    saving = Saver(run)
    for step in (4, 8, 8, 12):
        log = log_at(run, step).to_bytes()
        saving.save(step, arrays(step), {"m.weight": arrays(step)["weight"]}, meta_of(1.0), log)
        saving.wait()
        assert not saving.problem


COURSES = [first_saves, same_step_again, a_course_given_up, started_over, through_the_saver]


@pytest.mark.parametrize("course", COURSES)
def test_the_latest_checkpoint_and_its_log_survive(disk: Disk, memory: Path, course: Callable[[Path], None]) -> None:
    with watched(disk) as run:
        course(run)
    assert disk.moments > 50 and len(disk.states) > 200
    assert not (harm := next(disk.harms(memory / "left", look_at_run), "")), harm


def test_a_real_run_survives_and_ends_with_the_same_bits(disk: Disk, memory: Path, text: Path, tmp_path: Path) -> None:
    config = config_for(text, steps=9, eval_interval=3)

    def run_in(folder: Path) -> Run:
        return Run(config, folder, tmp_path / "dataset", Observers(MonitoringConfig(), folder))

    with watched(disk) as folder:
        run_in(folder).train()
    expected = result_of(run_in(folder))
    assert not (harm := next(disk.harms(memory / "left", look_at_run), "")), harm
    states = list(disk.states)
    for node, _ in states[:: len(states) // 6]:
        build(memory / "left", node)
        run_in(memory / "left" / "run").train()
        assert result_of(run_in(memory / "left" / "run")) == expected
        shutil.rmtree(memory / "left")


# The disk itself: it finds the harm of wrong ways to save


def test_what_is_not_durable_may_be_there_or_not(memory: Path) -> None:
    (memory / "disk").mkdir()
    with Disk(memory / "disk", "") as disk:
        (disk.root / "a").write_bytes(b"12")
        with (disk.root / "a").open("rb") as file:
            os.fsync(file.fileno())
        disk.states.clear()
        os.replace(disk.root / "a", disk.root / "b")
        (disk.root / "c").write_bytes(b"34")
    assert {node for node, _ in disk.states} == {
        tuple((name, content) for name, content in zip("abc", contents, strict=True) if content is not None)
        for contents in product((None, b"12"), (None, b"12"), (None, b"", b"\0\0", b"3", b"34"))
    }


def record_before_arrays(patch: pytest.MonkeyPatch) -> None:
    """Make the record durable, but not the arrays that it has the checksums of."""
    patch.setattr(checkpoint, "sync_file", lambda path: sync_file(path) if path.name == checkpoint.META else None)


def older_deleted_first(patch: pytest.MonkeyPatch) -> None:
    seal = finish

    def broken(folder: Path, step: int, meta: dict[str, Any]) -> None:
        for older in folder.parent.glob("0*"):
            shutil.rmtree(older)
        seal(folder, step, meta)

    patch.setattr(checkpoints, "finish", broken)


def log_after_checkpoint(patch: pytest.MonkeyPatch) -> None:
    def broken(saving: Saver, draft: checkpoints.Draft, log: bytes) -> None:
        checkpoints.publish(draft)
        write_log(saving._dir / "log.pkl", log)
        saving.problem = ""

    patch.setattr(Saver, "_finish", broken)


def log_in_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(log, "write_durably", Path.write_bytes)


BROKEN = {
    "files": leave_out(S_ISREG),
    "folders": leave_out(S_ISDIR),
    "record": record_before_arrays,
    "older": older_deleted_first,
    "late log": log_after_checkpoint,
    "log in place": log_in_place,
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_another_way_to_save_does_harm(disk: Disk, memory: Path, broken: Callable[[pytest.MonkeyPatch], None]) -> None:
    with watched(disk) as run, pytest.MonkeyPatch.context() as patch:
        broken(patch)
        through_the_saver(run)
    assert next(disk.harms(memory / "left", look_at_run), "")
