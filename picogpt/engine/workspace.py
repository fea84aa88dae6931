"""Large arrays that are recycled instead of returned to the operating system.

A training step asks for the same few hundred shapes again and again, and a fresh array costs a page fault for every
4 KB, which is dearer than the arithmetic done on it. Here memory is carved from 32 MB arenas (on huge pages where the
system has them) and handed out as ordinary NumPy arrays. When the last view of an array dies, reference counting
brings its block back to the free list it came from: nothing is ever released by hand, nothing can be used too late.

Each thread has a workspace of its own, so lanes that are threads never wait for each other.
"""

import mmap
import threading
from collections import defaultdict
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

ARENA_BYTES = 32 << 20
SMALL_BYTES = 64 << 10  # below this the allocator's own cache is as fast
_ALIGN = 4096


class _Lease:
    """Owner of one block: the base of the array handed out, and so alive as long as any view of it."""

    __slots__ = ("__array_interface__", "_block", "_free")

    def __init__(self, block: npt.NDArray[np.uint8], free: list[Any], shape: tuple[int, ...], dtype: np.dtype[Any]):
        self._block, self._free = block, free
        self.__array_interface__ = {
            "data": (block.ctypes.data, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }

    def __del__(self) -> None:
        self._free.append(self._block)


class Workspace(threading.local):
    """The free blocks of one thread, by size."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[npt.NDArray[np.uint8]]] = defaultdict(list)
        self._arena: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an uninitialised C-contiguous array of this shape."""
        dtype = np.dtype(dtype)
        nbytes = dtype.itemsize
        for length in shape:
            nbytes *= length
        if nbytes < SMALL_BYTES:
            return np.empty(shape, dtype)
        size = _size_class(nbytes)
        free = self._free[size]
        block = free.pop() if free else self._carve(size)
        return np.asarray(_Lease(block, free, shape, dtype))

    def release(self) -> None:
        """Give free blocks back. An arena goes back to the system when no block of it is in use."""
        for free in self._free.values():
            free.clear()
        self._arena = np.empty(0, np.uint8)

    def _carve(self, size: int) -> npt.NDArray[np.uint8]:
        if self._arena.nbytes < size:
            self._arena = _new_arena(max(size, ARENA_BYTES))
        block, self._arena = self._arena[:size], self._arena[size:]
        return block


def _size_class(nbytes: int) -> int:
    """Round up to an eighth of a power of two, so that similar shapes share blocks at a cost of at most 1/8."""
    step = max(_ALIGN, 1 << max(0, nbytes.bit_length() - 4))
    return -(-nbytes // step) * step


def _new_arena(nbytes: int) -> npt.NDArray[np.uint8]:
    linux = hasattr(mmap, "MADV_HUGEPAGE")
    try:  # private, because shared memory gets no huge pages
        memory = mmap.mmap(-1, nbytes, **({"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if linux else {}))
    except OSError as error:
        raise MemoryError(f"{nbytes >> 20} MB more for training") from error
    if linux:
        with suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


_workspace = Workspace()


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an uninitialised array from this thread's workspace."""
    return _workspace.empty(shape, dtype)


def release() -> None:
    """Give back what this thread's workspace does not use."""
    _workspace.release()
