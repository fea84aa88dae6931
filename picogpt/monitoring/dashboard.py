"""The live page of a run, seen from the trainer: a process that serves it, told now and then how the run stands."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from picogpt.errors import UserError, shown
from picogpt.monitoring.status import Status
from picogpt.system.processes import start

_SERVER = "picogpt.monitoring.server"

_CLOSING = 10.0  # seconds: an open page is told of the end meanwhile


class Dashboard:
    """A page that is served. Training never waits for it: what its process does not take is dropped."""

    def __init__(self, process: subprocess.Popen[bytes], notify: Callable[[str], None]) -> None:
        assert process.stdin is not None
        self._process, self._pipe, self._notify = process, process.stdin, notify
        self._lost = False
        os.set_blocking(self._pipe.fileno(), False)

    @classmethod
    def open(cls, address: str, run_dir: Path, notify: Callable[[str], None]) -> "Dashboard":
        """Serve the page of the run in `run_dir` at PORT of this machine alone, or at ADDRESS:PORT, then with a token.

        notify: told where the page is, and if it ends before the run. Raises UserError where it cannot be served.
        """
        if not hasattr(os, "set_blocking"):
            raise UserError("--dashboard needs Python 3.12 on Windows: leave it out, or take a newer Python")
        host, port = parsed(address)
        arguments = host or "127.0.0.1", port, "token" if host else "open", str(run_dir)
        try:
            process = start(_SERVER, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise UserError(f"--dashboard cannot start a process ({error.strerror or error}): leave it out") from None
        assert process.stdout is not None
        with process.stdout:
            answer = process.stdout.readline().decode().strip()
        dashboard = cls(process, notify)
        if not answer.startswith("http://"):
            dashboard.close()
            why = answer or f'run "python -m {_SERVER} {" ".join(arguments)}" to see why'
            raise UserError(
                f"there can be no page at --dashboard {address} ({why}): give another port, or leave it out"
            )
        notify(f"live page: {answer}")
        return dashboard

    def send(self, status: Status) -> None:
        """Tell how the run stands. Costs next to nothing, never waits, never raises."""
        if not self._lost and not self._write(json.dumps(asdict(status))):
            self._lost = True
            self._notify("the live page has ended, training goes on without it")

    def close(self) -> None:
        """End the page; who has it open is told. Closing twice is fine."""
        if self._pipe.closed:
            return
        self._write("end")  # the lanes hold the pipe, too: it may not end where it is closed here
        self._pipe.close()
        try:
            self._process.wait(_CLOSING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _write(self, line: str) -> bool:
        """A line, or nothing or a part of it where the pipe is full. Returns whether somebody has the other end."""
        try:
            os.write(self._pipe.fileno(), f"\n{line}\n".encode())  # ends what was left of a line, first
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True


def parsed(address: str) -> tuple[str, str]:
    """Host and port; "" for the host where there is a port alone. Raises UserError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]:|([\w.-]+):)?([0-9]{1,5})", address)
    if match is None or int(match[3]) > 65535:
        raise UserError(
            f"dashboard must be a port or ADDRESS:PORT, as 8050, 0.0.0.0:9000 or [::1]:9000, not {shown(address)}"
        )
    return match[1] or match[2] or "", match[3]
