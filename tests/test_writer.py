"""From prompts to text: what the model is fed, what is chosen, where it ends."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picogpt.config import GenerateConfig, ModelConfig, UserError
from picogpt.data.tokenizer import CharTokenizer, PicoTokenizer, Tokenizer
from picogpt.inference.decoding import Decoder, Recut
from picogpt.inference.writer import Streams, Until, Writer, _decoder

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
    streams = Writer(reader.config, tokenizer, lambda batch: reader).begin(config)
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
    streams = Writer(CONFIG, LETTERS, lambda batch: reader).begin(steps)
    streams.read("b")
    assert list(streams.write(steps)) == [["c"], ["d"], ["e"], [""], [""]]
    assert streams.written == [5]
    assert run(replace(GREEDY, tokens=4, stop="fz"), "b")[0] == ["cdef"]  # kept back until nothing more comes


def test_each_sample_ends_by_itself() -> None:
    config = GenerateConfig(tokens=200, temperature=4.0, seed=0, samples=5, stop="dd")
    reader = Echo(batch=5)
    streams = Writer(CONFIG, LETTERS, lambda batch: reader).begin(config)
    streams.read("a")
    steps = list(streams.write(config))
    texts = ["".join(step[i] for step in steps) for i in range(5)]
    assert len(steps) == max(streams.written) and len(set(streams.written)) > 1
    for text, count in zip(texts, streams.written, strict=True):
        assert "dd" not in text
        assert len(text) == (count - 2 if count < 200 else count)


@given(text=st.text("ab", max_size=30), stop=st.text("ab", max_size=4), sizes=st.lists(st.integers(1, 4)))
def test_until_shows_what_comes_before_the_first_stop(text: str, stop: str, sizes: list[int]) -> None:
    until, shown, start = Until(stop), "", 0
    for size in [*sizes, *[1] * len(text)]:
        if start < len(text) and not until.over:
            shown += until.show(text[start : start + size])
            start += size
    whole = text if not stop else text.partition(stop)[0]
    assert shown + until.rest() == whole
    assert until.over == (bool(stop) and stop in text)


# Going on


def test_more_text_goes_on_from_what_is_there() -> None:
    reader = Echo()
    streams = Writer(CONFIG, LETTERS, lambda batch: reader).begin(GREEDY)
    streams.read("a")
    assert [piece for (piece,) in streams.write(GREEDY)] == list("bcde")
    streams.read("ab")
    assert [piece for (piece,) in streams.write(GREEDY)] == list("cdef")
    assert [piece for (piece,) in streams.write(replace(GREEDY, tokens=2))] == list("ga")  # without a word between
    assert [id for (ids,) in reader.fed for id in ids] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]


# Contexts


@pytest.mark.parametrize(
    ("context", "slot", "expected"),
    [
        ("auto", True, "rolling"),
        ("auto", False, "window"),
        ("rolling", True, "rolling"),
        ("window", True, "window"),
        ("window", False, "window"),
        ("original", True, "original"),
        ("original", False, "original"),
    ],
)
def test_contexts(context: str, slot: bool, expected: str) -> None:
    decoder = _decoder(Echo(replace(CONFIG, context_slot=slot)), GenerateConfig(context=context))  # type: ignore[arg-type]
    assert isinstance(decoder, Recut) is (expected == "original")
    if isinstance(decoder, Decoder):
        assert decoder._rolling is (expected == "rolling")


def test_contexts_a_model_cannot_have() -> None:
    with pytest.raises(UserError, match="no context slot"):
        _decoder(Echo(replace(CONFIG, context_slot=False)), GenerateConfig(context="rolling"))
    with pytest.raises(UserError, match="overlap 1000 leaves no room in a window of 1000: at most 999"):
        _decoder(Echo(), GenerateConfig(overlap=1000))


def test_a_window_reads_the_overlap_again() -> None:
    reader = Echo(replace(CONFIG, context_len=6))
    config = replace(GREEDY, tokens=7, overlap=2)
    streams = Writer(reader.config, LETTERS, lambda batch: reader).begin(config)
    assert isinstance(streams, Streams)
    streams.read("abcd")
    assert "".join(piece for (piece,) in streams.write(config)) == "efgabcd"
    assert [ids for (ids,) in reader.fed] == [[0, 1, 2, 3], [4], [5], [4, 5, 6], [0], [1], [2]]
