"""HTTP: whole files, and ranges of files that are too large for that."""

import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, LocationValueError, ProxySchemeUnknown
from urllib3.util import parse_url

from picogpt.errors import UserError, shown
from picogpt.system.files import flush

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BLOCK = 1 << 16
_TIMEOUT = urllib3.Timeout(connect=10.0, read=30.0)  # seconds to a connection; seconds without a byte
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 10.0  # seconds before a request is repeated: doubled each time
_SLOW_SECONDS, _SLOW_BYTES = 20.0, 20_000  # a response that brings less is requested again
_LONGEST_ADDRESS = 16_000  # characters; signed ones have about a thousand
_MOST_REDIRECTS = 10  # from more on, they are taken for a circle
_MOST_REJECTIONS = 3  # of a signed address; from more on, it did not just expire
_LISTING = 32 << 20  # bytes of an answer that is not a file's
_REDIRECTS = (301, 302, 303, 307, 308)
_COUNT = "[0-9]{1,18}"  # in a header
_EXPIRED = (400, 401, 403, 404, 410)  # answers of a signed address that has expired


class TroubleError(Exception):
    """A request failed in a way that may pass. retry_after: seconds that the server asks to wait, or 0."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class MissingError(Exception):
    """There is nothing at an address."""


class ChangedError(Exception):
    """A file is not the one that was read before."""


class Web:
    """Sends GET requests, over connections that stay open."""

    def __init__(self, notify: Callable[[str], None], home: str = "", token: str = "") -> None:
        """notify: gets a line before a request is repeated. token: sent to `home` and to no other address."""
        self._notify, self._home, self._token = notify, home, token
        self._pools: dict[str, urllib3.PoolManager] = {}  # by the proxy they go through, "" for none

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[urllib3.BaseHTTPResponse]:
        """Yield one response with its body not yet read. Failures, also in reading the body, raise TroubleError."""
        try:
            response = self._pool(url).request(
                "GET",
                url,
                headers={**self._credentials(url), **(headers or {})},
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (LocationValueError, LocationParseError, ProxySchemeUnknown) as error:
            raise UserError(f"{url} cannot be requested: {_reason(error)}") from None
        except (HTTPError, OSError, ValueError) as error:
            raise TroubleError(f"{_host(url)}: {_reason(error)}") from None
        try:
            if response.status in (408, 425, 429) or response.status >= 500:
                raise TroubleError(f"{_host(url)} answers {response.status}", _retry_after(response.headers))
            yield response
            if response.length_remaining is not None and response.length_remaining < _BLOCK:
                response.drain_conn()  # so that the connection can be used again
        except (HTTPError, OSError) as error:
            raise TroubleError(f"{_host(url)}: {_reason(error)}") from None
        finally:
            response.close()

    def _pool(self, url: str) -> urllib3.PoolManager:
        """Return the connections for a url: through the proxy that the environment or the system names for it."""
        parts = urlsplit(url)
        proxy = "" if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme, "")
        if proxy not in self._pools:
            self._pools[proxy] = _proxied(proxy) if proxy else urllib3.PoolManager(timeout=_TIMEOUT, retries=False)
        return self._pools[proxy]

    def persistently(self, action: Callable[[], bool]) -> None:
        """Repeat the action until it returns that it is done; after TroubleError with a pause, longer each time."""
        pause = _FIRST_PAUSE
        while True:
            try:
                if action():
                    return
                pause = _FIRST_PAUSE
            except TroubleError as trouble:
                delay = max(pause, trouble.retry_after)
                self._notify(f"{trouble}; trying again in {delay:.0f} s")
                time.sleep(delay)
                pause = min(_LONGEST_PAUSE, 2 * pause)

    def hub(self, url: str) -> tuple[bytes, Mapping[str, str]]:
        """Return body and headers of a small answer of the hub. Raises MissingError, UserError where it refuses."""
        answer: list[tuple[bytes, Mapping[str, str]]] = []
        address, redirects = url, 0

        def ask() -> bool:
            nonlocal address, redirects
            with self.get(address) as response:
                if response.status in _REDIRECTS and redirects < _MOST_REDIRECTS:
                    address, redirects = redirected(address, response.headers), redirects + 1
                    return False
                refuse(response.status, url)
                answer.append((_body(response, url), response.headers))
            return True

        self.persistently(ask)
        return answer[0]

    def _credentials(self, url: str) -> dict[str, str]:
        at_home = self._token and urlsplit(url)[:2] == urlsplit(self._home)[:2]
        return {"Authorization": f"Bearer {self._token}"} if at_home else {}


def _proxied(proxy: str) -> urllib3.ProxyManager:
    """Return connections through a proxy; its address may hold a name and a password."""
    auth = parse_url(proxy).auth
    headers = urllib3.make_headers(proxy_basic_auth=unquote(auth)) if auth else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, timeout=_TIMEOUT, retries=False)


def refuse(status: int, url: str) -> None:
    """Raise for a status of the hub itself that no repetition would change."""
    if status in (401, 403):
        raise UserError(f"{url} is not there or not public ({status}): look at the name, or set HF_TOKEN")
    if status in (404, 410):
        raise MissingError(url)
    if status in _REDIRECTS:
        raise UserError(f"{url} redirects in a circle")
    if status >= 400:
        raise UserError(f"{url} is refused ({status})")


def is_address(url: str) -> bool:
    """Return whether a request can be sent there."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    fits = url.isprintable() and len(url) <= _LONGEST_ADDRESS and port != 0
    return parts.scheme in ("http", "https") and bool(parts.hostname) and fits


def redirected(url: str, headers: Mapping[str, str]) -> str:
    """Return where a redirect leads to. Raises UserError where no request can be sent there."""
    location = headers.get("Location", "")
    try:
        target = urljoin(url, location) if location else ""
    except ValueError:
        target = ""
    if not is_address(target):
        raise UserError(f"{url} redirects to {shown(location)}, which is no address: look at the name, or try later")
    return target


def _body(response: urllib3.BaseHTTPResponse, url: str) -> bytes:
    """Return the body of a small answer. Raises UserError for one that is too large."""
    body = bytearray()
    while piece := response.read1(_BLOCK):
        body += piece
        if len(body) > _LISTING:
            raise UserError(f"{url} sends more than {_LISTING >> 20} MB: look at HF_ENDPOINT, this is no listing")
    return bytes(body)


class RemoteFile(io.RawIOBase):
    """A file of the hub as a seekable file: each read is a range request, repeated until all bytes have arrived.

    The hub's address redirects to a signed one, which is used until it expires. What arrived before a connection broke
    is not fetched again. Raises MissingError, ChangedError, and UserError where the hub refuses.
    """

    def __init__(self, web: Web, url: str) -> None:
        self._web, self._url = web, url
        self._signed = ""
        self._redirects = self._rejections = 0  # since the last valid answer
        self._position = 0
        self._identity: tuple[int, str] | None = None  # bytes, and the server's name for this version
        self.fetch(0, 1)

    @property
    def size(self) -> int:
        """The bytes of the file."""
        assert self._identity is not None
        return self._identity[0]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        return self._position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        data = self.fetch(self._position, min(self._position + len(view), self.size))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def fetch(self, start: int, stop: int) -> bytes:
        """Return bytes start..stop - 1."""
        got = bytearray()

        def more() -> bool:
            before = len(got)
            try:
                self._get(start, stop, got)
            except TroubleError:
                if len(got) == before:
                    raise
            return len(got) >= stop - start

        if stop > start:
            self._web.persistently(more)
        return bytes(got[: stop - start])

    def _get(self, start: int, stop: int, got: bytearray) -> None:
        """Request what is still missing. What arrives is added to `got`, even if the request fails."""
        address = self._signed or self._url
        begin = start + len(got)
        with self._web.get(address, {"Range": f"bytes={begin}-{stop - 1}"}) as response:
            if response.status in _REDIRECTS and self._redirects < _MOST_REDIRECTS:
                self._redirects += 1
                self._signed = redirected(address, response.headers)
                return
            if response.status in _EXPIRED and self._signed and self._rejections < _MOST_REJECTIONS:
                self._signed, self._rejections = "", self._rejections + 1
                raise TroubleError("the signed address has expired")
            if response.status == 416:  # the file is shorter than it was, or empty
                raise ChangedError(f"{self._url} has changed") if self._identity else MissingError(self._url)
            refuse(response.status, self._url)
            self._redirects = self._rejections = 0
            self._recognise(response, begin)
            skip = begin if response.status == 200 else 0  # a server that knows no ranges sends everything
            _read(response, skip, stop - begin, got)

    def _recognise(self, response: urllib3.BaseHTTPResponse, begin: int) -> None:
        """Check that it is the same file. Raises ChangedError for another, TroubleError for an invalid answer."""
        if response.status == 206:
            header = response.headers.get("Content-Range", "")
            content = re.fullmatch(rf"bytes ({_COUNT})-{_COUNT}/({_COUNT})", header)
            if content is None or int(content[1]) != begin:
                raise TroubleError(f"the server sends another range ({shown(header)[1:-1]})")
            size = int(content[2])
        else:
            header = response.headers.get("Content-Length", "")
            if not re.fullmatch(_COUNT, header):
                raise TroubleError(f"the server sends a file without its size ({shown(header)[1:-1]})")
            size = int(header)
        identity = size, response.headers.get("ETag", "")
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity:
            raise ChangedError(f"{self._url} has changed")


def _read(response: urllib3.BaseHTTPResponse, skip: int, wanted: int, got: bytearray) -> None:
    """Add `wanted` bytes after the first `skip` to `got`. Raises TroubleError where it ends early or is slow."""
    left, arrived, since = wanted, 0, time.monotonic()
    while left:
        piece = response.read1(min(_BLOCK, left + skip))
        if not piece:
            raise TroubleError("the connection ended early")
        arrived += len(piece)
        dropped = min(skip, len(piece))
        got += piece[dropped:]
        left, skip = left - (len(piece) - dropped), skip - dropped
        if time.monotonic() - since > _SLOW_SECONDS:
            if arrived < _SLOW_BYTES:
                raise TroubleError("the connection is very slow")
            arrived, since = 0, time.monotonic()


def _host(url: str) -> str:
    return urlsplit(url).netloc or url


def _reason(error: BaseException) -> str:
    """Return what the innermost of nested exceptions says, without the library's objects."""
    for inner in error.args:
        if isinstance(inner, BaseException):
            return _reason(inner)
    words = " ".join(str(error).split()).rsplit(": ", 1)[-1]
    return re.sub(r"^\[Errno -?\d+\] ", "", words) or type(error).__name__


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds of a Retry-After header, which holds seconds or a date; 0 without a valid one."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):  # the second for a year or a zone that is too large
            return 0.0
    return min(3600.0, seconds) if seconds > 0 else 0.0


def download(url: str, path: Path, checksum: str, size: int) -> None:
    """Download the `size` bytes whose sha256 is `checksum` to `path`, which gets all of them or is not made.

    Raises UserError with the alternatives when offline, refused, or sent something else.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        try:
            _fetch(url, part, checksum, size)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, ValueError, TroubleError, UserError) as error:
        raise UserError(
            f"could not download {url}: {_reason(error)}; "
            f"put the file at {path} yourself, or use --data sample or --data PATH"
        ) from error


def _fetch(url: str, path: Path, checksum: str, size: int) -> None:
    """Write exactly the expected bytes to `path`, or raise OSError, ValueError or TroubleError."""
    web, got = Web(lambda _: None), bytearray()
    for _ in range(5):
        with web.get(url) as response:
            if response.status in _REDIRECTS:
                url = redirected(url, response.headers)
                continue
            if response.status != 200:
                raise ValueError(f"the server answers {response.status}")
            while len(got) <= size and (piece := response.read1(_BLOCK)):
                got += piece
            break
    if len(got) != size or sha256(got).hexdigest() != checksum:
        raise ValueError("it is not the file that was expected (wrong size or sha256)")
    with path.open("xb") as file:
        file.write(got)
        file.flush()
        flush(file.fileno())
