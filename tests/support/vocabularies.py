"""Small byte-level BPE tokenizers, made here: nobody's files are needed."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.word_level import ALPHABET

END = "<|endoftext|>"
# Merges as GPT-2 has them, in its characters: Ġ is the space, Ċ the line end, Ã© the two bytes of é.
MERGES = ["Ġ t", "Ġt h", "Ġth e", "l l", "e ll", "s h", "sh ell", "Ã ©", "1 2", "ð Ł"]


def tables() -> tuple[dict[str, int], str]:
    """Return vocab.json and merges.txt: the 256 bytes, the merges, and the end of a text."""
    tokens = [*ALPHABET, *(merge.replace(" ", "") for merge in MERGES), END]
    return {token: id for id, token in enumerate(tokens)}, "#version: 0.2\n" + "\n".join(MERGES) + "\n"


def write_tables(folder: Path, names: tuple[str, str] = ("vocab.json", "merges.txt")) -> None:
    vocab, merges = tables()
    (folder / names[0]).write_text(json.dumps(vocab), encoding="utf-8")
    (folder / names[1]).write_text(merges, encoding="utf-8")


def whole(**changes: Any) -> dict[str, Any]:
    """Return the same tokenizer as tokenizer.json has it."""
    vocab, _ = tables()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    fields = {
        "version": "1.0",
        "added_tokens": [{"id": vocab[END], "content": END, "special": True, **flags}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab, "merges": MERGES},
    }
    return fields | changes


@cache
def small_bpe() -> BpeTokenizer:
    return BpeTokenizer(whole())
