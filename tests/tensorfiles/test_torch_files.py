"""PyTorch's files without PyTorch: views, shared and packed storages, old and new; and what is none of its files."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picogpt.errors import UserError
from picogpt.tensorfiles.lazy_tensor import LazyTensor
from picogpt.tensorfiles.pickle_reader import ClassNamedError, Names, loads
from picogpt.tensorfiles.torch_files import _NAMES, read_torch
from tests.support.paths import GOLDEN
from tests.support.torchfiles import Tensor, save, tensor

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


def state() -> dict[str, Any]:
    flat = np.arange(20, dtype=np.float32)
    return {
        "whole": tensor(MATRIX),
        "stored transposed": tensor(MATRIX, transposed=True),
        "part of one": Tensor(flat, (2, 3), 5, (7, 2)),
        "the same one": Tensor(flat, (20,), 0, (1,)),
        "half": tensor(MATRIX.astype(np.float16)),
        "double": tensor(MATRIX.astype(np.float64)),
        "scalar": tensor(np.array(2.5, np.float32)),
        "empty": tensor(np.zeros((0, 4), np.float32)),
        "mask": tensor(np.ones((2, 2), np.uint8)),
    }


EXPECTED: dict[str, Any] = {
    "whole": MATRIX,
    "stored transposed": MATRIX,
    "part of one": [[5, 7, 9], [12, 14, 16]],
    "the same one": np.arange(20),
    "half": MATRIX,
    "double": MATRIX,
    "scalar": 2.5,
    "empty": np.zeros((0, 4)),
}


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"root": "pytorch_model", "first_key": 94_123_456},
        {"compression": zipfile.ZIP_DEFLATED},
        {"big_endian": True},
        {"big_endian": False},
    ],
)
def test_tensors_are_what_pytorch_saved(tmp_path: Path, how: dict[str, Any]) -> None:
    found = read_torch(save(tmp_path / "model.bin", state(), **how))
    assert list(found) == list(state())
    for name, expected in EXPECTED.items():
        assert np.array_equal(found[name].read(), np.asarray(expected, np.float32)), name
    assert found["mask"].raw().tolist() == [[1, 1], [1, 1]]


def test_bfloat16_stays_two_bytes_until_it_is_read(tmp_path: Path) -> None:
    halves = (MATRIX.view(np.uint32) >> 16).astype("<u2")
    found = read_torch(save(tmp_path / "model.bin", {"w": tensor(halves, bfloat16=True)}))["w"]
    assert found.dtype == "BF16" and found.raw().dtype == np.dtype("<u2") and np.array_equal(found.read(), MATRIX)


def test_what_is_stored_plainly_is_mapped(tmp_path: Path) -> None:
    plain, packed = (
        read_torch(save(tmp_path / f"{how}.bin", {"w": tensor(MATRIX)}, compression=how))["w"].storage.open()
        for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    )
    assert plain[1] is not None and packed[1] is None and np.array_equal(plain[0], packed[0])


@pytest.mark.parametrize("kind", ["new", "old"])
def test_files_that_pytorch_wrote(kind: str) -> None:
    found = read_torch(GOLDEN / f"torch_{kind}.bin")
    expected = {"whole": MATRIX, "transposed": MATRIX.T, "row": MATRIX[1], "half": MATRIX, "bfloat16": MATRIX}
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert np.array_equal(found[name].read(), array), name
    assert (found["half"].dtype, found["bfloat16"].dtype) == ("F16", "BF16")


class Bomb:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("bomb", [Bomb(os.system, "touch exploded"), Bomb(eval, "1"), Bomb(bytearray, 5)])
def test_what_could_run_code_is_refused_unrun(tmp_path: Path, bomb: Bomb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "model.bin", {"w": tensor(MATRIX), "bomb": bomb})
    with pytest.raises(UserError, match="which could run code: it is not loaded") as error:
        read_torch(path)
    assert "\n" not in str(error.value) and not (tmp_path / "exploded").exists()


def test_what_it_may_name_is_called_with_nothing_else() -> None:
    """No name reaches another function, however the pickle puts it together."""
    names = Names(_NAMES, lambda _: None)
    for program, reason in (
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls what it may not"),
        (b"\x80\x02X\x01\x00\x00\x00a)R.", "calls what it may not"),
        (b"\x80\x02ccollections\nOrderedDict\nX\x01\x00\x00\x00aR.", "no arguments"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "other arguments"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\nX\x01\x00\x00\x00a\x85R.", "an invalid storage"),
        (b"\x80\x02)Q.", ""),
    ):
        if not reason:
            assert loads(program, names) is None
            continue
        with pytest.raises(ValueError, match=reason):
            loads(program, names)
    tensors = Names(_NAMES, lambda _: None, (LazyTensor,))
    for key in (b"ccollections\nOrderedDict\n)R", b"ctorch._utils\n_rebuild_tensor_v2\n", b")"):
        with pytest.raises(ValueError, match="a key of a dict is no text and no small number"):
            loads(b"\x80\x02}(" + key + b"Nu.", tensors)
    for program in (b"\x80\x02cos\nsystem\n.", b"(iposix\nsystem\n.", b"\x80\x04\x8c\x02os\x8c\x06system\x93."):
        with pytest.raises(ClassNamedError):
            loads(program, names)
    with pytest.raises(ValueError, match="calls something"):
        loads(b"\x80\x02)Q.")


def rewritten(path: Path, change: Any) -> Path:
    """The file with its members changed: change takes a dict of them."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.pop("archive/data.pkl"), "there is no data.pkl in it"),
        (lambda m: m.pop("archive/data/0"), "archive/data/0 is missing"),
        (lambda m: m.update({"archive/data/0": b"1234"}), "has 4 bytes, not 48"),
        (lambda m: m.update({"archive/byteorder": b"middle"}), "neither little nor big"),
        (lambda m: m.update({"archive/data.pkl": pickle.dumps({"a": 1}, 2)}), "no named tensors"),
        (lambda m: m.update({"archive/data.pkl": pickle.dumps([1], 2)}), "no named tensors"),
        (lambda m: m.update({"archive/data.pkl": b"\x80\x02X"}), "damaged"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path: Path, change: Any, reason: str) -> None:
    path = rewritten(save(tmp_path / "model.bin", {"w": tensor(MATRIX)}), change)
    with pytest.raises(UserError, match=reason) as error:
        read_torch(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_bytes_are_refused_or_numbers(tmp_path: Path, data: st.DataObject) -> None:
    path = save(tmp_path / "model.bin", state())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        for found in read_torch(path).values():
            found.raw()
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + bytes(40), b"\x80\x02]q\x00.x", b"text"])
def test_what_is_no_file_of_pytorchs(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged or no file of PyTorch's"):
        read_torch(path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_torch(tmp_path / "none.bin")
