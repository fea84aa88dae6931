"""Processes beside training that must not disturb it: they have their own interpreter and a low priority."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import psutil

_ROOT = Path(__file__).resolve().parents[2]  # the folder picogpt is imported from


def start(
    module: str,
    *arguments: str,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start `python -m module arguments`, which Ctrl-C in the terminal does not reach.

    Raises OSError if the system refuses.
    """
    search = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        bufsize=0,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
        start_new_session=True,
        creationflags=flags,
    )


def lower_priority() -> None:
    """Let this process run when no other needs the processor."""
    if sys.platform == "win32":
        psutil.Process().nice(psutil.IDLE_PRIORITY_CLASS)
    else:
        os.nice(10)
