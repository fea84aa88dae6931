"""The power goes at every moment of a save: a sound checkpoint is there each time, and the run goes on from it."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from powercut import Disk, Tree, build
from running import config_for, open_run

from picogpt.config import DataConfig, UserError
from picogpt.data import shards as shards_module
from picogpt.data.prepare import prepare
from picogpt.data.shards import Shards, ShardWriter
from picogpt.files import write_durably
from picogpt.training import checkpoint, snapshot
from picogpt.training.runlog import RunLog, read_log
from picogpt.training.saver import Saver

pytestmark = [pytest.mark.usefixtures("no_plots", "short_samples"), pytest.mark.timeout(1200)]


def arrays(version: int) -> dict[str, np.ndarray]:
    return {"w": np.full((2, 3), version, np.float32)}


def log_at(run: Path, step: int) -> RunLog:
    log = RunLog(run / "log.pkl", {})
    for done in range(0, step + 1, 10):
        log.evaluation(step=done, train_loss=2.0, val_loss=2.0 - done / 1000)
    return log


def save(saver: Saver, run: Path, step: int, version: int) -> None:
    meta = {"val_loss": 2.0 - step / 1000, "evaluated": True}
    saver.save(step, arrays(version), arrays(-version), meta, log_at(run, step).to_bytes())
    saver.wait()
    assert saver.problem == ""


def saves(run: Path, *steps: tuple[int, int]) -> None:
    """(step, version), one after the other."""
    saver = Saver(run)
    for step, version in steps:
        save(saver, run, step, version)


def judge(disk: Disk, tmp_path: Path, check: Callable[[Path, list[Any]], None]) -> int:
    """Check every state. Returns how many there are."""
    for number, (tree, facts) in enumerate(disk.states):
        place = build(tree, tmp_path / f"state {number}")
        try:
            check(place, facts)
        except (AssertionError, UserError) as error:
            raise AssertionError(f"{error}\n{_shown(tree)}\n{facts}") from error
    return len(disk.states)


def _shown(tree: Tree) -> str:
    sizes = {path: "folder" if content is None else len(content) for path, content in sorted(tree.items())}
    return "\n".join(f"{path}: {size}" for path, size in sizes.items())


def sound(place: Path, saved: list[Any], doing: set[int]) -> None:
    """There is the last of the `saved` versions at least, or the one that was being saved; and the run goes on."""
    run = place / "run"
    found = checkpoint.latest(run)
    if saved:
        assert found is not None, "no checkpoint verifies"
    if found is not None:
        version = found.model["w"][0, 0]
        assert (found.model["w"] == version).all() and (found.optimizer["w"] == -version).all()
        assert version in {*saved[-1:], *doing}, f"version {version} is there"
        log = read_log(run / "log.pkl")
        assert log["iter_num"] >= found.step, "the log is behind"
        assert checkpoint.best(run) is not None
    if run.is_dir():
        saves(run, (90, 9))
        again = checkpoint.latest(run, pytest.fail)
        assert again is not None and again.step == 90


def watch(tmp_path: Path, before: list[tuple[int, int]], then: list[tuple[int, int]], **options: Any) -> Disk:
    """Save what is before; then watch the others."""
    root = tmp_path / "disk"
    run = root / "run"
    run.mkdir(parents=True)
    saves(run, *before)
    disk = Disk(root)
    disk.facts += [version for _, version in before]
    with disk.watched(**options):
        saver = Saver(run)
        for step, version in then:
            save(saver, run, step, version)
            disk.know(version)
    return disk


def test_a_power_cut_while_saving_the_next_step(tmp_path: Path) -> None:
    disk = watch(tmp_path, [(10, 1), (20, 2)], [(30, 3), (40, 4)])
    count = judge(disk, tmp_path, lambda place, saved: sound(place, saved, {3, 4}))
    assert count > 80


def test_a_power_cut_while_saving_for_the_first_time(tmp_path: Path) -> None:
    disk = watch(tmp_path, [], [(10, 1)])
    assert judge(disk, tmp_path, lambda place, saved: sound(place, saved, {1})) > 10


def test_a_power_cut_while_the_same_step_is_saved_again(tmp_path: Path) -> None:
    disk = watch(tmp_path, [(10, 1), (20, 2)], [(20, 3)])
    assert judge(disk, tmp_path, lambda place, saved: sound(place, saved, {3})) > 20


def test_a_power_cut_while_a_run_goes_back(tmp_path: Path) -> None:
    """What is set aside is not needed any more, and no harm if it is still there."""
    root = tmp_path / "disk"
    run = root / "run"
    run.mkdir(parents=True)
    checkpoint.save(run, 10, arrays(1), arrays(-1), {"val_loss": 1.0, "evaluated": True})  # the best
    saves(run, (20, 2))
    disk = Disk(root)
    disk.facts.append(1)
    with disk.watched():
        checkpoint.set_aside(run, after=10)
        saves(run, (20, 3))
        disk.know(3)
    assert judge(disk, tmp_path, lambda place, saved: sound(place, saved, {2, 3})) > 20


@pytest.mark.parametrize("without", ["files", "folders"])
def test_without_a_flush_there_would_be_harm(tmp_path: Path, without: str) -> None:
    """So the states here are bad enough to find it."""
    disk = watch(tmp_path, [(10, 1)], [(20, 2), (30, 3)], without=without)
    with pytest.raises(AssertionError):
        judge(disk, tmp_path, lambda place, saved: sound(place, saved, {2, 3}))


def test_a_record_before_its_arrays_would_be_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def early(folder: Path, step: int, meta: dict[str, Any]) -> None:
        seal(folder, step, meta)
        for name in (snapshot.MODEL, snapshot.OPTIMIZER):
            content = (folder / name).read_bytes()
            (folder / name).unlink()
            (folder / name).write_bytes(content)  # another file, which nobody flushes

    seal = checkpoint.seal
    monkeypatch.setattr(checkpoint, "seal", early)
    disk = watch(tmp_path, [], [(10, 1), (20, 2)])
    with pytest.raises(AssertionError):
        judge(disk, tmp_path, lambda place, saved: sound(place, saved, {1, 2}))


def test_a_power_cut_while_a_run_trains(text: Path, tmp_path: Path) -> None:
    """With everything a run does: its lock, its beginning, evaluations, saves between them."""
    root = tmp_path / "disk"
    (root / "logs").mkdir(parents=True)
    (root / "easy.txt").write_bytes(text.read_bytes())
    config = config_for(root / "easy.txt", steps=8, save_minutes=1e-9)
    run = open_run(config)  # with its tokens made
    disk = Disk(root)
    with disk.watched():
        run.train()
        disk.know("done")

    def goes_on(place: Path, facts: list[Any]) -> None:
        run_dir = place / "logs" / "run"
        found = checkpoint.latest(run_dir)
        assert found is not None or not facts
        if (run_dir / "log.pkl").exists():
            log = read_log(run_dir / "log.pkl")
            assert found is None or not found.meta["evaluated"] or log["iter_num"] >= found.step
            assert found is not None or not log["evaluations"], "a log without a checkpoint"
        if facts:
            assert found is not None and found.step == 8

    assert judge(disk, tmp_path, goes_on) > 50


def test_a_power_cut_while_tokens_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index names nothing that is not there, and what was sealed is there for good."""
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", 50)
    monkeypatch.setattr(shards_module, "BLOCK_TOKENS", 20)
    root = tmp_path / "disk"
    root.mkdir()
    disk, ids = Disk(root), np.arange(120, dtype=np.uint8)
    with disk.watched():
        writer = ShardWriter(root / "tokens", np.uint8, "vocabulary", "corpus")
        for start in (0, 40, 80):
            writer.append(ids[start : start + 40])
            writer.seal()
            disk.know(start + 40)

    def whole(place: Path, sealed: list[Any]) -> None:
        try:
            found = Shards(place / "tokens", "vocabulary")
        except UserError:
            assert not sealed
            return
        found.verify()
        assert len(found) >= max(sealed, default=0)
        assert np.array_equal(found.read(0, len(found)), ids[: len(found)])

    assert judge(disk, tmp_path, whole) > 20


def test_a_power_cut_while_a_text_is_prepared(tmp_path: Path) -> None:
    """The next time it has the same tokens, whatever was left."""
    root = tmp_path / "disk"
    root.mkdir()
    text = tmp_path / "text.txt"
    text.write_text("she sells sea shells. " * 40, encoding="utf-8")
    data, disk = DataConfig(str(text)), Disk(root)
    with disk.watched():
        expected = prepare(data, root / "dataset", lambda _: None).fingerprint
        disk.know("done")
    told: list[str] = []

    def same(place: Path, facts: list[Any]) -> None:
        told.clear()
        assert prepare(data, place / "dataset", told.append).fingerprint == expected
        assert not facts or not told, "what was done is done again"

    assert judge(disk, tmp_path, same) > 10


def test_a_file_that_is_replaced_is_one_or_the_other(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    (root / "file").write_bytes(b"version 0")
    disk = Disk(root)
    disk.facts.append(0)
    with disk.watched():
        for version in (1, 2):
            write_durably(root / "file", b"version %d" % version)
            disk.know(version)

    def one(place: Path, versions: list[Any]) -> None:
        last = versions[-1]
        assert (place / "file").read_bytes() in (b"version %d" % last, b"version %d" % (last + 1))

    assert judge(disk, tmp_path, one) > 4


def test_the_states_are_those_a_disk_may_be_in(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    disk = Disk(root)
    with disk.watched():
        (root / "a").write_bytes(b"1234")
        disk.know("written")
        (root / "a").rename(root / "b")
        disk.know("renamed")
    found = {(tuple(sorted(tree.items())), len(facts)) for tree, facts in disk.states}
    nothing: list[tuple[tuple[str, bytes], ...]] = [()]
    contents = [b"", b"12", b"1234"]
    once = {(state, count) for count in (1, 2) for state in nothing}
    once |= {((("a", content),), count) for content, count in itertools.product(contents, (1, 2))}
    once |= {((("b", content),), count) for content, count in itertools.product(contents, (1, 2))}
    assert found == once
