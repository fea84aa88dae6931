"""Tensors in files, which are known by their place and read when they are needed.

A file of weights is never read whole. Numbers that the file stores as memory does are mapped; those that are compressed
are decompressed whenever they are read.
"""

import lzma
import mmap
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from picogpt.engine.bfloat16 import widened
from picogpt.engine.mapped_matrix import MappedMatrix
from picogpt.errors import UserError, one_line

Dtype = Literal["F32", "F16", "BF16", "F64", "I64", "I32", "I16", "I8", "U8", "BOOL"]
Array = npt.NDArray[Any]

# NumPy's types of the same bytes; it has no bfloat16, whose two bytes are the upper ones of a float32.
_NUMPY: dict[Dtype, str] = {
    "F32": "f4",
    "F16": "f2",
    "BF16": "u2",
    "F64": "f8",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "u1",
}

ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, KeyError, NotImplementedError, RuntimeError)
"""What `zipfile` raises for files that are damaged, compressed in a way it does not know, or encrypted."""

SIZES: dict[Dtype, int] = {name: int(kind[1]) for name, kind in _NUMPY.items()}
"""Bytes of a number."""

FLOATING = ("F32", "F16", "BF16", "F64")
_EXPANSION_LIMIT = 1100  # times the compressed size, which zeros come near: more is a decompression bomb
_LENGTH_LIMIT = 1 << 48


@dataclass(frozen=True)
class Storage:
    """Numbers of one type that lie side by side in a file."""

    path: Path
    offset: int
    """Bytes before it, if it is not compressed."""
    count: int
    """Numbers in it."""
    dtype: Dtype
    big_endian: bool = False
    compressed_member: str = ""
    """The member of a ZIP file that holds it, if that is compressed."""
    content: bytes = field(default=b"", repr=False)
    """The bytes that hold it, if it comes from the middle of a pickle and not from a file of its own."""
    parts: tuple[Path, ...] = ()
    """The files that hold it one after the other, if it was split: path is the first."""

    def read(self) -> Array:
        """Return the numbers as the file has them (bfloat16 as uint16), mapped if possible. Raises UserError."""
        return self.open()[0]

    def open(self) -> tuple[Array, mmap.mmap | None]:
        """Return the array of `read`, and the mapping it lies in, if any. Raises UserError."""
        kind = np.dtype((">" if self.big_endian else "<") + _NUMPY[self.dtype])
        size = self.count * kind.itemsize
        try:
            if self.content:
                return np.frombuffer(self.content, kind, self.count, self.offset), None
            if self.compressed_member:
                return np.frombuffer(self._decompressed(size), kind, self.count), None
            if self.parts:
                return self._joined(size).view(kind), None
            if not size:
                return np.empty(0, kind), None
            before = self.offset % mmap.ALLOCATIONGRANULARITY
            with self.path.open("rb") as file:
                where = {"access": mmap.ACCESS_READ, "offset": self.offset - before}
                mapping = mmap.mmap(file.fileno(), before + size, **where)
            return np.frombuffer(mapping, kind, self.count, before), mapping
        except (OSError, ValueError, *ZIP_ERRORS) as error:
            raise UserError(f"{self.path} cannot be read ({one_line(error)}): get it again") from None

    def _joined(self, size: int) -> npt.NDArray[np.uint8]:
        joined, begin = np.empty(size, np.uint8), 0
        for part in self.parts:
            with part.open("rb") as file:
                begin += file.readinto(joined[begin:].data)
        if begin != size:
            raise ValueError(f"its {len(self.parts)} parts are too short")
        return joined

    def _decompressed(self, size: int) -> bytes:
        with zipfile.ZipFile(self.path) as file:
            entry = file.getinfo(self.compressed_member)
            if entry.file_size > _EXPANSION_LIMIT * max(1, entry.compress_size):
                raise ValueError(f"{self.compressed_member} unpacks to an absurd size")
            with file.open(entry) as member:
                data = member.read(size)
                member.read(1)  # else the checksum of a member that ends here would not be checked
        if len(data) < size:
            raise ValueError(f"{self.compressed_member} is too short")
        return data


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A view of a storage. It is equal to itself alone, so that the tensors of a file may be the keys of a dict."""

    storage: Storage
    shape: tuple[int, ...]
    start: int = 0
    """Numbers of the storage before its first one."""
    strides: tuple[int, ...] | None = None
    """Numbers of the storage from one index to the next, along each axis. None: in order."""

    def __post_init__(self) -> None:
        """Raise ValueError for a tensor that is larger than its storage, or reaches beyond it."""
        if max((self.start, *self.shape, *self._strides)) >= _LENGTH_LIMIT:
            raise ValueError("a tensor has an absurd size")
        if self.start < 0 or min(self.shape, default=0) < 0 or min(self._strides, default=0) < 0:
            raise ValueError("a tensor has a negative size")
        last = self.start + sum((length - 1) * step for length, step in zip(self.shape, self._strides, strict=True))
        count = prod(self.shape)
        if count > self.storage.count or (count and last >= self.storage.count):
            raise ValueError("a tensor is larger than its storage")

    @property
    def _strides(self) -> tuple[int, ...]:
        if self.strides is not None:
            return self.strides
        return tuple(prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))

    @property
    def dtype(self) -> Dtype:
        return self.storage.dtype

    @property
    def transposed(self) -> "LazyTensor":
        """The same numbers with the axes in the opposite order."""
        return replace(self, shape=self.shape[::-1], strides=self._strides[::-1])

    def raw(self) -> Array:
        """Return a view of the numbers as the file has them, in the tensor's shape. Raises UserError."""
        flat = self.storage.read()
        strides = tuple(step * flat.itemsize for step in self._strides)
        return np.lib.stride_tricks.as_strided(flat[self.start :], self.shape, strides, writeable=False)

    def mapped(self) -> MappedMatrix:
        """Return the matrix without reading it. Raises UserError, and ValueError for what no MappedMatrix can be."""
        flat, mapping = self.storage.open()
        if self.strides is not None:
            raise ValueError("MappedMatrix: needs a matrix whose rows follow each other")
        return MappedMatrix(flat[self.start : self.start + prod(self.shape)].reshape(self.shape), mapping)

    def read(self) -> npt.NDArray[np.float32]:
        """Return the tensor in float32, in memory of its own. Raises UserError, also for integers."""
        return self.floats(self.raw())

    def floats(self, raw: Array) -> npt.NDArray[np.float32]:
        """Return some of its `raw` numbers in float32, in memory of their own. Raises UserError as `read` does."""
        if self.dtype == "BF16":
            return widened(raw)
        if self.dtype not in FLOATING:
            raise UserError(f"{self.storage.path} has {self.dtype} numbers where weights are expected")
        with np.errstate(over="ignore"):
            floats = np.array(raw, np.float32, order="C")
        if self.dtype == "F64" and not np.array_equal(np.isfinite(floats), np.isfinite(raw)):
            raise UserError(f"{self.storage.path} has float64 numbers that are too large for float32")
        return floats
