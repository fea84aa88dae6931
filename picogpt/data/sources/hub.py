"""Data sets of the Hugging Face hub: the parquet files they consist of, and their addresses.

HF_ENDPOINT names another hub, HF_TOKEN gives access to what is not public, HF_HUB_OFFLINE forbids all requests.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

from picogpt.data.sources.remote import MissingError, RemoteFile, Web, is_address
from picogpt.errors import UserError, shown

_WIKIPEDIA, _SNAPSHOT = "wikimedia/wikipedia", "20231101"

# The files of the two editions that have a name here, for a hub that lists nothing; a smaller edition is one file.
_SHARDS = {f"{_SNAPSHOT}.en": 41, f"{_SNAPSHOT}.simple": 1}

_PAGES = 1000  # of a listing, each of a thousand files
_LARGEST = 1 << 50  # bytes of a file
_TRUE = ("1", "on", "yes", "true")


@dataclass(frozen=True)
class Dataset:
    """A data set of the hub: `owner/name`, and its configuration, "" for all of it."""

    repo: str
    config: str = ""

    @property
    def name(self) -> str:
        """A name that a folder can have."""
        return re.sub(r"[^\w.-]+", "-", f"{self.repo}-{self.config}" if self.config else self.repo)

    @property
    def may_be_english(self) -> bool:
        """Whether it is the Wikipedia in English, or a data set whose language its name does not tell."""
        return self.repo != _WIKIPEDIA or self.config in _SHARDS

    def __str__(self) -> str:
        return f"{self.repo} ({self.config})" if self.config else self.repo


def dataset_named(data: str) -> Dataset | None:
    """Return the data set of wiki, wiki-simple, wiki:<lang> or hf:<owner>/<name>[:<config>]; None for other names.

    Raises UserError for a name that begins like one of these and is none.
    """
    if data in ("wiki", "wiki-simple"):
        return Dataset(_WIKIPEDIA, f"{_SNAPSHOT}.{'en' if data == 'wiki' else 'simple'}")
    if data.startswith("wiki:"):
        language = data.removeprefix("wiki:")
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", language):
            raise UserError(f"{data!r} names no language: write --data wiki:de, for example")
        return Dataset(_WIKIPEDIA, f"{_SNAPSHOT}.{language}")
    if data.startswith("hf:"):
        match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?::([\w./-]+))?", data)
        if match is None:
            raise UserError(f"{data!r} names no data set: write --data hf:OWNER/NAME, or hf:OWNER/NAME:CONFIG")
        return Dataset(match[1], match[2] or "")
    return None


def only_dataset(names: Sequence[str]) -> Dataset | None:
    """Return the data set that these names mean, None where none of them means one.

    Raises UserError for a data set beside other names.
    """
    datasets = [found for name in names if (found := dataset_named(name))]
    if datasets and len(names) > 1:
        raise UserError("a data set of the hub is streamed by itself: give --data one name")
    return datasets[0] if datasets else None


OFFLINE = "HF_HUB_OFFLINE is set: nothing is fetched"


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids all requests."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE


@dataclass(frozen=True)
class HubFile:
    """A parquet file of a data set. size: bytes, or 0 where the hub does not say."""

    path: str
    size: int


class Hub:
    """The hub that the environment names."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        """notify: gets a line before a request is repeated. Raises UserError where HF_ENDPOINT is no address."""
        self.endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        if not is_address(self.endpoint):
            raise UserError(f"HF_ENDPOINT is {self.endpoint!r}: set it to an address such as https://huggingface.co")
        self._web = Web(notify, self.endpoint, _token())

    def files(self, dataset: Dataset) -> list[HubFile]:
        """Return the parquet files of a data set, sorted by name. Raises UserError where there are none."""
        refused = None
        for listing in (self._folder, self._tree, self._siblings, self._known):
            try:
                if files := _of_config(listing(dataset), dataset.config):
                    return files
            except MissingError:
                continue
            except UserError as error:  # a hub may refuse one kind of listing
                refused = error
        raise refused or UserError(
            f"{self.endpoint} has no parquet files of {dataset}: look at the name, "
            "or download its text and give --data its path"
        )

    def open(self, dataset: Dataset, file: HubFile) -> RemoteFile:
        """Return a file of a data set, opened. Raises MissingError where the hub has no such file."""
        return RemoteFile(self._web, f"{self.endpoint}/datasets/{dataset.repo}/resolve/main/{quote(file.path)}")

    def _folder(self, dataset: Dataset) -> list[HubFile]:
        """List the folder that a configuration usually is: a short list, while that of everything may be long."""
        return self._tree(dataset, f"/{quote(dataset.config)}") if dataset.config else []

    def _tree(self, dataset: Dataset, folder: str = "") -> list[HubFile]:
        """List a folder of a data set with everything in it."""
        url = f"{self.endpoint}/api/datasets/{dataset.repo}/tree/main{folder}?recursive=true"
        files: list[HubFile] = []
        for _ in range(_PAGES):
            body, headers = self._web.hub(url)
            files += _files(body)
            url = _next_page(url, headers.get("Link", ""))
            if not url:
                return files
        raise UserError(f"{self.endpoint} lists {dataset} without end: name a configuration, as hf:OWNER/NAME:CONFIG")

    def _siblings(self, dataset: Dataset) -> list[HubFile]:
        """List what the description of a data set names."""
        body, _ = self._web.hub(f"{self.endpoint}/api/datasets/{dataset.repo}")
        match _json(body):
            case {"siblings": list(entries)}:
                names = [entry.get("rfilename") for entry in entries if isinstance(entry, dict)]
                return [HubFile(name, 0) for name in names if isinstance(name, str) and _is_path(name)]
        return []

    def _known(self, dataset: Dataset) -> list[HubFile]:
        """List what is known of Wikipedia without asking."""
        count = _SHARDS.get(dataset.config, 1) if dataset.repo == _WIKIPEDIA else 0
        return [HubFile(f"{dataset.config}/train-{i:05d}-of-{count:05d}.parquet", 0) for i in range(count)]


def _token() -> str:
    """Return HF_TOKEN, or what `hf auth login` wrote; "" without either."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    try:
        return (home / "token").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _of_config(files: list[HubFile], config: str) -> list[HubFile]:
    """Return the parquet files of a configuration, of its training split where it has one."""
    parquet = sorted((file for file in files if file.path.endswith(".parquet")), key=lambda file: file.path)
    if config:
        inside = [file for file in parquet if f"/{config}/" in f"/{file.path}"]
        parquet = inside or [file for file in parquet if file.path.rsplit("/", 1)[-1].startswith(config)]
    training = [file for file in parquet if re.search(r"(^|[/_-])train([/_.-]|$)", file.path)]
    return training or parquet


def _json(body: bytes) -> object:
    """Return the JSON of an answer, None for anything else."""
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value


def _files(body: bytes) -> list[HubFile]:
    """Return the files on a page of a listing, without empty ones and names that no file can have."""
    content, files = _json(body), []
    for entry in content if isinstance(content, list) else []:
        match entry:
            case {"type": "file", "path": str(path), "size": size} if (
                _is_path(path) and type(size) is int and 0 < size < _LARGEST
            ):
                files.append(HubFile(path, size))
    return files


def _is_path(name: str) -> bool:
    """Return whether it can be the path of a file within a data set."""
    fits = len(name) <= 1000 and name.isprintable()
    return fits and not any(part in ("", ".", "..") for part in name.split("/"))


def _next_page(url: str, link: str) -> str:
    """Return the address of the page after this one, "" for none. Raises UserError where it is not the hub's."""
    more = re.search(r'<([^<>]+)>;\s*rel="next"', link)
    if more is None:
        return ""
    try:
        target = str(urljoin(url, more[1]))
    except ValueError:
        target = ""
    if not is_address(target) or urlsplit(target)[:2] != urlsplit(url)[:2]:
        raise UserError(f"the listing at {url} continues at {shown(more[1])}, another place: look at HF_ENDPOINT")
    return target
