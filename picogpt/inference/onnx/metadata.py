"""What an exported file says of itself, read before a runtime sees it: seals first, then metadata.

An ONNX file is one protobuf message: fields with a number and a content, which may be a message again. Of the few that
matter here the numbers are below; the others, with the weights among them, are skipped.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from picogpt.system.checksums import check_checksum

_METADATA = (14,)  # of the model: pairs of a key and a value

# Pairs that say where the weights of a tensor lie: of those of the graph, and of those of its nodes.
_EXTERNAL = (7, 5, 13), (7, 1, 5, 5, 13)

_PAIR_LIMIT = 32 << 20  # bytes; the largest tokenizer has about one million

_SCALARS = {1: 8, 5: 4}  # bytes of the kinds of fields that have a fixed size


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a file that is as `export` left it. Raises OSError, and ValueError for all others."""
    check_checksum(path)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        for place in _beside(path, file, size):
            check_checksum(place)
        return dict(_pairs(file, size, _METADATA))


def weights_beside(path: Path) -> set[Path]:
    """The files that the weights of an exported file lie in, if not in itself. Raises OSError and ValueError."""
    with path.open("rb") as file:
        return _beside(path, file, file.seek(0, 2))


def _beside(path: Path, file: BinaryIO, size: int) -> set[Path]:
    pairs = chain.from_iterable(_pairs(file, size, fields) for fields in _EXTERNAL)
    names = {value for key, value in pairs if key == "location"}
    for name in names:
        if not name or Path(name).name != name or "\\" in name or "\0" in name:
            raise ValueError(f"it has weights in another folder, {name[:80]!r}")
    return {path.with_name(name) for name in names}


def _pairs(file: BinaryIO, size: int, fields: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    file.seek(0)
    for end in _along(file, size, fields):
        if end - file.tell() > _PAIR_LIMIT:
            raise ValueError("its metadata are too large")
        pair = {number: file.read(stop - file.tell()) for number, stop in _fields(file, end)}
        yield pair.get(1, b"").decode(), pair.get(2, b"").decode()


def _along(file: BinaryIO, end: int, fields: tuple[int, ...]) -> Iterator[int]:
    """The ends of all contents that a path of field numbers leads to; the file stands at their beginnings."""
    if not fields:
        yield end
        return
    for number, stop in _fields(file, end):
        if number == fields[0]:
            yield from _along(file, stop, fields[1:])


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Number and end of each content up to `end`; the file stands at its beginning, and may be read from there."""
    while file.tell() < end:
        number, kind = divmod(_varint(file), 8)
        if kind == 0:
            _varint(file)
            continue
        size = _varint(file) if kind == 2 else _SCALARS.get(kind, end)
        at = file.tell() + size
        if at > end:
            raise ValueError("it is no ONNX file")
        if kind == 2:
            yield number, at
        file.seek(at)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("it is no ONNX file")
