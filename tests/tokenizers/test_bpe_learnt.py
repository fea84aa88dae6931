"""Byte-level BPE that is learnt from the text to train on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from picogpt.config import DataConfig
from picogpt.data.prepare import prepare, training_text
from picogpt.data.sources.corpora import open_corpus
from picogpt.data.split import Surveyor
from picogpt.errors import UserError
from picogpt.tokenizers.base import MARKS
from picogpt.tokenizers.bpe import DEFAULT_SIZE, SIZES, BpeTokenizer
from picogpt.tokenizers.registry import from_dict, unit_of
from tests.support.paths import ROOT
from tests.support.running import status_of

TEXT = "she sells sea shells by the sea shore; все счастливые семьи похожи друг на друга, 話說天下大勢。\n" * 50
SMALL = BpeTokenizer.from_corpus([TEXT], 340)
ANY = st.text() | st.lists(st.sampled_from([*MARKS, "she", " sea", "話說", "🌞", "\n\n", "<|", "\u0301"])).map("".join)


@given(ANY)
def test_any_text_comes_back_and_none_becomes_a_mark(text: str) -> None:
    ids = SMALL.encode(text)
    assert SMALL.decode(ids) == text and SMALL.unknown(text) == ""
    assert not set(ids.tolist()) & set(SMALL.special.values())


@settings(max_examples=50)
@given(ANY)
def test_a_speller_never_shows_half_a_character(text: str) -> None:
    speller = SMALL.speller()
    shown = "".join(map(speller.piece, SMALL.encode(text).tolist()))
    assert shown + speller.end() == text


def test_it_has_the_size_and_the_marks_last() -> None:
    assert SMALL.vocab_size == 340 and SMALL.dtype == np.uint16 and unit_of("bpe:340") == unit_of("bpe") == "token"
    assert list(SMALL.special) == list(MARKS) and list(SMALL.special.values()) == list(range(335, 340))
    assert SMALL.end_of_text == 335 and SMALL.encode_marked("<|user|>").tolist() == [337]
    assert len(SMALL.encode(TEXT)) < len(TEXT.encode()) / 2.5
    back = from_dict(json.loads(json.dumps(SMALL.to_dict())))
    assert back.fingerprint() == SMALL.fingerprint() and back.encode(TEXT).tolist() == SMALL.encode(TEXT).tolist()


def test_a_small_text_has_fewer_pieces() -> None:
    assert 261 < BpeTokenizer.from_corpus(["the sea, the sea"], 4096).vocab_size < 300
    assert BpeTokenizer.from_corpus([], 300).vocab_size == 261
    with pytest.raises(UserError, match="bytes and marks alone are 261"):
        BpeTokenizer.from_corpus([TEXT], 260)


def test_other_programs_read_it() -> None:
    library = Library.from_str(SMALL.tokenizer_json())
    assert library.encode(TEXT).ids == SMALL.encode(TEXT).tolist()
    assert library.decode(SMALL.encode(TEXT).tolist()) == TEXT


@pytest.mark.parametrize("threads", ["1", "2", "7"])
def test_it_is_the_same_with_any_number_of_threads(threads: str) -> None:
    program = (
        "import sys; from picogpt.tokenizers.bpe import BpeTokenizer\n"
        f"text = {TEXT[:94]!r} * 50\n"
        "print(BpeTokenizer.from_corpus([text[i:i + 100] for i in range(0, len(text), 100)], 380).fingerprint())"
    )
    environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    pieces = [(TEXT[:94] * 50)[i : i + 100] for i in range(0, 94 * 50, 100)]
    assert done.stdout.strip() == BpeTokenizer.from_corpus(pieces, 380).fingerprint()


@pytest.mark.parametrize("documents", [1, 40])
def test_it_learns_nothing_from_the_text_to_validate_with(documents: int, tmp_path: Path) -> None:
    """The words of the validation text are in no piece."""
    if documents == 1:
        (tmp_path / "one.txt").write_text("common words and nothing else. " * 900 + "zyxwvu " * 300, encoding="utf-8")
    for number in range(1, documents + 1) if documents > 1 else ():
        is_validation = number % 20 == 0
        text = ("zyxwvu " if is_validation else "common words and nothing else. ") * 40
        (tmp_path / f"{number:02}.txt").write_text(text, encoding="utf-8")
    paths = tuple(map(str, sorted(tmp_path.glob("*.txt"))))
    data = DataConfig(paths, "bpe:320", val_fraction=0.1 if documents == 1 else 0.05)
    found = prepare(data, tmp_path / "dataset", lambda _: None)
    spellings = [found.tokenizer.spell(id) for id in range(found.tokenizer.vocab_size - len(MARKS))]
    assert b" words" in spellings and not any(b"zy" in spelling for spelling in spellings)
    assert "zyxwvu" in found.tokenizer.decode(found.val.read(0, len(found.val)))


def test_a_large_text_is_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("picogpt.data.prepare._LEARNT_FROM", 2000)
    monkeypatch.setattr("picogpt.data.prepare._LEAST", 500)
    seen: list[str] = []
    original = BpeTokenizer.from_corpus.__func__  # type: ignore[attr-defined]

    def noted(cls: type[BpeTokenizer], texts: list[str], size: int = 0) -> BpeTokenizer:
        seen.extend(texts)
        tokenizer: BpeTokenizer = original(cls, seen, size)
        return tokenizer

    monkeypatch.setattr(BpeTokenizer, "from_corpus", classmethod(noted))
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text(f"text number {number}. " * 30, encoding="utf-8")
    prepare(DataConfig(str(tmp_path), "bpe:300"), tmp_path / "dataset", lambda _: None)
    assert 1500 < sum(map(len, seen)) < 3000
    numbers = [int(text.split()[2].rstrip(".")) for text in seen]
    assert numbers[0] < 8 and numbers[-1] > 25 and numbers == sorted(numbers)


def test_a_text_of_long_words_is_learnt_from_less_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chinese has no spaces: what comes between two commas is one word, and few of these come twice."""
    monkeypatch.setattr("picogpt.data.prepare._LEARNT_FROM", 20_000)
    monkeypatch.setattr("picogpt.data.prepare._LEAST", 2_000)
    taken = {}
    for name, text in (("en", "a few short words. "), ("zh", "話說天下大勢分久必合合久必分周末七國分爭并入于秦\n")):
        for number in range(40):
            (tmp_path / f"{name}{number:02}.txt").write_text(text * (900 // len(text)), encoding="utf-8")
        corpus = open_corpus(DataConfig(tuple(map(str, tmp_path.glob(f"{name}*.txt")))), tmp_path)
        surveyor = Surveyor(corpus)
        total = sum(map(len, surveyor.pieces()))
        taken[name] = sum(map(len, training_text(corpus, DataConfig(), surveyor.survey))) / total
    assert taken["en"] > 0.45 and taken["zh"] < 0.3


@pytest.mark.parametrize("text", ["acgt" * 60_000, "\U0001f600\U0001f31e" * 100_000, " " * 300_000, "ab\n" * 90_000])
def test_a_text_without_words_is_learnt_in_no_time(text: str) -> None:
    """A word of 100,000 characters would take seconds and one of a megabyte minutes, or become one token."""
    learnt = BpeTokenizer.from_corpus([text], 600)
    spellings = [learnt.spell(id) for id in range(learnt.vocab_size)]
    assert max(map(len, spellings)) <= 64 and learnt.decode(learnt.encode(text)) == text


@pytest.mark.parametrize("characters", [50_000, 300_000, 1_000_000, 2_500_000])
def test_the_default_size_follows_the_length_of_the_text(characters: int) -> None:
    words = [f"{word:x} " for word in range(20_000)]
    text = "".join(words) * (1 + characters // 100_000)
    learnt = BpeTokenizer.from_corpus([text[:characters]])
    assert learnt.vocab_size == next((size for least, size in SIZES if characters < least), DEFAULT_SIZE)
    again = BpeTokenizer.from_corpus([text[:characters]], learnt.vocab_size)
    assert again.fingerprint() == learnt.fingerprint()  # the first pieces of a larger one are those of a smaller one


@given(st.integers(261, 340))
@settings(max_examples=20, deadline=None)
def test_a_shortened_tokenizer_is_the_one_that_would_have_been_learnt(size: int) -> None:
    assert SMALL.shortened(size).to_dict() == BpeTokenizer.from_corpus([TEXT], size).to_dict()


@pytest.mark.parametrize("name", ["bpe:", "bpe:12", "bpe:0400", "bpe:x", "bytes:300", "gpt2", "bpe:99999999"])
def test_names_that_are_none_are_one_line(name: str) -> None:
    with pytest.raises(UserError, match="tokenizer"):
        DataConfig(tokenizer=name)


def test_a_run_from_the_text_to_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_plots: None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT * 3, encoding="utf-8")
    shape = ["--context-len", "16", "--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--batch-size", "4"]
    words = ["train", "--data", "text.txt", "--tokenizer", "bpe:350", "--run", "b", "--lanes", "1", *shape]
    assert status_of(*words, "--steps", "4", "--eval-interval", "2") == 0
    assert "bits/byte" in capsys.readouterr().out
    assert status_of(*words, "--steps", "6", "--eval-interval", "2") == 0
    assert "continuing run b after step 4" in capsys.readouterr().out
    written = []
    for engine in ("numpy", "onnx"):
        argv = ["--run", "b", "--prompt", "she", "--tokens", "40", "--temperature", "0", "--engine", engine, "--json"]
        assert status_of("generate", *argv) == 0
        written.append(json.loads(capsys.readouterr().out)["text"])
    assert written[0] == written[1]
