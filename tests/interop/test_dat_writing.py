"""Folders of demo-gpt-java, written: the same bytes come back, no number is rounded, and a failure leaves nothing."""

import errno
import os
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from picogpt.config import ModelConfig
from picogpt.errors import UserError
from picogpt.interop import dat
from picogpt.interop.dat import read_dat, write_dat
from picogpt.system import files
from tests.support.datfolders import GPT2, NEO, arrays_of, bits, content, exact, save
from tests.support.folders import snapshot
from tests.support.models import lively_arrays

Arrays = dict[str, np.ndarray]


@pytest.mark.parametrize(
    "config", [GPT2, NEO, replace(GPT2, bias=False, attention_scale="width")], ids=["gpt2", "neo", "other"]
)
@pytest.mark.parametrize(("kind", "data_type"), [("f", "FLOAT32"), ("e", "FLOAT16"), ("B", "BFLOAT16")])
def test_the_same_bytes_come_back(tmp_path: Path, config: ModelConfig, kind: str, data_type: Any) -> None:
    arrays = exact(config, kind)
    foreign = save(tmp_path / "foreign", config, arrays, f">{kind}")
    found = read_dat(foreign)
    write_dat(tmp_path / "own", found.model, arrays_of(found), data_type, found.end_of_text)
    assert snapshot(tmp_path / "own" / "parameters") == snapshot(foreign / "parameters")
    assert not list(tmp_path.glob(".*"))
    again = read_dat(tmp_path / "own")
    assert (again.family, again.model, again.end_of_text) == (found.family, config, config.vocab_size - 1)
    assert bits(arrays_of(again)) == bits(arrays)
    by_row = save(tmp_path / "by row", config, arrays, f"<{kind}", by_column=False)
    write_dat(tmp_path / "third", config, arrays_of(read_dat(by_row)), data_type, found.end_of_text)
    assert snapshot(tmp_path / "third") == snapshot(tmp_path / "own")


def test_large_tensors_are_written_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dat, "_PIECE", 20)
    arrays = lively_arrays(GPT2)
    write_dat(tmp_path / "own", GPT2, arrays)
    assert snapshot(tmp_path / "own" / "parameters") == snapshot(
        save(tmp_path / "foreign", GPT2, arrays) / "parameters"
    )


class Kept(Mapping[str, Any]):
    """Arrays that are made when they are wanted; there must be one of them at a time."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self.alive: list[weakref.ref[np.ndarray]] = []

    def __getitem__(self, name: str) -> Any:
        return _Lazy(self, self._arrays[name])

    def __iter__(self) -> Any:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class _Lazy:
    def __init__(self, owner: Kept, array: np.ndarray) -> None:
        self._owner, self._array = owner, array
        self.shape, self.size, self.ndim = array.shape, array.size, array.ndim

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        assert all(reference() is None for reference in self._owner.alive)
        made = self._array.copy()
        self._owner.alive.append(weakref.ref(made))
        return made


def test_there_is_one_array_at_a_time(tmp_path: Path) -> None:
    arrays = lively_arrays(NEO)
    kept = Kept(arrays)
    write_dat(tmp_path / "own", NEO, kept)
    assert len(kept.alive) == len(arrays) and bits(arrays_of(read_dat(tmp_path / "own"))) == bits(arrays)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"context_slot": True}, "a context slot"),
        ({"tied_head": False}, "a head of its own"),
        ({"tied_head": False, "head_bias": True}, "a head of its own or a bias in the head"),
        ({"activation": "relu"}, "the activation relu"),
        ({"activation": "gelu"}, "the activation gelu"),
        ({"n_layer": 0}, "a model without blocks"),
    ],
)
def test_what_a_folder_cannot_say_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"a folder of .dat files cannot hold {reason}: export the model in another"):
        write_dat(tmp_path / "own", replace(GPT2, **change), {})
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(("number", "data_type"), [(1 + 2**-12, "FLOAT16"), (1e6, "FLOAT16"), (1 + 2**-8, "BFLOAT16")])
def test_no_number_is_rounded(tmp_path: Path, number: float, data_type: Any) -> None:
    arrays = {name: np.ones_like(array) for name, array in lively_arrays(GPT2).items()}
    write_dat(tmp_path / "own", GPT2, arrays, data_type)
    arrays["ln_f.bias"][-1] = number
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=rf"{data_type} does not hold all numbers of ln_f.bias: write FLOAT32"):
        write_dat(tmp_path / "rounded", GPT2, arrays, data_type)
    assert snapshot(tmp_path) == before


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with pytest.raises(UserError, match=r"there is .*own already: name another"):
        write_dat(tmp_path / "own", GPT2, lively_arrays(GPT2))
    assert snapshot(tmp_path) == {"own": None}


@pytest.mark.parametrize("after", [0, 7, 30])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    calls = iter([None] * after)

    def full(descriptor: int) -> None:
        if next(calls, "full") == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "flush", full)
    with pytest.raises(
        UserError, match=r"cannot write .*own \(No space left on device\): free some disk space"
    ) as told:
        write_dat(tmp_path / "own", GPT2, lively_arrays(GPT2))
    assert "\n" not in str(told.value) and snapshot(tmp_path) == {}


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".own.tmp" / "parameters").mkdir(parents=True)
    (tmp_path / ".own.tmp" / "parameters" / "left.dat").write_bytes(b"left")
    write_dat(tmp_path / "own", GPT2, lively_arrays(GPT2))
    assert [path.name for path in tmp_path.iterdir()] == ["own"] and not list(tmp_path.rglob("left.dat"))


def test_a_file_is_laid_out_as_the_program_reads_it() -> None:
    """Number by number: by columns, the row changes first."""
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.frombuffer(content(matrix, ">f", True), ">f4").tolist() == [0, 2, 4, 1, 3, 5]
    assert np.frombuffer(content(matrix, "<f", False), "<f4").tolist() == [0, 1, 2, 3, 4, 5]
