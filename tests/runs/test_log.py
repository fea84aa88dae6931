"""Logs: plain builtins only, atomic, refused in one line when hostile; the summary and the picture of one."""

import collections
import os
import pickle
import pickletools
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picogpt.config.presets import PRESETS
from picogpt.errors import UserError
from picogpt.runs import log as log_module
from picogpt.runs.log import Evaluation, RunLog, read_log
from picogpt.system.checksums import with_checksum
from tests.support.logfiles import record, shown, written

FEW = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_the_file_opens_without_picogpt_and_numpy(tmp_path: Path) -> None:
    path = tmp_path / "log.pkl"
    log = RunLog.open(path, PRESETS["pico"].to_dict())
    fields: dict[str, Any] = {"step": np.int64(50), "train_loss": np.float32(2.5), "val_loss": np.float64(2.25)}
    log.evaluation(Evaluation(**fields, sample=np.str_("x"), tokens=np.int32(8)))
    log.save()
    assert not any("GLOBAL" in opcode.name for opcode, _, _ in pickletools.genops(path.read_bytes()))
    program = f"import pickle, sys; print(pickle.load(open({str(path)!r}, 'rb'))); print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    content = pickle.loads(path.read_bytes())
    assert content["losses"] == {"train": [2.5], "val": [2.25]}
    assert (content["best_loss"], content["iter_num"], content["notices"]) == (2.25, 50, [])
    assert content["evaluations"] == [{"step": 50, "train_loss": 2.5, "val_loss": 2.25, "tokens": 8, "sample": "x"}]
    assert content["config"]["model"]["layer_pattern"] == ["global"]
    assert {type(value) for value in content["evaluations"][0].values()} == {int, float, str}


@pytest.mark.parametrize("value", [np.zeros(2), Path("x"), {"a": 1}, [1], b"x", 1j, np.longdouble])
def test_refuses_what_is_no_plain_scalar(tmp_path: Path, value: object) -> None:
    log = RunLog.open(tmp_path / "log.pkl", {})
    with pytest.raises(TypeError, match="plain builtins"):
        log.evaluation(Evaluation(1, 1.0, 1.0, sample=value))  # type: ignore[arg-type]
    assert log.evaluations == []
    with pytest.raises(TypeError, match="plain builtins"):
        RunLog.open(tmp_path / "log.pkl", {"deep": [{"path": Path("x")}]})


def test_goes_on_where_it_was_and_rewinds(tmp_path: Path) -> None:
    path = tmp_path / "log.pkl"
    first = written(path)
    again = RunLog.open(path, {"preset": "other"})
    assert (again.evaluations, again.notices) == (first.evaluations, ["something to know"])
    again.rewind(100, [])
    record(again, 150, float("nan"))
    record(again, 200, None)
    assert again.best_loss == first.evaluations[2].val_loss
    again.save()
    content = read_log(path)
    assert content.iter_num == 200 and len(content.losses["val"]) == 5 and content.config == {"preset": "other"}
    again.rewind(-1, [])
    assert again.best_loss is None
    again.save()
    assert read_log(path).losses == {"train": [], "val": []}


def test_a_log_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "MOST_EVALUATIONS", 10)
    monkeypatch.setattr(log_module, "_MOST_LINES", 5)
    log = RunLog(tmp_path / "log.pkl", {})
    for step in range(1, 1001):
        record(log, step, 1.0 if step == 7 else 2.0)
        log.notice(str(step))
        log.diverged(step, "left out")
        assert log.best_loss == (1.0 if step >= 7 else 2.0) and log.evaluations[-1].step == step
        assert len(log.evaluations) <= 11
    steps = [entry.step for entry in log.evaluations]
    assert steps == sorted(steps) and 7 in steps
    assert log.notices == ["996", "997", "998", "999", "1000"]
    assert [event.step for event in log.divergence] == [*range(996, 1001)]


def test_a_thinned_log_is_the_same_after_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log may be ahead of the checkpoint by the evaluation that thinned it."""
    monkeypatch.setattr(log_module, "MOST_EVALUATIONS", 10)
    whole, broken = RunLog(tmp_path / "log.pkl", {}), RunLog(tmp_path / "log.pkl", {})
    for step in range(1, 31):
        record(whole, step, 2.0)
        record(broken, step, 2.0)
        broken.rewind(step - 1, [])
        record(broken, step, 2.0)
    assert whole.evaluations == broken.evaluations


def test_a_death_while_saving_leaves_the_last_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.pkl"
    log = written(path)
    record(log, 1000, 1.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(UserError, match="No space left on device"):
                log.save()
        assert len(read_log(path).evaluations) == 5
    log.save()
    assert len(read_log(path).evaluations) == 6
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.pkl"]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_log_that_names_a_class_is_refused_unrun(
    tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "log.pkl"
    for content, name in ((Bomb(), "mkdir"), (np.float32(1), "numpy"), (collections.OrderedDict(), "OrderedDict")):
        path.write_bytes(pickle.dumps({"losses": content}, protocol))
        with pytest.raises(
            UserError, match=rf"names the class \S*{name}\S*: this is not a log of picogpt, and loading"
        ):
            read_log(path)
    assert not (tmp_path / "exploded").exists()


NAN = float("nan")
SOUND = {"losses": {"train": [2.0], "val": [NAN]}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged or not a log"),
        (b"hello", "damaged or not a log"),
        (pickle.dumps(SOUND)[:-4], "damaged or not a log"),
        (b"\x80\x04r\xff\xff\xff\x7f" + pickle.dumps(SOUND)[2:], "damaged or not a log"),
        (b"\x80\x04Nr\xff\xff\xff\x7f.", "too much memory"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40), "damaged or not a log"),
        (b"\x80\x04" + b"]" * 4_100_000 + b".", "too much memory"),
        (b"I" + b"9" * 100_000 + b"\n.", "damaged or not a log"),
        (pickle.dumps([1]), "has no losses"),
        (pickle.dumps({"best_loss": 1.0}), "has no losses"),
        (pickle.dumps({"losses": [1.0]}), "has no losses"),
        (pickle.dumps({"losses": {"train": [1.0]}}), "not lists of numbers"),
        (pickle.dumps({"losses": {"train": [1.0], "val": ["x"]}}), "not lists of numbers"),
        (pickle.dumps({"losses": {"train": [10**400], "val": [1.0]}}), "not lists of numbers"),
        (pickle.dumps({"losses": {"train": [1.0], "val": []}}), "differ in number"),
        (pickle.dumps({**SOUND, "iter_num": "7"}), "not a number"),
        (pickle.dumps({**SOUND, "evaluations": {}}), "evaluations are not a list"),
        (pickle.dumps({**SOUND, "config": []}), "config are not a dict"),
        (pickle.dumps({**SOUND, "notices": [1]}), "notice is not text"),
        (pickle.dumps({**SOUND, "evaluations": [{"step": 1}]}), "an evaluation is damaged"),
        (pickle.dumps({**SOUND, "evaluations": [{"step": 1, "train_loss": 1.0, "val_loss": []}]}), "is damaged"),
        (pickle.dumps({**SOUND, "evaluations": [{"step": None, "train_loss": 1.0, "val_loss": 1.0}]}), "is damaged"),
        (
            pickle.dumps({**SOUND, "evaluations": [{"step": 1, "train_loss": 1.0, "val_loss": 1.0, "sample": 7}]}),
            "is damaged",
        ),
    ],
)
def test_hostile_and_foreign_files_are_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "log.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as told:
        read_log(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_a_missing_a_large_and_an_endless_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.pkl"
    with pytest.raises(UserError, match="cannot read the log"):
        read_log(path)
    with pytest.raises(UserError, match="cannot read the log"):
        read_log(tmp_path)
    endless: list[Any] = []
    endless.append(endless)
    path.write_bytes(pickle.dumps({"losses": {"train": endless, "val": endless}}))
    with pytest.raises(UserError, match="in two places"):
        read_log(path)
    monkeypatch.setattr(log_module, "_SIZE_LIMIT", 10)
    with pytest.raises(UserError, match="this is not a log of picogpt"):
        read_log(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_byte_of_a_sealed_log_that_was_changed_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "log.pkl"
    content = bytearray(with_checksum(pickle.dumps(SOUND)))
    path.write_bytes(content)
    assert read_log(path).losses["train"] == [2.0]
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged (\(its checksum does not match\)|or not a log)"):
        read_log(path)


@pytest.mark.parametrize("more", [b"\0", b"crc32", b"crc32\0\0\0\0", b"crc3\0\0\0\0", pickle.dumps(SOUND)])
def test_nothing_but_its_seal_may_follow_a_log(tmp_path: Path, more: bytes) -> None:
    path = tmp_path / "log.pkl"
    path.write_bytes(pickle.dumps(SOUND) + more)
    with pytest.raises(UserError, match="is damaged") as told:
        read_log(path)
    assert "\n" not in str(told.value)


def test_losses_alone_are_a_log_but_cannot_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "log.pkl"
    path.write_bytes(
        pickle.dumps({"losses": {"train": [2.0, 1.5], "val": [2.5, 1.75]}, "best_loss": 1.75, "iter_num": 7})
    )
    log = read_log(path)
    assert (log.evaluations, log.notices, log.config) == ([], [], {})
    text = shown(log, "utf-8")
    assert "evaluation" in text and "1.7500*" in text and "tokens" not in text
    with pytest.raises(UserError, match="move it away"):
        RunLog.open(path, {})


@FEW
@given(st.binary(max_size=120))
def test_random_bytes_raise_nothing_but_usererror(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError):
        read_log(path)


@FEW
@given(st.data())
def test_a_mutated_log_is_refused_or_shown(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "log.pkl"
    path.unlink(missing_ok=True)
    written(path, steps=2)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        assert shown(read_log(path), "ascii")
        RunLog.open(path, {}).save()
    except UserError as told:
        assert "\n" not in str(told)
