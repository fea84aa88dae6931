"""Where arrays live. The only file that knows CuPy.

Every op asks `array_module(x)` for the module of its arrays and then writes the same code for NumPy and CuPy; the few
things that differ between them are the functions below.
"""

from collections.abc import Iterator
from math import erf as _scalar_erf
from types import ModuleType
from typing import Any

import numpy as np

from picogpt.config import UserError
from picogpt.engine import workspace

# NumPy and CuPy arrays share an interface but no base class, so an array is Any to the type checker.
Array = Any

BLOCK = 128 * 1024  # elements of an element-wise block: near the cache, and long enough to hand the lock over rarely

# NumPy turns the results of 0-d arrays into scalars, so those are arrays too.
_modules: dict[type, ModuleType] = {np.ndarray: np, np.float32: np, np.float64: np}


def register(array_type: type, module: ModuleType) -> None:
    """Let `array_module` answer `module` for arrays of this type."""
    _modules[array_type] = module


def array_module(array: Array) -> Any:
    """numpy or cupy, whichever made this array. Raises TypeError for anything else."""
    try:
        return _modules[type(array)]
    except KeyError:
        raise TypeError(
            f"needs an array, not {type(array).__name__}: numpy.asarray(..., numpy.float32) makes one"
        ) from None


def cuda() -> Any:
    """The cupy module, registered. Raises UserError where CuPy or a GPU is missing."""
    try:
        import cupy

        cupy.cuda.runtime.getDeviceCount()
    except ImportError:
        raise UserError("a GPU needs CuPy: pip install 'picogpt[cuda]'") from None
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UserError(f"CuPy finds no usable GPU ({error})") from None
    register(cupy.ndarray, cupy)
    return cupy


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """An uninitialised array of the dtype and on the device of `like`."""
    if type(like) is np.ndarray:
        return workspace.empty(shape, like.dtype)
    return array_module(like).empty(shape, like.dtype)


def to_host(array: Array) -> np.ndarray[Any, Any]:
    """The array in main memory."""
    return array if type(array) is np.ndarray else array_module(array).asnumpy(array)


def to_device(array: np.ndarray[Any, Any], like: Array) -> Array:
    """The host array beside `like`."""
    return array if type(like) is np.ndarray else array_module(like).asarray(array)


def row_blocks(rows: int, width: int, like: Array, block: int = BLOCK) -> Iterator[slice]:
    """Slices over the rows: even pieces of about `block` elements on a CPU, everything at once on a GPU."""
    pieces = max(1, round(rows * width / block)) if type(like) is np.ndarray else 1
    step = max(1, -(-rows // pieces))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def check_ids(ids: Array, rows: int) -> None:
    """Raise IndexError for ids outside a table of so many rows; on the host only, a GPU would have to be waited for."""
    if type(ids) is np.ndarray and ids.size and not 0 <= ids.min() <= ids.max() < rows:
        raise IndexError(f"ids {ids.min()}..{ids.max()} for a table of {rows} rows")


def take_rows(table: Array, ids: Array, out: Array) -> Array:
    """out = table[ids]."""
    if type(table) is not np.ndarray:
        return array_module(table).take(table, ids, axis=0, out=out)
    check_ids(ids, len(table))
    return np.take(table, ids, axis=0, out=out, mode="clip")  # any mode but "raise" writes to `out` without a copy


def scatter_add(target: Array, ids: Array, source: Array) -> None:
    """target[ids[n]] += source[n] for every n, repeated ids included. ids (N,), source (N, C), target (V, C)."""
    if type(target) is not np.ndarray:
        array_module(target).add.at(target, ids, source)
        return
    # Sorting by id turns the scatter into sums of runs: far faster than np.add.at, in an order that never changes.
    order = np.argsort(ids, kind="stable")
    sorted_ids = ids[order]
    starts = np.flatnonzero(np.r_[True, sorted_ids[1:] != sorted_ids[:-1]])
    target[sorted_ids[starts]] += np.add.reduceat(source[order], starts, axis=0)


def erf(x: Array) -> Array:
    """The error function to the last bit, for float64 (the float32 kernels have their own)."""
    if type(x) is np.ndarray:
        return np.vectorize(_scalar_erf, otypes=[np.float64])(x)
    from cupyx.scipy.special import erf as cupy_erf

    return cupy_erf(x)
