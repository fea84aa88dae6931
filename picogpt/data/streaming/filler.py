"""A data set of the hub -> token shards, by a process in the background, while they are trained on.

Row groups come in a random order over all files, always the same one, so that what has arrived is at any time a uniform
sample of the whole. Each is fetched by range, tokenized, and sealed as a shard of its own before the next is begun: an
interruption costs the one in hand. Nothing else touches the disk.
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

from picogpt.data.shards.index import INDEX, Source
from picogpt.data.shards.reader import Shards
from picogpt.data.shards.writer import ShardWriter
from picogpt.data.sources.formats import DamagedFileError, open_parquet, row_group, size_of
from picogpt.data.sources.hub import Hub, HubFile
from picogpt.data.sources.remote import ChangedError, MissingError
from picogpt.data.streaming.plan import Plan, StreamStatus, write_status
from picogpt.data.token_folder import PARTS, read_tokenizer
from picogpt.errors import UserError
from picogpt.rng import generator
from picogpt.tokenizers.base import Ids, Tokenizer

_SEED = 0  # of the order: one for all runs, so that they share what was fetched

_KEPT_FREE = 0.05  # of the disk

_READ = 8 << 20  # bytes of a column fetched at once

_OPEN_FILES = 64  # parquet files whose footer is kept

_ATTEMPTS = 3  # to read a row group that seems damaged


def fill(plan: Plan, tell: Callable[[StreamStatus], None], busy: Callable[[], None] = lambda: None) -> None:
    """Stream until the limit, the end of the data set or of the disk's free space. It never gives up on a network.

    tell: after every row group, before every pause, and at the end. busy: called before it waits for another process
    that fills the same folder. Raises UserError for what no repetition mends.
    """
    tokenizer = read_tokenizer(plan.folder)
    fingerprint = tokenizer.fingerprint()
    with _locked(plan.folder / "lock", busy):
        folders = [plan.folder / part for part in PARTS]
        if not all((folder / INDEX).exists() for folder in folders):  # begun and never sealed, or taken away
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
                with ShardWriter(folder, tokenizer.dtype, fingerprint, str(plan.dataset)):
                    pass
        # A row group counts from the moment the index of `train` names it, which is written last.
        done = Shards(plan.folder / "train", fingerprint).sources
        train, val = (ShardWriter.resume(plan.folder / part, fingerprint, done) for part in PARTS)
        tell(_working(plan, train, val))
        _Filling(plan, tokenizer, train, val, tell).run()


def _working(plan: Plan, train: ShardWriter, val: ShardWriter, missing: int = 0) -> StreamStatus:
    tokens = train.tokens + val.tokens
    without = f", without {missing} files that are missing or empty" if missing else ""
    return StreamStatus(
        "working", f"{plan.dataset}: {tokens:,} tokens of {len(train.sources):,} row groups{without}", tokens
    )


@contextmanager
def _locked(path: Path, busy: Callable[[], None]) -> Iterator[None]:
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
    """One pass of `fill`."""

    def __init__(
        self,
        plan: Plan,
        tokenizer: Tokenizer,
        train: ShardWriter,
        val: ShardWriter,
        tell: Callable[[StreamStatus], None],
    ) -> None:
        self._plan, self._tokenizer, self._train, self._val, self._tell = plan, tokenizer, train, val, tell
        self._hub = Hub(lambda reason: tell(self._waiting(reason)))
        self._tables: dict[str, Any] = {}
        self._failures: dict[Source, int] = {}
        self._groups: dict[str, int] = {}  # row groups of a file, where that is known

    def run(self) -> None:
        files = self._hub.files(self._plan.dataset)
        while not (reason := self._full(0)):
            source = self._draw(files)
            if source is None:
                if not self._train.sources:
                    raise UserError(f"{self._hub.endpoint} has no sound file of {self._plan.dataset}")
                reason = "all of it is here"
                break
            if reason := self._full(size_of(self._tables[source[0]], source[1])):
                break
            try:
                self._add(source)
            except MissingError:  # by its next draw it is known to have none
                self._forget(source[0])
            except (DamagedFileError, ChangedError) as error:
                self._damaged(source, error)
        done = self._working()
        self._tell(replace(done, state="complete", text=f"{done.text}; {reason}"))

    def _waiting(self, reason: str) -> StreamStatus:
        return replace(self._working(), state="waiting", text=reason)

    def _working(self) -> StreamStatus:
        return _working(self._plan, self._train, self._val, list(self._groups.values()).count(0))

    def _full(self, more: int) -> str:
        """Why so many bytes more do not fit, or nothing. The first row group may be larger than the limit."""
        tokens = self._train.tokens + self._val.tokens
        held = tokens * self._tokenizer.dtype.itemsize
        if held >= self._plan.limit or (held and held + more > self._plan.limit):
            return f"the limit of {self._plan.limit / 1e9:.3g} GB is reached (--data-limit)"
        usage = shutil.disk_usage(self._plan.folder)
        return "the disk is nearly full" if usage.free - more < _KEPT_FREE * usage.total else ""

    def _draw(self, files: list[HubFile]) -> Source | None:
        """The next row group, which the number of those before it decides: a file by its size, then any left of it."""
        done: dict[str, set[int]] = {}
        for path, group in self._train.sources:
            done.setdefault(path, set()).add(group)
        rng = generator(_SEED, "draw", len(self._train.sources))
        left = list(files)
        while left:
            sizes = np.array([file.size or 1 for file in left], np.float64)
            file = left.pop(int(rng.choice(len(left), p=sizes / sizes.sum())))
            rest = sorted(set(range(self._groups_of(file))) - done.get(file.path, set()))
            if rest:
                return file.path, int(rest[rng.integers(len(rest))])
        return None

    def _groups_of(self, file: HubFile) -> int:
        """Row groups of a file, none where the hub does not have it."""
        if self._groups.get(file.path) != 0 and file.path not in self._tables:
            try:
                self._groups[file.path] = self._table(file).num_row_groups
            except MissingError:
                self._groups[file.path] = 0
        return self._groups[file.path]

    def _forget(self, path: str) -> None:
        self._tables.pop(path, None)
        self._groups.pop(path, None)

    def _damaged(self, source: Source, error: Exception) -> None:
        """What came over the wire may be better the next time; what is damaged at its source is left out."""
        self._forget(source[0])
        self._failures[source] = self._failures.get(source, 0) + 1
        if self._failures[source] < _ATTEMPTS:
            self._tell(self._waiting(str(error)))
            time.sleep(self._failures[source])
            return
        self._val.seal(source)
        self._train.seal(source)

    def _table(self, file: HubFile) -> Any:
        if file.path not in self._tables:
            while len(self._tables) >= _OPEN_FILES:
                del self._tables[next(iter(self._tables))]
            self._tables[file.path] = self._opened(file)
        return self._tables[file.path]

    def _opened(self, file: HubFile) -> Any:
        """Raises MissingError where the hub has no such file, or what it has is no parquet file."""
        for attempt in range(_ATTEMPTS):
            remote = self._hub.open(self._plan.dataset, file)
            try:
                return open_parquet(file.path, remote, self._plan.columns, _READ)
            except (DamagedFileError, ChangedError) as error:
                self._tell(self._waiting(str(error)))
                time.sleep(attempt)
        raise MissingError(file.path)

    def _add(self, source: Source) -> None:
        """Fetch, tokenize and seal one row group."""
        path, group = source
        rng = generator(_SEED, "split", len(self._train.sources))
        first = not self._train.sources
        try:
            for number, text in enumerate(row_group(path, self._tables[path], group, self._plan.columns)):
                # The very first row group has to have something to validate with.
                kept = rng.random() < self._plan.val_fraction or (first and number == 1)
                (self._val if kept else self._train).append(self._encode(text), source)
            self._val.seal(source)
            self._train.seal(source)
        except BaseException:
            self._val.drop()
            self._train.drop()
            raise
        self._tell(self._working())

    def _encode(self, text: str) -> Ids:
        """The ids of a document, and what comes before the next."""
        encode = self._tokenizer.encode_marked if self._plan.columns.is_marked else self._tokenizer.encode
        if (end := self._tokenizer.end_of_text) is None:
            return encode(f"{text}\n\n")
        return np.concatenate([encode(text), np.array([end], self._tokenizer.dtype)])


def _end_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock would be in the way at the end
        pass
    os._exit(0)


def main(argv: Iterable[str]) -> None:
    """The process in the background. What goes wrong ends in its folder's status."""
    plan = Plan.from_json(next(iter(argv)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this when it is through
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(5)
    try:
        fill(plan, lambda status: write_status(plan.folder, status))
    except (UserError, OSError) as error:
        write_status(plan.folder, StreamStatus("failed", str(error)))


if __name__ == "__main__":
    main(sys.argv[1:])
