"""Makes token shards of a data set of the hub, in a background process, while a run trains on them.

Row groups come in a random order over all files, always the same one, so that what has arrived is at any time a uniform
sample of the whole. Each is fetched by range, tokenized, and sealed as a shard of its own before the next is begun: an
interruption costs at most one row group. Nothing else is written to the disk.
"""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from picogpt.data.encoding import DocumentEncoder
from picogpt.data.shards.index import INDEX, Source
from picogpt.data.shards.reader import Shards
from picogpt.data.shards.writer import ShardWriter
from picogpt.data.sources.formats import DamagedFileError, has_room, open_parquet, row_group, size_of
from picogpt.data.sources.hub import Hub, HubFile
from picogpt.data.sources.remote import ChangedError, MissingError
from picogpt.data.streaming.plan import Plan, StreamStatus, write_status
from picogpt.data.token_folder import PARTS, read_tokenizer
from picogpt.errors import UserError
from picogpt.rng import generator
from picogpt.tokenizers.base import Tokenizer

_SEED = 0  # of the order: one for all runs, so that they share what was fetched
_READ = 8 << 20  # bytes of a column fetched at once
_OPEN_FILES = 64  # parquet files whose footer stays in memory
_ATTEMPTS = 3  # to read a row group that seems damaged


def fill(plan: Plan, report: Callable[[StreamStatus], None], busy: Callable[[], None] = lambda: None) -> None:
    """Stream up to the limit, the end of the data set or a full disk. It never stops trying to reach the network.

    report: called after every row group, before every pause, and at the end. busy: called before it waits for another
    process that fills the same folder. Raises UserError where trying again would not help.
    """
    tokenizer = read_tokenizer(plan.folder)
    fingerprint = tokenizer.fingerprint()
    with _locked(plan.folder / "lock", busy):
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


def _working(plan: Plan, train: ShardWriter, val: ShardWriter, missing: int = 0) -> StreamStatus:
    """Return the status of a stream that is working. missing: files that are left out."""
    tokens = train.tokens + val.tokens
    without = f", without {missing} files that are missing or empty" if missing else ""
    return StreamStatus(
        "working", f"{plan.dataset}: {tokens:,} tokens of {len(train.sources):,} row groups{without}", tokens
    )


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
        self._encoder = DocumentEncoder(tokenizer, plan.columns.is_marked)
        self._token_bytes = tokenizer.dtype.itemsize
        self._hub = Hub(lambda reason: report(self._waiting(reason)))
        self._tables: dict[str, Any] = {}
        self._failures: dict[Source, int] = {}
        self._groups: dict[str, int] = {}  # row groups of a file, where that is known

    def run(self) -> None:
        """Fetch one row group after the other until there is a reason to stop."""
        files = self._hub.files(self._plan.dataset)
        while not (reason := self._reason_to_stop(0)):
            source = self._draw(files)
            if source is None:
                if not self._train.sources:
                    raise UserError(f"{self._hub.endpoint} has no undamaged file of {self._plan.dataset}: try another")
                reason = "all of it is here"
                break
            if reason := self._reason_to_stop(size_of(self._tables[source[0]], source[1])):
                break
            try:
                self._add(source)
            except MissingError:  # the next draw finds that it has no row groups
                self._forget(source[0])
            except (DamagedFileError, ChangedError) as error:
                self._retry_or_skip(source, error)
        done = self._working()
        self._report(replace(done, state="complete", text=f"{done.text}; {reason}"))

    def _waiting(self, reason: str) -> StreamStatus:
        return replace(self._working(), state="waiting", text=reason)

    def _working(self) -> StreamStatus:
        return _working(self._plan, self._train, self._val, list(self._groups.values()).count(0))

    def _reason_to_stop(self, more: int) -> str:
        """Return why so many bytes more do not fit, or "". The first row group may be larger than the limit."""
        size = (self._train.tokens + self._val.tokens) * self._token_bytes
        if size >= self._plan.limit or (size and size + more > self._plan.limit):
            return f"the limit of {self._plan.limit / 1e9:.3g} GB is reached (--data-limit)"
        return "" if has_room(self._plan.folder, more) else "the disk is nearly full"

    def _draw(self, files: list[HubFile]) -> Source | None:
        """Return the next row group, None after the last: a random file by its size, then any row group left of it.

        The number of row groups so far decides which it is.
        """
        done: dict[str, set[int]] = {}
        for path, group in self._train.sources:
            done.setdefault(path, set()).add(group)
        rng = generator(_SEED, "draw", len(self._train.sources))
        left = list(files)
        while left:
            sizes = np.array([file.size or 1 for file in left], np.float64)
            file = left.pop(int(rng.choice(len(left), p=sizes / sizes.sum())))
            groups = sorted(set(range(self._groups_of(file))) - done.get(file.path, set()))
            if groups:
                return file.path, int(groups[rng.integers(len(groups))])
        return None

    def _groups_of(self, file: HubFile) -> int:
        """Return the number of row groups of a file, 0 where the hub does not have it."""
        if self._groups.get(file.path) != 0 and file.path not in self._tables:
            try:
                self._groups[file.path] = self._table(file).num_row_groups
            except MissingError:
                self._groups[file.path] = 0
        return self._groups[file.path]

    def _forget(self, path: str) -> None:
        self._tables.pop(path, None)
        self._groups.pop(path, None)

    def _retry_or_skip(self, source: Source, error: Exception) -> None:
        """Pause before a damaged row group is fetched again, or leave it out after the last attempt."""
        self._forget(source[0])
        self._failures[source] = self._failures.get(source, 0) + 1
        if self._failures[source] < _ATTEMPTS:
            self._report(self._waiting(str(error)))
            time.sleep(self._failures[source])
            return
        self._val.seal(source)
        self._train.seal(source)

    def _table(self, file: HubFile) -> Any:
        """Return the pyarrow ParquetFile of a file, opened where it is not open yet."""
        if file.path not in self._tables:
            while len(self._tables) >= _OPEN_FILES:
                del self._tables[next(iter(self._tables))]
            self._tables[file.path] = self._opened(file)
        return self._tables[file.path]

    def _opened(self, file: HubFile) -> Any:
        """Open a file. Raises MissingError where the hub has no such file, or it is no parquet file."""
        for attempt in range(_ATTEMPTS):
            remote = self._hub.open(self._plan.dataset, file)
            try:
                return open_parquet(file.path, remote, self._plan.columns, _READ)
            except (DamagedFileError, ChangedError) as error:
                self._report(self._waiting(str(error)))
                time.sleep(attempt)
        raise MissingError(file.path)

    def _add(self, source: Source) -> None:
        """Fetch, tokenize and seal one row group."""
        path, group = source
        rng = generator(_SEED, "split", len(self._train.sources))
        is_first = not self._train.sources
        try:
            for number, text in enumerate(row_group(path, self._tables[path], group, self._plan.columns)):
                # The very first row group has to have something to validate with.
                validates = rng.random() < self._plan.val_fraction or (is_first and number == 1)
                (self._val if validates else self._train).append(self._encoder.whole(text), source)
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
