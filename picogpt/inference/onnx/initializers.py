"""A model's weights on their way into an ONNX file: one tensor at a time, in blocks of rows.

Where they are many they go into a file beside the graph as they are made, and nothing of them stays in memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

Arrays = Mapping[str, Any]
"""By name, arrays in float32, or what has their shape and turns into one: a matrix in `blocks()` of rows, as `Kept`."""

Store = Callable[[TensorProto, Iterable[npt.NDArray[Any]]], None]
"""Where the content of a tensor goes, which comes in pieces, in order."""

_BLOCK = 1 << 18  # weights of a block of rows

_ALIGNED = 1 << 16  # where a part of a file may be mapped: on Windows so many bytes apart, elsewhere 4096

_FEW = 1024  # entries of a tensor that is not worth a place of its own


def row_blocks(weight: Any) -> Iterator[npt.NDArray[np.float32]]:  # (M, ...) -> (m, ...), as many as M takes
    """All of a weight, some rows at a time, each block until the next one comes."""
    if hasattr(weight, "blocks"):
        yield from (floats for _, floats in weight.blocks())
        return
    step = max(1, _BLOCK * len(weight) // weight.size)
    for start in range(0, len(weight), step):
        yield weight[start : start + step]


def inside(tensor: TensorProto, pieces: Iterable[npt.NDArray[Any]]) -> None:
    """The store of small models: the tensor itself."""
    tensor.raw_data = b"".join(piece.tobytes() for piece in pieces)


class Beside:
    """A store in a file of its own, from which the runtime maps into memory what it reads."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """name: of the file, which lies beside that of the graph."""
        self._file, self._name = file, name

    def __call__(self, tensor: TensorProto, pieces: Iterable[npt.NDArray[Any]]) -> None:
        if prod(tensor.dims) < _FEW:
            return inside(tensor, pieces)
        start = -(-self._file.tell() // _ALIGNED) * _ALIGNED
        self._file.seek(start)
        for piece in pieces:
            self._file.write(np.ascontiguousarray(piece).data)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self._name, "offset": start, "length": self._file.tell() - start}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return None
