"""Checksums at the end of data: a byte that was changed is noticed before anything looks at the content.

A checksum finds damage, not forgery: whoever forges a file can forge its checksum, so the content is still checked.
"""

from zlib import crc32

_MARK = b"crc32"


def with_checksum(data: bytes) -> bytes:
    """Return `data` with a trailer: "crc32" and, little-endian, the crc32 of all before it."""
    return data + _MARK + crc32(data).to_bytes(4, "little")


def without_checksum(data: bytes) -> bytes:
    """Return `data` without its trailer, if it has one. Raises ValueError if the checksum does not match."""
    end = len(data) - len(_MARK) - 4
    if end < 0 or data[end:-4] != _MARK:
        return data
    if data[-4:] != crc32(memoryview(data)[:end]).to_bytes(4, "little"):
        raise ValueError("its checksum does not match")
    return data[:end]
