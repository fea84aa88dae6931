"""Data sets of the Hugging Face hub: which parquet files they are made of, and where those lie.

HF_ENDPOINT names another hub, HF_TOKEN opens what is not public, HF_HUB_OFFLINE forbids all requests.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from picogpt.data.sources.remote import MissingError, RemoteFile, Web, is_address
from picogpt.errors import UserError, shown

_WIKIPEDIA, _SNAPSHOT = "wikimedia/wikipedia", "20231101"

# The files of the two editions that have a name of their own, for a hub that lists nothing; a smaller one is one file.
_SHARDS = {f"{_SNAPSHOT}.en": 41, f"{_SNAPSHOT}.simple": 1}

_PAGES = 1000  # of a listing, each of a thousand files

_LARGEST = 1 << 50  # bytes of a file

_TRUE = ("1", "on", "yes", "true")


@dataclass(frozen=True)
class Dataset:
    """A data set of the hub: `owner/name`, and the configuration of it, "" for all there is."""

    repo: str
    config: str = ""

    @property
    def name(self) -> str:
        """Fit for a folder's name."""
        return re.sub(r"[^\w.-]+", "-", f"{self.repo}-{self.config}" if self.config else self.repo)

    def __str__(self) -> str:
        return f"{self.repo} ({self.config})" if self.config else self.repo


def dataset_named(data: str) -> Dataset | None:
    """wiki, wiki-simple, wiki:<lang> or hf:<owner>/<name>[:<config>]; None for any other name.

    Raises UserError for a name that begins like one of these and is none.
    """
    if data in ("wiki", "wiki-simple"):
        return Dataset(_WIKIPEDIA, f"{_SNAPSHOT}.{'en' if data == 'wiki' else 'simple'}")
    if data.startswith("wiki:"):
        language = data.removeprefix("wiki:")
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", language):
            raise UserError(f"{data!r} names no language: write --data wiki:de, for one")
        return Dataset(_WIKIPEDIA, f"{_SNAPSHOT}.{language}")
    if data.startswith("hf:"):
        match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?::([\w./-]+))?", data)
        if match is None:
            raise UserError(f"{data!r} names no data set: write --data hf:OWNER/NAME, or hf:OWNER/NAME:CONFIG")
        return Dataset(match[1], match[2] or "")
    return None


def only_dataset(names: Sequence[str]) -> Dataset | None:
    """The data set that these names mean, None where none of them means one.

    Raises UserError for a data set beside other names.
    """
    datasets = [found for name in names if (found := dataset_named(name))]
    if datasets and len(names) > 1:
        raise UserError("a data set of the hub is streamed by itself: give --data one name")
    return datasets[0] if datasets else None


def is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE


@dataclass(frozen=True)
class HubFile:
    """A parquet file of a data set. size: bytes, or 0 where the hub does not say."""

    path: str
    size: int


class Hub:
    """The hub that the environment names. waiting: told in a line why a request is about to be repeated."""

    def __init__(self, waiting: Callable[[str], None]) -> None:
        self.endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        if not is_address(self.endpoint):
            raise UserError(f"HF_ENDPOINT is {self.endpoint!r}: set it to an address such as https://huggingface.co")
        self._web = Web(waiting, self.endpoint, _token())

    def files(self, dataset: Dataset) -> list[HubFile]:
        """The parquet files of a data set, in the order of their names. Raises UserError where there are none."""
        refused = None
        for listing in (self._folder, self._tree, self._siblings, self._known):
            try:
                if found := _of_config(listing(dataset), dataset.config):
                    return found
            except MissingError:
                continue
            except UserError as error:  # a hub may keep its listings to itself
                refused = error
        raise refused or UserError(
            f"{self.endpoint} has no parquet files of {dataset}: look at the name, "
            "or download its text and give --data its path"
        )

    def open(self, dataset: Dataset, file: HubFile) -> RemoteFile:
        """Raises MissingError where the hub has no such file."""
        return RemoteFile(self._web, f"{self.endpoint}/datasets/{dataset.repo}/resolve/main/{quote(file.path)}")

    def _folder(self, dataset: Dataset) -> list[HubFile]:
        """A configuration is most often a folder: a short list, where that of everything may have many pages."""
        return self._tree(dataset, f"/{quote(dataset.config)}") if dataset.config else []

    def _tree(self, dataset: Dataset, folder: str = "") -> list[HubFile]:
        url = f"{self.endpoint}/api/datasets/{dataset.repo}/tree/main{folder}?recursive=true"
        found: list[HubFile] = []
        for _ in range(_PAGES):
            body, headers = self._web.hub(url)
            found += _files(body)
            url = _next(url, headers.get("Link", ""))
            if not url:
                return found
        raise UserError(f"{self.endpoint} lists {dataset} without end: name a configuration, as hf:OWNER/NAME:CONFIG")

    def _siblings(self, dataset: Dataset) -> list[HubFile]:
        body, _ = self._web.hub(f"{self.endpoint}/api/datasets/{dataset.repo}")
        match _json(body):
            case {"siblings": list(entries)}:
                names = [entry.get("rfilename") for entry in entries if isinstance(entry, dict)]
                return [HubFile(name, 0) for name in names if isinstance(name, str) and _is_path(name)]
        return []

    def _known(self, dataset: Dataset) -> list[HubFile]:
        count = _SHARDS.get(dataset.config, 1) if dataset.repo == _WIKIPEDIA else 0
        return [HubFile(f"{dataset.config}/train-{i:05d}-of-{count:05d}.parquet", 0) for i in range(count)]


def _token() -> str:
    """HF_TOKEN, or what `hf auth login` left."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    try:
        return (home / "token").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _of_config(files: list[HubFile], config: str) -> list[HubFile]:
    """The parquet files of a configuration, of its training split where it has one."""
    found = sorted((file for file in files if file.path.endswith(".parquet")), key=lambda file: file.path)
    if config:
        inside = [file for file in found if f"/{file.path}".find(f"/{config}/") >= 0]
        found = inside or [file for file in found if file.path.rsplit("/", 1)[-1].startswith(config)]
    training = [file for file in found if re.search(r"(^|[/_-])train([/_.-]|$)", file.path)]
    return training or found


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _files(body: bytes) -> list[HubFile]:
    """The files of a page of a listing, what is not empty and could be one."""
    content, found = _json(body), []
    for entry in content if isinstance(content, list) else []:
        match entry:
            case {"type": "file", "path": str(path), "size": size} if (
                _is_path(path) and type(size) is int and 0 < size < _LARGEST
            ):
                found.append(HubFile(path, size))
    return found


def _is_path(name: str) -> bool:
    """Whether it can be the path of a file within a data set."""
    fits = len(name) <= 1000 and name.isprintable()
    return fits and not any(part in ("", ".", "..") for part in name.split("/"))


def _next(url: str, link: str) -> str:
    """The address of the page after this one, "" for none. Raises UserError where it is not the hub's."""
    more = re.search(r'<([^<>]+)>;\s*rel="next"', link)
    if more is None:
        return ""
    try:
        target = str(urljoin(url, more[1]))
    except ValueError:
        target = ""
    if not is_address(target) or urlsplit(target)[:2] != urlsplit(url)[:2]:
        raise UserError(f"the listing at {url} goes on at {shown(more[1])}, another place: look at HF_ENDPOINT")
    return target
