"""Files as PyTorch writes them, without PyTorch: the same pickle, the same ZIP."""

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "f8": "DoubleStorage", "i8": "LongStorage"} | {
    "u1": "ByteStorage",
    "i1": "CharStorage",
}


@dataclass(frozen=True)
class Tensor:
    """A view of a flat array. Several may be of one array."""

    flat: np.ndarray
    shape: tuple[int, ...]
    start: int = 0
    strides: tuple[int, ...] = ()
    bfloat16: bool = False


def tensor(array: np.ndarray, transposed: bool = False, bfloat16: bool = False) -> Tensor:
    """Return an array as a tensor of its own; transposed: with its columns one after the other."""
    flat = np.ascontiguousarray(array.T if transposed else array).reshape(-1)
    strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
    if transposed:
        strides = [int(np.prod(array.shape[:axis])) for axis in range(array.ndim)]
    return Tensor(flat, array.shape, 0, tuple(strides), bfloat16)


class _Function:
    """A stand-in for a function of PyTorch's, by its name."""

    def __init__(self, module: str, name: str) -> None:
        self.__module__, self.__name__, self.__qualname__ = module, name, name

    def __call__(self, *_: Any) -> None:
        raise AssertionError("it was called")


@contextmanager
def _pytorch() -> Iterator[dict[str, _Function]]:
    """Provide modules that have the names a pickle of PyTorch's needs, while it is made."""
    functions = {name: _Function("torch", name) for name in (*_STORAGES.values(), "BFloat16Storage")}
    functions |= {name: _Function("torch._utils", name) for name in ("_rebuild_tensor_v2", "_rebuild_parameter")}
    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
    for name, function in functions.items():
        setattr(modules[function.__module__], name, function)
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield functions
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, functions: dict[str, _Function], first_key: int) -> None:
        super().__init__(file, 2)
        self._functions, self._first = functions, first_key
        self.storages: dict[int, tuple[str, np.ndarray]] = {}

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, _Function):
            return value.__name__  # as a global
        if isinstance(value, Tensor):
            storage = _Storage(value.flat, value.bfloat16)
            arguments = (storage, value.start, value.shape, value.strides, False, OrderedDict())
            return self._functions["_rebuild_tensor_v2"], arguments
        return NotImplemented

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        key, _ = self.storages.setdefault(id(value.flat), (str(self._first + len(self.storages)), value.flat))
        name = "BFloat16Storage" if value.bfloat16 else _STORAGES[value.flat.dtype.str[1:]]
        return "storage", self._functions[name], key, "cpu", value.flat.size


@dataclass(frozen=True)
class _Storage:
    flat: np.ndarray
    bfloat16: bool


def save(
    path: Path,
    state: Mapping[str, Any],
    root: str = "archive",
    first_key: int = 0,
    compression: int = zipfile.ZIP_STORED,
    big_endian: bool | None = None,
) -> Path:
    """Write what is named as `torch.save` does. first_key: of the storages, a memory address in old files."""
    content = io.BytesIO()
    with _pytorch() as functions:
        pickler = _Pickler(content, functions, first_key)
        pickler.dump(OrderedDict(state))
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{root}/data.pkl", content.getvalue())
        if big_endian is not None:
            file.writestr(f"{root}/byteorder", "big" if big_endian else "little")
        for key, flat in pickler.storages.values():
            file.writestr(f"{root}/data/{key}", flat.byteswap().tobytes() if big_endian else flat.tobytes())
        file.writestr(f"{root}/version", "3\n")
    return path
