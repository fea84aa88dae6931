"""Where arrays live: in NumPy or on a GPU. This is the only file that imports CuPy.

Every op asks `array_module(x)` for the module of its arrays and then writes the same code for NumPy and CuPy; the few
things that differ between them are the functions below.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import erf as _scalar_erf
from types import ModuleType
from typing import Any

import numpy as np

from picogpt.engine import workspace
from picogpt.engine.mapped_matrix import MappedMatrix
from picogpt.errors import UserError, install_extra, one_line

# NumPy and CuPy arrays share an interface but no base class, so an array is Any to the type checker.
Array = Any
BLOCK = 128 * 1024  # elements of an element-wise block: near the cache, and long beside a call
PRODUCT_BLOCK = 1 << 20  # elements that `add_product` makes at a time
# NumPy turns the results of 0-d arrays into scalars, so those are arrays too.
_modules: dict[type, ModuleType] = {np.ndarray: np, np.float32: np, np.float64: np, MappedMatrix: np}


def register(array_type: type, module: ModuleType) -> None:
    """Make `array_module` return `module` for arrays of this type."""
    _modules[array_type] = module


def array_module(array: Array) -> Any:
    """Return numpy or cupy, whichever made this array. Raises TypeError for anything else."""
    try:
        return _modules[type(array)]
    except KeyError:
        raise TypeError(
            f"needs an array, not {type(array).__name__}: numpy.asarray(..., numpy.float32) makes one"
        ) from None


@dataclass(frozen=True)
class Gpu:
    """What CuPy reports of the current GPU."""

    name: str
    free: int  # bytes, those CuPy holds in reserve included
    total: int  # bytes
    has_tf32: bool


def cuda(tf32: bool = False) -> Any:
    """Return the cupy module, ready for use; its matrix products in TF32 if that is asked for and the GPU has it.

    Raises UserError if CuPy, a GPU or one of CUDA's libraries is missing.
    """
    try:
        import cupy
    except ModuleNotFoundError as error:
        raise UserError(f"a GPU needs CuPy ({error}): {install_extra('cuda')}") from None
    except ImportError as error:
        raise UserError(f"CuPy cannot be loaded ({one_line(error, 200)}): install it again") from None
    try:
        _choose_precision(cupy, tf32)
        # Only a first product and a first kernel show whether CUDA's libraries are there.
        ones = cupy.ones((2, 2), np.float32)
        cupy.asnumpy(ones @ ones + ones)
    except (ImportError, OSError, RuntimeError, MemoryError, cupy.cuda.compiler.CompileException) as error:
        raise UserError(f"CuPy finds no usable GPU ({one_line(error, 200)})") from None
    register(cupy.ndarray, cupy)
    return cupy


def gpu() -> Gpu:
    """Return facts about the GPU in use, the first of CUDA_VISIBLE_DEVICES. Call it only after `cuda` has found one."""
    import cupy

    device = cupy.cuda.Device()
    free, total = cupy.cuda.runtime.memGetInfo()
    reserve = cupy.get_default_memory_pool().free_bytes()
    name = cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    return Gpu(name, free + reserve, total, int(device.compute_capability) >= 80)


def _choose_precision(cupy: Any, tf32: bool) -> None:
    # CuPy reads the variable CUPY_TF32 once, at the process's first product. This call does what CuPy does then, and
    # takes effect at any time; "to be decided" (TBD) leaves the choice to the variable. Batched products, as those of
    # attention, do not follow it. The call is private to CuPy, so a release may lack it.
    linalg: Any = getattr(cupy._core, "_routines_linalg", None)
    if not hasattr(linalg, "set_compute_type"):
        if tf32:
            raise UserError("this release of CuPy offers no TF32: leave --tf32 out")
        return
    chosen = linalg.COMPUTE_TYPE_TF32 if tf32 and gpu().has_tf32 else linalg.COMPUTE_TYPE_TBD
    linalg.set_compute_type(np.float32, chosen)


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """Return an uninitialised array of the dtype and on the device of `like`."""
    if type(like) is np.ndarray:
        return workspace.empty(shape, like.dtype)
    return array_module(like).empty(shape, like.dtype)


def to_host(array: Array) -> np.ndarray[Any, Any]:
    """Return the array in main memory, itself if it is there already."""
    xp = array_module(array)
    host: np.ndarray[Any, Any] = array if xp is np else xp.asnumpy(array)
    return host


def to_device(array: np.ndarray[Any, Any], like: Array) -> Array:
    """Return the host array on the device of `like`."""
    return array if type(like) is np.ndarray else array_module(like).asarray(array)


def fetch(scalars: Sequence[Array]) -> list[float]:
    """Return the values of 0-d arrays, all at once: to ask a GPU for a number is to wait for all the work before it."""
    values: list[float] = to_host(array_module(scalars[0]).stack(scalars)).tolist()
    return values


def row_blocks(rows: int, width: int, like: Array, block: int | None = None) -> Iterator[slice]:
    """Yield slices over the rows: even pieces of about `block` elements.

    Without a `block` they are sized for a CPU's cache, and on a GPU all rows are one piece.
    """
    if block is None:
        block = BLOCK if type(like) is np.ndarray else max(1, rows * width)
    pieces = max(1, round(rows * width / block))
    step = max(1, -(-rows // pieces))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def check_ids(ids: Array, rows: int) -> None:
    """Raise IndexError for ids outside a table of so many rows; on the host only, because a GPU would make us wait."""
    if type(ids) is np.ndarray and ids.size and not 0 <= ids.min() <= ids.max() < rows:
        raise IndexError(f"ids {ids.min()}..{ids.max()} for a table of {rows} rows")


def times(x: Array, matrix: Array, out: Array) -> Array:  # (N, M), (M, K) -> (N, K)
    """Compute out = x @ matrix; the matrix may be a MappedMatrix."""
    if type(matrix) is MappedMatrix:
        return matrix.times(x, out)
    return array_module(x).matmul(x, matrix, out=out)


def times_transposed(x: Array, matrix: Array, out: Array) -> Array:  # (N, K), (M, K) -> (N, M)
    """Compute out = x @ matrix.T; the matrix may be a MappedMatrix."""
    if type(matrix) is MappedMatrix:
        return matrix.times_transposed(x, out)
    return array_module(x).matmul(x, matrix.T, out=out)


def take_rows(table: Array, ids: Array, out: Array) -> Array:
    """Compute out = table[ids]; the table may be a MappedMatrix. Raises IndexError on the host for other ids."""
    if type(table) is MappedMatrix:
        check_ids(ids, len(table))
        out[...] = table[ids]
        return out
    if type(table) is not np.ndarray:
        return array_module(table).take(table, ids, axis=0, out=out)
    check_ids(ids, len(table))
    return np.take(table, ids, axis=0, out=out, mode="clip")  # any mode but "raise" writes to `out` without a copy


def scatter_add(target: Array, ids: Array, source: Array) -> None:
    """Add source[n] to target[ids[n]] for every n, repeated ids included. ids (N,), source (N, C), target (V, C)."""
    if type(target) is not np.ndarray:
        array_module(target).add.at(target, ids, source)
        return
    # Sorting by id turns the scatter into sums of runs: far faster than np.add.at, in an order that never changes.
    order = np.argsort(ids, kind="stable")
    sorted_ids = ids[order]
    starts = np.flatnonzero(np.r_[True, sorted_ids[1:] != sorted_ids[:-1]])
    target[sorted_ids[starts]] += np.add.reduceat(source[order], starts, axis=0)


def erf(x: Array) -> Array:
    """Return the error function to the last bit, for float64 (the float32 kernels have their own)."""
    if type(x) is np.ndarray:
        return np.vectorize(_scalar_erf, otypes=[np.float64])(x)
    from cupyx.scipy.special import erf as cupy_erf

    return cupy_erf(x)


def add_product(total: Array, a: Array, b: Array) -> None:  # (M, K), (M, N), (N, K)
    """Compute total += a @ b without another array of its size."""
    xp = array_module(total)
    for block in row_blocks(len(total), total.shape[1], total, PRODUCT_BLOCK if type(total) is np.ndarray else None):
        total[block] += xp.matmul(a[block], b, out=empty(total[block].shape, total))


def sum_rows(x: Array) -> Array:  # (N, C) -> (C,)
    """Return the column sums, by BLAS: quicker than a reduction over the first axis."""
    xp = array_module(x)
    return xp.matmul(xp.ones(len(x), x.dtype), x)
