"""Pickles that name PyTorch's functions, written without PyTorch: each function here returns the bytes of a value."""

from collections.abc import Iterable, Mapping
from math import prod
from struct import pack

import numpy as np
import numpy.typing as npt

from picogpt.tensorfiles.torch_files import MAGIC, VERSION

NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"

RECALLED = b"h\0"
"""The value that was `remembered`, itself."""


def pickled(value: bytes, protocol: int = 4) -> bytes:
    """A pickle of one value."""
    return b"\x80" + bytes([protocol]) + value + b"."


def remembered(value: bytes) -> bytes:
    """There is one such place in a pickle."""
    return value + b"q\0"


def whole(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def real(value: float) -> bytes:
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
    """What a module has by a name: module.name."""
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode("ascii")


def called(name: str, *arguments: bytes) -> bytes:
    return named(name) + tuple_of(*arguments) + b"R"


def tensor(array: npt.NDArray[np.float32]) -> bytes:
    """As PyTorch pickles one: a call with its storage, where in that it begins, its shape and strides, and no hooks."""
    shape = [whole(length) for length in array.shape]
    strides = [whole(prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
    storage = called("torch.storage._load_from_bytes", raw(_storage(array)))
    where = whole(0), tuple_of(*shape), tuple_of(*strides)
    return called("torch._utils._rebuild_tensor_v2", storage, *where, FALSE, called("collections.OrderedDict"))


def _storage(array: npt.NDArray[np.float32]) -> bytes:
    """A file of PyTorch's older kind that is a storage alone: five pickles, and then its numbers behind their count."""
    sizes = dict_of({"short": whole(2), "int": whole(4), "long": whole(4)})
    machine = dict_of({"protocol_version": whole(VERSION), "little_endian": TRUE, "type_sizes": sizes})
    key = text("0")
    about = tuple_of(text("storage"), named("torch.FloatStorage"), key, text("cpu"), whole(array.size), NONE) + b"Q"
    head = b"".join(pickled(value, 2) for value in (whole(MAGIC), whole(VERSION), machine, about, list_of([key])))
    return head + pack("<q", array.size) + array.astype("<f4").tobytes()


def _items(items: Mapping[str, bytes]) -> bytes:
    return b"(" + b"".join(text(name) + value for name, value in items.items()) + b"u"
