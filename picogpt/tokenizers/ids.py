"""Bare numbers in place of text, for models that came without a tokenizer."""

from typing import Self

import numpy as np
import numpy.typing as npt

from picogpt.errors import UserError, shown
from picogpt.tokenizers.base import Ids, TextSize, Tokenizer, smallest_dtype

_MOST_IDS = 1 << 24


class IdsTokenizer(Tokenizer):
    """Reads and writes the numbers of tokens, separated by white space."""

    name = "ids"
    origin = "model"
    has_words = False

    def __init__(self, vocab_size: int, end_of_text: int | None = None) -> None:
        """Raises UserError for a size that no vocabulary has, and for an end of text outside the vocabulary."""
        if not 1 <= vocab_size <= _MOST_IDS:
            raise UserError(f"a vocabulary has 1 to {_MOST_IDS:,} tokens, not {shown(vocab_size)}")
        if end_of_text is not None and not 0 <= end_of_text < vocab_size:
            raise UserError(f"the end of a text must be a token in 0..{vocab_size - 1}, not {shown(end_of_text)}")
        self.vocab_size, self.end_of_text, self.special = vocab_size, end_of_text, {}
        self.dtype = smallest_dtype(vocab_size)

    @classmethod
    def from_dict(cls, fields: dict[str, object]) -> Self:
        """Return the tokenizer that `to_dict` described. Raises ValueError or UserError for anything else."""
        match fields:
            case {"name": cls.name, "vocab_size": size, "end_of_text": end, **rest} if not rest:
                if type(size) is int and type(end) is int:
                    return cls(size, end)
            case {"name": cls.name, "vocab_size": size, **rest} if not rest and type(size) is int:
                return cls(size)
        raise ValueError("its vocabulary has no size")

    def to_dict(self) -> dict[str, object]:
        """Return the name, the size of the vocabulary and, where there is one, the end of a text."""
        end = {} if self.end_of_text is None else {"end_of_text": self.end_of_text}
        return {"name": self.name, "vocab_size": self.vocab_size, **end}

    def encode(self, text: str) -> Ids:
        """Return the numbers in a text: (n,) of `dtype`. Raises UserError for anything but ids of the vocabulary."""
        words, most = text.split(), len(str(self.vocab_size))
        for word in words:
            if not (word.isascii() and word.isdigit() and len(word) <= most and int(word) < self.vocab_size):
                raise UserError(
                    "this model came without a tokenizer and takes the numbers of tokens, "
                    f"0 to {self.vocab_size - 1}, not {shown(word)}"
                )
        return np.array([int(word) for word in words], self.dtype)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the numbers (n,) as text, a space before each."""
        return "".join(f" {id}" for id in np.asarray(ids, np.int64).tolist())

    def text_size(self, ids: npt.NDArray[np.integer]) -> TextSize:
        """Return nothing: which text the numbers stand for is not known."""
        return TextSize(0, 0)

    def unknown(self, text: str) -> str:
        """Return "": `encode` refuses what is no number."""
        return ""
