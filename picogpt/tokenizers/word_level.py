"""A tokenizer.json of Hugging Face whose every token is one character, after a change of the text."""

import json
from collections.abc import Mapping, Sequence

Fields = dict[str, object]

_EACH: Fields = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}


def _alphabet() -> dict[str, int]:
    """Return the byte that each character of GPT-2's files stands for: its own if visible, else from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {**{chr(byte): byte for byte in visible}, **{chr(0x100 + i): byte for i, byte in enumerate(hidden)}}


ALPHABET = _alphabet()
"""The byte that each character stands for in a byte-level tokenizer's files."""


def word_level_json(
    vocab: Mapping[str, int],
    unknown: str,
    special: Mapping[str, int],
    normalizers: Sequence[Fields] = (),
    before: Sequence[Fields] = (),
    decoder: Fields | None = None,
) -> str:
    """Return the content of a tokenizer.json.

    vocab: the id of each character. unknown: the one of them that stands for all others. special: ids that stand for no
    text, by name. normalizers: change the text. before: change its characters. decoder: joins them again.
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ids = dict(sorted({**vocab, **special}.items(), key=lambda item: item[1]))
    content: Fields = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": name, **flags} for name, id in special.items()],
        "normalizer": {"type": "Sequence", "normalizers": [*normalizers]} if normalizers else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*before, _EACH]},
        "post_processor": None,
        "decoder": decoder or {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": unknown},
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
