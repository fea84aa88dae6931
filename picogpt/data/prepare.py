"""Makes the tokenizer and the token shards of a corpus, once; later runs reuse them."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from picogpt.config import DataConfig
from picogpt.data.encoding import DocumentEncoder
from picogpt.data.shards.reader import Shards
from picogpt.data.shards.writer import ShardWriter
from picogpt.data.sources.corpora import Corpus, open_corpus
from picogpt.data.split import Split, Survey, Surveyor, text_of_part
from picogpt.data.token_folder import PARTS, beside, file_tokenizer, read_tokenizer, require_known, write_tokenizer
from picogpt.data.unknown import Unknown, read_unknown, write_unknown
from picogpt.errors import UserError
from picogpt.system.files import make_folder, sync_folder
from picogpt.tokenizers.base import Ids, Tokenizer
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.registry import TOKENIZERS

_LEARNT_FROM = 20_000_000  # characters that a tokenizer is learnt from, at most
# Where words are long or not parted by spaces, as in Chinese, each takes much longer to learn from and few come twice.
_LEAST, _SHORT_WORDS = 2_000_000, 10  # characters at the most of such a text, and of a word up to which all are used
_SHOWN = 1_000_000  # characters of the validation part that a tokenizer is judged on
_VERIFIED = 1 << 28  # ids that are verified before they are used; of more, each block when it is first read

Advance = Callable[[int, int], None]
"""Called with the bytes read since the last call, and all that there are to read."""

_Append = Callable[[Ids], None]


@dataclass(frozen=True)
class Prepared:
    """A corpus, ready to train on."""

    corpus: Corpus
    tokenizer: Tokenizer
    train: Shards
    val: Shards
    fingerprint: str
    """16 hexadecimal digits of the tokenizer and all tokens; they differ for another text, split or vocabulary."""
    unknown: Unknown


def prepare(
    data: DataConfig,
    dataset_dir: Path,
    notify: Callable[[str], None],
    tokenizer: Tokenizer | None = None,
    advance: Advance = lambda read, total: None,
) -> Prepared:
    """Return the tokens of the corpus: from `dataset_dir`/tokens if they are there and sound, else made now.

    notify: gets a line about what takes time. tokenizer: that of a model to fine-tune, in place of the corpus' own.
    Raises UserError for what is wrong with the corpus or the disk.
    """
    require_known(data, tokenizer)
    tokenizer = tokenizer or file_tokenizer(data)
    corpus = open_corpus(data, dataset_dir)
    kind = tokenizer.fingerprint() if tokenizer else data.tokenizer
    key = sha256(repr((corpus.signature, kind, data.val_fraction)).encode()).hexdigest()[:12]
    folder = dataset_dir / "tokens" / f"{corpus.name}-{key}"
    damaged = False
    if folder.exists():
        try:
            prepared = _open(folder, corpus)
        except UserError as error:
            damaged = True
            notify(f"making the tokens again: {error}")
        else:
            prepared.unknown.require_little(prepared.tokenizer, tokenizer is not None, data.allow_unknown)
            return prepared
    notify(f"tokenizing {corpus.source}")
    try:
        if damaged:
            _discard(folder)
        _build(folder, corpus, data, tokenizer, notify, advance)
    except OSError as error:
        raise UserError(f"the tokens cannot be written to {folder}: {error.strerror or error}") from error
    return _open(folder, corpus)


def _open(folder: Path, corpus: Corpus) -> Prepared:
    """Return what is in a folder of tokens. Raises UserError where it is damaged."""
    tokenizer = read_tokenizer(folder)
    fingerprint = tokenizer.fingerprint()
    train, val = (Shards(folder / part, fingerprint) for part in PARTS)
    if len(train) + len(val) <= _VERIFIED:
        train.verify()
        val.verify()
    facts = (fingerprint, train.fingerprint(), val.fingerprint())
    fingerprint = sha256(repr(facts).encode()).hexdigest()[:16]
    return Prepared(corpus, tokenizer, train, val, fingerprint, read_unknown(folder))


def _discard(folder: Path) -> None:
    """Delete a damaged folder. It is renamed first, so that other processes see all of it or nothing."""
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
    given: Tokenizer | None,
    notify: Callable[[str], None],
    advance: Advance,
) -> None:
    """Make `folder` under another name and rename it: other processes wait for it, and see all of it or nothing.

    given: the tokenizer of a model to fine-tune, in place of the corpus' own.
    """
    make_folder(folder.parent)
    work, total = folder.with_name(f"{folder.name}.part"), 2 * corpus.size  # it is read twice

    def read(count: int) -> None:
        advance(count, total)

    with FileLock(folder.with_name(".lock")):
        if folder.exists():
            return
        try:
            survey, tokenizer = _surveyed(corpus, data, given, read)
            unknown = Unknown.of(survey.sample, tokenizer)
            if notice := unknown.require_little(tokenizer, given is not None, data.allow_unknown):
                notify(notice)
            train, val = _writers(work, tokenizer, corpus)
            write_unknown(work, unknown)
            with train, val:
                if not _split(
                    corpus, data, survey, tokenizer, _append_after_sealed(train), _append_after_sealed(val), read
                ):
                    raise UserError(f"{corpus.source} changed while it was read: try again")
            os.rename(work, folder)
            sync_folder(folder.parent)
        except (UserError, OSError):  # after anything else, such as Ctrl-C, the next call continues with what is sealed
            shutil.rmtree(work, ignore_errors=True)
            raise


def learnt_tokenizer(data: DataConfig, size: int, dataset_dir: Path) -> tuple[BpeTokenizer, str]:
    """Return the BPE tokenizer of a corpus, and up to a million characters of its validation part.

    size: how many ids it should have; 0: by the length of the text. Raises UserError for what is wrong with the corpus.
    """
    corpus = open_corpus(data, dataset_dir)
    surveyor = Surveyor(corpus)
    for _ in surveyor.pieces():
        pass
    survey = surveyor.survey
    tokenizer = BpeTokenizer.from_corpus(training_text(corpus, data, survey), size)
    return tokenizer, "".join(text_of_part(corpus, data, survey, validation=True, most=_SHOWN))[:_SHOWN]


def _writers(work: Path, tokenizer: Tokenizer, corpus: Corpus) -> list[ShardWriter]:
    """Return the writers of both parts: they continue what was interrupted here, or are new."""
    folders = [work / part for part in PARTS]
    try:
        read_tokenizer(work)  # missing where the deletion of the folder was interrupted
        return [ShardWriter.resume(folder, tokenizer.fingerprint(), {None}) for folder in folders]
    except UserError:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    write_tokenizer(work, tokenizer)
    writers = [ShardWriter(folder, tokenizer.dtype, tokenizer.fingerprint(), corpus.signature) for folder in folders]
    for writer in writers:
        writer.seal()  # so that there is an index to resume from
    return writers


def _append_after_sealed(writer: ShardWriter) -> _Append:
    """Return an `append` that takes all ids from the beginning, and leaves out what the writer has sealed already."""
    left = writer.tokens

    def append(ids: Ids) -> None:
        nonlocal left
        skipped = min(left, len(ids))
        left -= skipped
        writer.append(ids[skipped:])

    return append


def _surveyed(
    corpus: Corpus, data: DataConfig, tokenizer: Tokenizer | None, advance: Callable[[int], None]
) -> tuple[Survey, Tokenizer]:
    """Read the corpus once, and return its tokenizer as well. tokenizer: the one to use instead of the corpus' own."""
    surveyor, kind = Surveyor(corpus, advance), TOKENIZERS[data.tokenizer_name]
    text = surveyor.pieces()
    if tokenizer is None and kind.origin != "training":
        tokenizer = kind.from_corpus(text)
    for _ in text:  # what the tokenizer did not have to see
        pass
    survey = surveyor.survey
    return survey, tokenizer or kind.from_corpus(training_text(corpus, data, survey), data.tokenizer_size)


def training_text(corpus: Corpus, data: DataConfig, survey: Survey) -> Iterator[str]:
    """Yield what a tokenizer is learnt from: nothing of what is kept for validation, and of a large text a sample."""
    words = len(survey.sample.split()) * _SHORT_WORDS / max(1, len(survey.sample))
    most = max(_LEAST, int(min(1.0, words) * _LEARNT_FROM))
    return text_of_part(corpus, data, survey, validation=False, most=most)


def _split(
    corpus: Corpus,
    data: DataConfig,
    survey: Survey,
    tokenizer: Tokenizer,
    train: _Append,
    val: _Append,
    advance: Callable[[int], None],
) -> bool:
    """Read the corpus again and encode it into its two parts.

    Returns whether the text was as long as in the survey.
    """
    characters = survey.characters(tokenizer)
    split = Split(data, survey, characters)
    if split.by_document:
        encoders, documents = {part: DocumentEncoder(tokenizer) for part in (train, val)}, 0
        for document in corpus.documents(advance):
            documents += 1
            part = val if split.is_validation(documents) else train
            for _, ids in encoders[part].pieces(document):
                part(ids)
        return documents == survey.documents
    seen, encoder = 0, DocumentEncoder(tokenizer)
    for document in corpus.documents(advance):
        for count, ids in encoder.pieces(document):
            before = max(0, split.border - seen)
            left = min(len(ids), before * len(ids) // count) if count else len(ids) * (seen <= split.border)
            train(ids[:left])
            val(ids[left:])
            seen += count
    return seen == characters
