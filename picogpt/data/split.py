"""Which part of a corpus is trained on and which is for validation, after a first pass that measures it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from picogpt.config import DataConfig
from picogpt.data.encoding import Join
from picogpt.data.sources.corpora import Corpus
from picogpt.data.token_folder import MANY_DOCUMENTS, val_share
from picogpt.data.unknown import TextSample
from picogpt.tokenizers.base import Mark, Tokenizer


@dataclass(frozen=True)
class Survey:
    """The findings of the first pass over a corpus."""

    joined: int
    """Characters, with the blank lines between documents."""
    added: int
    """Characters of these blank lines."""
    documents: int
    sample: str
    """Of the text: the first characters of pieces, from its beginning to its end."""

    def characters(self, tokenizer: Tokenizer) -> int:
        """Return how many characters are encoded: the blank lines only where the tokenizer has no end of text."""
        return self.joined if tokenizer.end_of_text is None else self.joined - self.added


class Surveyor:
    """Reads a corpus for the first time."""

    def __init__(self, corpus: Corpus, advance: Callable[[int], None] = lambda _: None) -> None:
        self._corpus, self._advance = corpus, advance
        self._joined, self._documents, self._join, self._sample = 0, 0, Join(), TextSample()

    def pieces(self) -> Iterator[str]:
        """Yield the whole text in pieces. Raises UserError for a file that cannot be read."""
        for document in self._corpus.documents(self._advance):
            self._documents += 1
            for piece in self._join(document):
                self._joined += len(piece)
                self._sample.add(piece)
                yield piece

    @property
    def survey(self) -> Survey:
        """What was found in the pieces so far."""
        return Survey(self._joined, self._join.added, self._documents, self._sample.text)


class Split:
    """The border between both parts: of many documents some whole ones are for validation, else the end of the text."""

    def __init__(self, data: DataConfig, survey: Survey, characters: int) -> None:
        """characters: those that are encoded."""
        self._share = val_share(data, survey.documents)
        self.by_document = survey.documents >= MANY_DOCUMENTS and survey.documents * self._share >= 1
        self.border = characters if self.by_document else int(characters * (1 - self._share))
        """Characters before the validation text."""

    def is_validation(self, number: int) -> bool:
        """Return whether the document of this number, counted from 1, is for validation as a whole."""
        return self.by_document and int(number * self._share) > int((number - 1) * self._share)


def text_of_part(corpus: Corpus, data: DataConfig, survey: Survey, validation: bool, most: int) -> Iterator[str]:
    """Yield the text of one part; where that is more than `most` characters, an even sample of its pieces.

    A piece is taken whenever the share of the text that was taken falls behind. Marks are left out.
    """
    split, taken, seen = Split(data, survey, survey.joined - survey.added), 0, 0
    share = min(1.0, most / max(1, survey.joined))
    for number, document in enumerate(corpus.documents(), start=1):
        is_other = split.by_document and split.is_validation(number) != validation
        for piece in document:
            seen += len(piece)
            cut = max(0, split.border - seen + len(piece))
            part = piece if split.by_document else piece[cut:] if validation else piece[:cut]
            if part and not is_other and not isinstance(piece, Mark) and taken <= share * seen:
                taken += len(part)
                yield part
