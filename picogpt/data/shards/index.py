"""The index of a folder of token shards: the files that are complete, and what each holds."""

import json
import os
import struct
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from picogpt.errors import UserError, shown
from picogpt.system.files import read_bytes, write_durably

INDEX = "index.json"
VERSION = 2
SHARD_TOKENS = 1 << 26  # a shard is sealed when it holds so many
BLOCK_TOKENS = 1 << 20  # ids that share a checksum; the last block has fewer
HEADER = struct.Struct("<8sHH4xQ8s")

_MAGIC = b"picogpt\0"
_INDEX_LIMIT = 256 << 20  # bytes; one of a terabyte of tokens has about 20 MB
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

Source = tuple[str, int]
"""The source of a streamed shard: a file of the data set, and a row group of it."""


@dataclass(frozen=True)
class ShardEntry:
    """A sealed shard as the index names it."""

    file: str
    count: int
    crc32: tuple[int, ...]  # of each block
    source: Source | None


@dataclass(frozen=True)
class ShardIndex:
    """The content of index.json."""

    dtype: np.dtype[Any]
    fingerprint: str  # the tokenizer's
    signature: str  # the corpus'
    shards: tuple[ShardEntry, ...]
    sources: tuple[Source, ...]  # all that were sealed, also those without a token


def header_bytes(dtype: np.dtype[Any], count: int, fingerprint: str) -> bytes:
    """Return the header of a shard. fingerprint: the tokenizer's."""
    return HEADER.pack(_MAGIC, VERSION, dtype.itemsize, count, sha256(fingerprint.encode()).digest()[:8])


def damaged(path: Path, reason: str) -> UserError:
    """Return the error for a damaged file of a folder of shards."""
    return UserError(f"{path} {reason}: delete {path.parent}; it is made again")


def write_index(folder: Path, index: dict[str, object]) -> None:
    """Replace the index of a folder in one step. Its checksum is added here."""
    write_durably(folder / INDEX, json.dumps({**index, "sha256": index_digest(index)}).encode())


def index_digest(index: dict[str, object]) -> str:
    """Return the checksum of an index without one."""
    return sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def read_index(path: Path, fingerprint: str) -> ShardIndex:
    """Return an index, which must be of the tokenizer with that fingerprint. Raises UserError for any other."""
    try:
        if path.stat().st_size > _INDEX_LIMIT:
            raise damaged(path, "is too large for an index of shards")
        index = json.loads(read_bytes(path))
        digest = index_digest({name: value for name, value in dict(index).items() if name != "sha256"})
    except _MISSING as error:  # other errors of a disk or a network are no damage, and may pass
        raise damaged(path, f"cannot be read ({error.strerror})") from None
    except (TypeError, ValueError, RecursionError):  # the first two also for what is no object
        raise damaged(path, "is not JSON of an index") from None
    match index:
        case {"version": int(version)} if version != VERSION:
            raise damaged(path, f"has version {shown(version)}, not {VERSION}")
        case {
            "version": int(_),
            "dtype": "uint8" | "uint16" | "uint32" as dtype,
            "tokenizer": str(made_with),
            "corpus": str(signature),
            "shards": list(shards),
            "sources": list(sources),
            "sha256": str(found),
        }:
            if found != digest:
                raise damaged(path, "has a wrong checksum")
            if made_with != fingerprint:
                raise damaged(path, f"was made with another vocabulary ({shown(made_with)}, not {fingerprint})")
            entries = tuple(_entry(path, number, shard) for number, shard in enumerate(shards))
            groups = tuple(_source(path, source) for source in sources)
            if len(set(groups)) < len(groups):
                raise damaged(path, "has a source twice")
            return ShardIndex(np.dtype(dtype).newbyteorder("<"), made_with, signature, entries, groups)
    raise damaged(path, "is not an index of shards")


def _entry(path: Path, number: int, shard: object) -> ShardEntry:
    """Return the index's `number`-th entry. Its file can have one name only, so no entry leads out of the folder."""
    match shard:
        case {"file": str(file), "count": count, "crc32": list(crc32), "source": source} if (
            file == f"{number:05d}.bin"
            and _is_count(count, SHARD_TOKENS)
            and count > 0
            and len(crc32) == -(-count // BLOCK_TOKENS)
            and all(_is_count(value, 0xFFFFFFFF) for value in crc32)
        ):
            return ShardEntry(file, count, tuple(crc32), None if source is None else _source(path, source))
    raise damaged(path, f"has a damaged entry {number}")


def _source(path: Path, source: object) -> Source:
    match source:
        case [str(file), group] if _is_count(group, 1 << 31):
            return file, group
    raise damaged(path, "has a damaged source")


def _is_count(value: object, most: int) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= most


def check_header(path: Path, dtype: np.dtype[Any], count: int, fingerprint: str) -> None:
    """Check a shard as far as its header and size allow. Raises UserError."""
    try:
        with path.open("rb") as file:
            header = file.read(HEADER.size)
            size = os.fstat(file.fileno()).st_size
    except _MISSING as error:  # other errors of a disk or a network are no damage, and may pass
        raise damaged(path, f"cannot be read ({error.strerror})") from None
    if len(header) < HEADER.size or not header.startswith(_MAGIC):
        raise damaged(path, "is not a token shard")
    _, version, code, held, vocabulary = HEADER.unpack(header)
    if version != VERSION:
        raise damaged(path, f"has version {version}, not {VERSION}")
    if code != dtype.itemsize:
        raise damaged(path, f"has dtype code {code}, not {dtype.itemsize} ({dtype.name})")
    if held != count or size != HEADER.size + count * dtype.itemsize:
        raise damaged(path, f"is not complete or not the one indexed ({size:,} bytes for {count:,} tokens)")
    if header != header_bytes(dtype, count, fingerprint):
        raise damaged(path, f"was made with another vocabulary ({vocabulary.hex()})")
