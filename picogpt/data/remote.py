"""Fetch a file whose content is known beforehand."""

import http.client
import os
import urllib.error
import urllib.request
from hashlib import sha256
from pathlib import Path

from picogpt.config import UserError

_TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 16


def _fetch(url: str, path: Path, checksum: str, size: int) -> None:
    """Write exactly the expected bytes to `path`, or raise OSError, ValueError or HTTPException."""
    digest = sha256()
    left = size
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, path.open("xb") as file:
        while block := response.read(_BLOCK):
            left -= len(block)
            if left < 0:
                break
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    if left or digest.hexdigest() != checksum:
        raise ValueError("it is not the file that was expected (wrong size or sha256)")


def download(url: str, path: Path, checksum: str, size: int) -> None:
    """Fetch the `size` bytes whose sha256 is `checksum` to `path`, which holds all of them or is not made.

    Raises UserError with the alternatives when offline, refused, or answered with something else.
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
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is also the open response
        reason = " ".join(f"{error}".split())  # a server's nonsense may have lines
        raise UserError(
            f"could not download {url}: {reason}; put the file at {path} yourself, or use --data sample or --data PATH"
        ) from error
