"""safetensors files: mapped when they are read, and written one tensor after the other.

A file has eight bytes with the length of a header, the header in JSON (dtype, shape and place of each name), and the
numbers. The format's own library has no bfloat16 in NumPy, does not say where in the file a tensor lies, which mapping
needs, and holds all tensors at once when it writes.
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from picogpt.engine.backend import Array
from picogpt.engine.mapped_matrix import MappedMatrix
from picogpt.errors import UserError, shown
from picogpt.tensorfiles.lazy_tensor import SIZES, Dtype, LazyTensor, Storage

_LENGTH = 8  # bytes that say how long the header is
_HEADER_LIMIT = 100_000_000  # bytes, as in the format's own library
_ENTRY_LIMIT = 140  # characters of a tensor's entry without its name
_METADATA = "__metadata__"
_DTYPES: Mapping[str, Dtype] = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int8": "I8"}


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a file by name, without reading them. Raises UserError for another or a damaged file."""
    try:
        return tensors_in(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}): get it again") from None


def tensors_in(path: Path) -> dict[str, LazyTensor]:
    """Do the same as `read_safetensors`. Raises ValueError with what is wrong, and OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(_LENGTH), "little")
        if not 0 < length <= min(_HEADER_LIMIT, size - _LENGTH):
            raise ValueError("its header is not as long as it says")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ValueError("its header names no tensors")
    header.pop(_METADATA, None)
    end = begin = _LENGTH + length
    found = {name: _tensor(path, name, entry, begin) for name, entry in header.items()}
    for tensor in sorted(found.values(), key=lambda tensor: (tensor.storage.offset, tensor.storage.count)):
        if tensor.storage.offset != end:
            raise ValueError("its tensors do not lie side by side")
        end += tensor.storage.count * SIZES[tensor.dtype]
    if end != size:
        raise ValueError("its tensors end somewhere else than the file")
    return found


def _tensor(path: Path, name: str, entry: object, begin: int) -> LazyTensor:
    """Return the tensor of an entry of the header. begin: the byte where the numbers begin. Raises ValueError."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]} if len(
            shape
        ) <= 8 and all(type(length) is int and 0 <= length < 1 << 48 for length in shape):
            if dtype not in SIZES:
                raise ValueError(f"{shown(name)} has numbers of the unknown type {shown(dtype)}")
            count = prod(shape)
            if start < 0 or stop - start != count * SIZES[dtype]:
                raise ValueError(f"{shown(name)} does not lie where it says")
            return LazyTensor(Storage(path, begin + start, count, dtype), tuple(shape))
    raise ValueError(f"{shown(name)} is not described as a tensor")


def write_safetensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays of float32, float16, bfloat16 (as uint16) or int8, or MappedMatrix ones; asks for each once.

    Raises TypeError for other types of numbers, and OSError if the disk refuses.
    """
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    room = len(json.dumps(header)) + sum(len(json.dumps(name)) + _ENTRY_LIMIT for name in tensors)
    room += -room % _LENGTH
    with path.open("wb") as file:
        file.seek(_LENGTH + room)  # the header comes last: only then the types of the numbers are known
        begin = 0
        for name in tensors:
            tensor = tensors[name]
            raw = np.asarray(tensor.raw if isinstance(tensor, MappedMatrix) else tensor, order="C")
            if raw.dtype.name not in _DTYPES:
                raise TypeError(f"{name} is {raw.dtype}; a file of weights holds float32, float16, bfloat16 or int8")
            file.write(raw.data)
            stop = begin + raw.nbytes
            header[name] = {"dtype": _DTYPES[raw.dtype.name], "shape": raw.shape, "data_offsets": [begin, stop]}
            begin = stop
            if isinstance(tensor, MappedMatrix):
                tensor.release()
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > room:
            raise ValueError(f"{path}: the header of these tensors is longer than the room left for it")
        file.seek(0)
        file.write(room.to_bytes(_LENGTH, "little") + text.ljust(room))
