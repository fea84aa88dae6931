"""The live page of a run, as the trainer sees it: a process that serves the page, and that is sent the run's status."""

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
_CLOSE_SECONDS = 10.0  # in which an open page learns of the end


class Dashboard:
    """A live page that is being served. Training never waits for it: a status its process cannot take is dropped."""

    def __init__(self, process: subprocess.Popen[bytes], notify: Callable[[str], None]) -> None:
        assert process.stdin is not None
        self._process, self._pipe, self._notify = process, process.stdin, notify
        self._lost = False
        os.set_blocking(self._pipe.fileno(), False)

    @classmethod
    def open(cls, address: str, run_dir: Path, notify: Callable[[str], None]) -> "Dashboard":
        """Serve the page of the run in `run_dir`: at PORT for this machine alone, or at ADDRESS:PORT with a token.

        notify: called with the address of the page, and if the page ends before the run. Raises UserError if the page
        cannot be served.
        """
        if not hasattr(os, "set_blocking"):
            raise UserError("--dashboard needs Python 3.12 on Windows: leave it out, or use a newer Python")
        host, port = parse_address(address)
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
            reason = answer or f'run "python -m {_SERVER} {" ".join(arguments)}" to see why'
            raise UserError(
                f"cannot serve a page at --dashboard {address} ({reason}): give another port, or leave it out"
            )
        notify(f"live page: {answer}")
        return dashboard

    def send(self, status: Status) -> None:
        """Send the status of the run to the page. Costs next to nothing, never waits, never raises."""
        if not self._lost and not self._write(json.dumps(asdict(status))):
            self._lost = True
            self._notify("the live page has ended, training continues without it")

    def close(self) -> None:
        """End the page, which tells its readers so. Closing twice is fine."""
        if self._pipe.closed:
            return
        self._write("end")  # the lanes hold the pipe too, so that closing it here may not end it
        self._pipe.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _write(self, line: str) -> bool:
        """Write a line, or only a part of it or nothing if the pipe is full. Returns whether somebody reads it."""
        try:
            os.write(self._pipe.fileno(), f"\n{line}\n".encode())  # the first end is that of a line that was cut off
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True


def parse_address(address: str) -> tuple[str, str]:
    """Return host and port of PORT or ADDRESS:PORT; the host of a port alone is "". Raises UserError for others."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]:|([\w.-]+):)?([0-9]{1,5})", address)
    if match is None or int(match[3]) > 65535:
        raise UserError(
            f"dashboard must be a port or ADDRESS:PORT, as 8050, 0.0.0.0:9000 or [::1]:9000, not {shown(address)}"
        )
    return match[1] or match[2] or "", match[3]
