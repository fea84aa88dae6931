"""Bare numbers in place of text, for models that came without a tokenizer."""

from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.errors import UserError, shown
from picogpt.tokenizers.base import Ids, Tokenizer, smallest_dtype

_MOST_IDS = 1 << 24


class IdsTokenizer(Tokenizer):
    """Of a model that came without a tokenizer: its text is the numbers of tokens, with white space between them."""

    name = "ids"

    def __init__(self, vocab_size: int, end_of_text: int | None = None) -> None:
        """Raises UserError for an end outside the vocabulary."""
        if not 1 <= vocab_size <= _MOST_IDS:
            raise UserError(f"a vocabulary has 1 to {_MOST_IDS:,} tokens, not {shown(vocab_size)}")
        if end_of_text is not None and not 0 <= end_of_text < vocab_size:
            raise UserError(f"the end of a text must be a token in 0..{vocab_size - 1}, not {shown(end_of_text)}")
        self.vocab_size, self.end_of_text, self.special = vocab_size, end_of_text, {}
        self.dtype = smallest_dtype(vocab_size)

    def encode(self, text: str) -> Ids:
        """Raises UserError for anything but numbers of the vocabulary."""
        words, most = text.split(), len(str(self.vocab_size))
        for word in words:
            if not (word.isascii() and word.isdigit() and len(word) <= most and int(word) < self.vocab_size):
                raise UserError(
                    "this model came without a tokenizer and takes the numbers of tokens, "
                    f"0 to {self.vocab_size - 1}, not {shown(word)}"
                )
        return np.array([int(word) for word in words], self.dtype)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Each id after a space."""
        return "".join(f" {id}" for id in np.asarray(ids, np.int64).tolist())

    def unknown(self, text: str) -> str:
        return ""

    def to_dict(self) -> dict[str, Any]:
        end = {} if self.end_of_text is None else {"end_of_text": self.end_of_text}
        return {"name": self.name, "vocab_size": self.vocab_size, **end}
