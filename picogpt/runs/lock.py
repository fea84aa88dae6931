"""One process a run: a lock that the system frees when its owner dies, and a note of who owns it."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from errno import ENOLCK, ENOSYS, EOPNOTSUPP
from pathlib import Path

from filelock import FileLock, Timeout

from picogpt.errors import UserError
from picogpt.runs.layout import LOCK, OWNER
from picogpt.system.files import make_folder

_NO_LOCKS = (ENOLCK, ENOSYS, EOPNOTSUPP)
_LONGEST_NOTE = 1000  # characters


@contextmanager
def run_lock(run_dir: Path, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold the run while open, so that no other process trains it. The note of an owner that died is replaced.

    Raises UserError where another process holds the run, or the folder cannot be written. Where the file system has no
    locks, `notify` gets a line about it.
    """
    lock, owner = FileLock(run_dir / LOCK, fallback_to_soft=False), run_dir / OWNER
    try:
        make_folder(run_dir)
        _acquire(lock, run_dir, notify)
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M}"}
        owner.write_text(json.dumps(about), encoding="utf-8")
    except OSError as error:
        lock.release()
        raise UserError(f"cannot write {run_dir} ({error.strerror or error}): look at the folder") from None
    try:
        yield
    finally:
        with suppress(OSError):  # a note that stays does no harm
            owner.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: FileLock, run_dir: Path, notify: Callable[[str], None]) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"run {run_dir.name} is being trained by {_owner_in_words(run_dir / OWNER)}: "
            "wait for it, stop it, or give another --run NAME"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        notify(f"{run_dir} is on a file system without locks: make sure that only one process trains this run")


def _owner_in_words(note: Path) -> str:
    """Return who holds the lock, as far as the note says."""
    try:
        with note.open(encoding="utf-8") as file:
            content = json.loads(file.read(_LONGEST_NOTE))
        match content:
            case {"pid": int(pid), "host": str(host), "since": str(since)}:
                return f"process {pid} on {host} since {since}"
    except (OSError, ValueError, RecursionError):
        pass
    return "another process"
