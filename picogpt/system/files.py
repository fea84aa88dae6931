"""Files that others may be reading, and that a power cut may interrupt."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, EIO, ENOSPC
from pathlib import Path
from typing import TypeVar

from picogpt.errors import UserError

Result = TypeVar("Result")


def replace(source: Path, target: Path) -> None:
    """`os.replace` that waits up to a second for Windows, which refuses while another program has the file open."""
    _patiently(lambda: os.replace(source, target))


def read_bytes(path: Path) -> bytes:
    """The content of a file; on Windows, also of one that is being replaced."""
    return _patiently(path.read_bytes)


def write_durably(path: Path, content: bytes) -> None:
    """Replace the file as a whole: at every moment, and after a power cut at any, there is the old content or the new.

    Raises OSError, with the old content in place.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            flush(file.fileno())
        replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # a full disk needs the space back
        raise
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make the content of a file that is written durable."""
    with path.open("r+b") as file:  # Windows syncs only what is open for writing
        flush(file.fileno())


def flush(descriptor: int) -> None:
    """Make what was written to an open file durable."""
    if sys.platform == "darwin":  # where fsync leaves it in the drive's own memory
        import fcntl

        with suppress(OSError):  # a drive that does not know this
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make a folder's names durable: Windows has no such call, and some network file systems refuse it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (EIO, ENOSPC, EDQUOT):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that appears under its name when all is there, and durable; or not at all.

    Raises UserError where there is one of that name already, or the disk refuses.
    """
    if os.path.lexists(folder):
        raise UserError(f"there is {folder} already: name another")
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        if temporary.exists():
            shutil.rmtree(temporary)  # of one that was killed
        make_folder(temporary)
        yield temporary
        for place, _, names in os.walk(temporary):
            for name in names:
                sync_file(Path(place, name))
            sync_folder(Path(place))
        replace(temporary, folder)
        sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the space back
        if isinstance(error, OSError):
            raise write_error(folder, error) from error
        raise


def write_error(path: Path, error: OSError) -> UserError:
    """What to say where the disk refused."""
    what = "free some disk space or look at the folder's permissions"
    return UserError(f"cannot write {path} ({error.strerror or error}): {what}")


def make_folder(folder: Path) -> None:
    """`folder.mkdir(parents=True, exist_ok=True)`, with every name that is new made durable."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in new:
        sync_folder(place.parent)


def _patiently(action: Callable[[], Result]) -> Result:
    for _ in range(20):
        try:
            return action()
        except PermissionError:
            time.sleep(0.05)
    return action()
