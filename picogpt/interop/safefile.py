"""safetensors files, read a tensor at a time: the library gives NumPy no bfloat16.

The format: eight bytes, little-endian, of the header's length; the header, JSON of name -> dtype, shape and the
tensor's bytes behind the header; then the bytes of all tensors, without gaps.
"""

import json
from math import prod
from pathlib import Path
from typing import Any

from picogpt.config import UserError
from picogpt.interop.stored import SIZES, Storage, Stored

_HEADER_MOST = 100_000_000  # bytes, as in the format's own description


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file, by name; nothing of them is read yet. Raises UserError for a damaged or foreign file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= min(_HEADER_MOST, size - 8):
                raise ValueError("its header has an absurd length")
            header = json.loads(file.read(length))
        return _tensors(path, header, 8 + length, size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120] or "it is nested too deeply"
        raise UserError(f"{path} is damaged or no safetensors file ({reason}): get it again") from None


def _tensors(path: Path, header: Any, begin: int, size: int) -> dict[str, Stored]:
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    found = {name: _tensor(path, entry, begin, size) for name, entry in header.items() if name != "__metadata__"}
    if not found:
        raise ValueError("there are no tensors in it")
    return found


def _tensor(path: Path, entry: Any, begin: int, size: int) -> Stored:
    match entry:
        case {"dtype": dtype, "shape": list(shape), "data_offsets": [int(start), int(stop)]} if (
            dtype in SIZES and len(shape) <= 8 and all(type(length) is int and length >= 0 for length in shape)
        ):
            count = prod(shape)
            if not 0 <= start <= stop <= size - begin or stop - start != count * SIZES[dtype]:
                raise ValueError("a tensor's place does not fit its shape")
            return Stored(Storage(path, begin + start, count, dtype), tuple(shape))
    raise ValueError("an entry of its header is no tensor")
