"""One checkpoint: a restore gives the same bits; damage, and files that are no checkpoint, are refused in one line."""

import json
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picogpt.config import RunConfig
from picogpt.data.streaming.part import StreamPart
from picogpt.errors import UserError
from picogpt.runs import checkpoint, checkpoints
from picogpt.runs.checkpoint_meta import CheckpointMeta, DivergenceState, MachineSettings
from picogpt.runs.log import DivergenceEvent
from tests.support.checkpoints import (
    FILES,
    arrays,
    blank,
    container,
    entry,
    flip,
    forge,
    forge_meta,
    meta,
    remove,
    same,
    save,
    truncate,
)


def test_restores_the_same_bits_and_writable_float32(tmp_path: Path) -> None:
    path = save(tmp_path, 7, 2.5)
    assert path == tmp_path / "checkpoints" / "00000007"
    loaded = checkpoints.load(path)
    assert (loaded.path, loaded.step, loaded.meta) == (path, 7, meta(2.5, recent=(7.0, 2)))
    assert same(loaded.model, arrays(7))
    assert same(loaded.optimizer, {f"m.{name}": array for name, array in arrays(7).items()})
    for array in [*loaded.model.values(), *loaded.optimizer.values()]:
        assert array.dtype == np.float32 and array.flags.writeable
    assert checkpoints.load(path, optimizer=False).optimizer == {}


def test_the_files_are_safetensors_with_the_modes_of_any_other_file(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert same(safetensors.numpy.load_file(path / checkpoint.MODEL), arrays(1))
    assert len({(path / name).stat().st_mode for name in FILES}) == 1


def test_saving_and_loading_hold_no_second_copy_of_the_arrays(tmp_path: Path) -> None:
    model = {f"w{i}": np.ones((512, 1024), dtype=np.float32) for i in range(4)}  # 8 MiB
    tracemalloc.start()
    try:
        path = checkpoints.save(tmp_path, 1, model, {}, meta())
        written = tracemalloc.get_traced_memory()[1]
        checkpoints.load(path)
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert written < 1 << 20
    assert read < (8 << 20) + (1 << 20)


def test_refuses_what_is_not_float32_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="w is float64"):
        checkpoints.save(tmp_path, 1, {"w": np.zeros(3)}, {}, meta())  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        checkpoints.save(tmp_path, 1, {}, {}, meta(np.float32(1)))  # type: ignore[arg-type]
    assert checkpoints.newest(tmp_path) is None


def test_meta_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    whole = CheckpointMeta(
        RunConfig(),
        {"name": "chars", "chars": "aü"},
        "0123",
        StreamPart("wiki", "stream", 2, 8, 100, 200, 50),
        "stream",
        float("inf"),
        True,
        12.5,
        (3.5, 2),
        MachineSettings("cpu", False, 2, 4),
        DivergenceState(0.5, 1, 2, 30),
        (DivergenceEvent(7, "step 7 is left out"),),
    )
    assert checkpoints.load(checkpoints.save(tmp_path, 1, {}, {}, whole)).meta == whole
    assert checkpoints.load(checkpoints.save(tmp_path, 2, {}, {}, meta())).meta == meta()


OLD: dict[str, Any] = {**meta().to_dict(), "recent": [1.5, 3], "later": "a field of a picogpt to come"}


@pytest.mark.parametrize("left_out", ["text", "val_loss", "evaluated", "way", "divergence", "later"])
def test_meta_of_another_version_is_read(left_out: str) -> None:
    fields = {name: value for name, value in OLD.items() if name != left_out}
    assert CheckpointMeta.from_dict(fields) == replace(meta(), recent=(1.5, 3))


@pytest.mark.parametrize(
    "change",
    [
        {"config": {}},
        {"config": {"model": {}, "data": {}, "train": {}}},
        {"tokenizer": None},
        {"data": None},
        {"feed": [1]},
        {"feed": {"of": "wiki", "text": "stream"}},
        {"text": 1},
        {"val_loss": "low"},
        {"val_loss": 10**400},
        {"evaluated": 1},
        {"seconds": float("nan")},
        {"seconds": 10**400},
        {"recent": [1.0]},
        {"recent": [1.0, 1.5]},
        {"way": "fast"},
        {"way": {"device": "cpu"}},
        {"divergence": {"rate": 0.0, "skipped": 0, "returns": 0, "furthest": 0, "events": []}},
        {"divergence": {"rate": 1.0, "skipped": 0, "returns": 0, "furthest": 0, "events": [{"step": 1}]}},
    ],
    ids=str,
)
def test_meta_that_is_none_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        CheckpointMeta.from_dict({**OLD, **change})


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [remove, truncate, flip, blank])
def test_damage_names_the_file_and_the_way_out(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    damage(newer / name)
    with pytest.raises(UserError) as told:
        checkpoints.load(newer)
    assert str(newer / name) in str(told.value)
    assert str(told.value).endswith(f"delete {newer} to continue from step 1")
    assert "\n" not in str(told.value)
    damage(older / name)
    with pytest.raises(UserError, match=r"start the run again with --fresh$"):
        checkpoints.load(newer)


@pytest.mark.parametrize(("damage", "reason"), [(truncate, r"bytes, \d+ were written"), (flip, "its crc32 is ")])
def test_damage_to_the_arrays_says_what_it_is(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    path = save(tmp_path, 1)
    damage(path / checkpoint.MODEL)
    with pytest.raises(UserError, match=rf"is damaged \(.*{reason}"):
        checkpoints.load(path)


def test_another_format_version_is_told(tmp_path: Path) -> None:
    file = save(tmp_path, 1) / checkpoint.META
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "format": 9}), encoding="utf-8")
    with pytest.raises(UserError, match="format 9, this picogpt reads format 2"):
        checkpoints.load(file.parent)


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
    (folder / checkpoint.META).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"meta\.json"):
        checkpoints.load(folder)
    assert checkpoints.best(tmp_path) is None


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
        checkpoints.load(file.parent)
    assert str(told.value).startswith(f"{file} is damaged (") and "\n" not in str(told.value)
    assert len(str(told.value)) < len(str(file)) + 200


def test_other_arrays_than_float32_are_refused(tmp_path: Path) -> None:
    file = forge(save(tmp_path, 1), safetensors.numpy.save({"v": np.ones(2, np.float32), "w": np.ones(2)}))
    with pytest.raises(UserError, match=r"'w' is F64 of .2,., where float32 is expected"):
        checkpoints.load(file.parent)


def test_a_vouched_for_container_of_any_program_is_read(tmp_path: Path) -> None:
    content = safetensors.numpy.save({"w": np.ones((2, 3), np.float32)}, metadata={"made": "elsewhere"})
    assert same(checkpoints.load(forge(save(tmp_path, 1), content).parent).model, {"w": np.ones((2, 3), np.float32)})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_byte_anywhere_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    path = save(tmp_path, 1)
    file = path / data.draw(st.sampled_from(FILES))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        loaded = checkpoints.load(path)
    except UserError as told:
        assert "\n" not in str(told)
    else:  # white space of the record
        assert file.name == checkpoint.META
        assert same(loaded.model, arrays(1)) and loaded.meta == meta(recent=(1.0, 2))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused(tmp_path: Path, content: bytes, framed: bool) -> None:
    file = forge(save(tmp_path, 1), container(content) if framed else content)
    try:
        assert checkpoints.load(file.parent).model == {}
    except UserError as told:
        assert str(file) in str(told) and "\n" not in str(told)


def test_a_record_of_another_version_is_no_damage(tmp_path: Path) -> None:
    """Its checksum is right, so nothing is left out, set aside or deleted on its account."""
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    config = RunConfig().to_dict()
    forge_meta(newer, {"config": {**config, "train": {**config["train"], "a_field_to_come": 1}}})
    for use in (checkpoints.latest, checkpoints.newest_recorded, checkpoints.ranked, checkpoints.prune):
        with pytest.raises(UserError, match="another version of picogpt") as told:
            use(tmp_path)
        assert not isinstance(told.value, checkpoint.DamageError) and "a_field_to_come" in str(told.value)
    assert older.is_dir() and newer.is_dir()
