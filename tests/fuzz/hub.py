"""What a hub answers: listings and headers."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from huggingface_hub.hf_api import RepoFile

from picogpt.data.sources import hub, remote
from picogpt.data.sources.datasets import Dataset
from picogpt.errors import UserError
from tests.fuzz.target import as_json, parsed


class Answers:
    """Stands in for the hub's client: every listing has the same entries, made as that makes them."""

    def __init__(self, entries: object) -> None:
        self._entries = entries

    def dataset_info(self, repo: str, **options: object) -> SimpleNamespace:
        return SimpleNamespace(sha="0123abcd")

    def list_repo_tree(self, repo: str, folder: str | None, **options: object) -> Iterator[RepoFile]:
        for entry in self._entries:  # type: ignore[attr-defined]
            yield RepoFile(**entry)


def listing(folder: Path, data: bytes) -> None:
    asked = hub.Hub(print)
    asked._api = Answers(parsed(data))  # type: ignore[assignment]
    try:
        found = asked.find(Dataset("a/b", "data"))
    except UserError as told:
        assert str(told).isprintable()
        return
    sizes = np.array([file.size for file in found.files], np.float64)
    np.random.default_rng(0).choice(len(found.files), p=sizes / sizes.sum())  # as streaming draws them
    for file in found.files:
        hub.hf_hub_url(found.repo, file.path, repo_type="dataset", revision=found.pin.commit)


def listings(folder: Path) -> list[bytes]:
    names = ("data/train-0.parquet", "data/test-0.parquet", "validation/data.parquet")
    tree = [{"type": "file", "path": name, "size": 5 + i, "oid": "0"} for i, name in enumerate(names)]
    lfs = {"oid": "0", "size": 5, "pointerSize": 1}
    return as_json(tree, [{**entry, "lfs": lfs} for entry in tree], tree[:1])


def headers(folder: Path, data: bytes) -> None:
    value = data.decode("latin-1")
    assert 0 <= remote._retry_after({"Retry-After": value}) <= 3600
    assert 0 <= remote._retry_after({"RateLimit": value}) <= 3600
    file = remote.RemoteFile(remote.Web(print), lambda: remote.Location("http://hub/file", 9, ""))
    for status, name in ((206, "Content-Range"), (200, "Content-Length")):
        with suppress(remote.TroubleError, remote.ChangedError):
            file._check(status, {name: value}, 0)
