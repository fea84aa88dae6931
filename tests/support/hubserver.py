"""A hub on 127.0.0.1 that speaks the addresses of the real one: listings, redirects to signed addresses, ranges.

`faults` are handed out one a request for a file's bytes, in order: what goes wrong is up to the test.
"""

import json
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import parquet

WIKI = "wikimedia/wikipedia"


def article(number: int) -> str:
    """Return a text that shares no window of a few characters with that of any other number."""
    chance = random.Random(number)
    return " ".join([f"article {number}", *(f"{chance.getrandbits(50):x}" for _ in range(25 + number % 20))])


def write_parquet(path: Path, first: int, groups: int, rows: int) -> None:
    """Write `groups` row groups of `rows` articles each, numbered from `first`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = list(range(first, first + groups * rows))
    table = pa.table(
        {
            "id": [str(number) for number in numbers],
            "title": [f"title {number}" for number in numbers],
            "text": [article(number) for number in numbers],
        }
    )
    parquet.write_table(table, path, row_group_size=rows)


def wiki_files(root: Path, config: str = "20231101.en", files: int = 3, groups: int = 4, rows: int = 30) -> None:
    for i in range(files):
        name = f"train-{i:05d}-of-{files:05d}.parquet"
        write_parquet(root / WIKI / config / name, i * groups * rows, groups, rows)


class Hub:
    """A hub that serves `root`/<owner>/<name>/<path>."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: list[str | Callable[[], None]] = []
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.generation = 0  # of signed addresses: an older one has expired
        self.listing, self.unlisted = True, 404
        self.down = False
        self.redirect = ""  # where all requests for files are sent
        self.answers: dict[str, tuple[int, bytes, dict[str, str]]] = {}  # by path, instead of what is there
        self.url = ""

    def expire(self) -> None:
        self.generation += 1

    def fault(self) -> str:
        found = self.faults.pop(0) if self.faults else ""
        if callable(found):
            found()
            return ""
        return found


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(path)
            hub.headers.append(dict(self.headers))
            if hub.down:
                return self.reset()
            if path in hub.answers:
                status, body, headers = hub.answers[path]
                return self.answer(status, body, **headers)
            if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/main(?:/(.+))?", path):
                return self.tree(hub.root / match[1], match[2] or "")
            if match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/main/(.+)", path):
                return self.resolve(match[1], match[2])
            if match := re.fullmatch(r"/signed/(\d+)/(.+)", path):
                return self.bytes(int(match[1]), hub.root / match[2])
            return self.answer(hub.unlisted)

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def tree(self, repo: Path, folder: str) -> None:
            if not hub.listing or not (repo / folder).is_dir():
                return self.answer(hub.unlisted)
            found = [path for path in sorted((repo / folder).rglob("*")) if path.is_file()]
            entries = [
                {"type": "file", "path": path.relative_to(repo).as_posix(), "size": path.stat().st_size}
                for path in found
            ]
            return self.answer(200, json.dumps(entries).encode())

        def resolve(self, repo: str, path: str) -> None:
            if hub.redirect:
                return self.answer(302, Location=hub.redirect)
            if not (hub.root / repo / path).is_file():
                return self.answer(404)
            return self.answer(302, Location=f"/signed/{hub.generation}/{repo}/{path}")

        def bytes(self, generation: int, path: Path) -> None:
            fault = hub.fault()
            if generation != hub.generation:
                return self.answer(403)
            if fault == "429":
                return self.answer(429, Retry_After="1")
            if fault.isdigit():
                return self.answer(int(fault))
            if fault == "reset":
                return self.reset()
            content = path.read_bytes()
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            etag = f'"{hash(content)}"'
            if match is None or fault == "no ranges":
                return self.answer(200, content, ETag=etag)
            start, stop = int(match[1]), min(int(match[2]) + 1, len(content))
            body = content[start:stop]
            if fault == "garbage":
                body = bytes(255 - value for value in body)
            if fault in ("truncate", "slow"):
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
                self.send_header("ETag", etag)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if fault == "truncate":
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    return self.reset()
                for i in range(0, len(body), max(1, len(body) // 5)):
                    self.wfile.write(body[i : i + max(1, len(body) // 5)])
                    self.wfile.flush()
                    threading.Event().wait(0.05)
                return None
            return self.answer(206, body, Content_Range=f"bytes {start}-{stop - 1}/{len(content)}", ETag=etag)

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        """Print nothing: clients that disconnect are what tests are about."""


@contextmanager
def serving(hub: Hub, port: int = 0) -> Iterator[Hub]:
    """Serve the hub at its `url` while open."""
    server = _Server(("127.0.0.1", port), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
