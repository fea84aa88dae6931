"""A corpus -> its tokenizer and token shards, made once and then reused."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from picogpt.config import DataConfig, UserError
from picogpt.data.corpora import Corpus, open_corpus
from picogpt.data.shards import Shards, ShardWriter, open_shards
from picogpt.data.tokenizer import CharTokenizer, PicoTokenizer, Tokenizer, from_dict

_TOKENIZER = "tokenizer.json"
_LOOK = 100_000  # characters looked at for ones the tokenizer does not know


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
    data: DataConfig, dataset_dir: Path, notify: Callable[[str], None], tokenizer: Tokenizer | None = None
) -> Prepared:
    """Tokens of the corpus, from `dataset_dir`/tokens when they are there and intact, else made now.

    `notify` is told in a line what takes time. tokenizer: that of a model to fine-tune, in place of the corpus' own.
    Raises UserError for what is wrong with the corpus or the disk.
    """
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
        _build(folder, corpus, data, tokenizer, notify)
    except OSError as error:
        raise UserError(f"the tokens cannot be written to {folder}: {error.strerror or error}") from error
    return _open(folder, corpus)


def _open(folder: Path, corpus: Corpus) -> Prepared:
    path = folder / _TOKENIZER
    try:
        tokenizer = from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError, UserError):
        raise UserError(f"{path} is not a tokenizer: delete {folder}; it is made again") from None
    train, val = (open_shards(folder / part, tokenizer.fingerprint()) for part in ("train", "val"))
    train.verify()
    val.verify()
    facts = (tokenizer.fingerprint(), train.fingerprint(), val.fingerprint())
    return Prepared(corpus, tokenizer, train, val, sha256(repr(facts).encode()).hexdigest()[:16])


def _discard(folder: Path) -> None:
    """Remove a damaged folder, first from its place, so that nobody finds half of it or loses what comes after it."""
    damaged = _beside(folder)
    try:
        os.rename(folder, damaged)
    except FileNotFoundError:
        return
    shutil.rmtree(damaged)


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")


def _build(
    folder: Path, corpus: Corpus, data: DataConfig, tokenizer: Tokenizer | None, notify: Callable[[str], None]
) -> None:
    """Make `folder` under another name and rename it: other processes see all or nothing, and the first one wins."""
    work = _beside(folder)
    work.mkdir(parents=True)
    try:
        tokenizer, count, start = _survey(corpus, data, tokenizer)
        _tell_unknown(start, tokenizer, notify)
        (work / _TOKENIZER).write_text(json.dumps(tokenizer.to_dict()), encoding="utf-8")
        _write(work, corpus, tokenizer, count, int(count * (1 - data.val_fraction)))
        try:
            os.rename(work, folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)  # gone already when all went well


def _survey(corpus: Corpus, data: DataConfig, tokenizer: Tokenizer | None) -> tuple[Tokenizer, int, str]:
    """The first pass: (the tokenizer given, or else the corpus' own; characters of the corpus; the first of them)."""
    count, start = 0, ""

    def counted() -> Iterator[str]:
        nonlocal count, start
        for piece in corpus.documents():
            count += len(piece)
            start = start or piece[:_LOOK]
            yield piece

    if tokenizer is None and data.tokenizer == "chars":
        tokenizer = CharTokenizer.of(counted())
    else:
        for _ in counted():
            pass
    return tokenizer or PicoTokenizer(), count, start


def _tell_unknown(text: str, tokenizer: Tokenizer, notify: Callable[[str], None]) -> None:
    """Say so where much of the text is foreign to the tokenizer: a model would learn to write the mark for it."""
    unknown = tokenizer.unknown(text)
    share = sum(map(text.count, unknown)) / max(1, len(text))
    if share > 0.01:
        notify(
            f"{share:.0%} of the text is not in the tokenizer's alphabet ({unknown[:20]!r}...): try --tokenizer chars"
        )


def _write(work: Path, corpus: Corpus, tokenizer: Tokenizer, count: int, train_count: int) -> None:
    """The second pass: the first `train_count` of `count` tokens to work/train, the rest to work/val."""
    seen = 0
    facts = (tokenizer.dtype, tokenizer.fingerprint(), corpus.signature)
    with ShardWriter(work / "train", *facts) as train, ShardWriter(work / "val", *facts) as val:
        for piece in corpus.documents():
            ids = tokenizer.encode(piece)
            border = max(0, train_count - seen)
            train.append(ids[:border])
            val.append(ids[border:])
            seen += len(ids)
        if seen != count:
            raise UserError(f"{corpus.source} changed while it was read: try again")
