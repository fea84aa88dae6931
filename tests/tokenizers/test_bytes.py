"""Bytes as tokens: any text in any language comes back, and no text becomes a mark."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picogpt.tokenizers.base import MARKS, TextSize
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.bytes import ByteTokenizer
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer
from picogpt.tokenizers.ids import IdsTokenizer
from picogpt.tokenizers.registry import from_dict
from tests.support.running import status_of

BYTES = ByteTokenizer()
TEXT = st.text() | st.lists(st.sampled_from([*MARKS, "é", "日本", "🌞", "\n", "<|", "|>"])).map("".join)
TEXTS = {
    "russian": "Быть иль не быть, вот в чём вопрос. ",
    "chinese": "話說天下大勢分久必合合久必分。",
    "emoji": "🌞🌍🚀 👩‍👩‍👧 ",
    "odd": "\x00\x1b[2J\u202e\ufeff <|user|> ",
}


@given(TEXT)
def test_any_text_comes_back(text: str) -> None:
    ids = BYTES.encode(text)
    assert ids.dtype == BYTES.dtype and len(ids) == len(text.encode()) and (ids < 256).all()
    assert BYTES.decode(ids) == text and BYTES.unknown(text) == ""


@given(st.text(st.characters(exclude_categories=[]), min_size=1))
def test_lone_surrogates_are_read_as_a_mark(text: str) -> None:
    back = BYTES.decode(BYTES.encode(text))
    assert back == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert bool(BYTES.unknown(text)) == any("\ud800" <= c <= "\udfff" for c in text)


@given(TEXT, st.integers(0, 3))
def test_a_speller_gives_each_character_when_it_is_whole(text: str, mark: int) -> None:
    speller, ids = BYTES.speller(), [*BYTES.encode(text).tolist(), BYTES.special[MARKS[mark]]]
    pieces = [speller.piece(id) for id in ids]
    assert "".join(pieces) == text + MARKS[mark] and "\ufffd" not in "".join(pieces).replace(text, "")


@given(TEXT, st.sampled_from(MARKS))
def test_ids_know_how_much_text_they_are(text: str, mark: str) -> None:
    learnt = BpeTokenizer.from_corpus([text or "a"], 300)
    for tokenizer in (BYTES, learnt, CharTokenizer(text or "a")):
        ids = tokenizer.encode(text)
        if tokenizer.special:
            ids = np.append(ids, tokenizer.special[mark])  # which is no text
        assert tokenizer.text_size(ids) == TextSize(len(text), len(text.encode()))
    pico = PicoTokenizer()
    known = "".join(c for c in text if not pico.unknown(c))
    assert pico.text_size(pico.encode(known)) == TextSize(len(known), len(known))
    assert pico.text_size(pico.encode("é")) == TextSize(1, 1)
    assert IdsTokenizer(300).text_size(ids) == TextSize(0, 0)


@given(st.lists(st.integers(-5, 300), max_size=20))
def test_any_ids_are_text(ids: list[int]) -> None:
    assert isinstance(BYTES.decode(np.array(ids, np.int64)), str)


def test_marks_are_ids_where_they_are_meant() -> None:
    assert BYTES.vocab_size == 261 and BYTES.dtype == np.uint16
    assert BYTES.encode_marked("<|user|>é").tolist() == [258, 0xC3, 0xA9]
    assert BYTES.decode([258, 0x41, 256]) == "<|user|>A<|endoftext|>" and BYTES.end_of_text == 256
    back = from_dict(json.loads(json.dumps(BYTES.to_dict())))
    assert type(back) is ByteTokenizer and back.fingerprint() == BYTES.fingerprint()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_run_on_any_text(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_plots: None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(text * 60, encoding="utf-8")
    shape = ["--context-len", "16", "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--batch-size", "4"]
    words = ["train", "--data", "text.txt", "--tokenizer", "bytes", "--run", "b", "--steps", "4", "--lanes", "1"]
    assert status_of(*words, *shape, "--eval-interval", "2") == 0
    out = capsys.readouterr().out
    assert "bits/byte" in out and "alphabet" not in out
    written = []
    for engine in ("numpy", "onnx"):
        argv = [
            "--run",
            "b",
            "--prompt",
            text[:4],
            "--tokens",
            "30",
            "--temperature",
            "0",
            "--engine",
            engine,
            "--json",
        ]
        assert status_of("generate", *argv) == 0
        printed = capsys.readouterr()
        written.append(json.loads(printed.out)["text"])
        assert "alphabet" not in printed.err
    assert written[0] == written[1]
