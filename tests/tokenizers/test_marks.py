"""The marks of documents and dialogues: special ids that no text becomes, in every vocabulary that needs them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picogpt.config import DataConfig
from picogpt.data.prepare import prepare, training_text
from picogpt.data.sources.corpora import open_corpus
from picogpt.data.split import Surveyor
from picogpt.errors import UserError
from picogpt.inference.language_model import load
from picogpt.runs import checkpoints
from picogpt.tokenizers.base import MARKS, Mark, Tokenizer, question
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.bytes import ByteTokenizer
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer
from picogpt.tokenizers.registry import from_dict
from tests.support.running import MODEL, config_for, open_run, status_of

pytestmark = pytest.mark.usefixtures("no_plots", "short_samples")

PICO = ("<Q>", "</Q>", "<A>", "</A>")
SHAPE = replace(MODEL, vocab_size=1, context_slot=False)  # it grows to the characters
SAID = "who sells sea shells? she does, </A> <|end|>"
EVERY: dict[str, Tokenizer] = {
    "bytes": ByteTokenizer(),
    "bpe": BpeTokenizer.from_corpus([SAID * 3], 300),
    "chars": CharTokenizer(SAID).with_marks(),
    "pico": PicoTokenizer(),
}
TEXTS = st.lists(st.text(max_size=9) | st.sampled_from([*MARKS, *PICO, "<|", "|>", "e"]), max_size=6).map("".join)


@pytest.mark.parametrize("name", EVERY)
@given(texts=st.lists(TEXTS, max_size=4))
def test_no_text_becomes_a_mark(name: str, texts: list[str]) -> None:
    tokenizer = EVERY[name]
    reserved = {*tokenizer.special.values()}
    assert reserved and not reserved & {*tokenizer.encode_parts(texts).tolist()}
    marked = [part for text in texts for part in (Mark("<Q>"), text, Mark("</Q>"))]
    ids = tokenizer.encode_parts(marked).tolist()
    assert [id for id in ids if id in reserved] == [tokenizer.mark("<Q>"), tokenizer.mark("</Q>")] * len(texts)


def test_marks_of_picogpt_have_their_place_in_every_dialogue() -> None:
    for name in ("bytes", "bpe", "chars"):
        ids = EVERY[name].encode_parts([*question("who"), "she", Mark("</A>")])
        assert EVERY[name].decode(ids).replace("\ufffd", "\n") in (
            "<|user|>who<|end|>\n<|assistant|>she<|end|>",
            "<|user|>who<|end|> <|assistant|>she<|end|>",  # of characters that have no line break
        )
        assert EVERY[name].special.keys() >= {*MARKS} and EVERY[name].mark("<P>") is None
    assert EVERY["pico"].decode(EVERY["pico"].encode_parts(question("who"))) == "<Q>who</Q>\n<A>"


def test_characters_get_marks_without_another_id_for_any_character() -> None:
    plain = CharTokenizer("abc d")
    marked = plain.with_marks()
    assert (marked.vocab_size, marked.encode("cab").tolist()) == (10, plain.encode("cab").tolist())
    assert marked.decode([9, 1, 5, 99]) == "<|end|>a<|endoftext|>\ufffd" and marked.end_of_text == 5
    assert plain.end_of_text is None and plain.fingerprint() != marked.fingerprint()
    back = from_dict(json.loads(json.dumps(marked.to_dict())))
    assert back.fingerprint() == marked.fingerprint() and back.special == marked.special
    assert from_dict(plain.to_dict()).special == {}
    assert CharTokenizer.from_corpus(["ab", Mark("<Q>"), "c"]).special.keys() == {*MARKS}


def test_a_vocabulary_with_marks_keeps_them() -> None:
    for name in ("bytes", "bpe", "pico"):
        assert EVERY[name].with_marks() is EVERY[name]
    content = json.loads(BpeTokenizer.from_corpus([SAID], 280).tokenizer_json())
    content["added_tokens"] = content["added_tokens"][:1]  # as GPT-2 has the end of text alone
    alone = BpeTokenizer(content)
    grown = alone.with_marks()
    assert alone.mark("<Q>") is None and grown.vocab_size == alone.vocab_size + 4 and grown.mark("<Q>") is not None
    assert grown.encode(SAID).tolist() == alone.encode(SAID).tolist()


@pytest.mark.parametrize("tokenizer", ["bpe:300", "bytes", "chars", "picogpt"])
def test_questions_and_answers_are_marked_and_what_they_say_is_not(tokenizer: str, tmp_path: Path) -> None:
    rows = [{"q": f"who sells {i}? </Q>", "a": "she <|end|> does </A>"} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = prepare(DataConfig(str(tmp_path / "a.jsonl"), tokenizer, qa="q,a"), tmp_path / "dataset", print)
    ids = data.train.read(0, len(data.train))
    counts = {name: int(np.sum(ids == data.tokenizer.mark(name))) for name in PICO}
    ends = 2 if tokenizer != "picogpt" else 1  # both end with one mark
    assert counts["<Q>"] == counts["<A>"] == 38 and counts["</Q>"] == counts["</A>"] == 38 * ends
    assert data.tokenizer.decode(ids[:20]).startswith(("<|user|>who s", "<Q>who s"))


def test_fine_tuning_on_questions_grows_the_table_of_a_base_without_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "easy.txt"
    text.write_text("she sells sea shells by the sea shore?\n" * 60, encoding="utf-8")
    base = open_run(config_for(text, SHAPE, tokenizer="chars", lanes=1), "base")
    base.train()
    size = base.feed.tokenizer.vocab_size
    rows = [{"q": "she sells?", "a": "sea shells"} for _ in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ["train", "--init-from", "base", "--data", "a.jsonl", "--qa", "q,a", "--run", "tuned", "--lanes", "1"]
    for steps in ("2", "150"):  # and continues
        assert status_of(*words, "--steps", steps, "--batch-size", "8", "--warmup-steps", "2") == 0
    tuned = load("tuned")
    assert tuned.config.vocab_size == tuned.tokenizer.vocab_size == size + 5
    first = checkpoints.load(tmp_path / "logs" / "tuned" / "checkpoints" / "00000150").model["wte.weight"]
    assert first.shape[0] == size + 5
    capsys.readouterr()
    for engine in ("numpy", "onnx"):
        asked = ["generate", "--run", "tuned", "--chat", "--prompt", "she sells?", "--temperature", "0"]
        assert status_of(*asked, "--engine", engine, "--json") == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["text"] == "sea shells" and answer["tokens"] < 20
    assert status_of("export", "--run", "tuned", "--format", "huggingface", "--out", "hf") == 0
    shape = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert shape["vocab_size"] == size + 5


def test_new_rows_are_those_of_an_untrained_model_and_old_ones_stay(tmp_path: Path) -> None:
    text = tmp_path / "easy.txt"
    text.write_text("she sells sea shells by the sea shore?\n" * 60, encoding="utf-8")
    base = open_run(config_for(text, SHAPE, tokenizer="chars", lanes=1), "base")
    base.train()
    rows = [{"q": "she sells?", "a": "sea shells"} for _ in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = config_for(text, SHAPE, tokenizer="chars", lanes=1)
    config = replace(config, data=replace(config.data, data=str(tmp_path / "a.jsonl"), qa="q,a"))
    place = checkpoints.newest(base.dir)
    assert place
    tuned = open_run(config, "tuned", init_from=place)
    old, new = checkpoints.load(place).model["wte.weight"], tuned.start.arrays["wte.weight"]
    assert np.array_equal(new[: len(old)], old) and len(new) == len(old) + 5 and new[len(old) :].std() > 0


def test_marks_that_could_not_learn_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "easy.txt"
    text.write_text("she sells sea shells by the sea shore?\n" * 60, encoding="utf-8")
    base = open_run(config_for(text, SHAPE, tokenizer="chars", lanes=1), "base")
    base.train()
    (tmp_path / "a.jsonl").write_text('{"q": "she sells?", "a": "sea shells"}\n' * 60, encoding="utf-8")
    config = config_for(text, SHAPE, tokenizer="chars", lanes=1, train="biases")
    config = replace(config, data=replace(config.data, data=str(tmp_path / "a.jsonl"), qa="q,a"))
    with pytest.raises(UserError, match="--train biases cannot teach the marks that --qa adds"):
        open_run(config, "tuned", init_from=checkpoints.newest(base.dir))


def test_a_tokenizer_learns_nothing_from_the_names_of_marks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": "fox", "a": "box"}\n' * 9, encoding="utf-8")
    data = DataConfig(str(tmp_path / "a.jsonl"), qa="q,a")
    corpus = open_corpus(data, tmp_path)
    surveyor = Surveyor(corpus)
    assert sum(isinstance(piece, Mark) for piece in surveyor.pieces()) == 9 * 4
    assert not any("<" in text for text in training_text(corpus, data, surveyor.survey))
