"""From prompts to text: what the model is fed, what is chosen, where it ends."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picogpt.config import GenerateConfig, ModelConfig
from picogpt.errors import UserError
from picogpt.inference.generator import Generator, Streams, _decoder
from picogpt.inference.stopping import StopFilter
from picogpt.inference.windows import Decoder, Recut
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer
from picogpt.tokenizers.ids import IdsTokenizer
from tests.support.vocabularies import END, small_bpe

LETTERS = CharTokenizer("abcdefg")
CONFIG = ModelConfig(context_len=1000, vocab_size=7, n_layer=1, n_head=1, n_embd=8)


class Echo:
    """A reader whose likeliest next token is the last one plus one, and which notes what it was fed."""

    def __init__(self, config: ModelConfig = CONFIG, batch: int = 1) -> None:
        self.config, self.batch = config, batch
        self.fed: list[list[list[int]]] = []

    def begin(self, context: np.ndarray | None) -> None:
        """Nothing: it looks at one token."""

    def read(self, ids: np.ndarray) -> np.ndarray:
        self.fed.append(ids.tolist())
        logits = np.zeros((self.batch, self.config.vocab_size), np.float32)
        logits[range(self.batch), (ids[:, -1].astype(int) + 1) % self.config.vocab_size] = 5
        return logits

    def mean(self) -> np.ndarray:
        return np.zeros((self.batch, self.config.n_embd), np.float32)


def run(config: GenerateConfig, prompt: str, tokenizer: Tokenizer = LETTERS, rows: int = 7) -> tuple[list[str], Echo]:
    reader = Echo(replace(CONFIG, vocab_size=rows), config.samples)
    streams = Generator(reader.config, tokenizer, lambda batch: reader).begin(config)
    streams.read(prompt)
    steps = list(streams.write(config))
    return ["".join(step[i] for step in steps) for i in range(config.samples)], reader


GREEDY = GenerateConfig(tokens=4, temperature=0)


def test_the_prompt_is_fed_once_and_then_each_choice() -> None:
    texts, reader = run(GREEDY, "cd")
    assert texts == ["efga"]
    assert reader.fed == [[[2, 3]], [[4]], [[5]], [[6]]]


def test_an_empty_prompt_begins_after_a_line_break() -> None:
    lines = CharTokenizer("\nabcdef")
    assert run(GREEDY, "", lines)[1].fed[0] == [[0]] and run(GREEDY, "", lines)[0] == ["abcd"]


def test_no_tokens() -> None:
    texts, reader = run(replace(GREEDY, tokens=0), "b")
    assert texts == [""] and reader.fed == []


def test_rows_without_a_token_are_never_chosen() -> None:
    few = CharTokenizer("abcde")
    assert run(replace(GREEDY, tokens=6), "d", few)[0] == ["eabcde"]
    assert set(run(replace(GREEDY, tokens=300, temperature=5.0, seed=0), "d", few)[0][0]) == set("abcde")


def test_special_tokens_are_read_by_name_and_written_by_name() -> None:
    texts, reader = run(replace(GREEDY, tokens=2), "<Q>a", PicoTokenizer(), rows=88)
    special = PicoTokenizer().special
    assert reader.fed[0][0][0] == special["<Q>"] and len(reader.fed[0][0]) == 2
    assert texts == ["bc"]
    assert run(replace(GREEDY, tokens=1), "<Q>", PicoTokenizer(), rows=88)[0] == ["</Q>"]


def test_the_seed_decides_and_longer_texts_begin_as_shorter_ones() -> None:
    config = GenerateConfig(tokens=60, temperature=2.0, top_k=5, top_p=0.9, seed=1)
    first, again, other = (run(replace(config, seed=seed), "b")[0] for seed in (1, 1, 2))
    assert first == again != other
    assert run(replace(config, tokens=80), "b")[0][0][:60] == first[0]
    unseeded = replace(config, seed=None)
    assert len({run(unseeded, "b")[0][0] for _ in range(3)}) == 3


def test_samples_differ_and_the_first_is_the_one_of_a_single_stream() -> None:
    config = GenerateConfig(tokens=50, temperature=3.0, seed=3)
    texts, reader = run(replace(config, samples=3), "ab")
    assert len(set(texts)) == 3 and texts[0] == run(config, "ab")[0][0]
    assert reader.fed[0] == [[0, 1]] * 3


# Where it ends


def test_stop_is_left_out_and_what_may_become_it_is_kept_back() -> None:
    steps = replace(GREEDY, tokens=10, stop="fg")
    reader = Echo()
    streams = Generator(CONFIG, LETTERS, lambda batch: reader).begin(steps)
    streams.read("b")
    assert list(streams.write(steps)) == [["c"], ["d"], ["e"], [""], [""]]
    assert streams.written == [5]
    assert run(replace(GREEDY, tokens=4, stop="fz"), "b")[0] == ["cdef"]  # kept back until nothing more comes


def test_each_sample_ends_by_itself() -> None:
    config = GenerateConfig(tokens=200, temperature=4.0, seed=0, samples=5, stop="dd")
    reader = Echo(batch=5)
    streams = Generator(CONFIG, LETTERS, lambda batch: reader).begin(config)
    streams.read("a")
    steps = list(streams.write(config))
    texts = ["".join(step[i] for step in steps) for i in range(5)]
    assert len(steps) == max(streams.written) and len(set(streams.written)) > 1
    for text, count in zip(texts, streams.written, strict=True):
        assert "dd" not in text
        assert len(text) == (count - 2 if count < 200 else count)


@given(text=st.text("ab", max_size=30), stop=st.text("ab", max_size=4), sizes=st.lists(st.integers(1, 4)))
def test_until_shows_what_comes_before_the_first_stop(text: str, stop: str, sizes: list[int]) -> None:
    until, shown, start = StopFilter(stop), "", 0
    for size in [*sizes, *[1] * len(text)]:
        if start < len(text) and not until.ended:
            shown += until.add(text[start : start + size])
            start += size
    whole = text if not stop else text.partition(stop)[0]
    assert shown + until.held_back() == whole
    assert until.ended == (bool(stop) and stop in text)


# Going on


def test_more_text_goes_on_from_what_is_there() -> None:
    reader = Echo()
    streams = Generator(CONFIG, LETTERS, lambda batch: reader).begin(GREEDY)
    streams.read("a")
    assert [piece for (piece,) in streams.write(GREEDY)] == list("bcde")
    streams.read("ab")
    assert [piece for (piece,) in streams.write(GREEDY)] == list("cdef")
    assert [piece for (piece,) in streams.write(replace(GREEDY, tokens=2))] == list("ga")  # without a word between
    assert [id for (ids,) in reader.fed for id in ids] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]


# Contexts


@pytest.mark.parametrize(
    ("context", "slot", "rolls", "expected"),
    [
        ("auto", True, True, "rolling"),
        ("auto", True, False, "window"),
        ("auto", False, False, "window"),
        ("rolling", True, False, "rolling"),
        ("rolling", True, True, "rolling"),
        ("window", True, True, "window"),
        ("window", False, False, "window"),
        ("original", True, True, "original"),
        ("original", False, False, "original"),
    ],
)
def test_contexts(context: Any, slot: bool, rolls: bool, expected: str) -> None:
    decoder = _decoder(Echo(replace(CONFIG, context_slot=slot)), GenerateConfig(context=context), rolls)
    assert isinstance(decoder, Recut) is (expected == "original")
    if isinstance(decoder, Decoder):
        assert decoder._rolling is (expected == "rolling")


def test_contexts_a_model_cannot_have() -> None:
    with pytest.raises(UserError, match="no context slot"):
        _decoder(Echo(replace(CONFIG, context_slot=False)), GenerateConfig(context="rolling"), False)
    with pytest.raises(UserError, match="overlap 1000 leaves no room in a window of 1000: at most 999"):
        _decoder(Echo(), GenerateConfig(overlap=1000), True)


def test_a_window_reads_the_overlap_again() -> None:
    reader = Echo(replace(CONFIG, context_len=6))
    config = replace(GREEDY, tokens=7, overlap=2)
    streams = Generator(reader.config, LETTERS, lambda batch: reader).begin(config)
    assert isinstance(streams, Streams)
    streams.read("abcd")
    assert "".join(piece for (piece,) in streams.write(config)) == "efgabcd"
    assert [ids for (ids,) in reader.fed] == [[0, 1, 2, 3], [4], [5], [4, 5, 6], [0], [1], [2]]


# Several tokens a character, and the end of a text


class Script:
    """A reader whose likeliest next tokens are written beforehand, of each stream, and which notes what it was fed."""

    def __init__(self, *scripts: list[int]) -> None:
        self.config = replace(CONFIG, vocab_size=small_bpe().vocab_size)
        self.batch, self._scripts, self._at = len(scripts), scripts, 0
        self.fed: list[list[list[int]]] = []

    def begin(self, context: np.ndarray | None) -> None:
        """Nothing: it looks at its script."""

    def read(self, ids: np.ndarray) -> np.ndarray:
        self.fed.append(ids.tolist())
        logits = np.zeros((self.batch, self.config.vocab_size), np.float32)
        for row, script in zip(logits, self._scripts, strict=True):
            row[script[min(self._at, len(script) - 1)]] = 5
        self._at += 1
        return logits

    def mean(self) -> np.ndarray:
        return np.zeros((self.batch, self.config.n_embd), np.float32)


def scripted(
    *scripts: list[int], tokenizer: Tokenizer | None = None, **how: Any
) -> tuple[Streams, Script, GenerateConfig]:
    config = replace(GREEDY, samples=len(scripts), **how)
    reader = Script(*scripts)
    return Generator(reader.config, tokenizer or small_bpe(), lambda batch: reader).begin(config), reader, config


BPE, END_ID = small_bpe(), small_bpe().special[END]


def bpe(text: str) -> list[int]:
    return BPE.encode(text).tolist()


def test_a_character_is_shown_when_it_is_whole() -> None:
    streams, _, config = scripted(bpe("a😀ő"), tokens=6)
    streams.read("x")
    assert list(streams.write(config)) == [["a"], [""], [""], ["😀"], [""], ["ő"]]


def test_bytes_that_become_no_character() -> None:
    streams, _, config = scripted([*bpe("😀")[:2], *bpe("a"), *bpe("ő")[:1]], tokens=4)
    streams.read("x")
    assert list(streams.write(config)) == [[""], [""], ["\ufffda"], ["\ufffd"]]


def test_a_character_that_two_writes_share() -> None:
    streams, _, config = scripted(bpe("😀b"), tokens=2)
    streams.read("x")
    assert list(streams.write(config)) == [[""], ["\ufffd"]]
    assert list(streams.write(replace(config, tokens=3))) == [["😀"], ["b"], ["b"]]
    streams, _, config = scripted(bpe("😀b"), tokens=2)
    streams.read("x")
    list(streams.write(config))
    streams.read("y")
    assert list(streams.write(config)) == [["\ufffd"], ["b"]]


def test_a_stop_of_several_tokens() -> None:
    streams, _, config = scripted(bpe("a shell é😀 b"), tokens=20, stop=" é😀")
    streams.read("x")
    assert "".join(piece for (piece,) in streams.write(config)) == "a shell"
    assert streams.written == [len(bpe("a shell é😀"))]


def test_the_end_of_a_text_is_not_shown() -> None:
    streams, reader, config = scripted([*bpe("the"), END_ID, *bpe("more")], tokens=20)
    streams.read("x")
    assert list(streams.write(config)) == [["t"], ["h"], ["e"], [""]]
    assert streams.written == [4] and len(reader.fed) == 4


def test_what_is_kept_back_is_shown_at_the_end_of_a_text() -> None:
    streams, _, config = scripted([*bpe("ab"), *bpe("😀")[:1], END_ID], tokens=20, stop="bc")
    streams.read("x")
    assert list(streams.write(config)) == [["a"], [""], [""], ["b\ufffd"]]
    streams.read("y")
    assert list(streams.write(replace(config, tokens=1))) == [[""]]


def test_one_of_several_texts_ends_early() -> None:
    streams, _, config = scripted([*bpe("a"), END_ID, *bpe("c")], bpe("ő" * 9), [*bpe("ab"), END_ID], tokens=6)
    streams.read("x")
    steps = list(streams.write(config))
    assert ["".join(step[i] for step in steps) for i in range(3)] == ["a", "ő" * 3, "ab"]
    assert streams.written == [2, 6, 3] and len(steps) == 6


def test_the_end_of_the_text_as_the_last_token() -> None:
    streams, _, config = scripted([*bpe("ab"), END_ID], tokens=3)
    streams.read("x")
    assert list(streams.write(config)) == [["a"], ["b"], [""]]


def test_after_its_end_a_text_goes_on() -> None:
    streams, reader, config = scripted([*bpe("a"), END_ID, *bpe("bcd")], tokens=20)
    streams.read("x")
    list(streams.write(config))
    streams.read("y")
    assert list(streams.write(replace(config, tokens=2))) == [["b"], ["c"]]
    assert [ids for (ids,) in reader.fed] == [bpe("x"), bpe("a"), [END_ID, *bpe("y")], bpe("b")]


def test_an_empty_prompt_begins_after_the_end_of_a_text() -> None:
    streams, reader, config = scripted(bpe("ab"), tokens=2)
    streams.read("")
    assert list(streams.write(config)) == [["a"], ["b"]]
    assert reader.fed[0] == [[END_ID]]


def test_the_end_of_a_text_by_name() -> None:
    streams, reader, config = scripted(bpe("ab"), tokens=1)
    streams.read(f"a{END}b")
    list(streams.write(config))
    assert reader.fed[0] == [[*bpe("a"), END_ID, *bpe("b")]]


@pytest.mark.parametrize(("end", "first"), [(None, 0), (5, 5)])
def test_numbers_in_and_numbers_out(end: int | None, first: int) -> None:
    numbers = IdsTokenizer(200, end)
    streams, reader, config = scripted([7, 8, 9], tokenizer=numbers, tokens=2)
    assert list(streams.write(config)) == [[" 7"], [" 8"]]
    streams.read("14 15")
    assert list(streams.write(replace(config, tokens=1))) == [[" 9"]]
    assert [ids for (ids,) in reader.fed] == [[first], [7], [8, 14, 15]]
    with pytest.raises(UserError, match="takes the numbers of tokens"):
        streams.read("fourteen")


def test_a_token_that_the_model_lacks() -> None:
    """As where somebody added one to the tokenizer alone."""
    few = Echo(replace(CONFIG, vocab_size=END_ID))
    streams = Generator(few.config, BPE, lambda batch: few).begin(GREEDY)
    with pytest.raises(UserError, match=r"no token '<\|endoftext\|>', though its tokenizer has") as told:
        streams.read(f"the{END}")
    assert str(told.value).isprintable()
    streams.read("the")
    assert len(list(streams.write(GREEDY))) == 4


def test_byte_level_bpe_is_cut_to_the_40_likeliest() -> None:
    def drawn(tokenizer: Tokenizer, **how: Any) -> int:
        config = GenerateConfig(tokens=600, temperature=1.0, seed=0, **how)
        reader = Steps(tokenizer.vocab_size)
        streams = Generator(reader.config, tokenizer, lambda batch: reader).begin(config)
        streams.read("12")
        list(streams.write(config))
        return len({id for (ids,) in reader.fed[1:] for id in ids})

    class Steps(Echo):
        """All tokens are nearly as likely."""

        def __init__(self, rows: int) -> None:
            super().__init__(replace(CONFIG, vocab_size=rows))

        def read(self, ids: np.ndarray) -> np.ndarray:
            super().read(ids)
            return -1e-3 * np.arange(self.config.vocab_size, dtype=np.float32)[None]

    assert drawn(BPE) == 40
    assert drawn(BPE, top_k=0) > 100 and drawn(BPE, top_k=3) == 3
    assert drawn(IdsTokenizer(267)) > 100
