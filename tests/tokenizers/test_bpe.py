"""Byte-level BPE: its mechanics, its files, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from picogpt.errors import UserError
from picogpt.tokenizers import bpe
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.ids import IdsTokenizer
from picogpt.tokenizers.registry import from_dict
from tests.support.vocabularies import END, MERGES, small_bpe, tables, whole, write_tables

BPE = small_bpe()
VOCAB, _ = tables()
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False}
BYTES_ALONE = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
OWN_SPLITS = whole(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT, BYTES_ALONE]})
SPLITTING, LIBRARY_SPLITTING = BpeTokenizer(OWN_SPLITS), Library.from_str(json.dumps(OWN_SPLITS))
any_text = st.text(st.characters(codec="utf-8") | st.sampled_from(" \n\t\r'é12the"), max_size=60)


def tokens(text: str) -> list[str]:
    names = {id: token for token, id in VOCAB.items()}
    return [names[id] for id in BPE.encode(text).tolist()]


def test_what_it_is() -> None:
    assert (BPE.name, BPE.vocab_size, BPE.dtype) == ("bpe", 256 + len(MERGES) + 1, np.uint16)
    assert BPE.special == {END: VOCAB[END]} and BPE.end_of_text == VOCAB[END]


@given(any_text)
@example("")
@example("😀" * 9)
@example("a \x1c b\x85c\u2028\u3000d")
def test_any_text_comes_back(text: str) -> None:
    ids = BPE.encode(text)
    assert ids.dtype == BPE.dtype and ids.ndim == 1
    assert BPE.decode(ids) == text
    speller = BPE.speller()
    assert "".join(map(speller.piece, ids.tolist())) + speller.rest() == text
    assert BPE.unknown(text) == ""


@given(st.lists(st.integers(-3, BPE.vocab_size + 3), max_size=40))
def test_any_ids_piece_by_piece_are_the_text_of_all(ids: list[int]) -> None:
    speller = BPE.speller()
    assert "".join(map(speller.piece, ids)) + speller.rest() == BPE.decode(ids)


def test_bytes_without_a_merge_are_tokens() -> None:
    assert BPE.encode("ő").tolist() == [VOCAB[bpe_character(byte)] for byte in "ő".encode()]
    assert tokens("é") == ["Ã©"]


def bpe_character(byte: int) -> str:
    return next(character for character, found in bpe.ALPHABET.items() if found == byte)


def test_gpt2s_alphabet() -> None:
    """As its vocabulary shows: "ő" is 129 and 239, which are the 129th and 239th of this order."""
    assert sorted(bpe.ALPHABET.values()) == list(range(256))
    assert [bpe_character(byte) for byte in b" \n\x00\xad"] == ["Ġ", "Ċ", "Ā", "Ń"]
    assert [list(bpe.ALPHABET.values()).index(byte) for byte in "ő".encode()] == [129, 239]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'll", ["I", "'", "ll"]),
        ("the shell", ["t", "h", "e", "Ġ", "shell"]),
        (" the the", ["Ġthe", "Ġthe"]),
        ("  two  spaces", ["Ġ", "Ġt", "w", "o", "Ġ", "Ġ", "s", "p", "a", "c", "e", "s"]),
        ("123 12", ["12", "3", "Ġ", "12"]),
        ("a\n\n\nb ", ["a", "Ċ", "Ċ", "Ċ", "b", "Ġ"]),
    ],
)
def test_pieces_follow_gpt2s_pattern(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_contractions_are_not_merged_over() -> None:
    """'ll is a piece of its own, so that what stands before it does not change it."""
    assert tokens("shell'll") == ["shell", "'", "ll"]


def test_names_of_special_tokens() -> None:
    assert END not in tokens(f"a{END}b") and BPE.decode(BPE.encode(f"a{END}b")) == f"a{END}b"
    assert BPE.encode_marked(f"a{END}b").tolist() == [VOCAB["a"], VOCAB[END], VOCAB["b"]]
    assert BPE.decode([VOCAB[END]]) == END


@pytest.mark.parametrize(
    ("text", "read"),
    [("a\ud800b", "a\ufffdb"), ("\udc00", "\ufffd"), ("\ud83d\ude00", "😀"), ("\ude00\ud83d", "\ufffd" * 2)],
)
def test_lone_surrogates(text: str, read: str) -> None:
    assert BPE.decode(BPE.encode(text)) == read
    assert set(BPE.unknown(text)) == {c for c in text if "\ud800" <= c <= "\udfff"}


@settings(deadline=None)
@given(st.text(st.sampled_from("ab'  \n\n\t\x1c\x85\u3000é1."), max_size=200), st.integers(1, 20), st.integers(1, 4))
def test_parts_of_a_long_text_make_no_difference(text: str, part: int, parts: int) -> None:
    expected = BPE._bpe.encode(text).ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_PART", part)
        patch.setattr(bpe, "_PARTS", parts)
        assert BPE.encode(text).tolist() == expected


@pytest.mark.parametrize("text", ["the shell sells\n" * 70_000, "x" * 1_100_000, " " * 1_100_000])
def test_a_megabyte(text: str) -> None:
    assert BPE.decode(BPE.encode(text)) == text


# Files


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_two_files(names: tuple[str, str], tmp_path: Path) -> None:
    assert BpeTokenizer.find(tmp_path) is None
    write_tables(tmp_path, names)
    found = BpeTokenizer.find(tmp_path)
    assert found and found.to_dict() == BPE.to_dict()
    (tmp_path / names[1]).unlink()
    assert BpeTokenizer.find(tmp_path) is None


def test_one_file_comes_first(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole(), indent=2), encoding="utf-8-sig")
    (tmp_path / "vocab.json").write_text("no JSON", encoding="utf-8")
    (tmp_path / "merges.txt").write_text("", encoding="utf-8")
    found = BpeTokenizer.find(tmp_path)
    assert found and found.fingerprint() == BPE.fingerprint()


def test_windows_line_ends_and_merges_of_hashes(tmp_path: Path) -> None:
    vocab, merges = tables()
    vocab["##"] = len(vocab)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_bytes((merges + "# #\n").replace("\n", "\r\n").encode())
    found = BpeTokenizer.find(tmp_path)
    assert found and found.encode("##").tolist() == [vocab["##"]]


def test_newer_files_have_merges_as_pairs() -> None:
    fields = whole()
    fields["model"] = {**fields["model"], "merges": [merge.split(" ") for merge in MERGES]}
    assert BpeTokenizer(fields).to_dict() == BPE.to_dict()


def test_dict_survives_json() -> None:
    fields = json.loads(json.dumps(BPE.to_dict()))
    back = from_dict(fields)
    assert back.to_dict() == fields and back.fingerprint() == BPE.fingerprint()
    assert back.encode("the é shell").tolist() == BPE.encode("the é shell").tolist()


def test_what_a_file_says_of_cutting_and_filling_up_is_left_out() -> None:
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    assert BpeTokenizer(whole(truncation=cut)).to_dict() == BPE.to_dict()


def test_added_tokens_that_are_text() -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    word = {"id": len(VOCAB), "content": "he she", "special": False, **flags}
    fields = whole()
    tokenizer = BpeTokenizer(whole(added_tokens=[*fields["added_tokens"], word]))
    assert tokenizer.encode("the shell").tolist() == [VOCAB["t"], len(VOCAB), VOCAB["ll"]]
    assert tokenizer.decode([len(VOCAB)]) == "he she" and tokenizer.special == BPE.special


@pytest.mark.parametrize("name", ["<|end_of_text|>", "</s>"])
def test_other_names_of_the_end(name: str) -> None:
    vocab = {token: id for token, id in VOCAB.items() if token != END}
    added = [{"id": len(vocab), "content": name, "special": True}]
    tokenizer = BpeTokenizer(whole(added_tokens=added, model={"type": "BPE", "vocab": vocab, "merges": MERGES}))
    assert tokenizer.end_of_text == len(vocab)


def test_a_vocabulary_with_holes_and_without_some_bytes() -> None:
    tokenizer = BpeTokenizer(whole(added_tokens=[], model={"vocab": {"a": 2, "b": 5}, "merges": []}))
    assert tokenizer.vocab_size == 6 and tokenizer.end_of_text is None and tokenizer.dtype == np.uint8
    assert tokenizer.encode("abcba").tolist() == [2, 5, 5, 2]
    assert tokenizer.unknown("abécé") == "éc"
    assert tokenizer.decode(range(-1, 8)) == "\ufffd" * 3 + "a" + "\ufffd" * 2 + "b" + "\ufffd" * 2


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="pip install tokenizers"):
        BpeTokenizer(whole())


def model(**changes: Any) -> dict[str, Any]:
    return whole(model={**whole()["model"], **changes})


def added(**changes: Any) -> dict[str, Any]:
    return whole(added_tokens=[{"id": len(VOCAB), "content": "x y", "special": True, **changes}])


@pytest.mark.parametrize(
    "fields",
    [
        None,
        [],
        "text",
        {},
        {"model": None},
        model(type="WordPiece"),
        model(vocab={}),
        model(vocab=["a"]),
        model(vocab={"a": "0"}),
        model(vocab={"a": True}),
        model(vocab={"a": -1}),
        model(vocab={"a": 1 << 40}),
        model(vocab={**VOCAB, "again": 0}),
        model(vocab={**VOCAB, "\ud800": 999}),
        model(merges=["a b c"]),
        model(merges=["ab"]),
        model(merges=["a zzz"]),
        model(merges=[["a", 1]]),
        model(merges=[1]),
        model(merges=None),
        model(byte_fallback=True),
        model(end_of_word_suffix="</w>"),
        whole(normalizer={"type": "Lowercase"}),
        whole(pre_tokenizer={"type": "Whitespace"}),
        whole(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}),
        whole(pre_tokenizer={"type": "ByteLevel", "use_regex": False}),
        whole(pre_tokenizer={"type": "Sequence", "pretokenizers": []}),
        whole(pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTES_ALONE]}),
        whole(pre_tokenizer={"type": "Sequence", "pretokenizers": [{**SPLIT, "behavior": "Removed"}, BYTES_ALONE]}),
        whole(pre_tokenizer={"type": "Sequence", "pretokenizers": [{**SPLIT, "invert": True}, BYTES_ALONE]}),
        whole(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTES_ALONE]}),
        whole(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT, {"type": "ByteLevel"}]}),
        whole(pre_tokenizer={"type": "Sequence", "pretokenizers": [{**SPLIT, "pattern": {"Regex": "("}}, BYTES_ALONE]}),
        whole(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT, 5]}),
        whole(decoder=None),
        whole(added_tokens=[{}]),
        whole(added_tokens=3),
        added(content=""),
        added(content=3),
        added(content=["x"]),
        added(id=0),
        added(id=len(VOCAB) + 7),
        added(id=1 << 40),
    ],
)
def test_foreign_tokenizers_are_refused(fields: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(UserError) as told:
        BpeTokenizer.find(tmp_path)
    assert str(told.value).isprintable() and "tokenizer.json: this is no byte-level BPE" in str(told.value)
    with pytest.raises(UserError):
        from_dict({"name": "bpe", "json": json.dumps(fields)})


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b" " * ((16 << 20) + 1)])
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError) as told:
        BpeTokenizer.find(tmp_path)
    assert str(told.value).isprintable() and str(tmp_path) in str(told.value)


def test_more_than_a_checkpoint_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "_JSON_LIMIT", 4000)
    with pytest.raises(UserError, match="takes more than"):
        BpeTokenizer(whole())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(
    where=st.sampled_from([("model",), ("added_tokens",), ("decoder",), ("pre_tokenizer", "type"), ("model", "vocab")])
    | st.tuples(st.just("model"), st.sampled_from(["merges", "unk_token", "ignore_merges", "dropout"])),
    value=JSON | st.dictionaries(st.text("abcĠé ", max_size=3), st.integers(-1, 300), max_size=5),
)
def test_any_part_of_a_file_may_be_anything(where: tuple[str, ...], value: Any) -> None:
    fields = json.loads(json.dumps(whole()))
    place = fields
    for name in where[:-1]:
        place = place[name]
    place[where[-1]] = value
    try:
        tokenizer = BpeTokenizer(fields)
    except UserError as told:
        assert str(told).isprintable()
    else:
        assert from_dict(tokenizer.to_dict()).to_dict() == tokenizer.to_dict()
        assert tokenizer.encode("the é").max(initial=0) < tokenizer.vocab_size


# Numbers instead of a text


def test_numbers_of_tokens() -> None:
    tokenizer = IdsTokenizer(50257, 50256)
    assert (tokenizer.name, tokenizer.dtype, tokenizer.end_of_text) == ("ids", np.uint16, 50256)
    assert tokenizer.encode("14402 428\n 50256").tolist() == [14402, 428, 50256]
    assert tokenizer.encode("").tolist() == tokenizer.encode(" \n").tolist() == []
    assert tokenizer.decode([14402, 428]) == " 14402 428"
    assert tokenizer.speller().piece(7) == " 7" and tokenizer.unknown("ő") == ""


@pytest.mark.parametrize("text", ["the", "-1", "1.5", "50257", "٣", "1" * 5000, "000001", "²", "1_0", "0x1", "\ud800"])
def test_what_is_no_number_of_a_token(text: str) -> None:
    with pytest.raises(UserError, match="came without a tokenizer and takes the numbers of tokens, 0 to 50256") as told:
        IdsTokenizer(50257).encode(f"1 {text}")
    assert str(told.value).isprintable()


@given(st.integers(-2, 300), st.none() | st.integers(-2, 300))
def test_the_dict_of_numbers(size: int, end: int | None) -> None:
    fields = {"name": "ids", "vocab_size": size} | ({} if end is None else {"end_of_text": end})
    if size > 0 and (end is None or 0 <= end < size):
        assert from_dict(fields).to_dict() == fields
    else:
        with pytest.raises(UserError):
            from_dict(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "ids"},
        {"name": "ids", "vocab_size": True},
        {"name": "ids", "vocab_size": 1 << 40},
        {"name": "ids", "vocab_size": 9, "end_of_text": None},
        {"name": "ids", "vocab_size": 9, "more": 1},
        {"name": "bpe"},
        {"name": "bpe", "json": {}},
        {"name": "bpe", "json": "{}", "more": 1},
    ],
)
def test_foreign_dicts_are_refused(fields: Any) -> None:
    with pytest.raises(UserError):
        from_dict(fields)


@given(
    st.text()
    | st.lists(st.sampled_from(["the ", "shell", "12", "345", "\n\n", "'S", " ", ".\n", "\u00e9"])).map("".join)
)
def test_another_way_to_split_is_the_librarys(text: str) -> None:
    """As Llama 3 has it: three digits at most, and line breaks with what comes before them."""
    ids = SPLITTING.encode(text)
    assert ids.tolist() == LIBRARY_SPLITTING.encode(text, add_special_tokens=False).ids
    assert SPLITTING.decode(ids) == text
    again = from_dict(json.loads(json.dumps(SPLITTING.to_dict())))
    assert again.fingerprint() == SPLITTING.fingerprint() != small_bpe().fingerprint()


def test_a_pattern_that_the_library_gives_up_on_is_one_line() -> None:
    evil = {**SPLIT, "pattern": {"Regex": "([a-z ]+)+$"}}
    tokenizer = BpeTokenizer(whole(pre_tokenizer={"type": "Sequence", "pretokenizers": [evil, BYTES_ALONE]}))
    with pytest.raises(UserError, match="the tokenizer cannot split this text"):
        tokenizer.encode("she sells sea shells by the sea shore " * 50 + "!")
