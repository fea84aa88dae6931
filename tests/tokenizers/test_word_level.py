"""Tokenizers of characters and bytes as a tokenizer.json, read by Hugging Face's own library."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.bytes import ByteTokenizer
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer

TEXT = "She sells\r\n sea shells!\t\u00e9\u0130\u212a 食べる 🌞 \x00"
EVERY: dict[str, Tokenizer] = {
    "chars": CharTokenizer("abc d\ne\u0301食🌞\x00"),
    "chars with marks": CharTokenizer(TEXT).with_marks(),
    "without a space": CharTokenizer("xyz"),
    "bytes": ByteTokenizer(),
    "picogpt": PicoTokenizer(),
}
LOADED = {name: Library.from_str(tokenizer.tokenizer_json()) for name, tokenizer in EVERY.items()}
ANY = st.text() | st.lists(st.sampled_from([*TEXT, "K", "\u212a", "\r\n", "\u2028"])).map("".join)


@pytest.mark.parametrize("name", EVERY)
@given(text=ANY)
@settings(deadline=None)
def test_the_library_reads_the_same_ids_and_writes_the_same_text(name: str, text: str) -> None:
    ids = EVERY[name].encode(text).tolist()
    assert LOADED[name].encode(text, add_special_tokens=False).ids == ids
    assert LOADED[name].decode(ids, skip_special_tokens=False) == EVERY[name].decode(np.array(ids, np.int64))


@pytest.mark.parametrize("name", ["chars with marks", "bytes", "picogpt"])
def test_special_ids_have_their_names(name: str) -> None:
    for mark, id in EVERY[name].special.items():
        assert LOADED[name].encode(f"a{mark}b").ids[1] == id and LOADED[name].token_to_id(mark) == id
        assert LOADED[name].decode([id], skip_special_tokens=False) == mark
    assert LOADED[name].get_vocab_size() == EVERY[name].vocab_size - (6 if name == "picogpt" else 0)
