"""Finds the text that a name or a path stands for: files of documents, in a fixed order."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from picogpt.config import DataConfig
from picogpt.data.encoding import Join
from picogpt.data.sources.datasets import dataset_named
from picogpt.data.sources.formats import DOCUMENTS, KNOWN, TEXT, Columns, Document, documents, how_to_convert, kind_of
from picogpt.errors import UserError
from picogpt.system.files import sync_file

_BLOCK = 1 << 20  # bytes read at once

# The repository keeps its sample beside the package; an installed wheel carries it inside.
_SAMPLE_PLACES = (
    Path(__file__).resolve().parents[3] / "dataset" / "sample.txt",
    Path(__file__).resolve().with_name("sample.txt"),
)

_SHAKESPEARE_BASE = "https://raw.githubusercontent.com/karpathy/char-rnn/master"
_SHAKESPEARE_FILE = "data/tinyshakespeare/input.txt"
_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_SHAKESPEARE_SIZE = 1_115_394

_NAMES = (
    "sample, shakespeare, wiki, wiki-simple, wiki:LANGUAGE, hf:OWNER/NAME, files or folders of text, or - for the input"
)


@dataclass(frozen=True)
class Corpus:
    """Files of text in a fixed order."""

    name: str
    """A name that a folder can have."""
    source: str
    """A description for users."""
    files: tuple[Path, ...]
    signature: str
    """A hash of paths, sizes, times and columns, which changes when the text may have changed."""
    columns: Columns = TEXT

    @property
    def size(self) -> int:
        """The bytes on the disk."""
        return sum(path.stat().st_size for path in self.files)

    def documents(self, advance: Callable[[int], None] = lambda _: None) -> Iterator[Document]:
        """Yield every document; each has to be read to its end before the next.

        advance: called with the bytes read since the last call. Raises UserError for a file that is not UTF-8, is
        damaged or cannot be read.
        """
        for path in self.files:
            yield from documents(path, self.columns, advance)

    def text(self, advance: Callable[[int], None] = lambda _: None) -> Iterator[str]:
        """Yield all documents as one text, in pieces of about a megabyte."""
        join = Join()
        for document in self.documents(advance):
            yield from join(document)


def _text_files(folder: Path) -> list[Path]:
    """Return all files of a known kind below `folder` in a fixed order, without hidden and empty ones."""

    def stop(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}")

    files: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        files += [path for path in paths if kind_of(path) and path.is_file() and path.stat().st_size]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def _corpus(name: str, source: str, files: list[Path], columns: Columns = TEXT) -> Corpus:
    facts = [(path.resolve().as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    signature = sha256(repr((facts, columns)).encode("utf-8", "surrogateescape")).hexdigest()
    return Corpus(name, source, tuple(files), signature[:16], columns)


def sample() -> Corpus:
    """Return the embedded articles."""
    for path in _SAMPLE_PLACES:
        if path.is_file():
            return _corpus("sample", "the embedded sample", [path])
    raise UserError("the embedded sample is missing: install picogpt again, or use --data PATH")


def _shakespeare(dataset_dir: Path) -> Corpus:
    """Return tiny Shakespeare, downloaded where it is not there yet. Raises UserError where that fails."""
    path = dataset_dir / "tinyshakespeare.txt"
    if not path.exists():
        from picogpt.data.sources.remote import download  # its library takes a while to load

        base = os.environ.get("PICOGPT_SHAKESPEARE_URL", _SHAKESPEARE_BASE)
        download(f"{base.rstrip('/')}/{_SHAKESPEARE_FILE}", path, _SHAKESPEARE_SHA256, _SHAKESPEARE_SIZE)
    elif sha256(path.read_bytes()).hexdigest() != _SHAKESPEARE_SHA256:
        raise UserError(f"{path} is not tiny Shakespeare (its sha256 differs): delete it, or use --data {path}")
    return _corpus("shakespeare", "tiny Shakespeare", [path])


def _files_at(path: Path) -> list[Path]:
    """Return the files of text that a path names. Raises UserError for none."""
    if path.is_dir():
        if files := _text_files(path):
            return files
        raise UserError(f"{path} has no file with text in it ({KNOWN}): put some there, or name another folder")
    if not path.exists():
        raise UserError(f"there is no {path}: --data takes {_NAMES}")
    if not kind_of(path):
        way = how_to_convert(path) if path.suffix.lower() in DOCUMENTS else "convert it to one of these, or rename it"
        raise UserError(f"{path} is not {KNOWN}: {way}")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty: name a file with text in it")
    return [path]


def _input(dataset_dir: Path) -> Path:
    """Write the standard input to a file with a hash of it as name, so that the same text is tokenized once."""
    if sys.stdin is None:
        raise UserError("there is no standard input: name a file")
    stream = sys.stdin.buffer
    part = dataset_dir / f"input.{os.getpid()}.part"
    digest = sha256()
    try:
        dataset_dir.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            while block := stream.read(_BLOCK):
                digest.update(block)
                file.write(block)
        if not part.stat().st_size:
            raise UserError("the standard input is empty: pipe some text into it, or name a file")
        path = dataset_dir / f"input-{digest.hexdigest()[:12]}.txt"
        if not path.exists():
            sync_file(part)
            os.replace(part, path)
        return path
    except OSError as error:
        raise UserError(f"the standard input cannot be saved in {dataset_dir}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def open_corpus(data: DataConfig, dataset_dir: Path) -> Corpus:
    """Return the text that `data` names. Downloads and the standard input are saved in `dataset_dir`.

    Raises UserError for an unknown name or path, for no text, and for a download that fails.
    """
    names = data.names
    if names == ("sample",):
        return sample()
    if names == ("shakespeare",):
        return _shakespeare(dataset_dir)
    for name in names:
        if name in ("sample", "shakespeare"):
            raise UserError(f"{name} is a text by itself: give --data no other name")
        if dataset_named(name):
            raise UserError(
                f"{name} is a data set that is streamed, which only train.py and picogpt prepare do: name a text here"
            )
    if not all(names):
        raise UserError(f"--data has an empty name: it takes {_NAMES}")
    paths = [_input(dataset_dir) if name == "-" else Path(name) for name in names]
    files = [file for path in paths for file in _files_at(path)]
    count = f"{len(files)} text file{'s' * (len(files) > 1)}"
    source = str(paths[0]) if files == paths[:1] == paths else f"{count} in {', '.join(map(str, paths))}"
    name = re.sub(r"[^\w-]+", "-", paths[0].resolve().stem)[:40].strip("-")
    return _corpus(name or "text", source, files, columns_of(data))


def size_of(names: Sequence[str]) -> int | None:
    """Return the bytes that the texts of these names take on the disk; None where they are not there to be counted."""
    paths = [Path(name) for name in names]
    if not all(path.exists() for path in paths):
        return None
    return sum(file.stat().st_size for path in paths for file in (_text_files(path) if path.is_dir() else [path]))


def columns_of(data: DataConfig) -> Columns:
    """Return the fields of a row that are its text."""
    question, _, answer = (name.strip() for name in data.qa.partition(","))
    return Columns(data.text_field, (question, answer) if data.qa else None)
