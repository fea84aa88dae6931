"""A corpus -> its tokenizer and token shards, made once and then reused."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from filelock import FileLock

from picogpt.config import DataConfig
from picogpt.data.shards.reader import Shards
from picogpt.data.shards.writer import ShardWriter
from picogpt.data.sources.corpora import Corpus, Join, open_corpus
from picogpt.data.sources.formats import Document
from picogpt.data.token_folder import (
    MANY_DOCUMENTS,
    PARTS,
    beside,
    read_tokenizer,
    require_known,
    val_share,
    write_tokenizer,
)
from picogpt.errors import UserError
from picogpt.system.files import make_folder, sync_folder
from picogpt.tokenizers.base import BORDER, Ids, Tokenizer
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer

_LOOK = 100_000  # characters looked at for ones the tokenizer does not know

_WORD = 1 << 16  # characters from the end of a piece in which white space is looked for

_VERIFIED = 1 << 28  # ids that are verified before they are used; of more, each block when it is first read

Advance = Callable[[int, int], None]
"""Told how many bytes more were read, and how many there are to read in all."""

Append = Callable[[Ids], None]


@dataclass(frozen=True)
class Prepared:
    """A corpus, ready to train on."""

    corpus: Corpus
    tokenizer: Tokenizer
    train: Shards
    val: Shards
    fingerprint: str
    """16 hexadecimal digits of the tokenizer and of all tokens: another text, split or vocabulary has another."""


def prepare(
    data: DataConfig,
    dataset_dir: Path,
    notify: Callable[[str], None],
    tokenizer: Tokenizer | None = None,
    advance: Advance = lambda read, total: None,
) -> Prepared:
    """Tokens of the corpus, from `dataset_dir`/tokens when they are there and intact, else made now.

    `notify` is told in a line what takes time. tokenizer: that of a model to fine-tune, in place of the corpus' own.
    Raises UserError for what is wrong with the corpus or the disk.
    """
    require_known(data, tokenizer)
    corpus = open_corpus(data, dataset_dir)
    kind = tokenizer.fingerprint() if tokenizer else data.tokenizer
    key = sha256(repr((corpus.signature, kind, data.val_fraction)).encode()).hexdigest()[:12]
    folder = dataset_dir / "tokens" / f"{corpus.name}-{key}"
    damaged = False
    if folder.exists():
        try:
            return _open(folder, corpus)
        except UserError as error:
            damaged = True
            notify(f"making the tokens again: {error}")
    notify(f"tokenizing {corpus.source}")
    try:
        if damaged:
            _discard(folder)
        _build(folder, corpus, data, tokenizer, notify, advance)
    except OSError as error:
        raise UserError(f"the tokens cannot be written to {folder}: {error.strerror or error}") from error
    return _open(folder, corpus)


def _open(folder: Path, corpus: Corpus) -> Prepared:
    tokenizer = read_tokenizer(folder)
    train, val = (Shards(folder / part, tokenizer.fingerprint()) for part in PARTS)
    if len(train) + len(val) <= _VERIFIED:
        train.verify()
        val.verify()
    facts = (tokenizer.fingerprint(), train.fingerprint(), val.fingerprint())
    return Prepared(corpus, tokenizer, train, val, sha256(repr(facts).encode()).hexdigest()[:16])


def _discard(folder: Path) -> None:
    """Remove a damaged folder, first from its place, so that nobody finds half of it or loses what comes after it."""
    damaged = beside(folder)
    try:
        os.rename(folder, damaged)
    except FileNotFoundError:
        return
    shutil.rmtree(damaged)


def _build(
    folder: Path,
    corpus: Corpus,
    data: DataConfig,
    tokenizer: Tokenizer | None,
    notify: Callable[[str], None],
    advance: Advance,
) -> None:
    """Make `folder` under another name and rename it: other processes wait, and see all or nothing."""
    make_folder(folder.parent)
    work, total = folder.with_name(f"{folder.name}.part"), 2 * corpus.size  # it is read twice
    with FileLock(folder.with_name(".lock")):
        if folder.exists():
            return
        try:
            survey = _survey(corpus, data, tokenizer, lambda read: advance(read, total))
            _tell_unknown(survey.start, survey.tokenizer, notify)
            train, val = _writers(work, survey.tokenizer, corpus)
            with train, val:
                if not _split(corpus, data, survey, _append(train), _append(val), lambda read: advance(read, total)):
                    raise UserError(f"{corpus.source} changed while it was read: try again")
            os.rename(work, folder)
            sync_folder(folder.parent)
        except (UserError, OSError):  # anything else, such as Ctrl-C or a kill, leaves what is sealed for the next time
            shutil.rmtree(work, ignore_errors=True)
            raise


def _writers(work: Path, tokenizer: Tokenizer, corpus: Corpus) -> list[ShardWriter]:
    """To train on and to validate with: those of one that was interrupted here, or new ones."""
    folders = [work / part for part in PARTS]
    try:
        read_tokenizer(work)  # it is gone where deleting the folder was interrupted
        return [ShardWriter.resume(folder, tokenizer.fingerprint(), {None}) for folder in folders]
    except UserError:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    write_tokenizer(work, tokenizer)
    writers = [ShardWriter(folder, tokenizer.dtype, tokenizer.fingerprint(), corpus.signature) for folder in folders]
    for writer in writers:
        writer.seal()  # so that there is an index to go on from
    return writers


def _append(writer: ShardWriter) -> Append:
    """`append` for one that is given everything from the beginning: what the writer has sealed is left out."""
    left = writer.tokens

    def append(ids: Ids) -> None:
        nonlocal left
        known = min(left, len(ids))
        left -= known
        writer.append(ids[known:])

    return append


@dataclass(frozen=True)
class _Survey:
    """What the first pass over a corpus finds."""

    tokenizer: Tokenizer
    characters: int
    documents: int
    start: str  # the first characters


def _survey(corpus: Corpus, data: DataConfig, tokenizer: Tokenizer | None, advance: Callable[[int], None]) -> _Survey:
    """The first pass. tokenizer: the one to use, in place of the corpus' own."""
    count, documents, start = 0, 0, ""

    def counted() -> Iterator[str]:
        nonlocal count, documents, start
        join = _joining(tokenizer)
        for document in corpus.documents(advance):
            documents += 1
            for piece in join(document):
                count += len(piece)
                start = start or piece[:_LOOK]
                yield piece

    if tokenizer is None and data.tokenizer == "chars":
        tokenizer = CharTokenizer.of(counted())
    else:
        for _ in counted():
            pass
    return _Survey(tokenizer or PicoTokenizer(), count, documents, start)


def _joining(tokenizer: Tokenizer | None) -> Callable[[Document], Iterable[str]]:
    """What puts a blank line between documents, where the tokenizer has no id for that."""
    return Join() if tokenizer is None or tokenizer.end_of_text is None else iter


class _Encoding:
    """Documents that follow each other -> ids."""

    def __init__(self, tokenizer: Tokenizer, marked: bool) -> None:
        """marked: the documents hold the names of special ids."""
        self._tokenizer, self._join = tokenizer, _joining(tokenizer)
        self._encode = tokenizer.encode_marked if marked else tokenizer.encode

    def __call__(self, document: Document) -> Iterator[tuple[int, Ids]]:
        """The document piece by piece, each with the number of its characters, and the end of a text after it."""
        for piece in _unbroken(self._join(document)):
            yield len(piece), self._encode(piece)
        if self._tokenizer.end_of_text is not None:
            yield 0, np.array([self._tokenizer.end_of_text], self._tokenizer.dtype)


def _unbroken(pieces: Iterable[str]) -> Iterator[str]:
    """The same text in pieces that end before white space where there is some: no word is in two."""
    kept = ""
    for piece in pieces:
        text = kept + piece
        borders = [found.start() for found in BORDER.finditer(text, max(0, len(text) - _WORD))]
        end = borders[-1] if borders else len(text)
        if end:
            yield text[:end]
        kept = text[end:]
    if kept:
        yield kept


def _tell_unknown(text: str, tokenizer: Tokenizer, notify: Callable[[str], None]) -> None:
    """Say so where much of the text is foreign to the tokenizer: a model would learn to write the mark for it."""
    unknown = tokenizer.unknown(text)
    share = sum(map(text.count, unknown)) / max(1, len(text))
    if share > 0.01:
        notify(
            f"{share:.0%} of the text is not in the tokenizer's alphabet ({unknown[:20]!r}...): try --tokenizer chars"
        )


def _split(
    corpus: Corpus,
    data: DataConfig,
    survey: _Survey,
    train: Append,
    val: Append,
    advance: Callable[[int], None],
) -> bool:
    """The second pass: of many documents some go to `val` whole, else it gets the end of the text.

    Returns whether the text was as long as in the first.
    """
    share, marked = val_share(data, survey.documents), corpus.columns.is_marked
    if survey.documents >= MANY_DOCUMENTS and survey.documents * share >= 1:
        encodings, documents = {part: _Encoding(survey.tokenizer, marked) for part in (train, val)}, 0
        for document in corpus.documents(advance):
            documents += 1
            part = val if int(documents * share) > int((documents - 1) * share) else train
            for _, ids in encodings[part](document):
                part(ids)
        return documents == survey.documents
    border, seen, encoding = int(survey.characters * (1 - share)), 0, _Encoding(survey.tokenizer, marked)
    for document in corpus.documents(advance):
        for count, ids in encoding(document):
            left = min(len(ids), max(0, border - seen) * len(ids) // count) if count else len(ids) * (seen <= border)
            train(ids[:left])
            val(ids[left:])
            seen += count
    return seen == survey.characters
