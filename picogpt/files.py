"""Files that others may be reading."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def replace(source: Path, target: Path) -> None:
    """`os.replace` that waits up to a second for Windows, which refuses while another program has the file open."""
    _patiently(lambda: os.replace(source, target))


def read_bytes(path: Path) -> bytes:
    """The content of a file; on Windows, also of one that is being replaced."""
    return _patiently(path.read_bytes)


def _patiently(action: Callable[[], Result]) -> Result:
    for _ in range(20):
        try:
            return action()
        except PermissionError:
            time.sleep(0.05)
    return action()
