"""Text <-> ids: what all tokenizers share."""

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.config import TokenizerName
from picogpt.errors import UserError

# A text may be parted before white space that follows something else, and the ids stay the same: no number goes over
# it, and no piece that GPT-2's pattern finds.
BORDER = re.compile(r"(?<=\S)[ \n]")

Ids = npt.NDArray[np.unsignedinteger[Any]]


class LibraryMissingError(UserError):
    """A tokenizer needs a package that is not there."""


class Tokenizer(ABC):
    """Text to ids and back."""

    name: TokenizerName
    vocab_size: int
    dtype: np.dtype[Any]
    """Of ids that are kept: the smallest that holds them all."""
    special: dict[str, int]
    """Ids that stand for no text, by name."""
    end_of_text: int | None = None
    """The id that comes between documents, where there is one: a text that is written ends with it."""

    def encode_marked(self, text: str) -> Ids:
        """`encode`, but the names of special ids in the text become these ids."""
        if not self.special:
            return self.encode(text)
        parts = re.split(f"({'|'.join(map(re.escape, self.special))})", text)
        ids = [np.array([self.special[p]], self.dtype) if p in self.special else self.encode(p) for p in parts]
        return np.concatenate(ids)

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The ids of any text, lone surrogates included: (n,) of `dtype`."""

    @abstractmethod
    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of ids (n,). An id that stands for nothing shows as a mark, never as an error."""

    def spell(self, id: int) -> bytes:
        """UTF-8 of what one id stands for, which may be a part of a character."""
        return self.decode([id]).encode()

    def speller(self) -> "Speller":
        """For the ids of one text, one after the other."""
        return Speller(cache(self.spell))  # few of the ids make most of a text

    @abstractmethod
    def unknown(self, text: str) -> str:
        """The distinct characters of `text` that cannot be encoded as what they are, in order of appearance."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain builtins, fit for JSON; `from_dict` is the inverse."""

    def fingerprint(self) -> str:
        """16 hexadecimal digits of everything that decides the ids."""
        return sha256(json.dumps(self.to_dict()).encode()).hexdigest()[:16]


class Speller:
    """A text as its ids come, each character when it is whole; U+FFFD for bytes that never become one."""

    def __init__(self, spell: Callable[[int], bytes]) -> None:
        self._spell = spell
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def piece(self, id: int) -> str:
        return self._decoder.decode(self._spell(id))

    def rest(self) -> str:
        """What a character that is not whole shows as. It may still become whole."""
        return self._decoder.getstate()[0].decode(errors="replace")

    def end(self) -> str:
        """The same of one that never will, for what comes is another text."""
        return self._decoder.decode(b"", final=True)


def smallest_dtype(vocab_size: int) -> np.dtype[Any]:
    """Of those that shards have, for ids below `vocab_size`."""
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32)
