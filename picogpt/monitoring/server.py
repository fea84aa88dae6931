"""The live page that follows a run, served by a process of its own beside the one that trains.

    python -m picogpt.monitoring.server ADDRESS PORT token|open RUN_FOLDER

It prints one line: the address of the page, or why there is none. Each line of its input is a `Status` in JSON. The
line "end" ends it, and so does the end of the input, as when the trainer is killed.
"""

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from waitress.server import create_server

from picogpt.errors import UserError
from picogpt.monitoring.status import Status
from picogpt.reports.number_format import duration, steps_done
from picogpt.reports.page import POLICY, SCRIPT, STYLE, csp_hash, render, report
from picogpt.reports.summary import Summary
from picogpt.runs.layout import LOG
from picogpt.runs.log import read_log
from picogpt.system.processes import lower_priority

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

_HTML, _TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"
_POLICY = f"{POLICY}; script-src {csp_hash(SCRIPT)}; connect-src 'self'"
_LONGEST_LINE = 1 << 16
_POLL_SECONDS, _END_SECONDS = 6.0, 5.0  # in which an open page asks again for sure, and learns of the end for sure


def status_html(status: Status | None, age: float, ended: bool) -> str:
    """Return the state of a run as HTML. age: seconds since this status came. ended: whether it is the last one."""
    return render("live.html", status=status, age=age, ended=ended, duration=duration, steps_done=steps_done)


def page_html(name: str, state: str, report: str, version: int) -> str:
    """Return the whole page of a run, from the HTML of its state and of its report with this version."""
    head = {"title": name, "policy": _POLICY, "style": STYLE, "script": SCRIPT}
    return render("page.html", **head, live=state, report=report, version=version)


class LivePage:
    """The content of the page: the state of the run, and its report, which is made again when the log changes."""

    def __init__(self, run_dir: Path) -> None:
        self._name, self._path = run_dir.absolute().name, run_dir / LOG
        self._status: Status | None = None
        self._received = time.monotonic()
        self._ended = False
        self._lock = threading.Lock()  # one thread makes the report
        self._stamp: object = None
        self._report, self._version = "", 0

    def receive(self, line: bytes) -> None:
        """Take a status in JSON. A line that was cut off, because the pipe was full, is ignored."""
        try:
            self._status, self._received = Status(**json.loads(line)), time.monotonic()
        except (ValueError, TypeError):
            return

    def end(self) -> None:
        """Note that training has ended."""
        self._ended = True

    def state(self) -> str:
        """Return the state of the run as HTML."""
        return status_html(self._status, time.monotonic() - self._received, self._ended)

    def report(self) -> tuple[str, int]:
        """Return the report as HTML, and its version, which changes with the report."""
        with self._lock:
            stamp = _stamp(self._path)
            if not self._version or stamp != self._stamp:
                self._stamp, self._version = stamp, self._version + 1
                self._report = (
                    self._render() if stamp else report([], "No evaluation yet: the first one brings curves.")
                )
            return self._report, self._version

    def whole(self) -> str:
        """Return the whole page as HTML."""
        return page_html(self._name, self.state(), *self.report())

    def _render(self) -> str:
        try:
            return report([Summary(self._name, read_log(self._path))])
        except UserError as error:
            return report([], str(error))


@dataclass(frozen=True)
class _Response:
    """The answer to a request."""

    status: str
    text: str
    kind: str = _TEXT
    version: int = 0
    """Version of the report, with a part of the page."""


class App:
    """The page as a WSGI application: below /token/ if there is a token, only for `hosts` if there are any."""

    def __init__(self, page: LivePage, token: str, hosts: frozenset[str]) -> None:
        self._page, self._hosts = page, hosts
        self._root = f"/{token}/" if token else "/"
        self.polled = -_POLL_SECONDS  # when a page last asked for the state of the run

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        response = self._respond(environ)
        body = response.text.encode("utf-8", "backslashreplace")
        headers = [
            ("Content-Type", response.kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", f"{_POLICY}; frame-ancestors 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ]
        headers += [("Report-Version", str(response.version))] if response.version else []
        headers += [("Allow", "GET, HEAD")] if response.status.startswith("405") else []
        start_response(response.status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _respond(self, environ: "WSGIEnvironment") -> _Response:
        if self._hosts and environ.get("HTTP_HOST", "").lower() not in self._hosts:
            # DNS rebinding: a foreign host name that points here, so that a foreign page can read this one
            return _Response("403 Forbidden", "this page is only for the machine that trains\n")
        path, root = environ["PATH_INFO"].encode(), self._root.encode()
        if not compare_digest(path[: len(root)], root) or path[len(root) :] not in (b"", b"live", b"report"):
            return _Response("404 Not Found", "there is nothing here\n")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _Response("405 Method Not Allowed", "this page can only be read\n")
        html, version = self._page.report()
        match path[len(root) :]:
            case b"live":
                self.polled = time.monotonic()
                html = self._page.state()
            case b"":
                html = self._page.whole()
        return _Response("200 OK", html, _HTML, version)


def serve(address: str, port: int, with_token: bool, run_dir: Path, statuses: BinaryIO) -> None:
    """Serve the page of the run in `run_dir` until `statuses` ends. Raises OSError if it cannot use the address."""
    family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    both = place[0] == "::" and socket.has_dualstack_ipv6()  # then :: stands for all addresses of IPv4, too
    listening = socket.create_server(place[:2], family=family, dualstack_ipv6=both)
    port = listening.getsockname()[1]
    loopback = listening.getsockname()[0] in ("127.0.0.1", "::1")
    names = ("127.0.0.1", "localhost", "[::1]") if loopback else ()
    hosts = frozenset([f"{name}:{port}" for name in names] + (list(names) if port == 80 else []))
    page, token = LivePage(run_dir), secrets.token_urlsafe(16) if with_token else ""
    app = App(page, token, hosts)
    server = create_server(app, sockets=[listening], threads=2, ident=None)
    threading.Thread(target=server.run, daemon=True).start()
    print(f"http://{_reachable(listening)}:{port}/{token}{'/' if token else ''}", flush=True)
    with open(os.devnull, "w") as nowhere:  # the process that started this one reads one line
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    for line in iter(lambda: statuses.readline(_LONGEST_LINE), b""):
        if line == b"end\n":
            break
        page.receive(line)
    page.end()
    if time.monotonic() - app.polled < _POLL_SECONDS:
        time.sleep(_END_SECONDS)


def _reachable(listening: socket.socket) -> str:
    """Return the host by which other machines reach this socket."""
    host = str(listening.getsockname()[0])
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # sends nothing, but chooses a network; RFC 5737
                host = str(probe.getsockname()[0])
            except OSError:  # there is no network
                pass
    return f"[{host}]" if ":" in host else host


def _stamp(path: Path) -> object:
    """Return a value that changes with the file; None if there is no file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def main(arguments: list[str]) -> int:
    """Serve the page that these arguments ask for. Returns the exit status."""
    address, port, kind, run_dir = arguments
    try:
        serve(address, int(port), kind == "token", Path(run_dir), sys.stdin.buffer)
    except OSError as error:
        print(error.strerror or error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    lower_priority()
    sys.exit(main(sys.argv[1:]))
