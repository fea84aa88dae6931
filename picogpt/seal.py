"""A checksum behind the content of a file, where readers of its format do not look."""

from zlib import crc32

_MARK = b"crc32"


def sealed(data: bytes) -> bytes:
    """The data, and its checksum."""
    return data + _MARK + crc32(data).to_bytes(4, "little")


def unsealed(data: bytes) -> bytes:
    """The data before its seal, or all of it where there is none. Raises ValueError for a checksum that is wrong."""
    content, mark, checksum = data[:-9], data[-9:-4], data[-4:]
    if mark != _MARK:
        return data
    if crc32(content).to_bytes(4, "little") != checksum:
        raise ValueError("its checksum does not match")
    return content
