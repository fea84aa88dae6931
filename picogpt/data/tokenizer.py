"""The tokenizers there are."""

from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.config import UserError, shown
from picogpt.data.bpe import BpeTokenizer
from picogpt.data.coding import Ids, Speller, Tokenizer, smallest_dtype
from picogpt.data.tables import MAX_CHARS, CharTokenizer, PicoTokenizer

__all__ = [
    "BpeTokenizer",
    "CharTokenizer",
    "Ids",
    "IdsTokenizer",
    "PicoTokenizer",
    "Speller",
    "Tokenizer",
    "from_dict",
]

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


def from_dict(fields: Any) -> Tokenizer:
    """Inverse of `to_dict`, also after a trip through JSON. Raises UserError on anything `to_dict` does not make."""
    match fields:
        case {"name": PicoTokenizer.name, **rest} if not rest:
            return PicoTokenizer()
        case {"name": CharTokenizer.name, "chars": str(chars), **rest} if not rest and len(chars) <= MAX_CHARS:
            tokenizer = CharTokenizer(chars)
            if tokenizer.chars == chars:
                return tokenizer
        case {"name": BpeTokenizer.name, "json": str(text), **rest} if not rest:
            return BpeTokenizer.from_json(text)
        case {"name": IdsTokenizer.name, "vocab_size": size, "end_of_text": end, **rest} if not rest:
            if type(size) is type(end) is int:
                return IdsTokenizer(size, end)
        case {"name": IdsTokenizer.name, "vocab_size": size, **rest} if not rest and type(size) is int:
            return IdsTokenizer(size)
    raise UserError("this is not a tokenizer of picogpt: make it again from the corpus")
