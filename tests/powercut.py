"""What a power cut leaves: every state that a disk may be in, at every moment of what a program does with files.

POSIX promises no more than this, and no more is assumed here. A file holds what it held when it was last flushed, or
what was written since, or a part of it. A folder lists what it listed at any moment since it was flushed: flushing a
file does not flush its name. What happens in one folder says nothing of another.
"""

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from math import prod
from pathlib import Path
from random import Random
from typing import Any

import pytest

_MOST = 150  # states of one moment: all of them, or so many drawn from them
_OPERATIONS = ("fsync", "replace", "rename", "mkdir", "unlink", "remove", "rmdir")

Tree = dict[str, bytes | None]
"""Path -> content, None for a folder."""


class Disk:
    """Watches the files below a folder. `states` are all that a power cut could have left, in the order of moments."""

    def __init__(self, root: Path) -> None:
        self.root, self.facts = root, list[Any]()
        self.states: list[tuple[Tree, list[Any]]] = []
        """What there would be, and the `facts` as of then."""
        self._lock, self._random, self._seen = threading.RLock(), Random(0), set[bytes]()
        self._held: dict[int, int] = {}  # inode -> an open descriptor, so that its number is not given to another
        self._flushed: dict[int, bytes] = {}  # what files held when they were flushed
        self._listings: dict[int, list[dict[str, int]]] = {}  # of a folder, since it was flushed
        self._look()
        self._listings = {inode: listings[-1:] for inode, listings in self._listings.items()}
        self._flushed = {inode: _content(fd) for inode, fd in self._held.items() if inode not in self._listings}

    def know(self, fact: Any) -> None:
        """From now on this is so: for whoever judges a state."""
        with self._lock:
            self.facts.append(fact)
            self._moment()

    @contextmanager
    def watched(self, without: str = "") -> Iterator[None]:
        """Note what this process does. without: "files" or "folders", whose flushes do nothing."""
        with pytest.MonkeyPatch.context() as patch:
            for name in _OPERATIONS:
                patch.setattr(os, name, self._noting(name, getattr(os, name), without))
            try:
                yield
                self._moment()
            finally:
                for descriptor in self._held.values():
                    os.close(descriptor)
                self._held.clear()

    def _noting(self, name: str, original: Callable[..., Any], without: str) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                self._moment()
                result = original(*arguments, **options)
                if name == "fsync":
                    self._flush(os.fstat(arguments[0]), without)
                self._moment()
            return result

        return noted

    def _flush(self, of: os.stat_result, without: str) -> None:
        self._look()
        if stat.S_ISDIR(of.st_mode) and of.st_ino in self._listings and without != "folders":
            self._listings[of.st_ino] = self._listings[of.st_ino][-1:]
        elif of.st_ino in self._held and without != "files":
            self._flushed[of.st_ino] = _content(self._held[of.st_ino])

    def _look(self) -> None:
        """Note what every folder lists now."""
        folders = [self.root]
        while folders:
            folder = folders.pop()
            listing: dict[str, int] = {}
            for entry in os.scandir(folder):
                inode = entry.inode()
                listing[entry.name] = inode
                if inode not in self._held:
                    self._held[inode] = os.open(entry.path, os.O_RDONLY)
                if entry.is_dir():
                    folders.append(Path(entry.path))
            known = self._listings.setdefault(folder.stat().st_ino, [{}])
            if known[-1] != listing:
                known.append(listing)

    def _moment(self) -> None:
        """Note every state that there could be after a power cut now."""
        self._look()
        folders = [inode for inode, listings in self._listings.items() if len(listings) > 1]
        choices = [*(self._listings[inode] for inode in folders), ["lost", "half", "whole"]]
        if prod(map(len, choices)) > _MOST:
            ways: Any = [[self._random.choice(choice) for choice in choices] for _ in range(_MOST)]
        else:
            ways = product(*choices)
        for *listings, kept in ways:
            chosen = dict(zip(folders, listings, strict=True))
            tree: Tree = {}
            self._grow(tree, "", self.root.stat().st_ino, chosen, kept)
            digest = hashlib.sha256(repr((sorted(tree.items()), self.facts)).encode()).digest()
            if digest not in self._seen:
                self._seen.add(digest)
                self.states.append((tree, list(self.facts)))

    def _grow(self, tree: Tree, path: str, folder: int, chosen: dict[int, dict[str, int]], kept: str) -> None:
        for name, inode in chosen.get(folder, self._listings[folder][-1]).items():
            if inode in self._listings:
                tree[path + name] = None
                self._grow(tree, f"{path}{name}/", inode, chosen, kept)
                continue
            content, flushed = _content(self._held[inode]), self._flushed.get(inode, b"")
            tree[path + name] = {"lost": flushed, "half": content[: len(content) // 2], "whole": content}[kept]
            if content == flushed:
                tree[path + name] = content


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def build(tree: Tree, folder: Path) -> Path:
    """The state as files."""
    folder.mkdir()
    for path, content in sorted(tree.items()):
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)
    return folder
