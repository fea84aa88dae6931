"""PyTorch's files that want more than they hold: time, memory, or names where they must not be."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from picogpt.errors import UserError
from picogpt.tensorfiles import pickle_writer
from picogpt.tensorfiles.lazy_tensor import LazyTensor, Storage
from picogpt.tensorfiles.torch_files import read_object, read_torch
from tests.support.paths import GOLDEN
from tests.support.torchfiles import Tensor, save, tensor

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_the_tensors_of_an_older_file_are_mapped() -> None:
    for name, found in read_torch(GOLDEN / "torch_old.bin").items():
        assert found.storage.open()[1] is not None and not found.storage.content, name


def test_a_storage_does_not_hold_another(tmp_path: Path) -> None:
    """Each level would be read twice, and 2^24 readings are many."""
    inner = pickle_writer.pickled(pickle_writer.tensor(MATRIX[0]))
    nested = pickle_writer.called("torch.storage._load_from_bytes", pickle_writer.raw(inner))
    for _ in range(24):
        row = [pickle_writer.integer(0x1950A86A20F9469CFC6C), pickle_writer.integer(1001), pickle_writer.dict_of({})]
        content = b"".join(pickle_writer.pickled(value, 2) for value in [*row, nested, pickle_writer.list_of([])])
        nested = pickle_writer.called("torch.storage._load_from_bytes", pickle_writer.raw(content))
    (tmp_path / "file").write_bytes(pickle_writer.pickled(nested))
    with pytest.raises(UserError, match=r"is not loaded|is damaged"):
        read_object(tmp_path / "file")


@pytest.mark.parametrize("keys", [pickle_writer.integer(1), pickle_writer.list_of([pickle_writer.list_of([])])])
def test_the_keys_of_storages_are_words(tmp_path: Path, keys: bytes) -> None:
    row = [pickle_writer.integer(0x1950A86A20F9469CFC6C), pickle_writer.integer(1001), pickle_writer.dict_of({})]
    values = [*row, pickle_writer.dict_of({}), keys]
    (tmp_path / "file").write_bytes(b"".join(pickle_writer.pickled(value, 2) for value in values))
    with pytest.raises(UserError, match="does not begin as PyTorch's files do"):
        read_object(tmp_path / "file")


@pytest.mark.parametrize(
    "hostile",
    [
        Tensor(MATRIX.reshape(-1), (1 << 40, 4), 0, (0, 1)),
        Tensor(MATRIX.reshape(-1), (64, 4), 0, (0, 1)),
        Tensor(MATRIX.reshape(-1), (1, 1), 0, (1 << 70, 1)),
        Tensor(MATRIX.reshape(-1), (1,), 1 << 60, (1,)),
    ],
)
def test_a_tensor_has_no_more_numbers_than_its_storage(tmp_path: Path, hostile: Tensor) -> None:
    with pytest.raises(UserError, match=r"larger than its storage|an absurd size") as error:
        read_torch(save(tmp_path / "model.bin", {"w": hostile}))
    assert "\n" not in str(error.value)


def test_no_more_is_unpacked_than_is_wanted(tmp_path: Path) -> None:
    path = save(tmp_path / "model.bin", {"w": tensor(MATRIX)}, compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    members["archive/data/0"] += bytes(30 << 20)
    members["archive/byteorder"] = b"little" + bytes(30 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    with pytest.raises(UserError, match="neither little nor big"):
        read_torch(path)
    del members["archive/byteorder"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    found = read_torch(path)["w"]
    assert found.storage.read().nbytes == 48 and np.array_equal(found.read(), MATRIX)


def test_packed_zeros_are_no_bomb(tmp_path: Path) -> None:
    zeros = np.zeros((1000, 1000), np.float32)
    path = save(tmp_path / "model.bin", {"w": tensor(zeros)}, compression=zipfile.ZIP_DEFLATED)
    assert np.array_equal(read_torch(path)["w"].read(), zeros)


def test_masks_of_any_numbers_may_lie_beside_the_weights(tmp_path: Path) -> None:
    state = {"w": tensor(MATRIX), "mask": tensor(np.ones((2, 2), np.int8))}
    assert read_torch(save(tmp_path / "model.bin", state))["mask"].dtype == "I8"


@pytest.mark.parametrize(("number", "kind"), [(2.5, "f8"), (-0.25, "f4"), (7, "i8")])
def test_numbers_of_numpys_are_numbers(tmp_path: Path, number: float, kind: str) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps({"loss": np.dtype(kind).type(number)}))
    assert read_object(tmp_path / "file") == {"loss": number}


@pytest.mark.parametrize("value", [np.complex64(1), np.str_("a"), np.bool_(True)])
def test_others_of_numpys_are_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match="that are not expected"):
        read_object(tmp_path / "file")


def test_float64_beyond_float32_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(np.array([1.0, 1e300]).tobytes())
    with pytest.raises(UserError, match="too large for float32"):
        LazyTensor(Storage(tmp_path / "file", 0, 2, "F64"), (2,)).read()
    (tmp_path / "file").write_bytes(np.array([1.0, np.inf]).tobytes())
    assert np.isinf(LazyTensor(Storage(tmp_path / "file", 0, 2, "F64"), (2,)).read()[1])
