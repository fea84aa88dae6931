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
from picogpt.tokenizers.base import MARKS, Ids, Mark, Tokenizer, smallest_dtype
from picogpt.tokenizers.word_level import word_level_json

_MAX_CHARS = 1 << 16
_WITH_MARKS: tuple[dict[str, object], ...] = ({}, {"marks": True})
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

    def tokenizer_json(self) -> str:
        """Return the content of a tokenizer.json, which reads the same ids from any text without names of special ids.

        The six reserved ids have no name of their own there.
        """
        upper = {c: c.lower() for c in (*string.ascii_uppercase, chr(_KELVIN_SIGN))}
        lowered = [{"type": "Replace", "pattern": {"String": c}, "content": low} for c, low in upper.items()]
        return word_level_json({"<?>": 0, **_PICO_IDS}, "<?>", self.special, lowered)

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

    def __init__(self, chars: str, has_marks: bool = False) -> None:
        """has_marks: whether it has `MARKS`, after the characters.

        Raises UserError for no characters, more than 65,536, or halves of surrogate pairs.
        """
        self.chars, self._marks = "".join(sorted(set(chars))), MARKS if has_marks else ()
        if not self.chars:
            raise UserError("the text has no characters: give a corpus that is not empty")
        if len(self.chars) > _MAX_CHARS:
            raise UserError(
                f"{len(self.chars):,} distinct characters are more than {_MAX_CHARS:,}: use --tokenizer picogpt"
            )
        codes = _code_points(self.chars)
        if ((codes >= 0xD800) & (codes < 0xE000)).any():
            raise UserError("the text has halves of surrogate pairs, which are no characters: convert it to UTF-8")
        dtype = smallest_dtype(len(codes) + len(self._marks))
        table: Ids = np.full(int(codes[-1]) + 2, max(self.chars.find(" "), 0), dtype)
        table[codes] = np.arange(len(codes))
        super().__init__((*self.chars, *self._marks), table)
        self.special = {mark: len(codes) + i for i, mark in enumerate(self._marks)}
        self.end_of_text = self.special.get(MARKS[0])
        self._names = ["\ufffd", *self._symbols, "\ufffd"]  # a mark on either side for ids out of range

    @classmethod
    def from_corpus(cls, texts: Iterable[str], size: int = 0) -> Self:
        """Return the tokenizer of all characters in a stream of texts, with marks where the texts have some.

        Raises UserError for no characters, or more than 65,536.
        """
        seen, has_marks = np.zeros(0x110000, np.bool_), False
        for text in texts:
            if isinstance(text, Mark):
                has_marks = True
            else:
                seen[_code_points(text)] = True
        seen[0xD800:0xE000] = False  # halves of surrogate pairs are no characters
        return cls("".join(map(chr, np.flatnonzero(seen))), has_marks)

    def with_marks(self) -> Self:
        """Return the tokenizer with all `MARKS`."""
        return type(self)(self.chars, has_marks=True)

    @classmethod
    def from_dict(cls, fields: dict[str, object]) -> Self:
        """Return the tokenizer that `to_dict` described. Raises ValueError or UserError for anything else."""
        match fields:
            case {"name": cls.name, "chars": str(chars), **rest} if len(chars) <= _MAX_CHARS and rest in _WITH_MARKS:
                tokenizer = cls(chars, bool(rest))
                if tokenizer.chars == chars:
                    return tokenizer
        raise ValueError("its characters are missing or out of order")

    def to_dict(self) -> dict[str, object]:
        """Return the name and the characters, and whether there are marks."""
        return {"name": self.name, "chars": self.chars, **({"marks": True} if self._marks else {})}

    def tokenizer_json(self) -> str:
        """Return the content of a tokenizer.json."""
        ids = {character: id for id, character in enumerate(self.chars)}
        return word_level_json(ids, " " if " " in ids else self.chars[0], self.special)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids (n,): marks by name, U+FFFD for an id outside the vocabulary."""
        places = np.clip(np.asarray(ids, np.int64) + 1, 0, len(self._names) - 1)
        return "".join(map(self._names.__getitem__, places.tolist()))

    def unknown(self, text: str) -> str:
        """Return the distinct characters of `text` that the corpus did not have, in order of appearance."""
        known = set(self.chars)
        return "".join(c for c in dict.fromkeys(text) if c not in known)
