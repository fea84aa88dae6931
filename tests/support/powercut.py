"""Power cuts: what a disk may hold after one at any moment, by no more than POSIX promises.

An fsync of a file makes its content durable, an fsync of a folder its names. What is not durable may be on the disk
or not, each change for itself and in any order: a name that is new or gone, a content that is lost, blank, cut or
whole. Only the renaming of a folder is taken for one change, as every file system with a journal has it.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from random import Random
from stat import S_ISDIR
from threading import RLock
from typing import Any, TypeVar
from unittest import mock

import pytest

Node = Any  # bytes of a file, or ((name, Node), ...) of a folder, by name
Names = dict[str, int]
Item = TypeVar("Item")

_CHANGES = ("replace", "rename", "mkdir", "unlink", "remove", "rmdir")


@dataclass
class _File:
    now: bytes
    durable: bytes | None = None

    def nodes(self) -> list[Node]:
        """Return what may be left of it."""
        if self.durable == self.now:
            return [self.now]
        size = len(self.now)
        left = (self.durable or b"", b"", bytes(size), self.now[: size // 2], self.now)
        return list(dict.fromkeys(left))


@dataclass
class _Folder:
    now: Names = field(default_factory=dict)
    durable: Names = field(default_factory=dict)
    changes: list[dict[str, int | None]] = field(default_factory=list)  # since it was durable; None: the name is gone

    def listings(self, most: int) -> list[Names]:
        """Return the names that may be left, first the durable ones."""
        found: dict[tuple[tuple[str, int], ...], None] = {}
        for chosen in _combinations([[False, True]] * len(self.changes), most):
            names: dict[str, int | None] = dict(self.durable)
            for change, happened in zip(self.changes, chosen, strict=True):
                names.update(change if happened else {})
            found[tuple(sorted((name, at) for name, at in names.items() if at is not None))] = None
        return [dict(listing) for listing in found]


class Disk:
    """A watch on a folder: `states` are what a power cut may have left, at each of the file operations.

    promise: anything hashable that says what must hold from here on; `promised` changes it. most: states of one moment.
    All that is in the folder at first is durable.
    """

    def __init__(self, root: Path, promise: Any, most: int = 100) -> None:
        self.root, self.promise, self._most = root, promise, most
        self.states: dict[tuple[Node, Any], str] = {}  # and the operation before which it was first possible
        self.moments = 0
        self._known: dict[int, _File | _Folder] = {}  # by inode
        self._held: list[int] = []  # descriptors, so that no inode is used again
        self._lock, self._patches = RLock(), ExitStack()

    def __enter__(self) -> "Disk":
        self._look()
        for entity in self._known.values():
            _harden(entity)
        for name in _CHANGES:
            self._patches.enter_context(mock.patch.object(os, name, self._watched(name, getattr(os, name))))
        self._patches.enter_context(mock.patch.object(os, "fsync", self._fsync))
        return self

    def __exit__(self, *error: object) -> None:
        self._patches.close()
        try:
            self._moment("the end")
        finally:
            for descriptor in self._held:
                os.close(descriptor)

    def promised(self, promise: Any) -> None:
        """Set what must hold from now on."""
        with self._lock:
            self.promise = promise
            self._moment("the next operation")

    def _watched(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: Any, *more: Any, **options: Any) -> Any:
            with self._lock:
                self._moment(" ".join(map(str, (name, path, *more))))
                moved = name in ("replace", "rename") and Path(path).is_dir()
                result = operation(path, *more, **options)
                self._look((Path(path).name, Path(more[0]).name) if moved else ())
                return result

        return watched

    def _fsync(self, descriptor: int) -> None:
        """Note that content is durable; the real disk is not waited for."""
        with self._lock:
            status = os.fstat(descriptor)
            self._moment("fsync of a folder" if S_ISDIR(status.st_mode) else "fsync of a file")
            if status.st_ino in self._known:
                _harden(self._known[status.st_ino])

    def _look(self, together: Collection[str] = ()) -> None:
        """Note what has changed. together: names that change at once."""
        folders = [self.root]
        while folders:
            place = folders.pop()
            _, entity = self._meet(place, _Folder())
            assert isinstance(entity, _Folder)
            now: Names = {}
            for path in place.iterdir():
                if path.is_dir():
                    folders.append(path)
                    now[path.name], _ = self._meet(path, _Folder())
                else:
                    now[path.name], file = self._meet(path, _File(b""))
                    assert isinstance(file, _File)
                    file.now = path.read_bytes()
            changed = {name: now.get(name) for name in entity.now | now if now.get(name) != entity.now.get(name)}
            if together and changed.keys() == set(together):
                entity.changes.append(changed)
            else:
                entity.changes += [{name: at} for name, at in changed.items()]
            entity.now = now

    def _meet(self, path: Path, new: _File | _Folder) -> tuple[int, _File | _Folder]:
        number = path.stat().st_ino
        if number not in self._known:
            self._known[number] = new
            self._held.append(os.open(path, os.O_RDONLY))
        return number, self._known[number]

    def _moment(self, operation: str) -> None:
        self._look()
        self.moments += 1
        for node in self._nodes(self.root.stat().st_ino, {}):
            self.states.setdefault((node, self.promise), operation)

    def _nodes(self, number: int, done: dict[int, list[Node]]) -> list[Node]:
        """Return what may be left of a file or folder. done: those already worked out."""
        if number not in done:
            entity = self._known[number]
            if isinstance(entity, _File):
                done[number] = entity.nodes()
            else:
                nodes: list[Node] = []
                listings = entity.listings(self._most)
                for names in listings:
                    inner = [self._nodes(at, done) for at in names.values()]
                    left = _combinations(inner, max(8, self._most // len(listings)))
                    nodes += [tuple(zip(names, chosen, strict=True)) for chosen in left]
                if len(nodes) > self._most:
                    nodes = [nodes[0], *Random(0).sample(nodes[1:-1], self._most - 2), nodes[-1]]
                done[number] = nodes
        return done[number]

    def harms(self, place: Path, check: Callable[[Path, Any], None]) -> Iterator[str]:
        """Yield what goes wrong after a power cut. check: raises for a folder that breaks a promise."""
        with mock.patch.object(os, "fsync", lambda descriptor: None):
            for (node, promise), operation in self.states.items():
                build(place, node)
                left = "\n".join(f"    {path.relative_to(place)}" for path in sorted(place.rglob("*")))
                try:
                    check(place, promise)
                except Exception as error:
                    yield f"before {operation}: {type(error).__name__}: {error}\n{left}"
                finally:
                    shutil.rmtree(place)


def build(place: Path, node: Node) -> None:
    """Make a file or a folder as it was left."""
    if isinstance(node, bytes):
        place.write_bytes(node)
        return
    place.mkdir()
    for name, inner in node:
        build(place / name, inner)


def leave_out(kind: Callable[[int], bool]) -> Callable[[pytest.MonkeyPatch], None]:
    """Return a way to break what is watched: fsync of files, or of folders, does nothing. kind: S_ISREG or S_ISDIR."""

    def broken(patch: pytest.MonkeyPatch) -> None:
        fsync = os.fsync
        patch.setattr(os, "fsync", lambda fd: None if kind(os.fstat(fd).st_mode) else fsync(fd))

    return broken


def _harden(entity: _File | _Folder) -> None:
    if isinstance(entity, _File):
        entity.durable = entity.now
    else:
        entity.durable, entity.changes = dict(entity.now), []


def _combinations(choices: list[list[Item]], most: int) -> list[tuple[Item, ...]]:
    """Return combinations of one of each: all or, where they are too many, those that differ little from the first or
    the last of each, and others at random."""
    if prod(map(len, choices)) <= most:
        return list(product(*choices))
    first, last = ([many[at] for many in choices] for at in (0, -1))
    found = [tuple(first)]
    for at in range(len(choices)):
        found.append((*last[: at + 1], *first[at + 1 :]))  # as if in order
        found += [(*last[:at], other, *last[at + 1 :]) for other in choices[at][:-1]]
    random = Random(0)
    while len(found) < most - 1:
        found.append(tuple(map(random.choice, choices)))
    return [*found, tuple(last)]
