"""The page that follows a run, served by a process of its own beside the one that trains.

python -m picogpt.reports.server ADDRESS PORT token|open RUN_FOLDER

Its first line of output is the address of the page, or why there is none. Each line of its input is a `Status` in JSON.
"end", or the end of the input, ends it: also where the trainer is killed.
"""

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterable
from hmac import compare_digest
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from waitress.server import create_server

from picogpt.errors import UserError
from picogpt.monitoring.live_page import LIVE_POLICY, live, live_page
from picogpt.monitoring.status import Status
from picogpt.reports.page import report
from picogpt.reports.summary import Summary
from picogpt.runs.layout import LOG
from picogpt.runs.log import read_log
from picogpt.system.processes import give_way

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

_HTML, _TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"

_LONGEST_LINE = 1 << 16

_POLLED, _FAREWELL = 6.0, 5.0  # seconds in which an open page asks again for sure, and is sure to be told of the end


class LivePage:
    """What is served: how the run stands, and its report, which is made anew when the log is another."""

    def __init__(self, run_dir: Path) -> None:
        self._name, self._path = run_dir.absolute().name, run_dir / LOG
        self._status: Status | None = None
        self._heard = time.monotonic()
        self._ended = False
        self._lock = threading.Lock()  # one thread makes the report
        self._stamp: object = None
        self._report, self._version = "", 0

    def hear(self, line: bytes) -> None:
        """A status, or a part of one where the pipe was full: that is left out."""
        try:
            self._status, self._heard = Status(**json.loads(line)), time.monotonic()
        except (ValueError, TypeError):
            return

    def end(self) -> None:
        self._ended = True

    def live(self) -> str:
        return live(self._status, time.monotonic() - self._heard, self._ended)

    def report(self) -> tuple[str, int]:
        """The HTML, and a number that is another when that is."""
        with self._lock:
            stamp = _stamp(self._path)
            if not self._version or stamp != self._stamp:
                self._stamp, self._version = stamp, self._version + 1
                self._report = (
                    self._render() if stamp else report([], "No evaluation yet: the first one brings curves.")
                )
            return self._report, self._version

    def whole(self) -> str:
        return live_page(self._name, self.live(), *self.report())

    def _render(self) -> str:
        try:
            return report([Summary(self._name, read_log(self._path))])
        except UserError as error:
            return report([], str(error))


class App:
    """The page as a WSGI application, at `hosts` alone where these are given, below /token/ where there is one."""

    def __init__(self, page: LivePage, token: str, hosts: frozenset[str]) -> None:
        self._page, self._hosts = page, hosts
        self._root = f"/{token}/" if token else "/"
        self.asked = -_POLLED  # when a page last asked how the run stands

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        status, kind, text, version = self._answer(environ)
        body = text.encode("utf-8", "backslashreplace")
        headers = [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", f"{LIVE_POLICY}; frame-ancestors 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ]
        headers += [("Report-Version", str(version))] if version else []
        headers += [("Allow", "GET, HEAD")] if status.startswith("405") else []
        start_response(status, headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: "WSGIEnvironment") -> tuple[str, str, str, int]:
        """Status, kind, text and, with a part of the page, the version of the report."""
        if self._hosts and environ.get("HTTP_HOST", "").lower() not in self._hosts:
            # a name of somebody else's that was made to point here, so that his page may read this one
            return "403 Forbidden", _TEXT, "this page is only for the machine that trains\n", 0
        path, root = environ["PATH_INFO"].encode(), self._root.encode()
        if not compare_digest(path[: len(root)], root) or path[len(root) :] not in (b"", b"live", b"report"):
            return "404 Not Found", _TEXT, "there is nothing here\n", 0
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return "405 Method Not Allowed", _TEXT, "this can only be read\n", 0
        html, version = self._page.report()
        match path[len(root) :]:
            case b"live":
                self.asked = time.monotonic()
                html = self._page.live()
            case b"":
                html = self._page.whole()
        return "200 OK", _HTML, html, version


def serve(address: str, port: int, with_token: bool, run_dir: Path, heard: BinaryIO) -> None:
    """Serve until `heard` ends. Raises OSError where the address cannot be had."""
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    both = found[4][0] == "::" and socket.has_dualstack_ipv6()  # every address is those of IPv4, too
    listening = socket.create_server(found[4][:2], family=found[0], dualstack_ipv6=both)
    port = listening.getsockname()[1]
    loopback = listening.getsockname()[0] in ("127.0.0.1", "::1")
    names = ("127.0.0.1", "localhost", "[::1]") if loopback else ()
    hosts = frozenset([f"{name}:{port}" for name in names] + (list(names) if port == 80 else []))
    page, token = LivePage(run_dir), secrets.token_urlsafe(16) if with_token else ""
    app = App(page, token, hosts)
    server = create_server(app, sockets=[listening], threads=2, ident=None)
    threading.Thread(target=server.run, daemon=True).start()
    print(f"http://{_reachable(listening)}:{port}/{token}{'/' if token else ''}", flush=True)
    with open(os.devnull, "w") as nowhere:  # who started this reads one line
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    for line in iter(lambda: heard.readline(_LONGEST_LINE), b""):
        if line == b"end\n":
            break
        page.hear(line)
    page.end()
    if time.monotonic() - app.asked < _POLLED:
        time.sleep(_FAREWELL)


def _reachable(listening: socket.socket) -> str:
    """The host of the address that others find this socket at."""
    host = str(listening.getsockname()[0])
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # an address of nobody: sends nothing, but tells which way it would go
                host = str(probe.getsockname()[0])
            except OSError:  # there is no network
                pass
    return f"[{host}]" if ":" in host else host


def _stamp(path: Path) -> object:
    """What is another when the file is; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def main(arguments: list[str]) -> int:
    address, port, kind, run_dir = arguments
    try:
        serve(address, int(port), kind == "token", Path(run_dir), sys.stdin.buffer)
    except OSError as error:
        print(error.strerror or error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    give_way()
    sys.exit(main(sys.argv[1:]))
