"""Checksums at the end of ONNX files, in a protobuf field that runtimes skip: a byte that was changed is noticed.

A checksum finds damage, not forgery: whoever forges a file can forge its checksum, so the content is still checked.
"""

from pathlib import Path
from typing import BinaryIO
from zlib import crc32

_FIELD = b"\xfd\xff\xff\xff\x0f"  # tag of protobuf's last field number, four bytes long, which every reader skips
_PIECE = 1 << 18  # bytes read at once


def append_checksum(path: Path) -> None:
    """Append a checksum that an ONNX file may have: a field without meaning that holds the crc32 of all before it."""
    with path.open("r+b") as file:
        checksum = _crc32(file, file.seek(0, 2))
        file.write(_FIELD + checksum)


def check_checksum(path: Path) -> None:
    """Raise ValueError for a file without the checksum of `append_checksum`, or changed since then."""
    with path.open("rb") as file:
        end = file.seek(0, 2) - len(_FIELD) - 4
        checksum = _crc32(file, max(0, end))
        trailer = file.read()
    if end < 0 or not trailer.startswith(_FIELD):
        raise ValueError(f"{path.name} has no checksum at its end")
    if trailer != _FIELD + checksum:
        raise ValueError(f"the checksum of {path.name} does not match")


def _crc32(file: BinaryIO, size: int) -> bytes:
    """Return the crc32 of the first `size` bytes, read in small pieces, and leave the file positioned after them."""
    file.seek(0)
    checksum = 0
    while size and (piece := file.read(min(_PIECE, size))):
        checksum = crc32(piece, checksum)
        size -= len(piece)
    return checksum.to_bytes(4, "little")
