"""The picture of a log, redrawn in the background during a run."""

import subprocess
import time
from pathlib import Path

from picogpt.system.processes import start

_PICTURE = "picogpt.reports.picture"
_REDRAW_SECONDS = 60.0


class Plotter:
    """Redraws the picture of one log in the background, one process at a time.

    A redraw that is asked for while another runs waits for the next call of `redraw`, or for `close`.
    """

    def __init__(self, log_path: Path, png_path: Path) -> None:
        self._paths = log_path, png_path
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting = False
        self._next = 0.0
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the last finished redraw failed, as one line for the user, or None."""
        self._running()
        return self._problem

    def redraw(self) -> None:
        """Start drawing the log as it is on the disk, and do not wait for the picture.

        Draws at most once a minute: a small model is evaluated every second, and drawing takes as long.
        """
        self._waiting = True
        if not self._running() and time.monotonic() >= self._next:
            self._start()

    def close(self, seconds: float = 60.0) -> None:
        """Wait until the last redraw asked for is done, but no longer than `seconds`."""
        deadline = time.monotonic() + seconds
        while self._running() or self._waiting:
            if self._process is None:
                self._start()
                continue
            try:
                self._process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                self._process, self._waiting = None, False
                self._problem = f"{self._paths[1]} was given up: it was not drawn within {seconds:.0f} seconds"

    def _start(self) -> None:
        self._waiting, self._next = False, time.monotonic() + _REDRAW_SECONDS
        try:
            self._process = start_plot(*self._paths)
        except OSError as error:
            self._problem = f"{self._paths[1]} was not drawn: cannot start a process ({error.strerror or error})"

    def _running(self) -> bool:
        """Return whether a process is drawing; take note of how a finished one ended."""
        if self._process is None:
            return False
        status = self._process.poll()
        if status is None:
            return True
        self._process = None
        log_path, png_path = self._paths
        advice = f'run "python -m {_PICTURE} {log_path} {png_path}" to see why'
        self._problem = f"{png_path} could not be drawn (exit status {status}): {advice}" if status else None
        return False


def start_plot(log_path: Path, png_path: Path) -> subprocess.Popen[bytes]:
    """Draw `png_path` in a background process of low priority, which Ctrl-C in the terminal does not reach."""
    return start(_PICTURE, str(log_path), str(png_path))
