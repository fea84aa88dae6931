"""Check the checksums of an exported file and read its metadata, before a runtime sees it.

An ONNX file is one protobuf message: fields with a number and a content, which may be a message again. The numbers of
the few fields that matter here are below; all others, the weights among them, are skipped.
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from picogpt.inference.onnx.checksums import check_checksum
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.registry import from_dict

_METADATA = (14,)  # of the model: pairs of a key and a value
# Pairs that say in which file the weights of a tensor are: those of the graph, and those of its nodes.
_EXTERNAL = (7, 5, 13), (7, 1, 5, 5, 13)

_PAIR_LIMIT = 32 << 20  # bytes; the largest tokenizer has about one million
_SCALARS = {1: 8, 5: 4}  # bytes of the kinds of fields that have a fixed size


TOKENIZER_JSON = "tokenizer.json"
"""The key of the whole tokenizer for other programs (docs/onnx.md), in the format of Hugging Face; null for none."""


def tokenizer_fields(tokenizer: Tokenizer) -> dict[str, object]:
    """Return what `tokenizer_of` needs beside TOKENIZER_JSON."""
    fields = tokenizer.to_dict()
    if fields.get("json") == tokenizer.tokenizer_json():
        del fields["json"]
    return fields


def tokenizer_of(metadata: dict[str, str]) -> Tokenizer:
    """Return the tokenizer that an exported file describes.

    Raises KeyError, ValueError, RecursionError or UserError where it is damaged.
    """
    fields: object = json.loads(metadata["tokenizer"])
    if isinstance(fields, dict) and fields.get("name") == "bpe" and "json" not in fields:
        fields["json"] = metadata[TOKENIZER_JSON]
    return from_dict(fields)


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a file that `export` wrote, after a check that no byte of it or its weights has changed.

    Raises OSError, and ValueError for a file that was changed or written by another program.
    """
    check_checksum(path)
    with path.open("rb") as file:
        size = file.seek(0, 2)
        for weights in _external_files(path, file, size):
            check_checksum(weights)
        return dict(_pairs(file, size, _METADATA))


def external_files(path: Path) -> set[Path]:
    """Return the files beside an exported file that hold weights of it. Raises OSError and ValueError."""
    with path.open("rb") as file:
        return _external_files(path, file, file.seek(0, 2))


def _external_files(path: Path, file: BinaryIO, size: int) -> set[Path]:
    """Return the files that an open file names. Raises ValueError for one in another folder."""
    pairs = chain.from_iterable(_pairs(file, size, fields) for fields in _EXTERNAL)
    names = {value for key, value in pairs if key == "location"}
    for name in names:
        if not name or Path(name).name != name or "\\" in name or "\0" in name:
            raise ValueError(f"it has weights in another folder, {name[:80]!r}")
    return {path.with_name(name) for name in names}


def _pairs(file: BinaryIO, size: int, path: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """Yield all pairs of a key and a value that a path of field numbers leads to."""
    file.seek(0)
    for end in _contents(file, size, path):
        if end - file.tell() > _PAIR_LIMIT:
            raise ValueError("its metadata are too large")
        pair = {number: file.read(stop - file.tell()) for number, stop in _fields(file, end)}
        yield pair.get(1, b"").decode(), pair.get(2, b"").decode()


def _contents(file: BinaryIO, end: int, path: tuple[int, ...]) -> Iterator[int]:
    """Yield the end of each content that a path of field numbers leads to, with the file at the content's beginning."""
    if not path:
        yield end
        return
    for number, stop in _fields(file, end):
        if number == path[0]:
            yield from _contents(file, stop, path[1:])


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Yield the number and the end of each field's content up to `end`, with the file at the content's beginning.

    The file may be read before the next field is asked for.
    """
    while file.tell() < end:
        number, kind = divmod(_varint(file), 8)
        if kind == 0:
            _varint(file)
            continue
        size = _varint(file) if kind == 2 else _SCALARS.get(kind, end)
        stop = file.tell() + size
        if stop > end:
            raise ValueError("it is not an ONNX file")
        if kind == 2:
            yield number, stop
        file.seek(stop)


def _varint(file: BinaryIO) -> int:
    """Read one of protobuf's integers, 7 bits in each byte. Raises ValueError where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("it is not an ONNX file")
