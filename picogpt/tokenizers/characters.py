"""Text to ids and back with a table that has one id a character."""

import json
import string
from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from picogpt.errors import UserError
from picogpt.tokenizers.base import Ids, Tokenizer, smallest_dtype

_MAX_CHARS = 1 << 16
_KELVIN_SIGN = 0x212A  # lower-cases to k, and no character after it lower-cases to ASCII
_SPECIAL = ("<P>", "<S>", "</S>", "<Q>", "</Q>", "<A>", "</A>")
_PRINTABLE = tuple(c for c in string.printable if c not in string.ascii_uppercase)
_PICO_SYMBOLS = ("<?>", *_PRINTABLE, *_SPECIAL, *["<?>"] * 6)
_PICO_IDS = {symbol: i for i, symbol in enumerate(_PRINTABLE, start=1)}


def _code_points(text: str) -> npt.NDArray[np.int32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<i4"))


class TableTokenizer(Tokenizer):
    """A tokenizer with exactly one id a character, so that positions in a text and in its ids agree."""

    unit = "char"

    def __init__(self, symbols: Sequence[str], table: Ids) -> None:
        """symbols: what each id stands for. table[c]: the id of code point c; the last entry is for all above."""
        self.vocab_size = len(symbols)
        self.dtype: np.dtype[Any] = table.dtype
        self._symbols = symbols
        self._table = table
        self._ascii = table.take(np.arange(256), mode="clip").astype(np.uint8).tobytes()

    def encode(self, text: str) -> Ids:
        """Return one id a character, lone surrogates included: (len(text),) of `dtype`."""
        if text.isascii() and self.dtype == np.uint8:
            return np.frombuffer(bytearray(text, "ascii").translate(self._ascii), np.uint8)
        return self._table.take(_code_points(text), mode="clip")

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of the name and of what each id stands for."""
        return sha256(json.dumps([self.name, *self._symbols]).encode()).hexdigest()[:16]


class PicoTokenizer(TableTokenizer):
    """PicoGPT's table of 88 ids: `<?>`, printable ASCII in lower case, seven special ids, six reserved ones."""

    name = "picogpt"

    def __init__(self) -> None:
        table = [_PICO_IDS.get(chr(code).lower(), 0) for code in range(_KELVIN_SIGN + 2)]
        super().__init__(_PICO_SYMBOLS, np.array(table, np.uint8))
        self.special = {symbol: _PICO_SYMBOLS.index(symbol) for symbol in _SPECIAL}
        self._names = np.array(_PICO_SYMBOLS, "S4")  # padded with NUL, which no name holds

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids (n,): special ones by name, `<?>` for 0 and for ids that stand for nothing."""
        names = self._names.take(np.asarray(ids, np.int64), mode="clip")
        return names.tobytes().translate(None, b"\0").decode("ascii")

    @cached_property
    def _text_sizes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        sizes = np.array([int(symbol not in _SPECIAL) for symbol in _PICO_SYMBOLS])
        return sizes, sizes

    def unknown(self, text: str) -> str:
        """Return the distinct characters that `<?>` stands for, in order of appearance."""
        return "".join(c for c in dict.fromkeys(text) if c.lower() not in _PICO_IDS)


class CharTokenizer(TableTokenizer):
    """The sorted distinct characters of a corpus. Others become the space, or id 0 where there is no space."""

    name = "chars"
    origin = "corpus"

    def __init__(self, chars: str) -> None:
        """Raises UserError for no characters, more than 65,536, or halves of surrogate pairs."""
        self.chars = "".join(sorted(set(chars)))
        if not self.chars:
            raise UserError("the text has no characters: give a corpus that is not empty")
        if len(self.chars) > _MAX_CHARS:
            raise UserError(
                f"{len(self.chars):,} distinct characters are more than {_MAX_CHARS:,}: use --tokenizer picogpt"
            )
        codes = _code_points(self.chars)
        if ((codes >= 0xD800) & (codes < 0xE000)).any():
            raise UserError("the text has halves of surrogate pairs, which are no characters: convert it to UTF-8")
        dtype = smallest_dtype(len(codes))
        table: Ids = np.full(int(codes[-1]) + 2, max(self.chars.find(" "), 0), dtype)
        table[codes] = np.arange(len(codes))
        super().__init__(self.chars, table)
        self.special = {}
        self._codes = np.array([0xFFFD, *codes, 0xFFFD], "<u4")  # a mark on either side for ids out of range

    @classmethod
    def from_corpus(cls, texts: Iterable[str], size: int = 0) -> Self:
        """Return the tokenizer of all characters in a stream of texts. Raises UserError for none, or over 65,536."""
        seen = np.zeros(0x110000, np.bool_)
        for text in texts:
            seen[_code_points(text)] = True
        seen[0xD800:0xE000] = False  # halves of surrogate pairs are no characters
        return cls("".join(map(chr, np.flatnonzero(seen))))

    @classmethod
    def from_dict(cls, fields: dict[str, object]) -> Self:
        """Return the tokenizer that `to_dict` described. Raises ValueError or UserError for anything else."""
        match fields:
            case {"name": cls.name, "chars": str(chars), **rest} if not rest and len(chars) <= _MAX_CHARS:
                tokenizer = cls(chars)
                if tokenizer.chars == chars:
                    return tokenizer
        raise ValueError("its characters are missing or out of order")

    def to_dict(self) -> dict[str, object]:
        """Return the name and the characters."""
        return {"name": self.name, "chars": self.chars}

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids (n,), U+FFFD for an id outside the vocabulary."""
        codes = self._codes.take(np.asarray(ids, np.int64) + 1, mode="clip")
        return codes.tobytes().decode("utf-32-le")

    def unknown(self, text: str) -> str:
        """Return the distinct characters of `text` that the corpus did not have, in order of appearance."""
        known = set(self.chars)
        return "".join(c for c in dict.fromkeys(text) if c not in known)
