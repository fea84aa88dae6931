"""Matrices that stay in their file, and become float32 a few rows at a time, as they are used.

A model of billions of parameters does not fit into memory as float32. Its matrices are mapped from the file, in 16 bits
if that is how the file stores them; a product goes over blocks of rows that are widened into a buffer which stays in
the cache. After a matrix was used, its pages are released: they stay in the system's cache while there is room, but the
process does not hold them.

N rows of the other factor   M, K of the matrix
"""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.engine import workspace
from picogpt.engine.bfloat16 import widened

Floats = npt.NDArray[np.float32]
Rows = int | slice | npt.NDArray[np.integer]  # which rows: one, a range, or those of ids

BLOCK = 1 << 18  # numbers widened at a time: a megabyte, which a core's cache holds
_BLOCKS_LIMIT = 16  # blocks at a time if the other factor has many rows: BLAS's threads wait for each other after each


class MappedMatrix:
    """A read-only matrix (M, K) of float32 numbers that is stored in another form.

    raw: the numbers as they are stored: float32, float16, or bfloat16 as 16-bit integers. mapping: the memory map they
    lie in, if any. Raises ValueError for other arrays.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, raw: npt.NDArray[Any], mapping: mmap.mmap | None = None) -> None:
        if raw.ndim != 2 or raw.dtype not in (np.float32, np.float16, np.uint16):
            raise ValueError(f"MappedMatrix: needs a matrix in 16 or 32 bits, not {raw.dtype} of {raw.shape}")
        self.raw, self._mapping = raw, mapping
        self.shape: tuple[int, int] = (raw.shape[0], raw.shape[1])
        self.size: int = raw.size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Rows) -> Floats:
        """Return rows in float32, in memory of their own."""
        return _floats(self.raw[key])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return the whole matrix in memory of its own. Raises ValueError where a copy is forbidden."""
        if copy is False:
            raise ValueError("MappedMatrix: there is no array without a copy")
        array = self[:]
        self.release()
        return array if dtype is None else array.astype(dtype, copy=False)

    def blocks(self, N: int = 1) -> Iterator[tuple[slice, Floats]]:
        """Yield slices of its rows in order, each with their numbers, which are valid until the next step."""
        M, K = self.shape
        height = max(1, BLOCK * min(N, _BLOCKS_LIMIT) // max(1, K))
        as_it_is = self.raw.dtype == np.float32
        buffer = workspace.empty((0 if as_it_is else min(height, M), K), np.float32)
        for start in range(0, M, height):
            rows = slice(start, min(start + height, M))
            yield rows, self.raw[rows] if as_it_is else _floats(self.raw[rows], buffer[: rows.stop - start])
        self.release()

    def times(self, x: Floats, out: Floats) -> Floats:  # (N, M) -> (N, K)
        """Compute out = x @ matrix."""
        out.fill(0)
        for rows, floats in self.blocks(len(x)):
            out += x[:, rows] @ floats
        return out

    def times_transposed(self, x: Floats, out: Floats) -> Floats:  # (N, K) -> (N, M)
        """Compute out = x @ matrix.T."""
        for rows, floats in self.blocks(len(x)):
            out[:, rows] = (floats @ x.T).T  # BLAS writes whole rows many times as fast as parts of them
        return out

    def release(self) -> None:
        """Release the pages of the file that were read into this process."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)


def _floats(raw: npt.NDArray[Any], out: Floats | None = None) -> Floats:
    if raw.dtype == np.uint16:
        return widened(raw, out)
    if out is None:
        return raw.astype(np.float32)
    out[...] = raw
    return out
