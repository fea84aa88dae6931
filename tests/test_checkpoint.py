"""Checkpoints: equal after a restore, sound after a kill at any moment, and damage is told in one line."""

import json
import os
import re
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picogpt.config import UserError
from picogpt.training import checkpoint, snapshot

FILES = (snapshot.META, snapshot.MODEL, snapshot.OPTIMIZER)


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "blocks.0.weight": rng.standard_normal((5, 7), dtype=np.float32),
        "strided": rng.standard_normal((6, 4), dtype=np.float32)[::2].T,
        "größe": np.array([np.nan, np.inf, -0.0], dtype=np.float32),
        "scalar": np.array(3.5, dtype=np.float32),
        "empty": np.zeros((0, 4), dtype=np.float32),
    }


def save(run: Path, step: int, val_loss: float | None = None, seed: int | None = None) -> Path:
    meta = {"val_loss": val_loss, "position": [step, 2]}
    content = arrays(step if seed is None else seed)
    return checkpoint.save(run, step, content, {f"m.{name}": array for name, array in content.items()}, meta)


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].shape == right[name].shape and left[name].tobytes() == right[name].tobytes() for name in left
    )


def test_restores_the_same_bits_and_writable_float32(tmp_path: Path) -> None:
    path = save(tmp_path, 7, 2.5)
    assert path == tmp_path / "checkpoints" / "00000007"
    loaded = checkpoint.load(path)
    assert (loaded.path, loaded.step, loaded.meta) == (path, 7, {"val_loss": 2.5, "position": [7, 2]})
    assert same(loaded.model, arrays(7))
    assert same(loaded.optimizer, {f"m.{name}": array for name, array in arrays(7).items()})
    for array in [*loaded.model.values(), *loaded.optimizer.values()]:
        assert array.dtype == np.float32 and array.flags.writeable
    assert checkpoint.load(path, optimizer=False).optimizer == {}


def test_the_files_are_safetensors_with_the_modes_of_any_other_file(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert same(safetensors.numpy.load_file(path / snapshot.MODEL), arrays(1))
    assert len({(path / name).stat().st_mode for name in FILES}) == 1


def test_saving_and_loading_hold_no_second_copy_of_the_arrays(tmp_path: Path) -> None:
    model = {f"w{i}": np.ones((512, 1024), dtype=np.float32) for i in range(4)}  # 8 MiB
    tracemalloc.start()
    try:
        path = checkpoint.save(tmp_path, 1, model, {}, {})
        written = tracemalloc.get_traced_memory()[1]
        checkpoint.load(path)
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written < 1 << 20
    assert read < (8 << 20) + (1 << 20)


def test_refuses_what_is_not_float32_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="w is float64"):
        checkpoint.save(tmp_path, 1, {"w": np.zeros(3)}, {}, {})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, 1, {}, {}, {"loss": np.float32(1)})
    assert checkpoint.newest(tmp_path) is None


def test_meta_keys_and_values_json_changes_still_load(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, {}, {}, {10: (1, 2), 9: float("inf"), "ü": 0.1})  # type: ignore[dict-item]
    assert checkpoint.load(path).meta == {"10": [1, 2], "9": float("inf"), "ü": 0.1}


def test_latest_and_best(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None and checkpoint.best(tmp_path) is None
    paths = {
        step: save(tmp_path, step, loss) for step, loss in ((100, 2.0), (50, 1.5), (150, float("nan")), (200, None))
    }
    assert checkpoint.newest(tmp_path) == paths[200]
    assert checkpoint.best(tmp_path) == paths[50]
    (paths[200] / snapshot.META).unlink()
    assert checkpoint.newest(tmp_path) == paths[150]
    save(tmp_path, 123_456_789, 3.0)
    assert checkpoint.load(checkpoint.newest(tmp_path) or tmp_path).step == 123_456_789


def test_prune_keeps_the_newest_and_the_best_and_what_is_not_ours(tmp_path: Path) -> None:
    checkpoint.prune(tmp_path)  # nothing there yet
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        save(tmp_path, step, loss)
    root = tmp_path / "checkpoints"
    (root / ".tmp-00000005").mkdir()
    (root / ".tmp-00000005" / snapshot.MODEL).write_bytes(b"half")
    (root / "00000006").mkdir()
    (root / "my notes").mkdir()
    checkpoint.prune(tmp_path)
    assert sorted(entry.name for entry in root.iterdir()) == ["00000002", "00000004", "my notes"]


def evaluated(run: Path, step: int, val_loss: float | None) -> Path:
    content = arrays(step)
    return checkpoint.save(run, step, content, content, {"val_loss": val_loss, "evaluated": True})


def test_latest_is_the_newest_that_verifies_and_says_what_it_left_out(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    flip(tmp_path / "checkpoints" / "00000004" / snapshot.OPTIMIZER)
    (tmp_path / "checkpoints" / "00000003" / snapshot.META).unlink()
    skipped: list[str] = []
    found = checkpoint.latest(tmp_path, skipped.append)
    assert found is not None and found.step == 2 and same(found.model, arrays(2))
    assert ["is damaged" in skipped[0], "is missing" in skipped[1], len(skipped)] == [True, True, 2]
    assert "00000004" in skipped[0] and "00000003" in skipped[1]
    assert checkpoint.latest(tmp_path / "nowhere", skipped.append) is None


def test_a_bad_place_on_the_disk_is_damage_and_a_refusal_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    original = snapshot._measure
    number = 5

    def failing(file: Any) -> dict[str, int]:
        if "00000002" in file.name:
            raise OSError(number, os.strerror(number))
        return original(file)

    monkeypatch.setattr(snapshot, "_measure", failing)
    skipped: list[str] = []
    found = checkpoint.latest(tmp_path, skipped.append)
    assert found is not None and found.step == 1 and "Input/output error" in skipped[0]
    number = 13
    with pytest.raises(UserError, match=f"{newest}.* cannot be read \\(Permission denied\\): look at the folder"):
        checkpoint.latest(tmp_path)


def test_what_is_set_aside_counts_no_more_and_goes_when_the_run_has_come_as_far(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    checkpoint.set_aside(tmp_path, after=1)
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoints" / "00000001"
    save(tmp_path, 2, 1.0)
    checkpoint.prune(tmp_path)
    names = sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000002", "00000003.aside"]
    save(tmp_path, 3, 2.0)
    checkpoint.prune(tmp_path)
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["00000002", "00000003"]


def test_a_run_that_diverged_goes_back_to_its_last_evaluation_then_to_its_best(tmp_path: Path) -> None:
    assert checkpoint.before_divergence(tmp_path, again=False) is None
    for step, loss in ((0, None), (10, 1.0), (20, 2.0)):
        evaluated(tmp_path, step, loss)
    save(tmp_path, 25)

    def back(again: bool) -> int | None:
        found = checkpoint.before_divergence(tmp_path, again)
        return found.step if found else None

    assert [back(False), back(True)] == [20, 10]
    flip(tmp_path / "checkpoints" / "00000020" / snapshot.MODEL)
    assert [back(False), back(True)] == [10, 10]
    flip(tmp_path / "checkpoints" / "00000010" / snapshot.MODEL)
    assert [back(False), back(True)] == [0, 0]


def test_prune_keeps_the_last_evaluation(tmp_path: Path) -> None:
    for step, loss in ((0, None), (10, 1.0), (20, 2.0)):
        evaluated(tmp_path, step, loss)
    save(tmp_path, 21)
    save(tmp_path, 22)
    checkpoint.prune(tmp_path)
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["00000010", "00000020", "00000022"]


def test_clear_deletes_every_checkpoint_and_what_a_kill_left_but_nothing_else(tmp_path: Path) -> None:
    checkpoint.clear(tmp_path)  # nothing there yet
    root = save(tmp_path, 1, 1.0).parent
    save(tmp_path, 123_456_789, 2.0)
    for name in ("00000001.old", ".tmp-00000003", "00000004", "my notes", "4"):
        (root / name).mkdir()
        (root / name / snapshot.MODEL).write_bytes(b"half")
    (root / "00000005").write_text("a file", encoding="utf-8")
    (tmp_path / "log.pkl").write_bytes(b"log")
    checkpoint.clear(tmp_path)
    assert checkpoint.newest(tmp_path) is None
    assert sorted(entry.name for entry in root.iterdir()) == ["00000005", "4", "my notes"]
    assert (root / "my notes" / snapshot.MODEL).exists() and (tmp_path / "log.pkl").exists()


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5, 1.0, seed=1)
    path = save(tmp_path, 5, 2.0, seed=2)
    assert same(checkpoint.load(path).model, arrays(2))
    assert [entry.name for entry in path.parent.iterdir()] == ["00000005"]


class Killed(BaseException):
    """The process dies here: nothing may catch it."""


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
        (snapshot, "save_file"),
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
                checkpoint.prune(run)
            except (Killed, OSError, UserError) as death:
                assert not isinstance(death, UserError) or re.search("free some disk space|cannot be read", str(death))
            finished = operations() < moment
        survivor = checkpoint.load(checkpoint.newest(run) or run)
        assert same(survivor.model, arrays(1)) or same(survivor.model, arrays(2))
        assert checkpoint.best(run) is not None
        resumed = save(run, 20, 0.5, seed=3)  # and the run goes on
        checkpoint.prune(run)
        assert checkpoint.newest(run) == checkpoint.best(run) == resumed
        assert same(checkpoint.load(resumed).model, arrays(3))
        assert [entry.name for entry in resumed.parent.iterdir()] == ["00000020"]
    assert moment > 10


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"00000002 \(No space left on device\): free some disk space"):
        save(tmp_path, 2)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["00000001"]


def test_what_the_library_cannot_write_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = save(tmp_path, 1)

    def without_its_folder(content: dict[str, np.ndarray], path: Path) -> None:
        shutil.rmtree(path.parent)
        safetensors.numpy.save_file(content, path)

    monkeypatch.setattr(snapshot, "save_file", without_its_folder)
    with pytest.raises(UserError, match=r"00000002 \(.+\): free some disk space"):
        save(tmp_path, 2)
    assert same(checkpoint.load(older).model, arrays(1))
    assert [entry.name for entry in older.parent.iterdir()] == ["00000001"]


def remove(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-20] ^= 4
    file.write_bytes(data)


def blank(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [remove, truncate, flip, blank])
def test_damage_names_the_file_and_the_way_out(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    damage(newer / name)
    with pytest.raises(UserError) as told:
        checkpoint.load(newer)
    assert str(newer / name) in str(told.value)
    assert str(told.value).endswith(f"delete {newer} to go on from step 1")
    assert "\n" not in str(told.value)
    damage(older / name)
    with pytest.raises(UserError, match=r"start the run again with --fresh$"):
        checkpoint.load(newer)


@pytest.mark.parametrize(("damage", "reason"), [(truncate, r"bytes, \d+ were written"), (flip, "its crc32 is ")])
def test_damage_to_the_arrays_says_what_it_is(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    path = save(tmp_path, 1)
    damage(path / snapshot.MODEL)
    with pytest.raises(UserError, match=rf"is damaged \(.*{reason}"):
        checkpoint.load(path)


def test_another_format_version_is_told(tmp_path: Path) -> None:
    file = save(tmp_path, 1) / snapshot.META
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "format": 9}), encoding="utf-8")
    with pytest.raises(UserError, match="format 9, this picogpt reads format 1"):
        checkpoint.load(file.parent)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"a": 1}',
        '{"format": 1}',
        '{"format": true}',
        "[" * 100_000,
        "9" * 10_000,
        '{"format": 1, "step": 1, "crc32": 0, "files": {"model.safetensors": 3}, "meta": {}}',
        '{"format": 1, "step": 1, "crc32": 0, "files": {}, "meta": {}}',
    ],
)
def test_foreign_json_is_refused(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path, 1, 1.0)
    (folder / snapshot.META).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"meta\.json"):
        checkpoint.load(folder)
    assert checkpoint.best(tmp_path) is None


def forge(folder: Path, content: bytes) -> Path:
    """Put other bytes where the model was, and a record that vouches for them."""
    (folder / snapshot.MODEL).write_bytes(content)
    record = json.loads((folder / snapshot.META).read_text(encoding="utf-8"))
    record["files"][snapshot.MODEL] = {"size": len(content), "crc32": crc32(content)}
    del record["crc32"]
    record["crc32"] = crc32(json.dumps(record, sort_keys=True).encode())
    (folder / snapshot.META).write_text(json.dumps(record), encoding="utf-8")
    return folder / snapshot.MODEL


def container(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: object, begin: object, end: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04K\x01.",
        struct.pack("<Q", 9) + b"{}",
        struct.pack("<Q", 1 << 60) + b"{}",
        container(b"\xff\xfe"),
        container(b"[" * 100_000),
        container([]),
        container({"w": 3}),
        container({"w": entry([2], 0, 8, "F64")}, bytes(8)),
        container({"w": entry([1], 0, 8, "F64")}, bytes(8)),
        container({"w": entry([4], 0, 8, "BF16")}, bytes(8)),
        container({"w": entry([8], 0, 8, "F8_E4M3")}, bytes(8)),
        container({"w\n" * 99: entry([2], 0, 8, "I32")}, bytes(8)),
        container({"w\n" * 99: entry([2], 4, 12)}, bytes(12)),
        container({"w": entry([-1, -2], 0, 8)}, bytes(8)),
        container({"w": entry([True, 2], 0, 8)}, bytes(8)),
        container({"w": entry([2.0], 0, 8)}, bytes(8)),
        container({"w": entry([0, 1 << 62], 0, 0)}),
        container({"w": entry([3], 0, 8)}, bytes(8)),
        container({"w": entry([2], 0, 8)}, bytes(4)),
        container({"w": entry([2], 0, 8)}, bytes(12)),
        container({"w": entry([2], 0, 8), "v": entry([2], 4, 12)}, bytes(12)),
        container({"w": entry([1 << 40], 0, 1 << 42)}, bytes(4)),
        container({"w": entry([1] * 100, 0, 4)}, bytes(4)),
        container({"w": entry([0] + [1 << 40] * 3, 0, 0)}),
    ],
)
def test_a_hostile_container_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    file = forge(save(tmp_path, 1), content)
    with pytest.raises(UserError) as told:
        checkpoint.load(file.parent)
    assert str(told.value).startswith(f"{file} is damaged (") and "\n" not in str(told.value)
    assert len(str(told.value)) < len(str(file)) + 200


def test_other_arrays_than_float32_are_refused(tmp_path: Path) -> None:
    file = forge(save(tmp_path, 1), safetensors.numpy.save({"v": np.ones(2, np.float32), "w": np.ones(2)}))
    with pytest.raises(UserError, match="'w' is not a float32 array"):
        checkpoint.load(file.parent)


def test_a_vouched_for_container_of_any_program_is_read(tmp_path: Path) -> None:
    content = safetensors.numpy.save({"w": np.ones((2, 3), np.float32)}, metadata={"made": "elsewhere"})
    assert same(checkpoint.load(forge(save(tmp_path, 1), content).parent).model, {"w": np.ones((2, 3), np.float32)})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_byte_anywhere_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = save(tmp_path, 1)
    file = path / data.draw(st.sampled_from(FILES))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        loaded = checkpoint.load(path)
    except UserError as told:
        assert "\n" not in str(told)
    else:  # white space of the record
        assert file.name == snapshot.META
        assert same(loaded.model, arrays(1)) and loaded.meta == {"val_loss": None, "position": [1, 2]}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused(tmp_path: Path, content: bytes, framed: bool) -> None:
    file = forge(save(tmp_path, 1), container(content) if framed else content)
    try:
        assert checkpoint.load(file.parent).model == {}
    except UserError as told:
        assert str(file) in str(told) and "\n" not in str(told)
