"""Makes token shards of a data set of the hub, in a background process, while a run trains on them.

Each row group is fetched by range, tokenized, and sealed as a shard of its own before the next is begun: an
interruption costs at most one of them. No text is written to the disk.
"""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from picogpt.config import TokenizerName
from picogpt.data.encoding import DocumentEncoder
from picogpt.data.shards.index import INDEX, Source
from picogpt.data.shards.reader import Shards
from picogpt.data.shards.writer import ShardWriter
from picogpt.data.sources.formats import DamagedFileError, has_room
from picogpt.data.sources.remote import ChangedError, MissingError
from picogpt.data.streaming.plan import Plan, StreamStatus, write_status
from picogpt.data.streaming.row_groups import RowGroups, first_text
from picogpt.data.token_folder import PARTS, TOKENIZER, read_tokenizer, write_tokenizer
from picogpt.data.unknown import TextSample, Unknown, read_unknown, write_unknown
from picogpt.errors import UserError
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.registry import TOKENIZERS


def fill(plan: Plan, report: Callable[[StreamStatus], None], busy: Callable[[], None] = lambda: None) -> None:
    """Stream up to the limit, the end of the data set or a full disk. It never stops trying to reach the network.

    report: called after every row group, before every pause, and at the end. busy: called before it waits for another
    process that fills the same folder. Raises UserError where trying again would not help.
    """
    with _locked(plan.folder / "lock", busy):
        if plan.learns and not (plan.folder / TOKENIZER).exists():
            _learn(plan, *plan.learns, report)
        tokenizer = read_tokenizer(plan.folder)
        fingerprint = tokenizer.fingerprint()
        folders = [plan.folder / part for part in PARTS]
        if not all((folder / INDEX).exists() for folder in folders):  # never sealed, or deleted
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
                with ShardWriter(folder, tokenizer.dtype, fingerprint, str(plan.dataset)):
                    pass
        # A row group counts from the moment the index of `train` names it, which is written last.
        done = Shards(plan.folder / "train", fingerprint).sources
        train, val = (ShardWriter.resume(plan.folder / part, fingerprint, done) for part in PARTS)
        report(_working(plan, train, val))
        _Filling(plan, tokenizer, train, val, report).run()


def _learn(plan: Plan, name: TokenizerName, size: int, report: Callable[[StreamStatus], None]) -> None:
    """Learn the tokenizer from the first text that arrives. Raises UserError where there is none."""
    texts = first_text(plan, lambda reason: report(StreamStatus("waiting", reason)))
    write_tokenizer(plan.folder, TOKENIZERS[name].from_corpus(texts, size))


def _working(plan: Plan, train: ShardWriter, val: ShardWriter, note: str = "") -> StreamStatus:
    """Return the status of a stream that is working. note: what is to be said of where its text is from."""
    tokens, count = train.tokens + val.tokens, len(train.sources)
    return StreamStatus("working", f"{plan.dataset}: {tokens:,} tokens of {count:,} row groups{note}", tokens)


@contextmanager
def _locked(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Hold a lock. busy: called before it waits for another process."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        busy()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class _Filling:
    """A call of `fill`, which holds the lock of its folder."""

    def __init__(
        self,
        plan: Plan,
        tokenizer: Tokenizer,
        train: ShardWriter,
        val: ShardWriter,
        report: Callable[[StreamStatus], None],
    ) -> None:
        self._plan, self._train, self._val, self._report = plan, train, val, report
        self._tokenizer, self._encoder = tokenizer, DocumentEncoder(tokenizer)
        self._note = ""

    def run(self) -> None:
        """Fetch one row group after the other until there is a reason to stop."""
        self._require_known()
        groups = RowGroups(self._plan, lambda reason: self._report(self._waiting(reason)))
        self._note = groups.note
        while not (reason := self._reason_to_stop(0)):
            source = groups.draw(self._train.sources)
            if source is None:
                reason = "" if groups.missing(self._train.sources) else "all of it is here"
                break
            if reason := self._reason_to_stop(groups.size(source)):
                break
            try:
                self._add(groups, source)
            except (MissingError, DamagedFileError, ChangedError) as error:
                groups.failed(source, error)
        done, missing = self._working(), groups.missing(self._train.sources)
        if missing:
            told = f"{missing} could not be read"
            reason = f"{reason}; {told}" if reason else f"all is here but {told}, which the next run tries again"
        self._report(replace(done, state="incomplete" if missing else "complete", text=f"{done.text}; {reason}"))

    def _require_known(self) -> None:
        """Raise UserError where too much of the text is unknown to the tokenizer."""
        plan, unknown = self._plan, read_unknown(self._plan.folder)
        unknown.require_little(self._tokenizer, plan.is_given, plan.allow_unknown)

    def _waiting(self, reason: str) -> StreamStatus:
        return replace(self._working(), state="waiting", text=reason)

    def _working(self) -> StreamStatus:
        return _working(self._plan, self._train, self._val, self._note)

    def _reason_to_stop(self, more: int) -> str:
        """Return why so many bytes more do not fit, or "". The first row group may be larger than the limit."""
        size = (self._train.tokens + self._val.tokens) * self._tokenizer.dtype.itemsize
        if size >= self._plan.limit or (size and size + more > self._plan.limit):
            return f"the limit of {self._plan.limit / 1e9:.3g} GB is reached (--data-limit)"
        return "" if has_room(self._plan.folder, more) else "the disk is nearly full"

    def _add(self, groups: RowGroups, source: Source) -> None:
        """Fetch, tokenize and seal one row group."""
        is_first, sample = not self._train.sources, TextSample()
        try:
            for document, validates in groups.documents(source, len(self._train.sources)):
                (self._val if validates else self._train).append(self._encoder.whole(document), source)
                for part in document if is_first else ():
                    sample.add(part)
            if is_first:
                write_unknown(self._plan.folder, Unknown.of(sample.text, self._tokenizer))
                self._require_known()
            self._val.seal(source)
            self._train.seal(source)
        except BaseException:
            self._val.drop()
            self._train.drop()
            raise
        self._report(self._working())


def _end_with_parent() -> None:
    """End this process when its standard input ends, which happens when the process that started it ends."""
    while os.read(0, 1):  # not sys.stdin: its lock would block the interpreter at the end
        pass
    os._exit(0)


def main(argv: Iterable[str]) -> None:
    """Run the background process. The status in its folder says what went wrong."""
    plan = Plan.from_json(next(iter(argv)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process when it is done
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(5)
    try:
        fill(plan, lambda status: write_status(plan.folder, status))
    except (UserError, OSError) as error:
        write_status(plan.folder, StreamStatus("failed", str(error)))


if __name__ == "__main__":
    main(sys.argv[1:])
