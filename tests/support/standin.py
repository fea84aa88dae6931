"""A strict stand-in for CuPy: device arrays that refuse to meet NumPy.

This module is to `DeviceArray` what `cupy` is to `cupy.ndarray`, and holds only what CuPy has as well (its `take` knows
no `mode`, for one). An array of it raises where it would be converted to NumPy without being asked, where a NumPy array
or NumPy scalar joins in an operation, where a result would overwrite what it is still computed from (NumPy makes a copy
then, a kernel does not), and where anything turns float64. As on a GPU, results of 0-d arrays stay arrays, and host
memory is never shared. What comes to the host, and so waits for the device, is counted in `arrivals`.

In the place of `sys.modules["cupy"]` it is a machine with one GPU.
"""

import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from picogpt.engine import backend

arrivals = 0  # arrays and numbers that came to the host


class MixedError(TypeError):
    """Host and device met without an explicit `asarray` or `asnumpy`."""


def _arrive(array: "DeviceArray") -> Any:
    global arrivals
    arrivals += 1
    return array._memory


def _refuse_overlap(out: Any, *inputs: Any) -> None:
    """Raise MixedError for an output that overlaps an input, unless they are the same array."""
    for x in inputs:
        if isinstance(x, np.ndarray) and x.size and out.size:
            same = x.__array_interface__["data"] == out.__array_interface__["data"] and x.strides == out.strides
            if not (same and x.shape == out.shape) and np.shares_memory(x, out):
                raise MixedError("an operation on device arrays overwrites its input")


def _host(value: Any) -> Any:
    """Return what NumPy computes with: a device array's memory or a Python number. Raises MixedError for the rest."""
    if type(value) is DeviceArray:
        return value._memory
    if type(value) in (bool, int, float):
        return value
    raise MixedError(f"a {type(value).__name__} in an operation on device arrays")


def _index(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(map(_index, key))
    return key if key is None or key is Ellipsis or isinstance(key, slice) else _host(key)


def _operator(ufunc: np.ufunc, swapped: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: "DeviceArray", other: Any) -> Any:
        if getattr(other, "__array_ufunc__", True) is None:
            return NotImplemented  # a Tensor takes over
        a, b = _host(self), _host(other)
        return DeviceArray(ufunc(b, a) if swapped else ufunc(a, b))

    return method


def _in_place(ufunc: np.ufunc) -> Callable[[Any, Any], Any]:
    def method(self: "DeviceArray", other: Any) -> "DeviceArray":
        host = _host(other)
        _refuse_overlap(self._memory, host)
        ufunc(self._memory, host, out=self._memory)
        return self

    return method


class DeviceArray:
    __slots__ = ("__weakref__", "_memory")

    def __init__(self, memory: Any) -> None:
        self._memory = np.asarray(memory)  # a 0-d result is an array here
        if self._memory.dtype == np.float64:
            raise MixedError("float64 on the device")

    # -- what NumPy would call to get at the values ------------------------------------------------------------------

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise MixedError("NumPy was given a device array")

    __array__ = __array_ufunc__ = __array_function__ = _refuse

    # -- operators ---------------------------------------------------------------------------------------------------

    __add__, __radd__, __iadd__ = _operator(np.add), _operator(np.add, True), _in_place(np.add)
    __sub__, __rsub__, __isub__ = _operator(np.subtract), _operator(np.subtract, True), _in_place(np.subtract)
    __mul__, __rmul__, __imul__ = _operator(np.multiply), _operator(np.multiply, True), _in_place(np.multiply)
    __truediv__, __rtruediv__, __itruediv__ = _operator(np.divide), _operator(np.divide, True), _in_place(np.divide)
    __pow__, __matmul__, __gt__ = _operator(np.power), _operator(np.matmul), _operator(np.greater)

    def __neg__(self) -> "DeviceArray":
        return DeviceArray(-self._memory)

    def __float__(self) -> float:
        return float(_arrive(self))

    def __bool__(self) -> bool:
        return bool(_arrive(self))

    def __len__(self) -> int:
        return len(self._memory)

    def __getitem__(self, key: Any) -> "DeviceArray":
        return DeviceArray(self._memory[_index(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        host = _host(value)
        if not any(isinstance(k, DeviceArray) for k in (key if isinstance(key, tuple) else (key,))):
            _refuse_overlap(self._memory[_index(key)], host)
        self._memory[_index(key)] = host

    # -- attributes and methods --------------------------------------------------------------------------------------

    dtype = property(lambda self: self._memory.dtype)
    shape = property(lambda self: self._memory.shape)
    ndim = property(lambda self: self._memory.ndim)
    size = property(lambda self: self._memory.size)
    T = property(lambda self: DeviceArray(self._memory.T))

    def reshape(self, *shape: Any) -> "DeviceArray":
        return DeviceArray(self._memory.reshape(*shape))

    def transpose(self, *axes: Any) -> "DeviceArray":
        return DeviceArray(self._memory.transpose(*axes))

    def swapaxes(self, a: int, b: int) -> "DeviceArray":
        return DeviceArray(self._memory.swapaxes(a, b))

    def copy(self) -> "DeviceArray":
        return DeviceArray(self._memory.copy())

    def fill(self, value: float) -> None:
        self._memory.fill(_host(value))

    def sum(self, axis: Any = None, keepdims: bool = False) -> "DeviceArray":
        return DeviceArray(self._memory.sum(axis=axis, keepdims=keepdims))

    def max(self, axis: Any = None, keepdims: bool = False) -> "DeviceArray":
        return DeviceArray(self._memory.max(axis=axis, keepdims=keepdims))


class _Ufunc:
    def __init__(self, ufunc: np.ufunc) -> None:
        self._ufunc = ufunc

    def __call__(self, *inputs: Any, out: DeviceArray | None = None, dtype: Any = None) -> DeviceArray:
        hosts = [_host(x) for x in inputs]
        if out is None:
            return DeviceArray(self._ufunc(*hosts, dtype=dtype))
        if type(out) is not DeviceArray:
            raise MixedError(f"out= is a {type(out).__name__}")
        if self._ufunc is not np.matmul:  # which looks for it in CuPy as well
            _refuse_overlap(out._memory, *hosts)
        self._ufunc(*hosts, out=out._memory, dtype=dtype)
        return out

    def at(self, target: DeviceArray, ids: DeviceArray, source: DeviceArray) -> None:
        self._ufunc.at(_host(target), _host(ids), _host(source))


add, subtract, multiply, divide = _Ufunc(np.add), _Ufunc(np.subtract), _Ufunc(np.multiply), _Ufunc(np.divide)
exp, log, tanh, sqrt = _Ufunc(np.exp), _Ufunc(np.log), _Ufunc(np.tanh), _Ufunc(np.sqrt)
matmul, maximum, minimum = _Ufunc(np.matmul), _Ufunc(np.maximum), _Ufunc(np.minimum)


def asarray(value: Any, dtype: Any = None) -> DeviceArray:
    """Copy an array from the host, or return a device array itself."""
    if type(value) is DeviceArray:
        return value if dtype is None or value.dtype == dtype else DeviceArray(value._memory.astype(dtype))
    return DeviceArray(np.array(value, dtype=dtype))


def asnumpy(array: DeviceArray) -> np.ndarray:
    """Copy an array to the host."""
    if type(array) is not DeviceArray:
        raise MixedError(f"asnumpy of a {type(array).__name__}")
    memory: np.ndarray = _arrive(array)
    return memory.copy()


def empty(shape: Any, dtype: Any) -> DeviceArray:
    """Return an array full of values that would be noticed: NaN, or a large negative integer."""
    return DeviceArray(np.full(shape, np.nan if np.dtype(dtype).kind == "f" else -(10**6), dtype))


def zeros(shape: Any, dtype: Any) -> DeviceArray:
    return DeviceArray(np.zeros(shape, dtype))


def ones(shape: Any, dtype: Any) -> DeviceArray:
    return DeviceArray(np.ones(shape, dtype))


def full(shape: Any, value: float, dtype: Any) -> DeviceArray:
    return DeviceArray(np.full(shape, _host(value), dtype))


def empty_like(array: DeviceArray) -> DeviceArray:
    return empty(array.shape, array.dtype)


def zeros_like(array: DeviceArray) -> DeviceArray:
    return zeros(array.shape, array.dtype)


def ones_like(array: DeviceArray) -> DeviceArray:
    return ones(array.shape, array.dtype)


def arange(stop: int) -> DeviceArray:
    return DeviceArray(np.arange(stop))


def take(array: DeviceArray, ids: DeviceArray, axis: int | None = None, out: DeviceArray | None = None) -> DeviceArray:
    if out is None:
        return DeviceArray(np.take(_host(array), _host(ids), axis=axis))
    np.take(_host(array), _host(ids), axis=axis, out=_host(out))
    return out


def concatenate(arrays: list[DeviceArray], axis: int = 0) -> DeviceArray:
    return DeviceArray(np.concatenate([_host(array) for array in arrays], axis))


def stack(arrays: Sequence[DeviceArray]) -> DeviceArray:
    return DeviceArray(np.stack([_host(array) for array in arrays]))


def einsum(subscripts: str, *arrays: DeviceArray) -> DeviceArray:
    return DeviceArray(np.einsum(subscripts, *map(_host, arrays)))


def expand_dims(array: DeviceArray, axis: Any) -> DeviceArray:
    return DeviceArray(np.expand_dims(_host(array), axis))


def broadcast_to(array: DeviceArray, shape: tuple[int, ...]) -> DeviceArray:
    return DeviceArray(np.broadcast_to(_host(array), shape))


# -- the machine -----------------------------------------------------------------------------------------------------


class CUDARuntimeError(RuntimeError):
    pass


class CompileException(Exception):  # noqa: N818
    pass


class Device:
    id = 0
    compute_capability = "86"


memory = {"free": 1 << 30, "total": 2 << 30}
compute_types: dict[type, int] = {}
ndarray = DeviceArray
cuda = SimpleNamespace(
    Device=Device,
    compiler=SimpleNamespace(CompileException=CompileException),
    runtime=SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceProperties=lambda device: {"name": b"NVIDIA Stand-in"},
        memGetInfo=lambda: (memory["free"], memory["total"]),
    ),
)
_core = SimpleNamespace(
    _routines_linalg=SimpleNamespace(
        COMPUTE_TYPE_TBD=0, COMPUTE_TYPE_TF32=7, set_compute_type=compute_types.__setitem__
    )
)


def get_default_memory_pool() -> SimpleNamespace:
    return SimpleNamespace(free_bytes=lambda: 0)


backend.register(DeviceArray, sys.modules[__name__])
