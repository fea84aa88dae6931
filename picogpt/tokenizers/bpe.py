"""GPT-2's byte-level byte pair encoding (BPE): sequences of bytes that often occur together have an id each.

The `tokenizers` library merges the bytes. It is loaded with the first such tokenizer, and gets nothing of a file but
the vocabulary, the merges and the added tokens, after a check of each. What an id spells is looked up here.
A. Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Self

import numpy as np

from picogpt.errors import UserError, one_line
from picogpt.tokenizers.base import (
    BORDER,
    MARKS,
    UNKNOWN,
    Ids,
    LibraryMissingError,
    SpellingTokenizer,
    smallest_dtype,
    without_surrogates,
)
from picogpt.tokenizers.bpe_file import (
    BYTE_LEVEL,
    ENDS,
    added_beside,
    checked_fields,
    foreign_tokenizer,
    parsed_json,
    read_text,
    with_merges,
)
from picogpt.tokenizers.word_level import ALPHABET

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Library

DEFAULT_SIZE = 4096  # ids
SIZES = ((200_000, 512), (500_000, 1024), (2_000_000, 2048))
"""Characters of a text, and how many ids are enough for one that has fewer."""
_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_JSON_LIMIT = 12 << 20  # bytes that a tokenizer may take in a checkpoint
# Learning takes time with the square of a word's length: a text without spaces, such as a genome, is cut.
_LONG_WORD = re.compile(r"\S{256}|\s{256}")
_LONGEST_TOKEN = 64  # bytes; without a limit, a text that repeats itself becomes one token
_PART = 1 << 14  # characters that the library is given as one text: it is slower with longer ones
_PARTS = 64  # texts that the library is given at once: what it returns takes many times their size


class BpeTokenizer(SpellingTokenizer):
    """A byte-level BPE tokenizer as a tokenizer.json describes it."""

    name = "bpe"
    origin = "training"
    default_top_k = 40

    def __init__(self, content: object) -> None:
        """content: of a tokenizer.json. Raises UserError where it is another kind of tokenizer or damaged."""
        try:
            fields = checked_fields(content)
            self._json = json.dumps(fields.to_dict(), ensure_ascii=False, separators=(",", ":"))
            self._json.encode()
        except ValueError as error:
            raise foreign_tokenizer(error) from None
        if len(json.dumps(self._json)) > _JSON_LIMIT:
            raise UserError(f"the tokenizer takes more than {_JSON_LIMIT >> 20} MB: take a smaller one")
        self._bpe = _load(self._json)
        self._bpe.encode_special_tokens = True  # as text: their ids are for `encode_marked`
        if any(self._bpe.token_to_id(token.content) != token.id for token in fields.added):
            raise foreign_tokenizer(ValueError("its added tokens do not follow its vocabulary"))
        self.special = {token.content: token.id for token in fields.added if token.flags["special"]}
        self.end_of_text = next((self.special[name] for name in ENDS if name in self.special), None)
        spellings = {id: _bytes_of(token) for token, id in fields.vocab.items()}
        self._bytes = {spelling[0] for spelling in spellings.values() if len(spelling) == 1}
        spellings |= {token.id: token.content.encode() for token in fields.added}
        self.vocab_size = max(spellings) + 1
        self.dtype = smallest_dtype(self.vocab_size)
        self._spellings = [spellings.get(id, UNKNOWN) for id in range(self.vocab_size)]
        # Added tokens that are text may go across a border, and so may the parts of another way to split.
        self._may_cut = len(self.special) == len(fields.added) and not fields.splits

    @classmethod
    def from_corpus(cls, texts: Iterable[str], size: int = 0) -> Self:
        """Learn the tokenizer with `size` ids whose pieces are the most frequent ones of these texts.

        size: 0: DEFAULT_SIZE, or fewer for a small text, by SIZES. All bytes have an id, so any text can be encoded;
        the marks come last. A small text may have fewer pieces. The same texts give the same tokenizer everywhere.
        Raises UserError where the library is not installed.
        R. Sennrich et al., "Neural machine translation of rare words with subword units", arXiv 1508.07909.
        """
        chosen, size, characters = size, size or DEFAULT_SIZE, 0
        least = len(ALPHABET) + len(MARKS)
        if size < least:
            raise UserError(f"a tokenizer of {size} ids is too small: bytes and marks alone are {least}")
        library = _library()
        learnt = library.Tokenizer(library.models.BPE())
        learnt.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = library.trainers.BpeTrainer(
            vocab_size=size - len(MARKS),
            initial_alphabet=sorted(ALPHABET),
            show_progress=False,
            max_token_length=_LONGEST_TOKEN,
        )

        def counted() -> Iterator[str]:
            nonlocal characters
            for text in texts:
                characters += len(text)
                text = without_surrogates(text)
                ends = [0, *(run.end() for run in _LONG_WORD.finditer(text)), len(text)]
                yield from (text[start:end] for start, end in pairwise(ends))

        learnt.train_from_iterator(counted(), trainer)
        content = json.loads(learnt.to_str())
        first = len(content["model"]["vocab"])
        marks = [{"content": mark, "id": first + i, "special": True} for i, mark in enumerate(MARKS)]
        tokenizer = cls({**content, **BYTE_LEVEL, "added_tokens": marks})
        enough = next((most for least, most in SIZES if characters < least), DEFAULT_SIZE)
        return tokenizer.shortened(enough) if not chosen and enough < tokenizer.vocab_size else tokenizer

    def with_marks(self) -> Self:
        """Return the tokenizer with all `MARKS`: those that are missing follow its other ids."""
        content = json.loads(self._json)
        missing = [mark for mark in MARKS if mark not in self.special]
        content["added_tokens"] += [
            {"content": mark, "id": self.vocab_size + i, "special": True} for i, mark in enumerate(missing)
        ]
        return type(self)(content) if missing else self

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the tokenizer of a tokenizer.json, or of a folder as `find` does.

        Raises UserError for a file that is missing, damaged or of another kind.
        """
        if not path.is_dir():
            try:
                return cls(parsed_json(read_text(path)))
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
        if found := cls.find(path):
            return found
        raise UserError(f"{path} has no tokenizer.json, nor vocab.json and merges.txt: name a file")

    def shortened(self, size: int) -> Self:
        """Return the tokenizer that would have been learnt with `size` ids, fewer than it has: its first merges.

        It keeps all bytes and marks.
        """
        content = json.loads(self._json)
        merges = max(0, size - len(ALPHABET) - len(content["added_tokens"]))
        vocab = dict(list(content["model"]["vocab"].items())[: len(ALPHABET) + merges])
        content["model"] |= {"vocab": vocab, "merges": content["model"]["merges"][:merges]}
        for i, token in enumerate(content["added_tokens"]):
            token["id"] = len(vocab) + i
        return type(self)(content)

    @classmethod
    def find(cls, folder: Path) -> Self | None:
        """Return the tokenizer in a model's folder, None where there is none.

        It is in tokenizer.json, or in vocab.json and merges.txt, or in encoder.json and vocab.bpe. Raises UserError
        where it is damaged or of another kind.
        """
        for names in _FILES:
            paths = [folder / name for name in names]
            if all(path.is_file() for path in paths):
                try:
                    first, *merges = map(read_text, paths)
                    if merges:
                        return cls(with_merges(parsed_json(first), *merges) | {"added_tokens": added_beside(folder)})
                    return cls(parsed_json(first))
                except UserError as error:
                    raise UserError(f"{' and '.join(map(str, paths))}: {error}") from None
        return None

    @classmethod
    def from_dict(cls, fields: dict[str, object]) -> Self:
        """Return the tokenizer that `to_dict` described. Raises ValueError or UserError for anything else."""
        match fields:
            case {"name": cls.name, "json": str(text), **rest} if not rest:
                return cls(parsed_json(text))
        raise ValueError("it has no tokenizer.json")

    def to_dict(self) -> dict[str, object]:
        """Return the name and the content of a tokenizer.json."""
        return {"name": self.name, "json": self._json}

    def tokenizer_json(self) -> str:
        """Return the content of a tokenizer.json, with nothing in it that does not decide the ids."""
        return self._json

    def encode(self, text: str) -> Ids:
        """Return the ids of any text: (n,) of `dtype`.

        Half of a surrogate pair is read as U+FFFD, two that follow each other as the character they make.
        """
        parts = list(self._parts(without_surrogates(text)))
        ids = []
        for start in range(0, len(parts), _PARTS):
            encoded = self._encoded(parts[start : start + _PARTS])
            ids += [np.array(part.ids, self.dtype) for part in encoded]
        return np.concatenate(ids)

    def _encoded(self, parts: list[str]) -> "list[Encoding]":
        try:
            return self._bpe.encode_batch_fast(parts, add_special_tokens=False)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # which has no class that could be imported
                raise
            raise UserError(f"the tokenizer cannot split this text ({one_line(error)}): take another") from None

    def _parts(self, text: str) -> Iterator[str]:
        start = 0
        while self._may_cut and (border := BORDER.search(text, start + _PART)):
            yield text[start : border.start()]
            start = border.start()
        yield text[start:]

    def unknown(self, text: str) -> str:
        """Return the characters with a byte that has no id: none where every byte has one, as in GPT-2's vocabulary."""
        return "".join(
            c for c in dict.fromkeys(text) if without_surrogates(c) != c or not self._bytes.issuperset(c.encode())
        )


def _bytes_of(token: str) -> bytes:
    """Return the bytes of a token in GPT-2's characters, or of one that is plain text."""
    if all(character in ALPHABET for character in token):
        return bytes(ALPHABET[character] for character in token)
    return token.encode()


def _library() -> ModuleType:
    """Return the library, which is loaded only where such a tokenizer is used. Raises UserError without it."""
    try:
        import tokenizers
    except ImportError:
        raise LibraryMissingError(
            "a byte-level BPE tokenizer needs the package tokenizers: python -m pip install tokenizers"
        ) from None
    return tokenizers


def _load(text: str) -> "Library":
    """Return the library's tokenizer for a tokenizer.json. Raises UserError where it refuses, or is not installed."""
    library = _library()
    try:
        loaded: Library = library.Tokenizer.from_str(text)
    except Exception as error:  # the library's exceptions have no other class in common
        raise foreign_tokenizer(error) from None
    return loaded
