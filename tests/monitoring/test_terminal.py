"""The screen of a run on a real terminal: a pseudo-terminal, with what is drawn on it."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")

OPTIONS = [
    "--data",
    "sample",
    "--n-layer",
    "1",
    "--n-head",
    "2",
    "--n-embd",
    "16",
    "--context-len",
    "32",
    "--lanes",
    "1",
]


def read_until(terminal: int, wanted: bytes, seconds: float = 120.0) -> bytes:
    """What the program shows until `wanted` comes, or it ends."""
    shown, until = b"", time.monotonic() + seconds
    while wanted not in shown and time.monotonic() < until:
        if select.select([terminal], [], [], 1.0)[0]:
            try:
                more = os.read(terminal, 1 << 16)
            except OSError:  # its other end is closed
                break
            if not more:
                break
            shown += more
    return shown


def test_the_panel_comes_and_goes_and_ctrl_c_saves(tmp_path: Path) -> None:
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "COLUMNS", "LINES")}
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *OPTIONS,
        "--steps",
        "1000000",
        "--eval-interval",
        "20",
        "--run",
        "r",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm-256color"}
    )
    os.close(theirs)
    try:
        shown = read_until(ours, b"the best so far").decode()
        assert "\x1b[?25l" in shown and " r " in shown  # the cursor is hidden, the panel has the run's name
        for part in ("tokens/s", "of the machine's matrix products", "bits/char", "to go", "% busy", "in use"):
            assert part in shown, part
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 50, 0, 0))
        process.send_signal(signal.SIGWINCH)
        read_until(ours, b"\xe2\x95\xaf")  # drawn again, narrower
        process.send_signal(signal.SIGINT)
        shown = read_until(ours, b"continues from here").decode()
        assert "stopped and saved after step" in shown and "\x1b[?25h" in shown
        read_until(ours, b"never")  # lets it end
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
