"""Files of every kind -> the same documents."""

import bz2
import gzip
import json
import lzma
import random
import shutil
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from picogpt.config import DataConfig
from picogpt.data.prepare import prepare
from picogpt.data.sources import formats
from picogpt.data.sources.corpora import columns_of, open_corpus
from picogpt.data.sources.formats import Columns, documents, kind_of
from picogpt.errors import UserError

COMPRESS = {
    "": lambda raw: raw,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pa.compress(raw, "zstd", asbytes=True),
}
TEXTS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\r\ufeff"), min_size=1), min_size=1, max_size=8
)


def as_jsonl(texts: list[str], field: str = "text") -> bytes:
    return "\n\n".join(json.dumps({"n": 1, field: text}) for text in texts).encode()


def as_parquet(texts: list[str], field: str = "text", rows: int = 3) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"n": range(len(texts)), field: texts}), sink, row_group_size=rows)
    return sink.getvalue().to_pybytes()


def read(path: Path, columns: Columns = Columns()) -> list[str]:  # noqa: B008
    return ["".join(document) for document in documents(path, columns)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@pytest.mark.parametrize("suffix", COMPRESS)
@settings(max_examples=20, deadline=None)
@given(texts=TEXTS)
def test_every_kind_gives_its_documents_back(folder: Path, suffix: str, texts: list[str]) -> None:
    kinds = {
        ".txt": texts[0].encode(),
        ".md": texts[0].encode(),
        ".jsonl": as_jsonl(texts),
        ".parquet": as_parquet(texts),
    }
    for kind, raw in kinds.items():
        path = folder / f"file{kind}{suffix}"
        path.write_bytes(COMPRESS[suffix](raw))
        assert read(path) == (texts if kind in (".jsonl", ".parquet") else texts[:1]), kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.txt", ".txt"), ("a.TXT.GZ", ".txt"), ("a.jsonl.zst", ".jsonl"), ("a.gz", ""), ("a.csv", ""), ("a", "")],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(Path(name)) == kind


def test_other_fields_and_rows_without_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one"}\n{"body": null}\n{"body": ""}\n{"body": "two", "text": "no"}\n', encoding="utf-8")
    assert read(path, Columns("body")) == ["one", "two"]


def test_questions_and_answers(tmp_path: Path) -> None:
    rows = [{"question": "Who?", "response": "Me."}, {"question": "What?", "response": ""}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    columns = columns_of(DataConfig(qa=" question, response"))
    for name in ("a.jsonl", "a.parquet"):
        assert read(tmp_path / name, columns) == ["<Q>Who?</Q>\n<A>Me.</A>"]
    prepared = prepare(DataConfig(str(tmp_path / "a.jsonl"), qa="question,response", val_fraction=0.5), tmp_path, print)
    ids = [*prepared.train.read(0, len(prepared.train)), *prepared.val.read(0, len(prepared.val))]
    special = prepared.tokenizer.special
    marks = [special[name] for name in ("<Q>", "</Q>", "<A>", "</A>")]
    assert [token for token in ids if token >= 75] == marks
    assert prepared.tokenizer.decode(ids) == "<Q>who?</Q>\n<A>me.</A>"


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("a.jsonl", b'{"text": "good"}\n{"text": \n', "has no JSON in line 2"),
        ("a.jsonl", b'{"body": "x"}', r"no field 'text' in line 1 \(it has body\): use --text-field"),
        ("a.jsonl", b"[1]", "no field 'text' in line 1 .it has no object"),
        ("a.jsonl", b'{"text": "\xff"}', "has no JSON in line 1"),
        ("a.parquet", b"PAR1 is not enough PAR1", "is no parquet file"),
        ("a.parquet", as_parquet(["x"], "body"), r"no column 'text' \(it has n, body\): use --text-field"),
        ("a.txt.gz", b"this is not gzip", "cannot be read: Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"whole" * 100)[:-9], "is damaged"),
        ("a.txt.bz2", b"this is not bzip2", "cannot be read"),
        ("a.txt.xz", b"this is not xz", "is damaged"),
        ("a.txt.zst", b"this is not zstd", "cannot be read"),
        ("a.txt.xz", lzma.compress(b"bad \xff"), "is not UTF-8 at byte 4"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, name: str, raw: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(UserError, match=reason) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@settings(max_examples=20, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\r\ufeff"), min_size=1))
def test_a_byte_order_mark_says_how_to_read(folder: Path, encoding: str, text: str) -> None:
    mark = "\ufeff" if encoding.endswith("e") else ""  # the other two write it themselves
    (folder / "marked.txt").write_bytes((mark + text).encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_BLOCK", 5)  # so that a character goes across the end of a block
        assert "".join(read(folder / "marked.txt")) == text


@pytest.mark.parametrize(
    ("name", "raw", "way"),
    [
        ("old.txt", "caf\xe9".encode("latin-1"), "`iconv -f WINDOWS-1252 -t UTF-8 {path} > {folder}/old-utf8.txt`"),
        ("a b.txt", b"\xff", "UTF-8 '{path}' > '{folder}/a b-utf8.txt'`"),
        ("half.txt", b"\xff\xfea\x00b", "half.txt is not UTF-16 at byte 4: "),
        ("paper.txt", b"%PDF-1.7\n\xe2\xe3", "make text of it with `pdftotext {path} {folder}/paper.pdf.txt`"),
    ],
)
def test_what_is_no_text_says_how_to_make_some(tmp_path: Path, name: str, raw: bytes, way: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError) as told:
        read(tmp_path / name)
    assert way.format(path=tmp_path / name, folder=tmp_path) in str(told.value)


@pytest.mark.parametrize(("name", "program"), [("a.pdf", "pdftotext"), ("a.docx", "pandoc"), ("a.html", "pandoc")])
def test_documents_of_other_programs(tmp_path: Path, name: str, program: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"make text of it with `{program} "):
        open_corpus(DataConfig(str(tmp_path / name)), tmp_path)


def test_a_column_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(as_parquet(["x"]))
    with pytest.raises(UserError, match="no text in its column 'n' but int64"):
        read(tmp_path / "a.parquet", Columns("n"))


def test_a_damaged_row_group(tmp_path: Path) -> None:
    raw = bytearray(as_parquet(["some text that is stored as it is " * 50], rows=1))
    raw[4:400] = bytes(396)
    (tmp_path / "a.parquet").write_bytes(raw)
    with pytest.raises(UserError, match="is damaged in row group 0"):
        read(tmp_path / "a.parquet")


def test_a_damaged_footer_and_a_column_twice(tmp_path: Path) -> None:
    raw = bytearray(as_parquet(["x"]))
    raw[-60:-8] = bytes(52)
    (tmp_path / "a.parquet").write_bytes(raw)
    with pytest.raises(UserError, match="is no parquet file") as caught:
        read(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value)
    parquet.write_table(pa.table([["x"], ["y"]], names=["text", "text"]), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="has several columns 'text'"):
        read(tmp_path / "b.parquet")


def test_several_paths_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name, text in (("b.txt", "first\n"), ("more/c.md", "second"), ("more/a.jsonl", '{"text": "third"}')):
        (tmp_path / name).write_text(text, encoding="utf-8")
    data = DataConfig((str(tmp_path / "b.txt"), str(tmp_path / "more")))
    corpus = open_corpus(data, tmp_path)
    assert "".join(corpus.text()) == "first\n\nthird\n\nsecond"
    assert corpus.name == "b" and "3 text files" in corpus.source


def test_documents_of_a_collection_are_split_whole(tmp_path: Path) -> None:
    texts = [f"document {number:03d} ends." for number in range(100)]
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(texts))
    prepared = prepare(DataConfig(str(tmp_path / "a.jsonl")), tmp_path, print)
    parts = [prepared.tokenizer.decode(part.read(0, len(part))) for part in (prepared.train, prepared.val)]
    train, val = (part.split("\n\n") for part in parts)
    assert len(train) == 95 and len(val) == 5
    assert sorted(train + val) == texts


def test_progress_counts_every_byte_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text " * 1000, encoding="utf-8")
    read: list[int] = []
    totals = set()
    prepare(
        DataConfig(str(tmp_path / "a.txt")), tmp_path, print, advance=lambda n, of: (read.append(n), totals.add(of))
    )
    assert sum(read) == 20_000 and totals == {20_000}


# Files that are made to do harm


@settings(max_examples=60, deadline=None)
@given(
    streams=st.lists(st.binary(max_size=3000), min_size=1, max_size=3),
    padding=st.integers(0, 3),
    size=st.integers(1, 5000),
)
def test_xz_is_read_as_the_library_reads_it(folder: Path, streams: list[bytes], padding: int, size: int) -> None:
    path = folder / "streams.xz"
    path.write_bytes(b"".join(lzma.compress(stream) + bytes(4 * padding) for stream in streams))
    with path.open("rb") as raw, formats._decompressed(path, raw) as file:
        assert b"".join(iter(lambda: file.read(size), b"")) == b"".join(streams)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_raise_nothing_but_usererror(folder: Path, data: st.DataObject) -> None:
    suffix, kind = data.draw(st.sampled_from([*COMPRESS])), data.draw(st.sampled_from([".txt", ".jsonl", ".parquet"]))
    raw = {".txt": b"some text\n" * 20, ".jsonl": as_jsonl(["a", "b", "c"]), ".parquet": as_parquet(["a", "b", "c"])}[
        kind
    ]
    content = bytearray(COMPRESS[suffix](raw))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / f"damaged{kind}{suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        read(path)
    except UserError as told:
        assert "\n" not in str(told)


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_LINE", 1 << 20)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "fine"}\n{"text": "' + bytes(50 << 20), 1))
    tracemalloc.start()
    with pytest.raises(UserError, match="has more than 1 MB in line 2: give each text a line"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("line", [b"9" * 5000, b"[" * 100_000, b'{"text": ' + b"9" * 5000 + b"}", b'{"a": "\xff"}'])
def test_a_line_that_cannot_be_read(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(line)
    with pytest.raises(UserError, match="has no JSON in line 1"):
        read(tmp_path / "a.jsonl")


def test_names_of_fields_that_are_made_to_confuse(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"\n\x1b[31m\ud800" + "x" * 1000: 1}), encoding="utf-8")
    parquet.write_table(pa.table({"\n\x1b[31m" + "x" * 1000: [1]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises(UserError, match=r"it has \\n\\x1b\[31m") as told:
            read(tmp_path / name)
        assert str(told.value).isprintable() and len(str(told.value)) < len(str(tmp_path)) + 200


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESS if suffix])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_what_unpacks_without_end(tmp_path: Path, suffix: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_PLAUSIBLE", 2 << 20)
    monkeypatch.setattr(formats, "_RATIO", 10)
    path = tmp_path / f"bomb{kind}{suffix}"
    path.write_bytes(COMPRESS[suffix](b"\n" * (3 << 20)))
    with pytest.raises(UserError, match=r"unpacks to more than 0\.0 GB: that is no text"):
        read(path)
    path.write_bytes(COMPRESS[suffix](b"\n" * (2 << 20)))
    if kind == ".txt":
        assert read(path) == ["\n" * (2 << 20)]


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESS if suffix])
def test_unpacking_takes_little_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"large.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](random.Random(0).randbytes(1 << 19).hex().encode()) * 40)
    tracemalloc.start()
    assert sum(len(piece) for document in documents(path, Columns()) for piece in document) == 40 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_what_takes_much_memory_to_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_XZ_MEMORY", 1 << 20)
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"text"))
    with pytest.raises(UserError, match=r"is damaged \(Memory usage limit exceeded"):
        read(tmp_path / "a.txt.xz")
    frame = b"\x28\xb5\x2f\xfd\x00\xf8" + b"\x21\x00\x00text"  # whose window has two terabytes
    (tmp_path / "a.txt.zst").write_bytes(frame)
    with pytest.raises(UserError, match=r"cannot be read: .* too much memory"):
        read(tmp_path / "a.txt.zst")


def test_a_packed_table_that_does_not_fit_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet.gz"
    path.write_bytes(gzip.compress(as_parquet(["x"])))
    assert read(path) == ["x"]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=usage.total // 20))
    with pytest.raises(UserError, match=r"there is no room in .* to unpack .*: unpack it elsewhere"):
        read(path)


def test_a_few_bytes_that_stand_for_many_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_PLAUSIBLE", 64 << 20)
    monkeypatch.setattr(formats, "_TABLE_RATIO", 2)
    path = tmp_path / "a.parquet"
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["x" * (1 << 20)]))
    parquet.write_table(pa.table({"text": one}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 10_000
    taken: list[int] = []
    with pytest.raises(UserError, match=r"unpacks to more than 0\.1 GB: that is no text"):
        for _ in documents(path, Columns()):
            taken.append(pa.total_allocated_bytes())
    assert len(taken) == 64 and max(taken) < 64 << 20
    monkeypatch.setattr(formats, "_TABLE", 1 << 20)
    with pytest.raises(UserError, match="it says that it unpacks to more than 2 times its size"):
        read(path)


def test_a_column_whose_name_is_no_text(tmp_path: Path) -> None:
    raw = as_parquet(["x"], "abcd").replace(b"abcd", b"\xff\xfe\xfd\xfc")
    (tmp_path / "a.parquet").write_bytes(raw)
    with pytest.raises(UserError, match="is no parquet file") as told:
        read(tmp_path / "a.parquet")
    assert str(told.value).isprintable()


def test_a_footer_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_FOOTER", 100)
    (tmp_path / "a.parquet").write_bytes(as_parquet(["x"]))
    with pytest.raises(UserError, match="its footer is too large"):
        read(tmp_path / "a.parquet")
