"""Files that are replaced while others read them, and that survive a power cut."""

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
    """Call `os.replace`, and again for up to a second: Windows refuses while another program has the file open."""
    _retry(lambda: os.replace(source, target))


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, also of one that Windows is just replacing."""
    return _retry(path.read_bytes)


def write_durably(path: Path, content: bytes) -> None:
    """Replace the file as a whole: at every moment, also after a power cut, it has the old content or the new.

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
    """Make the content of a file durable."""
    with path.open("r+b") as file:  # Windows syncs only files that are open for writing
        flush(file.fileno())


def flush(descriptor: int) -> None:
    """Make what was written to an open file durable."""
    if sys.platform == "darwin":  # where fsync leaves the data in the drive's own memory
        import fcntl

        with suppress(OSError):  # a drive without this call
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Windows has no such call, and some network file systems refuse it."""
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
    """Yield a folder to write into, which gets its name when its content is complete and durable, or not at all.

    Raises UserError if the name is taken or the disk refuses.
    """
    if os.path.lexists(folder):
        raise UserError(f"there is {folder} already: name another")
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        if temporary.exists():
            shutil.rmtree(temporary)  # left by a process that was killed
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
    """Return the error for a disk that refused to write."""
    advice = "free some disk space or check the folder's permissions"
    return UserError(f"cannot write {path} ({error.strerror or error}): {advice}")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents where they are missing, and make every new name durable."""
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in new:
        sync_folder(place.parent)


def _retry(action: Callable[[], Result]) -> Result:
    for _ in range(20):
        try:
            return action()
        except PermissionError:
            time.sleep(0.05)
    return action()
