"""Reads documents from files: plain text, JSON lines and parquet, compressed or not.

A document is an iterable of pieces of text, so that a long one need not be in memory as a whole.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import shlex
import shutil
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from picogpt.data.sources.dialogues import FIELDS, dialogue
from picogpt.errors import UserError, one_line, shown
from picogpt.tokenizers.base import Mark, question

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK = 1 << 20  # bytes read at once
_LINE = 32 << 20  # bytes of a JSON line: it is read whole, and its objects take up to twenty times as much
_XZ_MEMORY = 256 << 20  # bytes for a dictionary; xz -9 takes 65 MB
_PLAUSIBLE, _RATIO = 1 << 30, 1000  # bytes that any file may unpack to; from more, text never shrinks to a thousandth
_TABLE, _TABLE_RATIO = 64 << 20, 100  # the same for the columns of a parquet file, and for the texts of a row group
_ROWS = 16  # of a parquet file, unpacked at once: a few bytes can stand for many megabytes of text in each
_FOOTER = 64 << 20  # bytes at the end of a parquet file that say what is where
_THRIFT = {"thrift_string_size_limit": 16 << 20, "thrift_container_size_limit": 200_000}  # of a footer
_FREE_SHARE = 0.05  # of the disk, which always stays free
_KINDS = (".txt", ".md", ".jsonl", ".parquet")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

KNOWN = f"{', '.join(_KINDS)}, or one of these compressed ({', '.join(_COMPRESSED)})"

Document = Iterable[str]
"""A text in parts, of which a `Mark` stands for a special id."""


class DamagedFileError(UserError):
    """The content of a file is not what its format says."""


@dataclass(frozen=True)
class Columns:
    """The fields of a row that are its text: one, which may be the turns of a dialogue, or a question and an answer."""

    text: str = "text"
    qa: tuple[str, str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of these fields."""
        return self.qa or (self.text,)

    def document(self, row: Sequence[object]) -> Document:
        """Return the text of a row's fields, nothing where one is missing; dialogues with marks. Raises UserError."""
        if self.qa is None and isinstance(row[0], list):
            return dialogue(row[0])
        values = [value if isinstance(value, str) else "" for value in row]
        if not all(values):
            return ()
        return values if self.qa is None else [*question(values[0]), values[1], Mark("</A>")]

    def among(self, names: Collection[str]) -> "Columns":
        """Return those of a file with these columns: a dialogue's, where no name was given and there is no text."""
        if self != TEXT or TEXT.text in names:
            return self
        return next((Columns(name) for name in FIELDS if name in names), self)


TEXT = Columns()

# How a file may begin, and what it is then.
_ENCODINGS = (
    (codecs.BOM_UTF8, "UTF-8", codecs.utf_8_decode),
    (codecs.BOM_UTF32_LE, "UTF-32", codecs.utf_32_le_decode),  # before UTF-16, whose mark begins so
    (codecs.BOM_UTF32_BE, "UTF-32", codecs.utf_32_be_decode),
    (codecs.BOM_UTF16_LE, "UTF-16", codecs.utf_16_le_decode),
    (codecs.BOM_UTF16_BE, "UTF-16", codecs.utf_16_be_decode),
)
DOCUMENTS = (".pdf", ".docx", ".epub", ".htm", ".html", ".odt", ".rtf")
"""Kinds of files that are no text and that programs make text of."""


def how_to_convert(path: Path, begin: bytes = b"") -> str:
    """Return in words how to make text of a file that is none. begin: some of its first bytes."""
    text = shlex.quote(str(path.with_suffix(".txt")))
    if begin.startswith(b"%PDF") or path.suffix.lower() == ".pdf":
        text = shlex.quote(str(path.with_suffix(".txt" if path.suffix.lower() == ".pdf" else ".pdf.txt")))
        return f"make text of it with `pdftotext {shlex.quote(str(path))} {text}`"
    if path.suffix.lower() in DOCUMENTS:
        return f"make text of it with `pandoc --to plain {shlex.quote(str(path))} --output {text}`"
    if path.suffix.lower() in _COMPRESSED:
        return "unpack it, and convert it to UTF-8 with `iconv`"
    new = shlex.quote(str(path.with_name(f"{path.stem}-utf8.txt")))
    return f"convert it to UTF-8, for example with `iconv -f WINDOWS-1252 -t UTF-8 {shlex.quote(str(path))} > {new}`"


def kind_of(path: Path) -> str:
    """Return the suffix of a file without that of its compression; "" for one that is not known."""
    suffix = Path(path.stem).suffix if path.suffix.lower() in _COMPRESSED else path.suffix
    return suffix.lower() if suffix.lower() in _KINDS else ""


def documents(path: Path, columns: Columns, advance: Callable[[int], None] = lambda _: None) -> Iterator[Document]:
    """Yield the documents of one file. advance: called with the bytes of the file read since the last call.

    Raises UserError for a file that cannot be read, is damaged, is not UTF-8 or has no such field.
    """
    with _naming(path), path.open("rb") as raw, closing(_decompressed(path, raw)) as file:
        counted = _Counted(raw, advance)
        kind = kind_of(path)
        if kind == ".jsonl":
            texts: Iterator[Document] = _json_lines(path, file, columns)
        elif kind == ".parquet":
            texts = _parquet(path, file, columns)
        else:
            texts = iter([_pieces(path, file, counted)])
        for document in texts:
            yield document
            counted()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn the exceptions of reading a file into UserError with its name."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} is damaged ({error}): get it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


class _Counted:
    """Calls `advance` with the bytes of a file that were read since the last call."""

    def __init__(self, raw: BinaryIO, advance: Callable[[int], None]) -> None:
        self._raw, self._advance, self._last = raw, advance, 0

    def __call__(self) -> None:
        now = self._raw.tell()
        self._advance(now - self._last)
        self._last = now


def _decompressed(path: Path, raw: BinaryIO) -> BinaryIO:
    """Return the file itself, or what it unpacks to, by its suffix."""
    file: io.BufferedIOBase
    match path.suffix.lower():
        case ".gz":
            file = gzip.GzipFile(fileobj=raw)
        case ".bz2":
            file = bz2.BZ2File(raw)
        case ".xz":
            file = io.BufferedReader(_Xz(raw))
        case ".zst":
            import pyarrow

            file = pyarrow.CompressedInputStream(raw, "zstd")
        case _:
            return raw
    return cast(BinaryIO, io.BufferedReader(_Bounded(path, file)))


class _Xz(io.RawIOBase):
    """Reads as `lzma.LZMAFile` does, with a limit on the memory."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._packed = raw, b""
        self._decompressor = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view, data = memoryview(buffer), b""
        while not data:
            if self._decompressor.needs_input or self._decompressor.eof:
                self._packed = self._packed or self._raw.read(_BLOCK)
            if self._decompressor.eof:  # another stream may follow, after zeros
                self._packed = self._packed.lstrip(b"\0")
                if not self._packed:
                    if not self._raw.peek(1):  # type: ignore[attr-defined]
                        return 0
                    continue
                self._decompressor = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            elif self._decompressor.needs_input and not self._packed:
                raise EOFError("the compressed data end too early")
            data = self._decompressor.decompress(self._packed, len(view))
            self._packed = self._decompressor.unused_data
        view[: len(data)] = data
        return len(data)


class _Bounded(io.RawIOBase):
    """An unpacked file. It is refused once it has unpacked to more than any text does."""

    def __init__(self, path: Path, file: io.BufferedIOBase) -> None:
        self._path, self._file, self._count = path, file, 0
        self._most = max(_PLAUSIBLE, _RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        count = self._file.readinto(buffer)
        self._count += count
        if self._count > self._most:
            raise DamagedFileError(f"{self._path} unpacks to more than {self._most / 1e9:.1f} GB: that is no text")
        return count


def _pieces(path: Path, file: BinaryIO, counted: Callable[[], None]) -> Iterator[str]:
    """Yield a file in pieces of at least one character, without its byte order mark, every line end as \\n.

    It is UTF-8, or UTF-16 or UTF-32 where it begins with the mark of that. Raises UserError for another encoding.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    start, pending, first = 0, b"", True  # start: offset of the first byte that is not decoded yet
    encoding, decode = "UTF-8", codecs.utf_8_decode
    while True:
        with _naming(path):
            block = file.read(_BLOCK)
        encoded = pending + block
        if first and len(encoded) < len(codecs.BOM_UTF32_LE) and block:
            pending = encoded
            continue
        if first:
            for mark, name, function in _ENCODINGS:
                if encoded.startswith(mark):
                    encoding, decode, start, encoded = name, function, len(mark), encoded[len(mark) :]
                    break
        first = False
        try:
            text, used = decode(encoded, "strict", not block)
        except UnicodeDecodeError as error:
            where = f"{path} is not {encoding} at byte {start + error.start:,}"
            way = how_to_convert(path, encoded) if encoding == "UTF-8" else "it is damaged, get it again"
            raise UserError(f"{where}: {way}") from None
        if piece := newlines.decode(text, not block):
            yield piece
        counted()
        if not block:
            return
        pending = encoded[used:]
        start += used


def _json_lines(path: Path, file: BinaryIO, columns: Columns) -> Iterator[Document]:
    """Yield the text of every line that has one. Raises UserError for a line that is no object with these fields."""
    for number, line in enumerate(iter(lambda: file.readline(_LINE + 1), b""), start=1):
        if len(line) > _LINE:
            raise UserError(f"{path} has more than {_LINE >> 20} MB in line {number:,}: give each text a line")
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{path} has no JSON in line {number:,}: correct or delete that line") from None
        fields = columns.among(row) if isinstance(row, dict) else columns
        missing = [name for name in fields.names if not isinstance(row, dict) or name not in row]
        if missing:
            there = _names(row) if isinstance(row, dict) else "no object"
            raise UserError(
                f"{path} has no field {missing[0]!r} in line {number:,} (it has {there}): use --text-field or --qa"
            )
        try:
            document = fields.document([row[name] for name in fields.names])
        except UserError as error:
            raise UserError(f"{path}, line {number:,}: {error}") from None
        if document:
            yield document


def _parquet(path: Path, file: BinaryIO, columns: Columns) -> Iterator[Document]:
    """Yield the documents of all row groups. Raises UserError as `open_parquet` and `row_group` do."""
    with _seekable(path, file) as seekable:
        table = open_parquet(str(path), seekable, columns)
        for group in range(table.num_row_groups):
            yield from row_group(str(path), table, group, columns)


@contextmanager
def _seekable(path: Path, file: BinaryIO) -> Iterator[BinaryIO]:
    """Return the file itself, or a copy on the disk of one that can only be read from its beginning."""
    if path.suffix.lower() not in _COMPRESSED:
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        while block := file.read(_BLOCK):
            if not has_room(tempfile.gettempdir(), len(block)):
                raise UserError(f"there is no room in {tempfile.gettempdir()} to unpack {path}: unpack it elsewhere")
            copy.write(block)
        yield cast(BinaryIO, copy)


def has_room(folder: Path | str, size: int) -> bool:
    """Return whether a twentieth of the disk stays free after so many bytes more."""
    usage = shutil.disk_usage(folder)
    return usage.free - size >= _FREE_SHARE * usage.total


def open_parquet(name: str, file: BinaryIO | io.RawIOBase, columns: Columns, buffer_size: int = 0) -> Any:
    """Return a pyarrow ParquetFile that has these columns as text.

    buffer_size: bytes of a column read at once; 0: all there are in a row group. Raises DamagedFileError for what is no
    parquet file, UserError for one without these columns.
    """
    import pyarrow
    from pyarrow import parquet

    with _damage(f"{name} is no parquet file"):
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 8))
        if int.from_bytes(file.read(8)[:4], "little") > _FOOTER:
            raise ValueError("its footer is too large")
        table = parquet.ParquetFile(file, buffer_size=buffer_size, page_checksum_verification=True, **_THRIFT)
        schema = table.schema_arrow
        names = schema.names
        if sum(size_of(table, group) for group in range(table.num_row_groups)) > max(_TABLE, _TABLE_RATIO * size):
            raise ValueError(f"it says that it unpacks to more than {_TABLE_RATIO} times its size")
    for column in columns.among(names).names:
        if column not in names:
            raise UserError(f"{name} has no column {column!r} (it has {_names(names)}): use --text-field or --qa")
        if names.count(column) > 1:
            raise UserError(f"{name} has several columns {column!r}: use --text-field or --qa")
        kind = schema.field(column).type
        is_dialogue = columns.qa is None and _has_turns(kind)
        if not (is_dialogue or pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise UserError(
                f"{name} has no text in its column {column!r} but {shown(str(kind))[1:-1]}: use --text-field or --qa"
            )
    return table


def _has_turns(kind: Any) -> bool:
    """Return whether a type of pyarrow is that of a list of objects."""
    import pyarrow

    is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    return is_list and bool(pyarrow.types.is_struct(kind.value_type))


def row_group(name: str, table: Any, group: int, columns: Columns) -> Iterator[Document]:
    """Yield the documents of one row group. Raises DamagedFileError, and UserError for turns that are none."""
    columns = columns.among(table.schema_arrow.names)
    count, most = 0, max(_PLAUSIBLE, _TABLE_RATIO * size_of(table, group))
    with _damage(f"{name} is damaged in row group {group}"):
        for batch in table.iter_batches(batch_size=_ROWS, row_groups=[group], columns=list(columns.names)):
            for row in zip(*(batch.column(column).to_pylist() for column in columns.names), strict=True):
                if document := columns.document(row):
                    count += sum(map(len, document))
                    if count > most:
                        raise DamagedFileError(f"{name} unpacks to more than {most / 1e9:.1f} GB: that is no text")
                    yield document


def size_of(table: Any, group: int) -> int:
    """Return the bytes that a row group unpacks to, as its file says."""
    return max(0, int(table.metadata.row_group(group).total_byte_size))


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Turn the exceptions of pyarrow into DamagedFileError."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, ValueError, MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # raised by the system, not by the library
            raise
        raise DamagedFileError(f"{what} ({one_line(error)}): get it again") from None


def _names(names: Iterable[str]) -> str:
    """Return the first few of a file's names, which may be any text."""
    return shown(", ".join(islice(names, 8)))[1:-1]
