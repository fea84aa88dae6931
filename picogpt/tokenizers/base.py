"""What all tokenizers share: the conversion of text to ids and back."""

import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from picogpt.config import TokenizerName
from picogpt.errors import UserError

# A text may be cut before white space that follows something else, and the ids stay the same: no number and no piece
# that GPT-2's pattern finds goes across such a place.
BORDER = re.compile(r"(?<=\S)[ \n]")

Ids = npt.NDArray[np.unsignedinteger[Any]]

Unit = Literal["char", "byte", "token"]

Origin = Literal["fixed", "corpus", "training", "model"]


MARKS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
"""Special ids of tokenizers that are made here: the end of a text, and those of a dialogue. No text becomes one."""

_AS_MARKS = {"<S>": MARKS[1], "<Q>": MARKS[2], "<A>": MARKS[3], "</S>": MARKS[4], "</Q>": MARKS[4], "</A>": MARKS[4]}

UNKNOWN = "\ufffd".encode()
"""Shown for an id that stands for nothing."""


@dataclass(frozen=True)
class TextSize:
    """An amount of text; of ids that are no text, nothing."""

    characters: int
    bytes: int
    """In UTF-8."""


class Mark(str):
    """A part of a document that stands for a special id, by PicoGPT's name for it: no text is one, whatever it says."""

    __slots__ = ()


def question(text: str) -> list[str]:
    """Return the parts of a document that goes on with the answer to a question, as PicoGPT marks both."""
    return [Mark("<Q>"), text, Mark("</Q>"), "\n", Mark("<A>")]


class LibraryMissingError(UserError):
    """A tokenizer needs a package that is not installed."""


class Tokenizer(ABC):
    """Converts text to ids and back. What the rest of picogpt has to know about a tokenizer is an attribute of it."""

    name: ClassVar[TokenizerName]
    """The name in settings, in files and in the registry."""
    unit: ClassVar[Unit] = "token"
    """What an id is: "char" or "byte" where each stands for one of these."""
    origin: ClassVar[Origin] = "fixed"
    """Where it comes from: "fixed", the same for every text; "corpus", made from all of a text, or "training", from the
    part to train on, both by `from_corpus`; "model", part of an imported model."""
    has_words: ClassVar[bool] = True
    """Whether it reads language; False where its text is the numbers of tokens."""
    default_top_k: ClassVar[int] = 0
    """From how many of the likeliest ids to sample, unless the user says otherwise; 0: from all."""

    vocab_size: int
    dtype: np.dtype[Any]
    """The type of ids in memory and on the disk: the smallest that holds them all."""
    special: dict[str, int]
    """Ids that stand for no text, by name."""
    end_of_text: int | None = None
    """The id that ends every document; None where a blank line separates documents."""

    @classmethod
    def from_corpus(cls, texts: Iterable[str], size: int = 0) -> Self:
        """Return the tokenizer for a corpus, which comes in pieces. One that is "fixed" reads none of them.

        size: how many ids it should have, where that can be chosen. Raises UserError for a corpus that it cannot
        encode.
        """
        return cls()

    @classmethod
    def from_dict(cls, fields: dict[str, object]) -> Self:
        """Return the tokenizer that `to_dict` described. This default is for those that have only a name to store.

        fields: from a file, so anything may be in it. Raises ValueError or UserError for what `to_dict` does not make.
        """
        if fields != {"name": cls.name}:
            raise ValueError("it has more than a name")
        return cls()

    def to_dict(self) -> dict[str, object]:
        """Return everything that decides the ids, the name included, as plain builtins, fit for JSON.

        This default is for those that are decided by their name.
        """
        return {"name": self.name}

    def tokenizer_json(self) -> str:
        """Return the content of a tokenizer.json, the format of Hugging Face; "" where that cannot describe it."""
        return ""

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of everything that decides the ids."""
        return sha256(json.dumps(self.to_dict()).encode()).hexdigest()[:16]

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """Return the ids of any text, lone surrogates included: (n,) of `dtype`."""

    def with_marks(self) -> "Tokenizer":
        """Return the tokenizer with all `MARKS`, which follow its other ids; itself where it has marks of its own."""
        return self

    def mark(self, name: str) -> int | None:
        """Return the id of a `Mark`; None where the tokenizer has none, so that the name is text."""
        return self.special.get(name, self.special.get(_AS_MARKS.get(name, "")))

    def encode_parts(self, parts: Iterable[str]) -> Ids:
        """Return the ids of a text in parts, of which marks stand for special ids and nothing else does: (n,)."""
        ids = []
        for part in parts:
            id = self.mark(part) if isinstance(part, Mark) else None
            ids.append(self.encode(part) if id is None else np.array([id], self.dtype))
        return ids[0] if len(ids) == 1 else np.concatenate([*ids, np.empty(0, self.dtype)])

    def encode_marked(self, text: str) -> Ids:
        """Return the ids of a text in which the names of special ids stand for these ids: (n,) of `dtype`."""
        if not self.special:
            return self.encode(text)
        parts = re.split(f"({'|'.join(map(re.escape, self.special))})", text)
        ids = [np.array([self.special[p]], self.dtype) if p in self.special else self.encode(p) for p in parts]
        return np.concatenate(ids)

    @abstractmethod
    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids (n,). An id that stands for nothing shows as a mark, never as an error."""

    def spell(self, id: int) -> bytes:
        """Return the UTF-8 that one id stands for, which may be a part of a character."""
        return self.decode([id]).encode()

    def text_size(self, ids: npt.NDArray[np.integer]) -> "TextSize":
        """Return how much text ids of any shape stand for.

        Special ids stand for none, and what is unknown counts as one character of one byte.
        """
        counts = np.bincount(ids.reshape(-1), minlength=self.vocab_size)
        characters, octets = self._text_sizes
        return TextSize(int(counts @ characters), int(counts @ octets))

    @cached_property
    def _text_sizes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The characters (vocab_size,) and bytes (vocab_size,) that each id stands for."""
        reserved = {*self.special.values()}
        spellings = [b"" if id in reserved else self.spell(id) for id in range(self.vocab_size)]
        # A character begins with the one byte of it that is none of 0b10xxxxxx.
        characters = [sum(byte & 0xC0 != 0x80 for byte in spelling) for spelling in spellings]
        return np.array(characters), np.array([len(spelling) for spelling in spellings])

    def speller(self) -> "Speller":
        """Return a `Speller` for the ids of one text, in order."""
        return Speller(cache(self.spell))  # few of the ids make most of a text

    @abstractmethod
    def unknown(self, text: str) -> str:
        """Return the distinct characters of `text` that decode as something else, in order of appearance."""


class SpellingTokenizer(Tokenizer):
    """A tokenizer whose ids stand for bytes, one or several each."""

    _spellings: list[bytes]
    """The bytes of each id."""

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids (n,): special ones by name, U+FFFD for bytes and ids that stand for no character."""
        return b"".join(map(self.spell, np.asarray(ids, np.int64).tolist())).decode(errors="replace")

    def spell(self, id: int) -> bytes:
        """Return the bytes that an id stands for, those of U+FFFD for an id outside the vocabulary."""
        return self._spellings[id] if 0 <= id < self.vocab_size else UNKNOWN


class Speller:
    """Spells a text id by id: each character when it is complete, U+FFFD for bytes that never become one."""

    def __init__(self, spell: Callable[[int], bytes]) -> None:
        self._spell = spell
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def piece(self, id: int) -> str:
        """Return the characters that this id completes."""
        return self._decoder.decode(self._spell(id))

    def rest(self) -> str:
        """Return what an incomplete character shows as for now. The next id may still complete it."""
        return self._decoder.getstate()[0].decode(errors="replace")

    def end(self) -> str:
        """Return what an incomplete character shows as for good, because the next id begins another text."""
        return self._decoder.decode(b"", final=True)


def without_surrogates(text: str) -> str:
    """Return the text with pairs of surrogates as the character they make, and U+FFFD for lone ones."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def smallest_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest type of a shard that holds all ids below `vocab_size`."""
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32)
