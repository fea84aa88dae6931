"""HTTP: whole files, and ranges of files that are too large for that."""

import io
import os
import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2

from picogpt.errors import UserError, one_line, shown
from picogpt.system.files import flush

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

TIMEOUT = httpx2.Timeout(30.0, connect=10.0)  # seconds without a byte, and to a connection

_BLOCK = 1 << 16
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 10.0  # seconds before a request is repeated: doubled each time
_SLOW_SECONDS, _SLOW_BYTES = 20.0, 20_000  # a response that brings less is requested again
_LONGEST_ADDRESS = 16_000  # characters; signed ones have about a thousand
_MOST_REJECTIONS = 3  # of a signed address; from more on, it did not just expire
_COUNT = "[0-9]{1,18}"  # in a header
_EXPIRED = (400, 401, 403, 404, 410)  # answers of a signed address that has expired
_PASSING = (408, 425, 429)  # and from 500 on: answers after which the same request may succeed


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
    """Sends GET requests, over connections that stay open, through the proxies that the environment names."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        """notify: gets a line before a request is repeated. Raises UserError for a proxy that cannot be used."""
        self._notify = notify
        try:
            self._client = httpx2.Client(timeout=TIMEOUT, follow_redirects=True)
        except (ValueError, ImportError, httpx2.InvalidURL) as error:
            raise UserError(f"the proxy that the environment names cannot be used: {one_line(error)}") from None
        weakref.finalize(self, self._client.close)

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx2.Response]:
        """Yield one response with its body not yet read. Failures, also in reading the body, raise TroubleError.

        Redirects are followed, to another host without `Authorization`.
        """
        try:
            with self._client.stream(
                "GET", url, headers={"Accept-Encoding": "identity", **(headers or {})}
            ) as response:
                if (trouble := passing(response.status_code, response.headers, _host(url))) is not None:
                    raise trouble
                yield response
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise TroubleError(f"{_host(url)}: {reason_of(error)}") from None

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


def is_address(url: str) -> bool:
    """Return whether a request can be sent there."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    fits = url.isprintable() and len(url) <= _LONGEST_ADDRESS and port != 0
    return parts.scheme in ("http", "https") and bool(parts.hostname) and fits


@dataclass(frozen=True)
class Location:
    """Where the bytes of a file are, as the hub says."""

    address: str
    size: int
    identity: str
    """A name of this version of the file, which another version does not have."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """What is sent to this address and to no other."""

    @property
    def has_ranges(self) -> bool:
        """Whether a part of the file may be asked for: not from the hub itself, which may refuse that."""
        return "/resolve/" not in urlsplit(self.address).path


class RemoteFile(io.RawIOBase):
    """A file of the hub as a seekable file: each read is a range request, repeated until all bytes have arrived.

    Its address is used until that expires, then the hub is asked again. What arrived before a connection broke is not
    fetched again. Raises what `locate` does, ChangedError where it is another file now, and UserError where the address
    is refused again and again.
    """

    def __init__(self, web: Web, locate: Callable[[], Location]) -> None:
        """locate: asks the hub where the file is; here at once, and whenever its address has expired."""
        self._web, self._locate = web, locate
        self._place = locate()
        self._has_expired, self._rejections = False, 0  # rejections: since the last valid answer
        self._position = 0

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return self._place.size

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
        if self._has_expired:
            self._renew()
        place, begin = self._place, start + len(got)
        wanted = {"Range": f"bytes={begin}-{stop - 1}"} if place.has_ranges else {}
        with self._web.get(place.address, {**place.headers, **wanted}) as response:
            if response.status_code in _EXPIRED and self._rejections < _MOST_REJECTIONS:
                self._has_expired, self._rejections = True, self._rejections + 1
                raise TroubleError("the signed address has expired")
            if response.status_code == 416:
                raise ChangedError(f"{_host(place.address)} has less of the file than the hub says")
            if response.status_code not in (200, 206):
                raise UserError(f"{_host(place.address)} refuses the file ({response.status_code}): try again later")
            self._check(response.status_code, response.headers, begin)
            self._rejections = 0
            skip = begin if response.status_code == 200 else 0  # a server that knows no ranges sends everything
            _read(response, skip, stop - begin, got)

    def _renew(self) -> None:
        """Ask where the file is now. Raises ChangedError where it is another one."""
        place = self._locate()
        if (place.size, place.identity) != (self._place.size, self._place.identity):
            raise ChangedError("the hub has another version of the file now")
        self._place, self._has_expired = place, False

    def _check(self, status: int, headers: Mapping[str, str], begin: int) -> None:
        """Raise TroubleError for an answer that makes no sense, ChangedError for one of a file of another size."""
        if status == 206:
            header = headers.get("Content-Range", "")
            content = re.fullmatch(rf"bytes ({_COUNT})-{_COUNT}/({_COUNT})", header)
            if content is None or int(content[1]) != begin:
                raise TroubleError(f"the server sends another range ({shown(header)[1:-1]})")
            size = int(content[2])
        else:
            header = headers.get("Content-Length", "")
            if not re.fullmatch(_COUNT, header):
                raise TroubleError(f"the server sends a file without its size ({shown(header)[1:-1]})")
            size = int(header)
        if size != self.size:
            raise ChangedError(f"{_host(self._place.address)} has {size:,} bytes where the hub says {self.size:,}")


def _read(response: httpx2.Response, skip: int, wanted: int, got: bytearray) -> None:
    """Add `wanted` bytes after the first `skip` to `got`. Raises TroubleError where it ends early or is slow."""
    left, arrived, since = wanted, 0, time.monotonic()
    for piece in response.iter_raw(_BLOCK):
        arrived += len(piece)
        dropped = min(skip, len(piece))
        got += piece[dropped : dropped + left]
        left, skip = left - min(left, len(piece) - dropped), skip - dropped
        if not left:
            return
        if time.monotonic() - since > _SLOW_SECONDS:
            if arrived < _SLOW_BYTES:
                raise TroubleError("the connection is very slow")
            arrived, since = 0, time.monotonic()
    raise TroubleError("the connection ended early")


def passing(status: int, headers: Mapping[str, str], host: str) -> TroubleError | None:
    """Return the trouble that an answer is, where the same request may succeed later; None for any other answer."""
    return (
        TroubleError(f"{host} answers {status}", _retry_after(headers)) if status in _PASSING or status >= 500 else None
    )


def _host(url: str) -> str:
    return urlsplit(url).netloc or url


def reason_of(error: Exception) -> str:
    """Return what a failed request says in a few words, without numbers of the system."""
    return re.sub(r"^\[Errno -?\d+\] ", "", one_line(error)) or type(error).__name__


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait: its Retry-After, which holds seconds or a date, or its ratelimit.

    0 without a valid one. https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-09.html
    """
    value = headers.get("Retry-After", "")
    if spent := re.search(r";\s*r=0\s*;\s*t=(\d{1,9})", headers.get("RateLimit", "")):
        value = value or spent[1]
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
            f"could not download {url}: {reason_of(error)}; "
            f"put the file at {path} yourself, or use --data sample or --data PATH"
        ) from error


def _fetch(url: str, path: Path, checksum: str, size: int) -> None:
    """Write exactly the expected bytes to `path`, or raise OSError, ValueError, TroubleError or UserError."""
    got = bytearray()
    with Web(lambda _: None).get(url) as response:
        if response.status_code != 200:
            raise ValueError(f"the server answers {response.status_code}")
        for piece in response.iter_raw(_BLOCK):
            got += piece
            if len(got) > size:
                break
    if len(got) != size or sha256(got).hexdigest() != checksum:
        raise ValueError("it is not the file that was expected (wrong size or sha256)")
    with path.open("xb") as file:
        file.write(got)
        file.flush()
        flush(file.fileno())
