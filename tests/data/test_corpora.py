"""Names and paths to text, and the download behind one of them."""

import io
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from picogpt.config import DataConfig
from picogpt.data.sources import corpora, formats
from picogpt.data.sources.corpora import Corpus, open_corpus
from picogpt.data.sources.remote import download
from picogpt.errors import UserError

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n"


def open_path(path: Path) -> Corpus:
    return open_corpus(DataConfig(data=str(path)), path.parent)


def text_of(corpus: Corpus) -> str:
    return "".join(corpus.text())


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("texts")


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\r\n\ufeff😀é"), min_size=1), st.integers(1, 9))
@example("\ufeff\r\n😀\r", 1)
@example("\ufeff", 2)
def test_pieces_concatenate_to_the_text_wherever_reads_end(folder, text, block):
    corpus = open_path(write(folder / "one.txt", text))
    with mock.patch.object(formats, "_BLOCK", block):
        pieces = list(corpus.text())
    assert "".join(pieces) == (folder / "one.txt").read_text(encoding="utf-8-sig")
    assert all(pieces)


def test_pieces_of_a_long_line_stay_small(tmp_path):
    text = "aé😀" * 1_000_000  # 7 MB, no line end
    pieces = list(open_path(write(tmp_path / "line.txt", text)).text())
    assert "".join(pieces) == text
    assert len(pieces) > 4 and max(map(len, pieces)) <= 4_000_000


@pytest.mark.parametrize("text", ["x", "😀", "\n"])
def test_one_character_is_a_corpus(tmp_path, text):
    assert text_of(open_path(write(tmp_path / "one.txt", text))) == text


def test_folder_is_recursive_sorted_and_skips_what_is_hidden_or_empty(tmp_path):
    root = tmp_path / "texts"
    write(root / "b.txt", "two\n")
    write(root / "a" / "z.TXT", b"\xef\xbb\xbfone")
    write(root / "c.txt", "three")
    write(root / "empty.txt", "")
    for hidden in (".git/d.txt", ".e.txt", "notes.pdf"):
        write(root / hidden, "no")
    corpus = open_path(root)
    assert text_of(corpus) == "one\n\ntwo\n\nthree"
    assert corpus.source == f"3 text files in {root}"


def test_names_are_fit_for_a_folder(tmp_path):
    for name, expected in [("my novel (2).txt", "my-novel-2"), ("(.txt", "text"), ("é.txt", "é"), ("x" * 99, "x" * 40)]:
        path = tmp_path / name if name.endswith(".txt") else tmp_path / f"{name}.txt"
        assert open_path(write(path, "text")).name == expected


def test_signature_follows_path_size_and_time(tmp_path):
    path = write(tmp_path / "a.txt", "text")
    signatures = [open_path(path).signature]
    assert open_path(path).signature == signatures[0]
    write(path, "texts")
    signatures.append(open_path(path).signature)
    path.touch()
    signatures.append(open_path(path).signature)
    signatures.append(open_path(path.rename(tmp_path / "b.txt")).signature)
    assert all(before != after for before, after in pairwise(signatures))


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"ab\xffcd", 2),
        (b"\xef\xbb\xbfab\xe9", 5),
        (b"\xffa\0", 0),
        (b"abcdefgh\xed\xa0\x80", 8),
        (b"abc\xf0\x9f\x98", 3),
    ],
)
@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_not_utf8_names_file_and_byte(tmp_path, monkeypatch, content, where, block):
    monkeypatch.setattr(formats, "_BLOCK", block)
    path = write(tmp_path / "latin.txt", content)
    with pytest.raises(UserError, match=f"not UTF-8 at byte {where}: convert") as caught:
        text_of(open_path(path))
    assert str(path) in str(caught.value)


def test_what_is_no_corpus_is_refused_with_a_hint(tmp_path):
    (tmp_path / "folder").mkdir()
    for name, hint in [("nowhere.txt", "shakespeare"), ("sampel", "sample"), ("folder", "no file with text")]:
        with pytest.raises(UserError, match=hint):
            open_path(tmp_path / name)
    with pytest.raises(UserError, match="is empty"):
        open_path(write(tmp_path / "empty.txt", ""))
    with pytest.raises(UserError, match=r"is not \.txt, \.md, .*: make text of it with `pdftotext "):
        open_path(write(tmp_path / "book.pdf", "text"))
    with pytest.raises(UserError, match="sample"):
        open_corpus(DataConfig(data=""), tmp_path)


def test_a_file_that_vanishes_is_a_user_error(tmp_path):
    path = write(tmp_path / "a.txt", "text")
    corpus = open_path(path)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        text_of(corpus)


def test_sample_is_the_first_of_its_places(tmp_path, monkeypatch):
    places = tmp_path / "dataset" / "sample.txt", tmp_path / "wheel" / "sample.txt"
    monkeypatch.setattr(corpora, "_SAMPLE_PLACES", places)
    with pytest.raises(UserError, match="install picogpt again"):
        open_corpus(DataConfig(), tmp_path)
    for path, text in reversed(list(zip(places, ("repository", "wheel"), strict=True))):
        write(path, text)
        corpus = open_corpus(DataConfig(), tmp_path)
        assert (corpus.name, text_of(corpus)) == ("sample", text)


class Answers(BaseHTTPRequestHandler):
    """/good, /short (cut off early), /garbage (not HTTP); 404 for the rest."""

    def do_GET(self):
        if self.path == "/garbage":
            self.wfile.write(b"nonsense\r\n\r\n")
            return
        good = self.path in ("/good", "/data/tinyshakespeare/input.txt", "/short")
        self.send_response(200 if good else 404)
        self.send_header("Content-Length", str(len(TEXT)))
        self.end_headers()
        self.wfile.write(TEXT.encode()[: 10 if self.path == "/short" else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def checksum(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def test_download_makes_the_file(tmp_path, server):
    path = tmp_path / "new" / "file.txt"
    download(f"{server}/good", path, checksum(TEXT), len(TEXT))
    assert path.read_bytes() == TEXT.encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("address", "expected", "size"),
    [
        ("/good", "another text", len(TEXT)),  # wrong content
        ("/good", TEXT[:9], 9),  # longer than expected
        ("/good", TEXT, len(TEXT) + 1),  # shorter
        ("/short", TEXT, len(TEXT)),  # cut off
        ("/missing", TEXT, len(TEXT)),
        ("/garbage", TEXT, len(TEXT)),
    ],
)
def test_failed_download_leaves_nothing_and_names_the_alternatives(tmp_path, server, address, expected, size):
    path = tmp_path / "file.txt"
    with pytest.raises(
        UserError, match=r"could not download .*put the file at .*--data sample or --data PATH"
    ) as caught:
        download(server + address, path, checksum(expected), size)
    assert str(path) in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_download_while_offline(tmp_path, server):
    with pytest.raises(UserError, match="could not download"):
        download("http://127.0.0.1:1/nothing-listens", tmp_path / "file.txt", checksum(TEXT), len(TEXT))
    with pytest.raises(UserError, match="could not download"):
        download("no address", tmp_path / "file.txt", checksum(TEXT), len(TEXT))


def test_shakespeare_is_downloaded_once(tmp_path, monkeypatch, server):
    monkeypatch.setenv("PICOGPT_SHAKESPEARE_URL", server + "/")
    with pytest.raises(UserError, match="not the file that was expected"):
        open_corpus(DataConfig(data="shakespeare"), tmp_path)
    monkeypatch.setattr(corpora, "_SHAKESPEARE_SHA256", checksum(TEXT))
    monkeypatch.setattr(corpora, "_SHAKESPEARE_SIZE", len(TEXT))
    corpus = open_corpus(DataConfig(data="shakespeare"), tmp_path)
    assert (corpus.name, text_of(corpus)) == ("shakespeare", TEXT)
    monkeypatch.setenv("PICOGPT_SHAKESPEARE_URL", "http://127.0.0.1:1")
    assert open_corpus(DataConfig(data="shakespeare"), tmp_path) == corpus
    (tmp_path / "tinyshakespeare.txt").write_text("hi", encoding="utf-8")
    with pytest.raises(UserError, match="is not tiny Shakespeare"):
        open_corpus(DataConfig(data="shakespeare"), tmp_path)


@pytest.mark.parametrize("names", [("sample", "x.txt"), ("x.txt", "shakespeare"), ("wiki",), ("x.txt", "hf:a/b")])
def test_names_that_are_no_files(tmp_path, names):
    with pytest.raises(UserError, match=r"by itself|is streamed"):
        open_corpus(DataConfig(names), tmp_path)


def test_standard_input_is_kept_by_its_content(tmp_path, monkeypatch):
    def opened(raw: bytes) -> Corpus:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        return open_corpus(DataConfig("-"), tmp_path / "dataset")

    first = opened(b"some text")
    assert text_of(first) == "some text" and opened(b"some text").signature == first.signature
    assert opened(b"other text").signature != first.signature
    with pytest.raises(UserError, match="the standard input is empty"):
        opened(b"")
    assert sorted(path.suffix for path in (tmp_path / "dataset").iterdir()) == [".txt", ".txt"]
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="no standard input"):
        open_corpus(DataConfig("-"), tmp_path)
