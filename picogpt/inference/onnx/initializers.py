"""Write a model's weights into an ONNX file: one tensor at a time, in blocks of rows.

The weights of a large model go into a file beside the graph as they are computed, so none of them stays in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from picogpt.engine.backend import Array

Arrays = Mapping[str, Array]
"""Weights by name: float32 arrays, or objects with their shape and their rows in `blocks()`, as `MappedMatrix` has."""

Store = Callable[[TensorProto, Iterable[npt.NDArray[Any]]], None]
"""A function that stores the content of a tensor, which comes in pieces, in order."""

_BLOCK = 1 << 18  # weights of a block of rows
_ALIGNED = 1 << 16  # bytes; a part of a file can be mapped from a multiple of this (Windows), elsewhere of 4096
_FEW = 1024  # entries; a tensor of fewer stays in the graph


def row_blocks(weight: Array) -> Iterator[npt.NDArray[np.float32]]:  # (M, ...) -> (m, ...), ...
    """Yield all of a weight, some rows at a time. A block is valid until the next one comes."""
    if hasattr(weight, "blocks"):
        yield from (floats for _, floats in weight.blocks())
        return
    step = max(1, _BLOCK * len(weight) // weight.size)
    for start in range(0, len(weight), step):
        yield weight[start : start + step]


def store_inside(tensor: TensorProto, pieces: Iterable[npt.NDArray[Any]]) -> None:
    """Store the content in the tensor itself, as small models do."""
    tensor.raw_data = b"".join(piece.tobytes() for piece in pieces)


class ExternalStore:
    """A store in a file of its own (ONNX's external data), which the runtime maps into memory."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """name: that of the file, which lies beside the file of the graph."""
        self._file, self._name = file, name

    def __call__(self, tensor: TensorProto, pieces: Iterable[npt.NDArray[Any]]) -> None:
        """Append the content to the file, and note its place in the tensor."""
        if prod(tensor.dims) < _FEW:
            return store_inside(tensor, pieces)
        start = -(-self._file.tell() // _ALIGNED) * _ALIGNED
        self._file.seek(start)
        for piece in pieces:
            self._file.write(np.ascontiguousarray(piece).data)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self._name, "offset": start, "length": self._file.tell() - start}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return None
