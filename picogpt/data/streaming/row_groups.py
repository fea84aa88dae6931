"""The row groups of a data set of the hub, in a random order over all its files that is always the same.

So what has arrived is at any time a uniform sample of the whole.
"""

import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from picogpt.data.shards.index import Source
from picogpt.data.sources.formats import DamagedFileError, Document, open_parquet, row_group, size_of
from picogpt.data.sources.hub import Found, Hub, HubFile
from picogpt.data.sources.remote import ChangedError, MissingError
from picogpt.data.streaming.plan import Plan, read_pin, write_pin
from picogpt.errors import UserError
from picogpt.rng import generator
from picogpt.tokenizers.base import Mark

_SEED = 0  # of the order: one for all runs, so that they share what was fetched
_READ = 8 << 20  # bytes of a column fetched at once
_OPEN_FILES = 64  # parquet files whose footer stays in memory
_ATTEMPTS = 3  # to read what seems damaged
_ENOUGH_BYTES, _ENOUGH_SECONDS = 5_000_000, 60.0  # of text to learn a tokenizer from, and since its first arrived


class RowGroups:
    """The row groups of a plan's data set. It never stops trying to reach the network.

    One that cannot be read is put off: it is drawn once more after all others, and by the next run.
    """

    def __init__(self, plan: Plan, waiting: Callable[[str], None]) -> None:
        """waiting: gets the reason before every pause. Raises UserError for a data set that the hub does not have."""
        self._plan, self._waiting = plan, waiting
        self._hub = Hub(waiting)
        self._found = self._pinned()
        self._files = {file.path: file for file in self._found.files}
        self._validating = {path for path, file in self._files.items() if file.validates}
        self._tables: dict[str, Any] = {}
        self._groups: dict[str, int] = {}  # row groups of a file, where that is known; 0 where it cannot be read
        self._unreadable: set[str] = set()
        self._is_last_try = False  # of the files that could not be read
        self._failures = dict[Source, int]()
        self._splits = True  # False where the split to validate with cannot be read: then a share of the rest does

    def _pinned(self) -> Found:
        """Return the data set at the commit that the folder's first run found, which all others keep to."""
        pin = read_pin(self._plan.folder)
        try:
            found = self._hub.find(self._plan.dataset, pin)
        except MissingError:
            raise UserError(
                f"the hub no longer has the version of {self._plan.dataset} that {self._plan.folder} is of: "
                "delete that folder to begin with the newest, or train on what is there with HF_HUB_OFFLINE=1"
            ) from None
        if pin is None:
            write_pin(self._plan.folder, found.pin)
        return found

    @property
    def note(self) -> str:
        """What is to be said of where the text is from, or ""."""
        return " of the hub's own conversion to parquet" if self._found.pin.is_conversion else ""

    def missing(self, done: Collection[Source]) -> str:
        """Return in words what could not be read so far, "" for nothing."""
        left_out, is_known = len(self._put_off() - {*done}), len(self._groups) == len(self._files)
        of_all = f" of {sum(self._groups.values())}" if is_known else ""
        words = [f"{left_out}{of_all} row groups"] * bool(left_out)
        words += [f"{len(self._unreadable)} of {len(self._files)} files"] * bool(self._unreadable)
        return " and ".join(words)

    def draw(self, done: Collection[Source]) -> Source | None:
        """Return the row group after those that are done, None after the last.

        It is any that is left of a random file, by the sizes of the files; the number of those done decides which. The
        first is of a split for validation and the second of one to train on, where the data set has both.
        """
        rng = generator(_SEED, "draw", len(done))
        put_off = self._put_off()
        self._splits = not done or any(path in self._validating for path, _ in done)
        for files in self._choices(len(done)):
            if source := self._drawn(files, {*done, *put_off}, rng):
                return source
        if not done and not put_off:
            raise UserError(f"{self._hub.endpoint} has no undamaged file of {self._plan.dataset}: try another")
        if self._unreadable and not self._is_last_try:
            self._is_last_try = True
            for path in self._unreadable:
                del self._groups[path]
            self._unreadable.clear()
            return self.draw(done)
        for source in sorted(put_off - {*done}):
            if self._failures[source] == _ATTEMPTS:
                self._groups_of(self._files[source[0]])  # opened again, so that its size is known
                return source
        return None

    def _put_off(self) -> set[Source]:
        return {source for source, count in self._failures.items() if count >= _ATTEMPTS}

    def _choices(self, number: int) -> Iterator[list[HubFile]]:
        """Yield the files that the next row group may be of, those to be preferred first."""
        if self._validating and number < 2:
            yield [file for file in self._files.values() if file.validates == (number == 0)]
        yield list(self._files.values())

    def _drawn(self, left: list[HubFile], without: Collection[Source], rng: np.random.Generator) -> Source | None:
        of_file: dict[str, set[int]] = {}
        for path, group in without:
            of_file.setdefault(path, set()).add(group)
        while left:
            sizes = np.array([file.size for file in left], np.float64)
            file = left.pop(int(rng.choice(len(left), p=sizes / sizes.sum())))
            groups = sorted(set(range(self._groups_of(file))) - of_file.get(file.path, set()))
            if groups:
                return file.path, int(groups[rng.integers(len(groups))])
        return None

    def size(self, source: Source) -> int:
        """Return the bytes that a row group of `draw` unpacks to; 0 where its file cannot be opened any more."""
        return size_of(self._tables[source[0]], source[1]) if source[0] in self._tables else 0

    def documents(self, source: Source, number: int) -> Iterator[tuple[Document, bool]]:
        """Yield the documents of a row group of `draw`, each with whether it is for validation.

        number: how many row groups came before. Raises MissingError where the file is gone, DamagedFileError or
        ChangedError where it cannot be read this time.
        """
        path, group = source
        if not self._groups_of(self._files[path]):
            raise MissingError(path)
        rng = generator(_SEED, "split", number)
        for row, document in enumerate(row_group(path, self._tables[path], group, self._plan.columns)):
            if self._validating and self._splits:
                yield document, path in self._validating
            else:  # the very first row group has to have something to validate with
                yield document, bool(rng.random() < self._plan.val_fraction) or (number == 0 and row == 1)

    def failed(self, source: Source, error: Exception) -> None:
        """Open the file of a row group that could not be read anew the next time, after a pause.

        After a few times the row group is put off.
        """
        self._tables.pop(source[0], None)
        if isinstance(error, MissingError):  # the next draw finds that the file has no row groups
            self._groups.pop(source[0], None)
            error = MissingError(f"{source[0]} is not there")
        self._failures[source] = self._failures.get(source, 0) + 1
        if self._failures[source] < _ATTEMPTS:
            self._waiting(f"{error}: trying again")
            time.sleep(self._failures[source])
        elif self._failures[source] == _ATTEMPTS:
            self._waiting(f"{error}: put off until the rest is here")

    def _groups_of(self, file: HubFile) -> int:
        """Return the number of row groups of a file, 0 where the hub does not have it."""
        if self._groups.get(file.path) != 0 and file.path not in self._tables:
            while len(self._tables) >= _OPEN_FILES:
                del self._tables[next(iter(self._tables))]
            try:
                self._tables[file.path] = self._opened(file)
                self._groups[file.path] = self._tables[file.path].num_row_groups
            except MissingError:
                self._groups[file.path] = 0
                self._unreadable.add(file.path)
        return self._groups[file.path]

    def _opened(self, file: HubFile) -> Any:
        """Open a file. Raises MissingError where the hub has no such file, or it is no parquet file."""
        for attempt in range(_ATTEMPTS):
            try:
                remote = self._hub.open(self._found, file)
                return open_parquet(file.path, remote, self._plan.columns, _READ)
            except (DamagedFileError, ChangedError) as error:
                self._waiting(str(error))
                time.sleep(attempt)
        raise MissingError(file.path)


def first_text(plan: Plan, notify: Callable[[str], None]) -> list[str]:
    """Return the first texts that will be trained on, as many as are enough. Raises UserError where there are none."""
    groups, done, texts, size, began = RowGroups(plan, notify), list[Source](), list[str](), 0, 0.0
    while source := groups.draw(done):
        found, arrived = list[str](), size  # with this row group: one that breaks off is read from its beginning again
        try:
            for document, validates in groups.documents(source, len(done)):
                parts = [part for part in document if not validates and not isinstance(part, Mark)]
                began = began or (time.monotonic() if parts else 0.0)
                found += parts
                arrived += sum(len(part.encode(errors="replace")) for part in parts)
                if arrived >= _ENOUGH_BYTES or (began and time.monotonic() - began > _ENOUGH_SECONDS):
                    return texts + found
        except (MissingError, DamagedFileError, ChangedError) as error:
            groups.failed(source, error)
            continue
        texts, size = texts + found, arrived
        done.append(source)
    if not texts:
        raise UserError(f"{plan.dataset} has no text that can be read, to learn a tokenizer from: try another")
    return texts
