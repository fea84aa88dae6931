"""The row groups of a data set of the hub, in a random order over all its files that is always the same.

So what has arrived is at any time a uniform sample of the whole.
"""

import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from picogpt.data.shards.index import Source
from picogpt.data.sources.formats import DamagedFileError, Document, open_parquet, row_group, size_of
from picogpt.data.sources.hub import Hub, HubFile
from picogpt.data.sources.remote import ChangedError, MissingError
from picogpt.data.streaming.plan import Plan
from picogpt.errors import UserError
from picogpt.rng import generator

_SEED = 0  # of the order: one for all runs, so that they share what was fetched
_READ = 8 << 20  # bytes of a column fetched at once
_OPEN_FILES = 64  # parquet files whose footer stays in memory
ATTEMPTS = 3  # to read what seems damaged


class RowGroups:
    """The row groups of a plan's data set. It never stops trying to reach the network."""

    def __init__(self, plan: Plan, waiting: Callable[[str], None]) -> None:
        """waiting: gets the reason before every pause. Raises UserError for a data set that the hub does not have."""
        self._plan, self._waiting = plan, waiting
        self._hub = Hub(waiting)
        self._files = self._hub.files(plan.dataset)
        self._tables: dict[str, Any] = {}
        self._groups: dict[str, int] = {}  # row groups of a file, where that is known

    @property
    def missing(self) -> int:
        """The number of files so far that are missing or empty."""
        return list(self._groups.values()).count(0)

    def draw(self, done: Collection[Source]) -> Source | None:
        """Return the row group after those that are done, None after the last.

        It is any that is left of a random file, by the sizes of the files; the number of those done decides which.
        """
        of_file: dict[str, set[int]] = {}
        for path, group in done:
            of_file.setdefault(path, set()).add(group)
        rng = generator(_SEED, "draw", len(done))
        left = list(self._files)
        while left:
            sizes = np.array([file.size or 1 for file in left], np.float64)
            file = left.pop(int(rng.choice(len(left), p=sizes / sizes.sum())))
            groups = sorted(set(range(self._groups_of(file))) - of_file.get(file.path, set()))
            if groups:
                return file.path, int(groups[rng.integers(len(groups))])
        if not done:
            raise UserError(f"{self._hub.endpoint} has no undamaged file of {self._plan.dataset}: try another")
        return None

    def size(self, source: Source) -> int:
        """Return the bytes that a row group of `draw` unpacks to."""
        return size_of(self._tables[source[0]], source[1])

    def documents(self, source: Source, number: int) -> Iterator[tuple[Document, bool]]:
        """Yield the documents of a row group of `draw`, each with whether it is for validation.

        number: how many row groups came before. Raises MissingError where the file is gone, DamagedFileError or
        ChangedError where it cannot be read this time.
        """
        path, group = source
        rng = generator(_SEED, "split", number)
        for row, document in enumerate(row_group(path, self._tables[path], group, self._plan.columns)):
            # The very first row group has to have something to validate with.
            yield document, bool(rng.random() < self._plan.val_fraction) or (number == 0 and row == 1)

    def forget(self, path: str) -> None:
        """Open a file anew the next time."""
        self._tables.pop(path, None)
        self._groups.pop(path, None)

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
        return self._groups[file.path]

    def _opened(self, file: HubFile) -> Any:
        """Open a file. Raises MissingError where the hub has no such file, or it is no parquet file."""
        for attempt in range(ATTEMPTS):
            remote = self._hub.open(self._plan.dataset, file)
            try:
                return open_parquet(file.path, remote, self._plan.columns, _READ)
            except (DamagedFileError, ChangedError) as error:
                self._waiting(str(error))
                time.sleep(attempt)
        raise MissingError(file.path)
