"""A corpus made into token shards: once, in one piece, and whatever is in the way."""

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from picogpt.config import DataConfig
from picogpt.data.prepare import Prepared, prepare
from picogpt.data.shards.reader import Shards
from picogpt.data.shards.writer import ShardWriter
from picogpt.data.sources import corpora, formats
from picogpt.errors import UserError
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer
from picogpt.tokenizers.registry import TOKENIZERS
from tests.support.shards import set_size

TEXT = "Hello, World! 😀 It is a fine day.\n" * 20


def read_all(tokens: Shards) -> np.ndarray:
    return tokens.read(0, len(tokens))


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
    set_size(monkeypatch, "SHARD_TOKENS", 1000)
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


def test_a_tokenizer_made_from_the_corpus_may_have_an_end_of_text(tmp_path, monkeypatch):
    """It is known only after the first pass, which joins documents with blank lines until then."""

    class Ended(CharTokenizer):
        def __init__(self, chars: str, has_marks: bool = False) -> None:
            super().__init__(chars)
            self.end_of_text, self.vocab_size = len(self.chars), len(self.chars) + 1

    monkeypatch.setitem(TOKENIZERS, "chars", Ended)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(name * 100, encoding="utf-8")
    names = tuple(str(tmp_path / f"{name}.txt") for name in ("a", "b", "c"))
    prepared = prepare(DataConfig(data=names, tokenizer="chars"), tmp_path / "dataset", print)
    a, b, c, end = (*prepared.tokenizer.encode("abc"), prepared.tokenizer.end_of_text)
    ids = [*read_all(prepared.train), *read_all(prepared.val)]
    assert ids == [*[a] * 100, end, *[b] * 100, end, *[c] * 100, end]
    assert len(prepared.train) == 2 * 101 + 70


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


FOREIGN = "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002\n" * 40


@pytest.mark.parametrize(
    ("text", "is_refused", "share"),
    [
        (FOREIGN, True, "90%"),
        ("a" * 9000 + FOREIGN * 20, True, "42%"),  # only at its end
        ("plain words " * 1000 + FOREIGN, False, "3%"),
        ("plain words " * 1000, False, ""),
    ],
)
def test_a_text_the_tokenizer_does_not_know_is_refused(
    text: str, is_refused: bool, share: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night on it would teach a model to write the mark for unknown characters."""
    monkeypatch.setattr("picogpt.data.sources.formats._BLOCK", 500)
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    data, notices = DataConfig(str(tmp_path / "text.txt")), list[str]()
    if is_refused:
        with pytest.raises(
            UserError, match=r"unknown to the tokenizer picogpt .*: take --tokenizer bpe, or bytes"
        ) as told:
            prepare(data, tmp_path / "dataset", notices.append)
        assert share in str(told.value) and "--allow-unknown" in str(told.value) and "\n" not in str(told.value)
        assert not list((tmp_path / "dataset").glob("tokens/*/*"))
    prepare(replace(data, allow_unknown=True), tmp_path / "dataset", notices.append)
    assert any(f"{share} of the text is unknown" in notice for notice in notices) is bool(share)
    if is_refused:  # also where the tokens are there already
        with pytest.raises(UserError, match="--allow-unknown trains on it all the same"):
            prepare(data, tmp_path / "dataset", notices.append)


@pytest.mark.parametrize("name", ["bytes", "bpe:300", "chars"])
def test_other_tokenizers_know_any_text(name: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(FOREIGN, encoding="utf-8")
    notices: list[str] = []
    found = prepare(DataConfig(str(tmp_path / "text.txt"), name), tmp_path / "dataset", notices.append)
    assert not any("unknown" in notice for notice in notices)
    assert FOREIGN.startswith(found.tokenizer.decode(found.train.read(0, 30))[:8])


def test_a_model_that_does_not_know_the_text_is_not_tuned_on_it(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(FOREIGN, encoding="utf-8")
    with pytest.raises(UserError, match="train from scratch with --tokenizer bpe"):
        prepare(DataConfig(str(tmp_path / "text.txt")), tmp_path / "dataset", print, PicoTokenizer())
