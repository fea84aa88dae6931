"""Documents to ids: what separates documents, and where a long one may be cut into pieces."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from picogpt.data.sources.formats import Document
from picogpt.tokenizers.base import BORDER, Ids, Mark, Tokenizer

_BLANK_LINE = "\n\n"
_WORD = 1 << 16  # characters from the end of a piece in which white space is looked for


class Join:
    """Puts a blank line between documents that follow each other."""

    def __init__(self) -> None:
        self._last = ""  # character of what came before
        self.added = 0
        """Characters put between documents so far."""

    def __call__(self, document: Document) -> Iterator[str]:
        """Yield what separates the document from the one before, then its pieces."""
        is_separate = not self._last
        for piece in document:
            if not is_separate:
                separator = "\n" if self._last == "\n" else _BLANK_LINE
                self.added += len(separator)
                yield separator
                is_separate = True
            yield piece
            self._last = piece[-1]


class DocumentEncoder:
    """Encodes documents and separates them: by the tokenizer's end of text, else by a blank line."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        end = tokenizer.end_of_text
        self._end: Ids | None = None if end is None else np.array([end], tokenizer.dtype)
        self._join: Callable[[Document], Iterable[str]] = Join() if end is None else iter
        self._encode = tokenizer.encode_parts

    def pieces(self, document: Document) -> Iterator[tuple[int, Ids]]:
        """Yield the ids of a document that follows the ones before, in pieces, each with its number of characters."""
        for piece in _uncut_words(self._join(document)):
            yield len(piece), self._encode([piece])
        if self._end is not None:
            yield 0, self._end

    def whole(self, document: Document) -> Ids:
        """Return the ids of a document that any other may follow: what separates them comes at its end."""
        if self._end is None:
            return self._encode([*document, _BLANK_LINE])
        return np.concatenate([self._encode(document), self._end])


def _uncut_words(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the same text in pieces that end before white space where there is some, so that no word is cut."""
    rest = ""
    for piece in pieces:
        if isinstance(piece, Mark):
            yield from filter(None, (rest, piece))
            rest = ""
            continue
        text = rest + piece
        borders = [found.start() for found in BORDER.finditer(text, max(0, len(text) - _WORD))]
        end = borders[-1] if borders else len(text)
        if end:
            yield text[:end]
        rest = text[end:]
    if rest:
        yield rest
