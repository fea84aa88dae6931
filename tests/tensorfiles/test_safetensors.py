"""safetensors files: as the format's own library reads and writes them; hostile ones are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from picogpt.engine.mapped_matrix import MappedMatrix
from picogpt.errors import UserError
from picogpt.tensorfiles.safetensors import read_safetensors, write_safetensors

ARRAYS = st.dictionaries(
    st.text(max_size=12).filter(lambda name: name != "__metadata__"),
    hnp.arrays(st.sampled_from([np.float32, np.float16]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)),
    max_size=5,
)
shared = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@shared
@given(ARRAYS)
def test_what_is_written_the_library_reads(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_safetensors(tmp_path / "file", arrays, {"format": "pt"})
    found = safetensors.numpy.load_file(tmp_path / "file")
    assert found.keys() == arrays.keys() and all(same(found[name], array) for name, array in arrays.items())


@shared
@given(ARRAYS)
def test_what_the_library_writes_is_read(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(arrays, tmp_path / "file")
    found = read_safetensors(tmp_path / "file")
    assert found.keys() == arrays.keys() and all(same(found[name].raw(), array) for name, array in arrays.items())


@shared
@given(st.data())
def test_a_changed_byte_is_refused_or_changes_numbers_alone(tmp_path: Path, data: st.DataObject) -> None:
    write_safetensors(tmp_path / "file", {"w": np.ones((3, 2), np.float32), "b": np.ones(5, np.float32)})
    content = bytearray((tmp_path / "file").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "file").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = read_safetensors(tmp_path / "file")
        for tensor in found.values():
            assert tensor.raw().shape == tensor.shape
    except UserError as error:
        assert "\n" not in str(error)


def test_sixteen_bits_stay_sixteen(tmp_path: Path) -> None:
    bits = np.arange(12, dtype=np.uint16).reshape(3, 4)
    write_safetensors(
        tmp_path / "file", {"bits": MappedMatrix(bits), "vector": bits[0], "half": MappedMatrix(bits.view(np.float16))}
    )
    header = json.loads((tmp_path / "file").read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert [entry["dtype"] for entry in header.values()] == ["BF16", "BF16", "F16"]
    found = read_safetensors(tmp_path / "file")
    assert np.array_equal(found["bits"].mapped().raw, bits) and np.array_equal(found["vector"].raw(), bits[0])


def test_rows_that_do_not_follow_each_other_are_put_in_order(tmp_path: Path) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_safetensors(tmp_path / "file", {"w": matrix.T, "v": matrix[:, 1]})
    found = read_safetensors(tmp_path / "file")
    assert np.array_equal(found["w"].read(), matrix.T) and np.array_equal(found["v"].read(), matrix[:, 1])


def test_each_tensor_is_asked_for_once_and_in_order(tmp_path: Path) -> None:
    asked: list[str] = []

    class Made(dict[str, Any]):
        def __getitem__(self, name: str) -> np.ndarray:
            asked.append(name)
            return np.full(3, ord(name), np.float32)

    write_safetensors(tmp_path / "file", Made(b=None, a=None))
    assert asked == ["b", "a"] and read_safetensors(tmp_path / "file")["a"].read()[0] == ord("a")


def test_other_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="w is float64"):
        write_safetensors(tmp_path / "file", {"w": np.ones(2)})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_safetensors(tmp_path / "file")
