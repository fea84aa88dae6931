"""Weights on their way into the file: the same whatever the blocks and the place, and few of them in memory."""

import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from picogpt.config import ModelConfig, Precision
from picogpt.errors import UserError
from picogpt.inference.onnx import export as export_module
from picogpt.inference.onnx import initializers as initializers_module
from picogpt.inference.onnx.export import export
from picogpt.inference.onnx.initializers import row_blocks
from picogpt.inference.onnx.session import OnnxModel, OnnxReader
from picogpt.tokenizers.characters import PicoTokenizer
from tests.support.folders import snapshot
from tests.support.models import lively_arrays

# Heads that one dialect fills up, matrices that end within a block of few bits, a head of few bits and odd length.
CONFIG = ModelConfig(context_len=8, vocab_size=201, n_layer=2, n_head=2, n_embd=20)
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4")


class Lazy:
    """A weight that is made where it is used, into a buffer that the next block overwrites."""

    def __init__(self, make: Callable[[], np.ndarray], shape: tuple[int, ...], rows: int = 7) -> None:
        self.shape, self.ndim, self.size = shape, len(shape), prod(shape)
        self._make, self._rows = make, rows

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        whole, buffer = self._make(), np.empty((self._rows, *self.shape[1:]), np.float32)
        for start in range(0, len(whole), self._rows):
            rows = slice(start, min(start + self._rows, len(whole)))
            buffer[: rows.stop - start] = whole[rows]
            yield rows, buffer[: rows.stop - start]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._make()


class Watched(Mapping[str, Any]):
    """Weights whose makers tell before each is made."""

    def __init__(self, config: ModelConfig, told: Callable[[str], None] = lambda name: None) -> None:
        self._arrays, self._told = lively_arrays(config), told

    def __getitem__(self, name: str) -> Lazy:
        def make() -> np.ndarray:
            self._told(name)
            return self._arrays[name].copy()

        return Lazy(make, self._arrays[name].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def initializers(path: Path) -> dict[str, bytes]:
    """Name -> content, wherever it lies."""
    return {tensor.name: tensor.raw_data for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("portable", [False, True])
def test_neither_blocks_nor_the_place_change_a_byte(
    precision: Precision, portable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, beside, lazy = tmp_path / "one.onnx", tmp_path / "beside.onnx", tmp_path / "lazy.onnx"
    export(one, CONFIG, lively_arrays(CONFIG), PicoTokenizer(), precision, portable)
    expected = initializers(one)
    monkeypatch.setattr(initializers_module, "_BLOCK", 100)
    monkeypatch.setattr(export_module, "_INSIDE", 1000)
    export(beside, CONFIG, lively_arrays(CONFIG), PicoTokenizer(), precision, portable)
    export(lazy, CONFIG, Watched(CONFIG), PicoTokenizer(), precision, portable)
    assert initializers(beside) == initializers(lazy) == expected
    ids = np.array([[5, 200, 7]])
    found = [OnnxReader(OnnxModel(path, 1)).read(ids) for path in (one, beside, lazy)]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tensors begin where a system can map them, one behind the other; small ones stay in the graph."""
    monkeypatch.setattr(export_module, "_INSIDE", 1000)
    export(tmp_path / "model.onnx", CONFIG, lively_arrays(CONFIG), PicoTokenizer(), "int8")
    [file] = tmp_path.glob("*.weights")
    end = 0
    for tensor in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer:
        external = tensor.data_location == TensorProto.EXTERNAL
        assert external is (prod(tensor.dims) >= 1024) and tensor.HasField("raw_data") is not external
        if external:
            place = {entry.key: entry.value for entry in tensor.external_data}
            start, length = int(place["offset"]), int(place["length"])
            assert place["location"] == file.name and start % 65536 == 0 and end <= start < end + 65536
            end = start + length
    assert file.stat().st_size == end + 9  # the seal


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_export_never_has_the_model_in_memory(
    precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(context_len=8, vocab_size=2000, n_layer=8, n_head=4, n_embd=256)
    monkeypatch.setattr(export_module, "_INSIDE", 1000)
    model = Watched(config)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    export(tmp_path / "model.onnx", config, model, PicoTokenizer(), precision)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    largest = 4 * 2000 * 256  # this model makes its weights as a whole
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) > 5e6
    assert peak < 1.2 * largest + 6e6, f"{peak:,}"


@pytest.mark.parametrize("stopped", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
def test_what_stops_half_way_leaves_what_was_there(
    stopped: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    monkeypatch.setattr(export_module, "_INSIDE", 1000)
    export(path, CONFIG, lively_arrays(CONFIG), PicoTokenizer())
    before = snapshot(tmp_path)

    def stop(name: str) -> None:
        if name == "h.1.mlp.c_fc.weight":
            assert len(list(tmp_path.iterdir())) == len(before) + 1
            raise stopped

    with pytest.raises(UserError if isinstance(stopped, OSError) else type(stopped)):
        export(path, CONFIG, Watched(CONFIG, stop), PicoTokenizer())
    assert snapshot(tmp_path) == before


def test_until_all_is_written_the_old_file_is_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "model.onnx", []
    monkeypatch.setattr(export_module, "_INSIDE", 1000)
    export(path, CONFIG, lively_arrays(CONFIG), PicoTokenizer(), source="old")
    before = snapshot(tmp_path)

    def look(name: str) -> None:
        now = snapshot(tmp_path)
        seen.append({file: now[file] for file in before} == before and OnnxModel(path, 1).source == "old")

    export(path, CONFIG, Watched(CONFIG, look), PicoTokenizer(), source="new")
    assert len(seen) > 20 and all(seen) and OnnxModel(path, 1).source == "new"


@pytest.mark.parametrize("change", [{}, {"n_embd": 34}, {"tied_head": False, "head_bias": True}, {"n_layer": 0}])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("portable", [False, True])
def test_what_it_will_take_is_known_before(
    change: dict[str, Any], precision: Precision, portable: bool, tmp_path: Path
) -> None:
    config = replace(CONFIG, **change)
    export(tmp_path / "model.onnx", config, lively_arrays(config), PicoTokenizer(), precision, portable)
    tensors = onnx.load(tmp_path / "model.onnx").graph.initializer
    size = sum(len(tensor.raw_data) for tensor in tensors)
    # Rows of few bits are filled up to blocks of 32, which is much for rows of 20 alone.
    assert 0.6 * size < export_module._size(config, precision, portable) < 2 * size
    assert {tensor.data_location for tensor in tensors} == {TensorProto.DEFAULT}
    assert all(numpy_helper.to_array(tensor).size == prod(tensor.dims) for tensor in tensors)


def test_row_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initializers_module, "_BLOCK", 64)
    for shape in ((1,), (100,), (3, 100), (50, 7), (1, 1)):
        weight = np.arange(prod(shape), dtype=np.float32).reshape(shape)
        blocks = [block.copy() for block in row_blocks(weight)]
        assert np.array_equal(np.concatenate(blocks), weight)
        assert all(block.size <= max(64, weight[:1].size) for block in blocks)
