"""Text as its UTF-8 bytes: 256 ids for any text in any language, and the marks."""

import numpy as np

from picogpt.tokenizers.base import MARKS, Ids, SpellingTokenizer, smallest_dtype, without_surrogates
from picogpt.tokenizers.word_level import ALPHABET, word_level_json


class ByteTokenizer(SpellingTokenizer):
    """Ids 0 to 255 are the bytes of the text, and those that follow are the marks."""

    name = "bytes"
    unit = "byte"

    def __init__(self) -> None:
        self.vocab_size = 256 + len(MARKS)
        self.dtype = smallest_dtype(self.vocab_size)
        self.special = {mark: 256 + i for i, mark in enumerate(MARKS)}
        self.end_of_text = self.special[MARKS[0]]
        self._spellings = [bytes([byte]) for byte in range(256)] + [mark.encode() for mark in MARKS]

    def encode(self, text: str) -> Ids:
        """Return the bytes of any text: (n,) of `dtype`. A lone surrogate is read as U+FFFD."""
        return np.frombuffer(without_surrogates(text).encode(), np.uint8).astype(self.dtype)

    def tokenizer_json(self) -> str:
        """Return the content of a tokenizer.json."""
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return word_level_json(ALPHABET, "!", self.special, before=[level], decoder=level)

    def unknown(self, text: str) -> str:
        """Return the lone surrogates of the text: bytes stand for everything else."""
        return "".join(c for c in dict.fromkeys(text) if without_surrogates(c) != c)
