"""Token shards: written, sealed, read, and damaged."""

import json
import os
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from picogpt.data.shards import index
from picogpt.data.shards.index import read_index, write_index
from picogpt.data.shards.mapping import Part
from picogpt.data.shards.reader import Shards, Span
from picogpt.data.shards.writer import ShardWriter
from picogpt.data.token_folder import read_tokenizer, write_tokenizer
from picogpt.errors import UserError
from picogpt.tokenizers.characters import PicoTokenizer
from tests.support.shards import set_size

IDS = np.arange(10, dtype=np.uint16)
ENTRY = {"file": "00000.bin", "count": 10, "crc32": [zlib.crc32(IDS.data)], "source": None}


def write(folder: Path, *parts: np.ndarray, dtype=np.uint16) -> Path:
    with ShardWriter(folder, dtype, "vocabulary", "corpus") as writer:
        for part in parts:
            writer.append(part)
    return folder


def read_all(tokens: Shards) -> np.ndarray:
    return tokens.read(0, len(tokens))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 255), max_size=9), max_size=6),
    st.integers(1, 7),
    st.sampled_from([np.uint8, np.uint16, np.uint32]),
    st.data(),
)
def test_read_is_the_concatenation(tmp_path_factory, parts, shard_tokens, dtype, data):
    with pytest.MonkeyPatch.context() as patch:
        set_size(patch, "SHARD_TOKENS", shard_tokens)
        arrays = [np.array(part, dtype) for part in parts]
        folder = write(tmp_path_factory.mktemp("shards") / "tokens", *arrays, dtype=dtype)
    whole = np.concatenate([np.empty(0, dtype), *arrays])
    tokens = Shards(folder, "vocabulary")
    assert len(tokens) == len(whole) and tokens.dtype == dtype
    assert len(list(folder.glob("*.bin"))) == -(-len(whole) // shard_tokens)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    read = tokens.read(start, stop)
    assert read.dtype == dtype and read.tolist() == whole[start:stop].tolist()
    chunk = tokens.chunk(start, stop)
    assert len(chunk) == stop - start
    if start < stop:
        count = data.draw(st.integers(1, len(chunk)))
        windows = chunk.windows(np.arange(len(chunk) - count + 1), count)
        assert windows.dtype == dtype and np.array_equal(windows, sliding_window_view(read, count))
    tokens.verify()


def test_reads_outside_are_refused(tmp_path):
    tokens = Shards(write(tmp_path / "tokens", IDS), "vocabulary")
    for start, stop in [(-1, 2), (0, 11), (3, 2)]:
        for read in (tokens.read, tokens.chunk):
            with pytest.raises(IndexError):
                read(start, stop)


def test_what_is_read_is_the_readers_own(tmp_path):
    tokens = Shards(write(tmp_path / "tokens", IDS), "vocabulary")
    tokens.read(0, 5)[:] = 9
    assert read_all(tokens).tolist() == IDS.tolist()


def test_a_span_is_all_there_is(tmp_path):
    span = Span(Shards(write(tmp_path / "tokens", IDS), "vocabulary"), 3, 8)
    assert len(span) == 5 and span.dtype == IDS.dtype and span.read(0, 5).tolist() == IDS[3:8].tolist()
    assert ids_of(span.chunk(1, 5)) == IDS[4:8].tolist()
    for start, stop in [(-1, 2), (0, 6), (3, 2)]:
        for read in (span.read, span.chunk):
            with pytest.raises(IndexError):
                read(start, stop)


def test_file_is_a_little_endian_header_and_raw_ids(tmp_path):
    raw = (write(tmp_path / "tokens", IDS) / "00000.bin").read_bytes()
    assert raw[:24] == b"picogpt\0" + b"\2\0" + b"\2\0" + bytes(4) + b"\x0a" + bytes(7)
    assert raw[32:] == IDS.astype("<u2").tobytes()


def test_readers_see_only_what_is_sealed(tmp_path):
    folder = tmp_path / "tokens"
    writer = ShardWriter(folder, np.uint16, "vocabulary", "corpus")
    writer.append(IDS)
    with pytest.raises(UserError, match=r"index\.json cannot be read"):
        Shards(folder, "vocabulary")
    writer.seal()
    writer.append(IDS[:3])
    assert read_all(Shards(folder, "vocabulary")).tolist() == IDS.tolist()
    writer.seal()
    assert read_all(Shards(folder, "vocabulary")).tolist() == [*IDS, *IDS[:3]]
    assert not list(folder.glob("*.part"))


def test_an_error_drops_what_is_not_sealed(tmp_path):
    with pytest.raises(KeyError), ShardWriter(tmp_path / "tokens", np.uint16, "vocabulary", "corpus") as writer:
        writer.append(IDS)
        writer.seal()
        writer.append(IDS)
        raise KeyError
    assert read_all(Shards(tmp_path / "tokens", "vocabulary")).tolist() == IDS.tolist()
    assert {path.name for path in (tmp_path / "tokens").iterdir()} == {"00000.bin", "index.json"}


def test_ids_of_another_dtype_are_refused(tmp_path):
    with pytest.raises(TypeError), ShardWriter(tmp_path / "tokens", np.uint8, "vocabulary", "corpus") as writer:
        writer.append(IDS)


def patch(at: int, new: bytes):
    return lambda raw: raw[:at] + new + raw[at + len(new) :]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (patch(0, b"P"), "is not a token shard"),
        (lambda raw: raw[:20], "is not a token shard"),
        (lambda raw: b"", "is not a token shard"),
        (patch(8, b"\3"), "version 3"),
        (patch(10, b"\1"), "dtype code 1"),
        (patch(16, b"\x09"), "not complete"),
        (lambda raw: raw[:-1], "not complete"),
        (lambda raw: raw + b"\0", "not complete"),
        (patch(24, bytes(8)), "another vocabulary"),
    ],
)
def test_damaged_shards_are_named_with_the_repair(tmp_path, change, reason):
    folder = write(tmp_path / "tokens", IDS)
    path = folder / "00000.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=reason) as caught:
        Shards(folder, "vocabulary")
    assert str(path) in str(caught.value)
    assert f"delete {folder}; it is made again" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": 3}, "version 3"),
        ({"dtype": "float32"}, "not an index"),
        ({"tokenizer": "other"}, "another vocabulary"),
        ({"shards": None}, "not an index"),
        ({"shards": [ENTRY | {"file": "../00000.bin"}]}, "damaged entry 0"),
        ({"shards": [ENTRY | {"count": 0, "crc32": []}]}, "damaged entry 0"),
        ({"shards": [ENTRY | {"count": 10**30}]}, "damaged entry 0"),
        ({"shards": [ENTRY | {"crc32": 5}]}, "damaged entry 0"),
        ({"shards": [ENTRY | {"crc32": ["5"]}]}, "damaged entry 0"),
        ({"shards": [ENTRY | {"source": 5}]}, "damaged source"),
        ({"sources": [["file"]]}, "damaged source"),
        ({"shards": [{"file": "00000.bin", "count": 10}]}, "damaged entry 0"),
        ({"shards": [ENTRY | {"count": 11}]}, "not complete"),
        ({"dtype": "uint8"}, "dtype code 2"),
        ({"version": 2.0}, "not an index"),
        ({"tokenizer": "\n" * 5000}, r"another vocabulary \('\\n"),
        ({"shards": [ENTRY | {"count": True}]}, "damaged entry 0"),
        ({"shards": [ENTRY | {"count": -10}]}, "damaged entry 0"),
        *[({"shards": [ENTRY | {"crc32": [value]}]}, "damaged entry 0") for value in (True, -1, 1 << 32, 1.5, None)],
        *[({"sources": [["file", group]]}, "damaged source") for group in (True, -1, 1 << 40, 1.5, "1")],
        ({"sources": [["file", 1], ["other", 1], ["file", 1]]}, "source twice"),
        ({"shards": [ENTRY, ENTRY]}, "damaged entry 1"),
    ],
)
def test_damaged_indexes_are_refused(tmp_path, fields, reason):
    folder = write(tmp_path / "tokens", IDS)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8")) | fields
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UserError, match=r"wrong checksum|version 3|not an index"):
        Shards(folder, "vocabulary")
    del index["sha256"]
    write_index(folder, index)
    with pytest.raises(UserError, match=reason) as told:
        Shards(folder, "vocabulary")
    assert str(told.value).isprintable() and len(str(told.value)) < len(str(folder)) * 2 + 300


DEEP = b'{"version": 2, "a": ' + b"[" * 950 + b"]" * 950 + b"}"


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[]", b"5", b"[[1, 2]]", b"[" * 100_000, DEEP, b"9" * 5000])
def test_an_index_that_is_none_is_refused(tmp_path, raw):
    folder = write(tmp_path / "tokens", IDS)
    (folder / "index.json").write_bytes(raw)
    with pytest.raises(UserError, match="made again"):
        Shards(folder, "vocabulary")


def test_an_index_or_a_tokenizer_that_is_too_large(tmp_path, monkeypatch):
    folder = write(tmp_path / "tokens", IDS)
    monkeypatch.setattr(index, "_INDEX_LIMIT", 20)
    with pytest.raises(UserError, match="too large for an index"):
        Shards(folder, "vocabulary")
    write_tokenizer(tmp_path, PicoTokenizer())
    assert read_tokenizer(tmp_path).name == "picogpt"
    monkeypatch.setattr("picogpt.data.token_folder._TOKENIZER_LIMIT", 5)
    with pytest.raises(UserError, match="is not a tokenizer: delete"):
        read_tokenizer(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(field=st.sampled_from(["version", "dtype", "tokenizer", "corpus", "shards", "sources"]), value=JSON, whole=JSON)
def test_any_index_is_read_or_refused(tmp_path_factory, field, value, whole):
    folder = write(tmp_path_factory.mktemp("index") / "tokens", IDS)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8")) | {field: value}
    del index["sha256"]
    write_index(folder, index)
    with suppress(UserError):
        Shards(folder, "vocabulary")
    for name, load in (
        ("index.json", lambda: Shards(folder, "vocabulary")),
        ("tokenizer.json", lambda: read_tokenizer(folder)),
    ):
        (folder / name).write_text(json.dumps(whole), encoding="utf-8")
        with pytest.raises(UserError) as told:
            load()
        assert "\n" not in str(told.value)


def test_other_vocabulary_and_missing_shard_are_refused(tmp_path):
    folder = write(tmp_path / "tokens", IDS)
    with pytest.raises(UserError, match="another vocabulary"):
        Shards(folder, "other")
    (folder / "00000.bin").unlink()
    with pytest.raises(UserError, match=r"00000\.bin cannot be read"):
        Shards(folder, "vocabulary")


def test_a_flipped_bit_is_found_when_its_block_is_first_read(tmp_path, monkeypatch):
    set_size(monkeypatch, "BLOCK_TOKENS", 4)
    folder = write(tmp_path / "tokens", IDS)
    path = folder / "00000.bin"
    path.write_bytes(patch(32 + 2 * 5, b"\xff")(path.read_bytes()))
    tokens = Shards(folder, "vocabulary")
    assert [*tokens.read(0, 4), *tokens.read(8, 10)] == [0, 1, 2, 3, 8, 9]
    for read in (lambda: tokens.read(3, 5), lambda: tokens.chunk(3, 5), tokens.verify):
        with pytest.raises(
            UserError, match=r"00000.bin has a wrong checksum of ids 4 to 8: delete .*; it is made again"
        ):
            read()


def ids_of(chunk):
    return chunk.windows(np.zeros(1, np.int32), len(chunk))[0].tolist()


def test_a_chunk_is_a_map_of_the_file(tmp_path):
    folder = write(tmp_path / "tokens", IDS)
    chunk = Shards(folder, "vocabulary").chunk(2, 9)
    with (folder / "00000.bin").open("r+b") as file:
        file.seek(32 + 2 * 4)
        file.write(b"\x07\x00")
    assert ids_of(chunk) == [2, 3, 7, 5, 6, 7, 8]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets nobody cut a file that is mapped")
def test_a_file_cut_short_is_noticed_before_it_is_looked_at(tmp_path):
    folder = write(tmp_path / "tokens", IDS)
    tokens, path = Shards(folder, "vocabulary"), folder / "00000.bin"
    chunk = tokens.chunk(2, 9)
    os.truncate(path, 32 + 2 * 9)
    assert ids_of(chunk) == [2, 3, 4, 5, 6, 7, 8]  # the file ends with the last of them
    os.truncate(path, 32 + 2 * 8)
    with pytest.raises(UserError, match=r"00000.bin has been cut short: delete .*; it is made again"):
        ids_of(chunk)
    with pytest.raises(UserError, match="is cut short before id 9"):
        Part.mapped(path, IDS.dtype, 2, 7)


def test_what_may_vanish_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("picogpt.data.shards.reader.may_vanish", lambda folder: "nfs4")
    folder = write(tmp_path / "tokens", IDS)
    tokens = Shards(folder, "vocabulary")
    chunk = tokens.chunk(0, 10)
    (folder / "00000.bin").write_bytes(b"")
    assert ids_of(chunk) == IDS.tolist()
    assert tokens.note == "; they are read, not mapped, because nfs4 may vanish"


def test_readers_follow_a_writer(tmp_path):
    writer = ShardWriter(tmp_path / "tokens", np.uint16, "vocabulary", "corpus")
    writer.seal()
    tokens = Shards(tmp_path / "tokens", "vocabulary")
    for count in range(1, 4):
        writer.append(IDS[:count], ("file", count))
        assert tokens.refresh() == sum(range(count))
        writer.seal(("file", count))
        assert tokens.refresh() == sum(range(count + 1))
    assert read_all(tokens).tolist() == [0, 0, 1, 0, 1, 2] and tokens.sources == {("file", i) for i in (1, 2, 3)}


def test_what_a_source_left_unfinished_is_never_seen_and_made_again(tmp_path, monkeypatch):
    set_size(monkeypatch, "SHARD_TOKENS", 4)
    folder = tmp_path / "tokens"
    writer = ShardWriter(folder, np.uint16, "vocabulary", "corpus")
    writer.append(IDS, ("a", 0))
    writer.seal(("a", 0))
    writer.append(IDS, ("a", 1))  # two shards are full and sealed, the third is not
    assert read_all(Shards(folder, "vocabulary")).tolist() == IDS.tolist()
    writer._file.close()  # as if it had been killed
    again = ShardWriter.resume(folder, "vocabulary", Shards(folder, "vocabulary").sources)
    assert len(read_index(folder / "index.json", "vocabulary").shards) == 3  # and killed here it would be sound
    assert sorted(path.name for path in folder.glob("*.bin")) == ["00000.bin", "00001.bin", "00002.bin"]
    again.append(IDS[:3], ("a", 1))
    again.seal(("a", 1))
    assert read_all(Shards(folder, "vocabulary")).tolist() == [*IDS, 0, 1, 2]


def test_fingerprint_is_of_the_ids(tmp_path):
    changed = IDS.copy()
    changed[3] = 99
    names = [Shards(write(tmp_path / str(i), part), "vocabulary") for i, part in enumerate([IDS, IDS, changed])]
    assert names[0].fingerprint() == names[1].fingerprint() != names[2].fingerprint()
