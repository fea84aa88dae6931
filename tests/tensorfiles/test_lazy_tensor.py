"""Tensors in files: views of storages, of every kind of number, bfloat16 among them."""

from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.errors import UserError
from picogpt.tensorfiles.lazy_tensor import Dtype, LazyTensor, Storage

KINDS: list[tuple[Dtype, str]] = [("F32", "f4"), ("F16", "f2"), ("F64", "f8")]


def storage(path: Path, array: np.ndarray, dtype: Dtype = "F32", before: bytes = b"head") -> Storage:
    path.write_bytes(before + array.tobytes())
    return Storage(path, len(before), array.size, dtype, array.dtype.byteorder == ">")


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
@pytest.mark.parametrize("order", "<>")
def test_every_kind_of_number_becomes_float32(tmp_path: Path, dtype: Dtype, kind: str, order: str) -> None:
    array = np.array([[1.5, -2.25, 0.0], [np.inf, 1e-3, 7.0]], order + kind)
    found = LazyTensor(storage(tmp_path / "file", array, dtype), (2, 3)).read()
    assert found.dtype == np.float32 and found.flags.owndata and np.array_equal(found, array.astype(np.float32))


@pytest.mark.parametrize("order", "<>")
def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path, order: str) -> None:
    array = np.array([1.0, -2.5, 0.0, np.inf], np.float32)
    halves = (array.view(np.uint32) >> 16).astype(f"{order}u2")
    assert np.array_equal(LazyTensor(storage(tmp_path / "file", halves, "BF16"), (4,)).read(), array)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_view_is_numpys(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    flat = np.arange(60, dtype=np.float32)
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    strides = tuple(data.draw(st.integers(0, 12)) for _ in shape)
    start = data.draw(st.integers(0, 60))
    place = storage(tmp_path_factory.mktemp("stored") / "file", flat)
    last = start + sum((length - 1) * step for length, step in zip(shape, strides, strict=True))
    if prod(shape) > 60 or (all(shape) and last >= 60):  # with steps of zero, more numbers than there are
        with pytest.raises(ValueError, match="larger than its storage"):
            LazyTensor(place, shape, start, strides)
        return
    found = LazyTensor(place, shape, start, strides).read()
    assert found.shape == shape
    for index in np.ndindex(shape):
        assert found[index] == flat[start + sum(i * step for i, step in zip(index, strides, strict=True))]


@pytest.mark.parametrize(("shape", "start", "strides"), [((2,), -1, (1,)), ((-2,), 0, (1,)), ((2,), 0, (-1,))])
def test_negative_sizes_are_refused(
    tmp_path: Path, shape: tuple[int, ...], start: int, strides: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="negative"):
        LazyTensor(storage(tmp_path / "file", np.zeros(9, np.float32)), shape, start, strides)


def test_a_file_that_is_shorter_now_is_told(tmp_path: Path) -> None:
    found = LazyTensor(storage(tmp_path / "file", np.zeros(9, np.float32)), (9,))
    (tmp_path / "file").write_bytes(b"short")
    with pytest.raises(UserError, match=r"cannot be read .*: get it again"):
        found.read()
    (tmp_path / "file").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        found.read()


def test_numbers_that_are_no_weights_are_told(tmp_path: Path) -> None:
    found = LazyTensor(storage(tmp_path / "file", np.arange(3, dtype=np.int64), "I64"), (3,))
    assert found.raw().tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="has I64 numbers where weights are expected"):
        found.read()


def test_nothing_is_read_before_it_is_wanted(tmp_path: Path) -> None:
    assert storage(tmp_path / "file", np.zeros(9, np.float32)).open()[1] is not None
