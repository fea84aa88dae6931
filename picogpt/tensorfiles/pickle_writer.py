"""Pickles that name PyTorch's functions, written without PyTorch: each function here returns the bytes of a value."""

from collections.abc import Iterable, Mapping
from math import prod
from struct import pack

import numpy as np
import numpy.typing as npt

from picogpt.tensorfiles.torch_files import MAGIC, VERSION

NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"
RECALLED = b"h\0"
"""The `remembered` value once more, as the same object."""


def pickled(value: bytes, protocol: int = 4) -> bytes:
    """Return a pickle of one value."""
    return b"\x80" + bytes([protocol]) + value + b"."


def remembered(value: bytes) -> bytes:
    """Return a value that `RECALLED` repeats. A pickle may have one."""
    return value + b"q\0"


def integer(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def floating(value: float) -> bytes:
    return b"G" + pack(">d", value)


def text(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + pack("<I", len(data)) + data


def raw(value: bytes) -> bytes:
    return b"\x8e" + pack("<Q", len(value)) + value


def tuple_of(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def list_of(values: Iterable[bytes]) -> bytes:
    return b"](" + b"".join(values) + b"e"


def dict_of(items: Mapping[str, bytes]) -> bytes:
    return b"}" + _items(items)


def ordered_dict(items: Mapping[str, bytes]) -> bytes:
    return called("collections.OrderedDict") + _items(items)


def named(name: str) -> bytes:
    """Return what a module has by a name: module.name."""
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode("ascii")


def called(name: str, *arguments: bytes) -> bytes:
    return named(name) + tuple_of(*arguments) + b"R"


def tensor(array: npt.NDArray[np.float32]) -> bytes:
    """Return a tensor as PyTorch pickles it: a call with its storage, offset, shape and strides, and no hooks."""
    shape = [integer(length) for length in array.shape]
    strides = [integer(prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
    storage = called("torch.storage._load_from_bytes", raw(_storage(array)))
    view = integer(0), tuple_of(*shape), tuple_of(*strides)
    return called("torch._utils._rebuild_tensor_v2", storage, *view, FALSE, called("collections.OrderedDict"))


def _storage(array: npt.NDArray[np.float32]) -> bytes:
    """Return a file in PyTorch's legacy format that is one storage: five pickles, the count, and the numbers."""
    sizes = dict_of({"short": integer(2), "int": integer(4), "long": integer(4)})
    machine = dict_of({"protocol_version": integer(VERSION), "little_endian": TRUE, "type_sizes": sizes})
    key = text("0")
    about = tuple_of(text("storage"), named("torch.FloatStorage"), key, text("cpu"), integer(array.size), NONE) + b"Q"
    head = b"".join(pickled(value, 2) for value in (integer(MAGIC), integer(VERSION), machine, about, list_of([key])))
    return head + pack("<q", array.size) + array.astype("<f4").tobytes()


def _items(items: Mapping[str, bytes]) -> bytes:
    return b"(" + b"".join(text(name) + value for name, value in items.items()) + b"u"
