"""A hub on 127.0.0.1 that is as strict as the real one, and beside it the store that has the bytes of its files.

The hub lists by pages, knows commits, sends nobody without a right to it anything, and refuses ranges; the store has
another origin, refuses credentials, lets its addresses expire, and names the same file otherwise each time. `faults`
are handed out one a request for bytes, in order, and `refusals` one a request to the hub: what goes wrong is up to the
test.
"""

import json
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pyarrow as pa
from pyarrow import parquet

WIKI = "wikimedia/wikipedia"
CONVERSION = "refs/convert/parquet"


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
    """A hub that serves `root`/<owner>/<name>/<path>, and `root`/<owner>/<name>@convert/<path> as its conversions."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: list[str | Callable[[], None]] = []
        self.refusals: list[int] = []
        self.requests: list[str] = []  # paths, of the store too
        self.headers: list[dict[str, str]] = []
        self.generation = 0  # of signed addresses: an older one has expired
        self.down = False
        self.page = 1000  # entries of a listing
        self.version = 0  # of what all its data sets hold: a newer one has another commit
        self.token = ""  # the only one that is valid
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.answers: dict[str, tuple[int, bytes, dict[str, str]]] = {}  # by path, instead of what is there
        self.url = self.store = ""

    def expire(self) -> None:
        self.generation += 1

    def fault(self) -> str:
        found = self.faults.pop(0) if self.faults else ""
        if callable(found):
            found()
            return ""
        return found

    def commits(self, repo: str) -> list[str]:
        """Return all commits of a data set, the newest last."""
        return [sha1(f"{repo} {version}".encode()).hexdigest() for version in range(self.version + 1)]

    def folder(self, repo: str, revision: str) -> tuple[Path, str] | None:
        """Return the folder of a revision and its commit."""
        converted, of_conversion = self.root / f"{repo}@convert", sha1(f"{repo} converted".encode()).hexdigest()
        if revision in (CONVERSION, of_conversion):
            return (converted, of_conversion) if converted.is_dir() else None
        commits = self.commits(repo)
        if revision in ("main", *commits):
            return self.root / repo, commits[-1] if revision == "main" else revision
        return None


class _Handler(BaseHTTPRequestHandler):
    """What the hub and its store have in common."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(path)
        self.hub.headers.append(dict(self.headers))
        if self.hub.down:
            return self.reset()
        if path in self.hub.answers:
            status, body, headers = self.hub.answers[path]
            return self.answer(status, body, **headers)
        return self.respond(path)

    def respond(self, path: str) -> None:
        raise NotImplementedError

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


class _HubHandler(_Handler):
    """The hub: descriptions, listings, and where a file's bytes are."""

    def respond(self, path: str) -> None:
        hub = self.hub
        if hub.refusals and (status := hub.refusals.pop(0)):
            return self.answer(status, RateLimit='"api";r=0;t=1', RateLimit_Policy='"fixed window";"api";q=500;w=300')
        match = re.fullmatch(r"/(api/)?datasets/([^/]+/[^/]+)(?:/(.*))?", path)
        if match is None:
            return self.answer(404)
        api, repo, rest = match[1], match[2], match[3] or ""
        if repo in hub.renamed:
            target = self.path.replace(f"/datasets/{repo}", f"/datasets/{hub.renamed[repo]}", 1)
            return self.answer(307, Location=target)
        sent = self.headers.get("Authorization")
        if sent is not None and sent != f"Bearer {hub.token}":
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if not any((hub.root / name).is_dir() for name in (repo, f"{repo}@convert")) or (
            repo in hub.private and sent is None
        ):
            return self.refuse(401, "RepoNotFound", "Repository not found")
        wanted = re.fullmatch(
            r"(resolve|tree|revision)/(refs/convert/parquet|[^/]+)(?:/(.+))?", rest or "revision/main"
        )
        if wanted is None or (wanted[1] == "resolve") == bool(api):
            return self.answer(404)
        found = hub.folder(repo, wanted[2])
        if found is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {wanted[2]}")
        answer = {"resolve": self.resolve, "tree": self.tree, "revision": self.describe}[wanted[1]]
        return answer(repo, *found, wanted[3] or "")

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X_Error_Message": message, **({"X_Error_Code": code} if code else {})}
        return self.answer(status, json.dumps({"error": message}).encode(), **headers)

    def describe(self, repo: str, folder: Path, commit: str, name: str) -> None:
        about = {"_id": "0", "id": repo, "sha": commit, "private": repo in self.hub.private}
        about |= {"gated": "manual" if repo in self.hub.gated else False, "siblings": []}
        return self.answer(200, json.dumps(about).encode())

    def tree(self, repo: str, folder: Path, commit: str, name: str) -> None:
        place = folder / name
        if not place.is_dir():
            return self.refuse(404, "EntryNotFound", f"{name} does not exist on {commit}")
        query = parse_qs(urlsplit(self.path).query)
        is_recursive = query.get("recursive", [""])[0].lower() in ("1", "true")
        paths = sorted(place.rglob("*") if is_recursive else place.iterdir())
        begin = int(query.get("cursor", ["0"])[0])
        more = {}
        if begin + self.hub.page < len(paths):
            address = (
                f"{self.hub.url}{urlsplit(self.path).path}?recursive={is_recursive}&cursor={begin + self.hub.page}"
            )
            more = {"Link": f'<{address}>; rel="next"'}
        entries = [self.entry(path, folder) for path in paths[begin : begin + self.hub.page]]
        return self.answer(200, json.dumps(entries).encode(), **more)

    @staticmethod
    def entry(path: Path, repo: Path) -> dict[str, object]:
        name = path.relative_to(repo).as_posix()
        about = {"path": name, "oid": sha1(name.encode()).hexdigest()}
        if path.is_dir():
            return {"type": "directory", "size": 0, **about}
        size, content = path.stat().st_size, sha256(path.read_bytes()).hexdigest()
        return {"type": "file", "size": size, **about, "lfs": {"oid": content, "size": size, "pointerSize": 132}}

    def resolve(self, repo: str, folder: Path, commit: str, name: str) -> None:
        path = folder / name
        if not path.is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found")
        if repo in self.hub.gated and "Authorization" not in self.headers:
            return self.refuse(401, "GatedRepo", f"Access to dataset {repo} is restricted.")
        if "Range" in self.headers:
            return self.answer(416)
        content = path.read_bytes()
        return self.answer(
            302,
            Location=f"{self.hub.store}/signed/{self.hub.generation}/{quote(path.relative_to(self.hub.root).as_posix())}",
            X_Repo_Commit=commit,
            X_Linked_Size=str(len(content)),
            X_Linked_ETag=f'"{sha256(content).hexdigest()}"',
            ETag=f'"{sha1(content).hexdigest()}"',
            RateLimit='"resolvers";r=2999;t=300',
        )


class _StoreHandler(_Handler):
    """The store: the bytes of signed addresses."""

    def respond(self, path: str) -> None:
        hub, match = self.hub, re.fullmatch(r"/signed/(\d+)/(.+)", path)
        if match is None or "Authorization" in self.headers:
            return self.answer(400)
        fault = hub.fault()
        if int(match[1]) != hub.generation:
            return self.answer(403)
        if fault == "429":
            return self.answer(429, Retry_After="1")
        if fault.isdigit():
            return self.answer(int(fault))
        if fault == "reset":
            return self.reset()
        content = (hub.root / match[2]).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        etag = f'"{random.getrandbits(64):x}"'  # another of each node
        if wanted is None or fault == "no ranges":
            return self.answer(200, content, ETag=etag)
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(content))
        if start >= len(content):
            return self.answer(416)
        body = content[start:stop]
        if fault == "garbage":
            body = bytes(255 - value for value in body)
        headers = {"Content_Range": f"bytes {start}-{stop - 1}/{len(content)}", "ETag": etag}
        if fault in ("truncate", "slow"):
            return self.limp(body, fault, **headers)
        return self.answer(206, body, **headers)

    def limp(self, body: bytes, fault: str, **headers: str) -> None:
        self.send_response(206)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
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


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        """Print nothing: clients that disconnect are what tests are about."""


@contextmanager
def _served(kind: type[_Handler], hub: Hub, port: int) -> Iterator[str]:
    server = _Server(("127.0.0.1", port), type("Handler", (kind,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(hub: Hub, port: int = 0) -> Iterator[Hub]:
    """Serve the hub at its `url`, and the bytes of its files at its `store`, while open."""
    with _served(_StoreHandler, hub, 0) as hub.store, _served(_HubHandler, hub, port) as hub.url:
        yield hub
