"""Token shards and their preparation from a corpus."""

import json
import os
import shutil
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.config import DataConfig, UserError
from picogpt.data import corpora, formats, shards
from picogpt.data.prepare import Prepared, prepare, read_tokenizer, write_tokenizer
from picogpt.data.shards import Shards, ShardWriter, Span
from picogpt.data.tokenizer import CharTokenizer, PicoTokenizer

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
    st.sampled_from([np.uint8, np.uint16]),
    st.data(),
)
def test_read_is_the_concatenation(tmp_path_factory, parts, shard_tokens, dtype, data):
    with mock.patch.object(shards, "SHARD_TOKENS", shard_tokens):
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
    tokens.verify()


def test_reads_outside_are_refused(tmp_path):
    tokens = Shards(write(tmp_path / "tokens", IDS), "vocabulary")
    for start, stop in [(-1, 2), (0, 11), (3, 2)]:
        with pytest.raises(IndexError):
            tokens.read(start, stop)


def test_what_is_read_is_the_readers_own(tmp_path):
    tokens = Shards(write(tmp_path / "tokens", IDS), "vocabulary")
    tokens.read(0, 5)[:] = 9
    assert read_all(tokens).tolist() == IDS.tolist()


def test_a_span_is_all_there_is(tmp_path):
    span = Span(Shards(write(tmp_path / "tokens", IDS), "vocabulary"), 3, 8)
    assert len(span) == 5 and span.dtype == IDS.dtype and span.read(0, 5).tolist() == IDS[3:8].tolist()
    for start, stop in [(-1, 2), (0, 6), (3, 2)]:
        with pytest.raises(IndexError):
            span.read(start, stop)


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
    shards.write_index(folder, index)
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
    monkeypatch.setattr(shards, "_INDEX_LIMIT", 20)
    with pytest.raises(UserError, match="too large for an index"):
        Shards(folder, "vocabulary")
    write_tokenizer(tmp_path, PicoTokenizer())
    assert read_tokenizer(tmp_path).name == "picogpt"
    monkeypatch.setattr("picogpt.data.prepare._TOKENIZER_LIMIT", 5)
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
    shards.write_index(folder, index)
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
    monkeypatch.setattr(shards, "BLOCK_TOKENS", 4)
    folder = write(tmp_path / "tokens", IDS)
    path = folder / "00000.bin"
    path.write_bytes(patch(32 + 2 * 5, b"\xff")(path.read_bytes()))
    tokens = Shards(folder, "vocabulary")
    assert [*tokens.read(0, 4), *tokens.read(8, 10)] == [0, 1, 2, 3, 8, 9]
    for read in (lambda: tokens.read(3, 5), tokens.verify):
        with pytest.raises(
            UserError, match=r"00000.bin has a wrong checksum of ids 4 to 8: delete .*; it is made again"
        ):
            read()


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
    monkeypatch.setattr(shards, "SHARD_TOKENS", 4)
    folder = tmp_path / "tokens"
    writer = ShardWriter(folder, np.uint16, "vocabulary", "corpus")
    writer.append(IDS, ("a", 0))
    writer.seal(("a", 0))
    writer.append(IDS, ("a", 1))  # two shards are full and sealed, the third is not
    assert read_all(Shards(folder, "vocabulary")).tolist() == IDS.tolist()
    writer._file.close()  # as if it had been killed
    again = ShardWriter.resume(folder, "vocabulary", Shards(folder, "vocabulary").sources)
    assert len(shards._read_index(folder / "index.json", "vocabulary").shards) == 3  # and killed here it would be sound
    assert sorted(path.name for path in folder.glob("*.bin")) == ["00000.bin", "00001.bin", "00002.bin"]
    again.append(IDS[:3], ("a", 1))
    again.seal(("a", 1))
    assert read_all(Shards(folder, "vocabulary")).tolist() == [*IDS, 0, 1, 2]


def test_fingerprint_is_of_the_ids(tmp_path):
    changed = IDS.copy()
    changed[3] = 99
    names = [Shards(write(tmp_path / str(i), part), "vocabulary") for i, part in enumerate([IDS, IDS, changed])]
    assert names[0].fingerprint() == names[1].fingerprint() != names[2].fingerprint()


TEXT = "Hello, World! 😀 It is a fine day.\n" * 20


class Case:
    """One text file and the folder its tokens go to; `notices` collects what `prepare` said."""

    def __init__(self, root: Path) -> None:
        self.path = root / "text.txt"
        self.dataset = root / "dataset"
        self.notices: list[str] = []
        self.path.write_text(TEXT, encoding="utf-8")

    def prepare(self, tokenizer="picogpt", val_fraction=0.0) -> Prepared:
        data = DataConfig(data=str(self.path), tokenizer=tokenizer, val_fraction=val_fraction)
        return prepare(data, self.dataset, self.notices.append)

    def folders(self) -> list[Path]:
        return [path for path in (self.dataset / "tokens").iterdir() if path.name != ".lock"]


@pytest.fixture
def case(tmp_path) -> Case:
    return Case(tmp_path)


@pytest.mark.parametrize("tokenizer", ["picogpt", "chars"])
@pytest.mark.parametrize("val_fraction", [0.0, 0.5, 0.001, 0.999])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_prepare_splits_the_tokens_by_position(case, monkeypatch, tokenizer, val_fraction, block):
    monkeypatch.setattr(formats, "_BLOCK", block)
    prepared = case.prepare(tokenizer, val_fraction)
    expected = (PicoTokenizer() if tokenizer == "picogpt" else CharTokenizer(TEXT)).encode(TEXT)
    border = int(len(TEXT) * (1 - (val_fraction or 0.1)))
    assert prepared.tokenizer.name == tokenizer
    assert read_all(prepared.train).tolist() == expected[:border].tolist()
    assert read_all(prepared.val).tolist() == expected[border:].tolist()


@pytest.mark.parametrize("tokenizer", ["picogpt", "chars"])
def test_prepare_reuses_what_it_made(case, tokenizer):
    first = case.prepare(tokenizer)
    assert case.notices
    case.notices.clear()
    second = case.prepare(tokenizer)
    assert not case.notices
    assert second.fingerprint == first.fingerprint
    assert second.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert len(case.folders()) == 1


def test_prepared_fingerprint_is_of_the_content(case):
    prepared = [case.prepare(), case.prepare("chars"), case.prepare(val_fraction=0.2)]
    os.utime(case.path, ns=(1, 1))  # the file looks new and holds the same
    assert case.prepare().fingerprint == prepared[0].fingerprint
    case.path.write_text(TEXT.replace("fine", "dull"), encoding="utf-8")
    prepared.append(case.prepare())
    assert len({one.fingerprint for one in prepared}) == len(prepared)


@pytest.mark.parametrize("victim", ["tokenizer.json", "val/index.json", "train/00000.bin"])
@pytest.mark.parametrize("missing", [True, False])
def test_prepare_makes_a_damaged_folder_again_with_a_notice(case, victim, missing):
    fingerprint = case.prepare("chars").fingerprint
    [folder] = case.folders()
    if missing:
        (folder / victim).unlink()
    else:
        (folder / victim).write_bytes(b"{}")
    assert case.prepare("chars").fingerprint == fingerprint
    assert "again" in case.notices[1]
    assert case.folders() == [folder]


def test_prepare_yields_to_a_process_that_was_first(case):
    others: list[Prepared] = []

    def meanwhile(notice: str) -> None:
        others.append(case.prepare())

    data = DataConfig(data=str(case.path))
    mine = prepare(data, case.dataset, meanwhile)
    assert others and mine.fingerprint == others[0].fingerprint
    assert len(case.folders()) == 1
    others[0].train.verify()


def test_prepare_at_once_in_many_threads(case):
    start = threading.Barrier(4)
    fingerprints = []

    def work() -> None:
        start.wait()
        fingerprints.append(case.prepare("chars").fingerprint)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fingerprints) == 4 and len(set(fingerprints)) == 1
    assert len(case.folders()) == 1


@pytest.mark.parametrize("tokenizer", ["picogpt", "chars"])
def test_prepare_goes_on_after_what_was_sealed(case, monkeypatch, tokenizer):
    case.path.write_text("".join(f"line {number} of many\n" for number in range(2000)), encoding="utf-8")
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    monkeypatch.setattr(formats, "_BLOCK", 777)
    undisturbed = case.prepare(tokenizer)
    [folder] = case.folders()
    shutil.rmtree(folder)
    original, calls = ShardWriter.append, 0

    def append(writer: ShardWriter, ids: np.ndarray) -> None:
        nonlocal calls
        calls += 1
        if calls in (30, 70):
            raise KeyboardInterrupt
        original(writer, ids)

    monkeypatch.setattr(ShardWriter, "append", append)
    times = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            case.prepare(tokenizer)
        [work] = case.folders()
        times.append({path.name: path.stat().st_mtime_ns for path in (work / "train").glob("*.bin")})
    assert times[0] and times[0].items() < times[1].items()  # what was sealed is not written again
    again = case.prepare(tokenizer)
    assert again.fingerprint == undisturbed.fingerprint and case.folders() == [folder]


def test_prepare_leaves_nothing_behind_on_an_error(case, monkeypatch):
    case.path.write_bytes(b"good, then bad: \xff")
    with pytest.raises(UserError, match="not UTF-8 at byte 16"):
        case.prepare()
    assert case.folders() == []
    case.path.write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left on device"):
        case.prepare()
    assert case.folders() == []


def test_prepare_notices_a_text_that_changes_under_it(case, monkeypatch):
    texts = iter([["abc"], ["abcd"]])
    monkeypatch.setattr(corpora.Corpus, "documents", lambda corpus, advance: iter(next(texts)))
    with pytest.raises(UserError, match="changed while it was read"):
        case.prepare()
    assert case.folders() == []


def test_prepare_makes_flipped_tokens_again(case):
    prepared = case.prepare("chars")
    path = prepared.train.folder / "00000.bin"
    expected = prepared.train.read(0, len(prepared.train)).copy()
    del prepared
    damaged = bytearray(path.read_bytes())
    damaged[-2] ^= 1
    path.write_bytes(damaged)
    again = case.prepare("chars")
    assert any("wrong checksum" in notice for notice in case.notices)
    assert np.array_equal(again.train.read(0, len(again.train)), expected)


def test_prepare_tells_of_text_the_tokenizer_does_not_know(tmp_path):
    (tmp_path / "jp.txt").write_text("日本語の文章です。" * 50, encoding="utf-8")
    notices: list[str] = []
    prepare(DataConfig(data=str(tmp_path / "jp.txt")), tmp_path, notices.append)
    assert any("100% of the text is not in the tokenizer's alphabet" in notice for notice in notices)
