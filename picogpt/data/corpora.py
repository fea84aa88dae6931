"""A name or a path -> a stream of text that is never held whole."""

import codecs
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from picogpt.config import DataConfig, UserError
from picogpt.data.remote import download

_BLOCK = 1 << 20  # bytes read at once

# The repository keeps its sample beside the package; an installed wheel carries it inside.
_SAMPLE_PLACES = (
    Path(__file__).resolve().parents[2] / "dataset" / "sample.txt",
    Path(__file__).resolve().with_name("sample.txt"),
)

_SHAKESPEARE_BASE = "https://raw.githubusercontent.com/karpathy/char-rnn/master"
_SHAKESPEARE_FILE = "data/tinyshakespeare/input.txt"
_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
_SHAKESPEARE_SIZE = 1_115_394

_KNOWN = "sample, shakespeare, or a .txt file or a folder of them"


@dataclass(frozen=True)
class Corpus:
    """Text files in a fixed order."""

    name: str
    """Fit for a folder's name."""
    source: str
    """What it is, for people."""
    files: tuple[Path, ...]
    signature: str
    """Changes when the text may have changed: a hash of paths, sizes and times."""

    def documents(self) -> Iterator[str]:
        """The text in pieces of about a megabyte, a blank line between two files.

        Raises UserError for a file that is not UTF-8 or cannot be read.
        """
        end = ""
        for number, path in enumerate(self.files):
            if number:
                yield "\n" if end == "\n" else "\n\n"
            for piece in _pieces(path):
                yield piece
                end = piece[-1]


def _pieces(path: Path) -> Iterator[str]:
    """The file's text in pieces of at least one character: UTF-8, a byte order mark dropped, every line end as \\n."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    try:
        with path.open("rb") as file:
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            start = file.tell()  # offset in the file of the first byte that is not decoded yet
            pending = b""
            while True:
                block = file.read(_BLOCK)
                encoded = pending + block
                text, used = codecs.utf_8_decode(encoded, "strict", not block)
                if piece := newlines.decode(text, not block):
                    yield piece
                if not block:
                    return
                pending = encoded[used:]
                start += used
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {start + error.start:,}: convert it to UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _text_files(folder: Path) -> list[Path]:
    """Every .txt below `folder` that holds anything, hidden ones skipped, in the same order on every system."""

    def stop(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}")

    found = []
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() == ".txt" and path.is_file() and path.stat().st_size]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _corpus(name: str, source: str, files: list[Path]) -> Corpus:
    facts = [(path.resolve().as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    signature = sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()
    return Corpus(name, source, tuple(files), signature[:16])


def _sample() -> Corpus:
    for path in _SAMPLE_PLACES:
        if path.is_file():
            return _corpus("sample", "the embedded sample", [path])
    raise UserError("the embedded sample is missing: install picogpt again, or use --data PATH")


def _shakespeare(dataset_dir: Path) -> Corpus:
    path = dataset_dir / "tinyshakespeare.txt"
    if not path.exists():
        base = os.environ.get("PICOGPT_SHAKESPEARE_URL", _SHAKESPEARE_BASE)
        download(f"{base.rstrip('/')}/{_SHAKESPEARE_FILE}", path, _SHAKESPEARE_SHA256, _SHAKESPEARE_SIZE)
    elif sha256(path.read_bytes()).hexdigest() != _SHAKESPEARE_SHA256:
        raise UserError(f"{path} is not tiny Shakespeare (its sha256 differs): delete it, or use --data {path}")
    return _corpus("shakespeare", "tiny Shakespeare", [path])


def _from_path(path: Path) -> Corpus:
    if path.is_dir():
        files = _text_files(path)
        if not files:
            raise UserError(f"{path} has no .txt file with text in it: put some there, or name another folder")
        source = f"{len(files)} text file{'s' * (len(files) > 1)} in {path}"
    else:
        if path.suffix.lower() != ".txt":
            raise UserError(f"{path} is not a .txt file: convert it to plain text, or rename it if it is")
        if not path.stat().st_size:
            raise UserError(f"{path} is empty: name a file with text in it")
        files, source = [path], str(path)
    name = re.sub(r"[^\w-]+", "-", path.resolve().stem)[:40].strip("-")
    return _corpus(name or "text", source, files)


def open_corpus(data: DataConfig, dataset_dir: Path) -> Corpus:
    """The corpus `data.data` names. Downloads land in `dataset_dir`.

    Raises UserError for an unknown name or path, for no text, and for a download that fails.
    """
    if data.data == "sample":
        return _sample()
    if data.data == "shakespeare":
        return _shakespeare(dataset_dir)
    path = Path(data.data)
    if not data.data or not path.exists():
        raise UserError(f"there is no {data.data or 'corpus without a name'}: --data takes {_KNOWN}")
    return _from_path(path)
