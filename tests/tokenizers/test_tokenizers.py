"""The tokenizers against their one-character-at-a-time definitions."""

import json
import string
import sys
from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from picogpt.config import TokenizerName
from picogpt.errors import UserError
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer
from picogpt.tokenizers.registry import TOKENIZERS, from_dict, unit_of

SPECIAL = ["<P>", "<S>", "</S>", "<Q>", "</Q>", "<A>", "</A>"]
TABLE = {c: i for i, c in enumerate((c for c in string.printable if c not in string.ascii_uppercase), start=1)}
PICO = PicoTokenizer()
any_text = st.text(st.characters(), max_size=60)  # every code point, lone surrogates included


def per_character(text: str) -> list[int]:
    return [TABLE.get(c.lower(), 0) for c in text]


def test_pico_table():
    assert (PICO.name, PICO.vocab_size, PICO.dtype) == ("picogpt", 88, np.uint8)
    assert max(TABLE.values()) == 74
    assert PICO.special == dict(zip(SPECIAL, range(75, 82), strict=True))


@given(any_text)
@example("")
@example("\u212a <q> İ K \ud800 😀 \x00\x7f\x80")
def test_pico_encode_is_per_character(text):
    ids = PICO.encode(text)
    assert ids.dtype == np.uint8 and ids.shape == (len(text),)
    assert ids.tolist() == per_character(text)


@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_pico_encode_of_ascii_is_per_character(text):
    assert PICO.encode(text).tolist() == per_character(text)


def test_pico_encode_knows_every_code_point():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert np.array_equal(PICO.encode(everything), np.array(per_character(everything), np.uint8))


def test_encoded_ids_can_be_changed():
    for text in ("plain", "K\u212a"):
        PICO.encode(text)[0] = 0


def test_pico_decode():
    assert PICO.decode(PICO.encode("Hello, <q> World\n")) == "hello, <q> world\n"
    assert PICO.decode(range(75, 82)) == "".join(SPECIAL)
    assert PICO.decode([0, 82, 87, 88, 255, -1]) == "<?>" * 6
    assert PICO.decode(np.array([], np.uint8)) == ""


@given(st.text(st.sampled_from(sorted(TABLE)), max_size=60))
def test_pico_decode_inverts_encode(text):
    assert PICO.decode(PICO.encode(text)) == text


def test_unknown_names_each_character_once_in_order():
    assert PICO.unknown("aé😀éK\u212aİ\ud800") == "é😀İ\ud800"
    assert CharTokenizer("abc").unknown("cAzA") == "Az"


@given(st.text(min_size=1, max_size=60), any_text)
def test_chars_encode_is_per_character(corpus, text):
    tokenizer = CharTokenizer.from_corpus([corpus[:3], corpus[3:]])
    chars = sorted(set(corpus))
    other = chars.index(" ") if " " in chars else 0
    assert tokenizer.vocab_size == len(chars)
    assert tokenizer.encode(text).tolist() == [chars.index(c) if c in chars else other for c in text]
    assert tokenizer.decode(tokenizer.encode(corpus)) == corpus


@pytest.mark.parametrize(("count", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (65_536, np.uint16)])
def test_chars_dtype_is_the_smallest(count, dtype):
    chars = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x20000)][:count]))
    tokenizer = CharTokenizer(chars)
    assert tokenizer.dtype == dtype
    for text in (chars, chars[:100]):  # of all planes, and of ASCII alone
        assert tokenizer.encode(text).dtype == dtype
        assert tokenizer.encode(text).tolist() == list(range(len(text)))
    assert tokenizer.decode(np.arange(count, dtype=dtype)) == chars


def test_chars_decode_marks_ids_out_of_range():
    assert CharTokenizer("ab").decode([0, 1, 2, 87, -1]) == "ab" + "\ufffd" * 3


@pytest.mark.parametrize("texts", [[], [""], ["\ud800"], [chr(c) for c in range(0x10000, 0x10000 + 65_537)]])
def test_chars_refuses_what_has_no_or_too_many_characters(texts):
    with pytest.raises(UserError):
        CharTokenizer.from_corpus(texts)


def test_chars_leaves_lone_surrogates_out():
    tokenizer = CharTokenizer.from_corpus(["a\ud800 \udc00"])
    assert tokenizer.chars == " a"
    assert tokenizer.encode("\ud800").tolist() == [0]


@settings(max_examples=30)
@given(st.text(min_size=1, max_size=30))
def test_dict_survives_json(corpus):
    for tokenizer in (PICO, CharTokenizer.from_corpus([corpus])):
        back = from_dict(json.loads(json.dumps(tokenizer.to_dict())))
        assert type(back) is type(tokenizer)
        assert back.fingerprint() == tokenizer.fingerprint()
        assert back.encode(corpus).tolist() == tokenizer.encode(corpus).tolist()


def test_the_settings_name_every_tokenizer():
    """config/ stands below tokenizers/ and cannot import the table."""
    assert tuple(TOKENIZERS) == get_args(TokenizerName)
    assert [kind.name for kind in TOKENIZERS.values()] == list(TOKENIZERS)


def test_units_by_name():
    assert {name: unit_of(name) for name in TOKENIZERS} == {
        "picogpt": "char",
        "chars": "char",
        "bytes": "byte",
        "bpe": "token",
        "ids": "token",
    }
    assert unit_of("another") == unit_of(None) == unit_of(["bpe"]) == "char"  # of a log that anyone may have written


def test_fingerprints_tell_vocabularies_apart():
    tokenizers = [PICO, CharTokenizer("ab"), CharTokenizer("abc"), CharTokenizer("".join(TABLE))]
    assert len({tokenizer.fingerprint() for tokenizer in tokenizers}) == len(tokenizers)
    assert CharTokenizer("ba").fingerprint() == CharTokenizer("ab").fingerprint()


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        "picogpt",
        {},
        {"name": "gpt2"},
        {"name": ["picogpt"]},
        {"name": "picogpt", "chars": "ab"},
        {"name": "chars"},
        {"name": "chars", "chars": ""},
        {"name": "chars", "chars": ["a", "b"]},
        {"name": "chars", "chars": "ba"},
        {"name": "chars", "chars": "aab"},
        {"name": "chars", "chars": "a\ud800"},
        {"name": "chars", "chars": "ab", "more": 1},
        {"name": "chars", "chars": "a" * 70_000},
    ],
)
def test_foreign_dicts_are_refused(fields):
    with pytest.raises(UserError):
        from_dict(fields)


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
    | st.fixed_dictionaries(
        {"name": st.sampled_from(["picogpt", "chars"]), "chars": st.text(st.characters(), max_size=9)}
    )
)
def test_any_json_is_a_tokenizer_or_refused(fields):
    try:
        tokenizer = from_dict(fields)
    except UserError as told:
        assert str(told).isprintable()
    else:
        assert tokenizer.to_dict() == fields
