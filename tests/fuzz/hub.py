"""What a hub answers: listings, links and headers."""

import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import urllib3

from picogpt.data.sources import hub, remote
from picogpt.errors import UserError
from tests.fuzz.target import Finding, as_json, parsed


class Answers:
    """Stands in for the web: every address gives the same answer."""

    def __init__(self, body: bytes, link: str) -> None:
        self._answer = body, {"Link": link}

    def hub(self, url: str) -> tuple[bytes, dict[str, str]]:
        if not remote.is_address(url):
            raise Finding(f"{url!r} is asked for")
        return self._answer


def listing(folder: Path, data: bytes) -> None:
    match parsed(data):
        case [str(link), body]:
            pass
        case _:
            return
    asked = hub.Hub(print)
    asked._web = Answers(json.dumps(body).encode(), link)  # type: ignore[assignment]
    with mock.patch.object(hub, "_PAGES", 3):
        files = asked.files(hub.Dataset("a/b"))
    sizes = np.array([file.size or 1 for file in files], np.float64)
    np.random.default_rng(0).choice(len(files), p=sizes / sizes.sum())  # as streaming draws them
    for file in files:
        hub.quote(file.path)


def listings(folder: Path) -> list[bytes]:
    tree = [{"type": "file", "path": f"data/train-{i}.parquet", "size": 5 + i} for i in range(2)]
    link = '<https://huggingface.co/api/datasets/a/b/tree/main?cursor=x>; rel="next"'
    siblings = {"siblings": [{"rfilename": "data/x.parquet"}]}
    return as_json(*[[first, body] for first in ("", link) for body in (tree, siblings)])


def headers(folder: Path, data: bytes) -> None:
    value = data.decode("latin-1")
    assert 0 <= remote._retry_after({"Retry-After": value}) <= 3600
    with suppress(UserError):
        assert remote.is_address(remote.redirected("http://hub/file", {"Location": value}))
    for status, name in ((206, "Content-Range"), (200, "Content-Length")):
        with suppress(remote.TroubleError):
            file = remote.RemoteFile.__new__(remote.RemoteFile)
            file._identity = None
            answer: Any = SimpleNamespace(status=status, headers=urllib3.HTTPHeaderDict({name: value, "ETag": value}))
            file._recognise(answer, 0)
            assert 0 <= file.size < 10**18
    remote.refuse(404, "url")
