"""The Hugging Face hub: which parquet files a data set consists of, and where their bytes are.

`huggingface_hub` asks it, with the tokens, the endpoint and the words that its users know. It is imported here alone,
and this module only where a stream is filled: a run on other text starts without it.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, get_hf_file_metadata, get_token, hf_hub_url, set_client_factory
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from picogpt.data.sources.datasets import Dataset, Pin
from picogpt.data.sources.remote import (
    TIMEOUT,
    Location,
    MissingError,
    RemoteFile,
    TroubleError,
    Web,
    is_address,
    passing,
    reason_of,
)
from picogpt.errors import UserError, one_line, shown

Answer = TypeVar("Answer")

_CONVERSION = "refs/convert/parquet"  # the revision in which the hub keeps its own conversion of a data set
_MOST_FILES = 1_000_000
_LARGEST = 1 << 50  # bytes of a file
_SPLITS = ("train", "validation", "test")
_WORDS = {"train": "train", "validation": "validation|valid|val|dev|eval|evaluation", "test": "test|testing"}


@dataclass(frozen=True)
class HubFile:
    """A parquet file of a data set."""

    path: str
    size: int
    """Bytes."""
    validates: bool = False
    """Whether it is of a split that is for validation."""


@dataclass(frozen=True)
class Found:
    """A data set as the hub has it at one commit."""

    repo: str
    pin: Pin
    files: tuple[HubFile, ...]
    """Sorted by path, at least one."""


class Hub:
    """The hub that the environment names."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        """notify: gets a line before a request is repeated. Raises UserError where HF_ENDPOINT is no address."""
        self.endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        if not is_address(self.endpoint):
            raise UserError(f"HF_ENDPOINT is {self.endpoint!r}: set it to an address such as https://huggingface.co")
        self._host = urlsplit(self.endpoint).netloc
        self._web, self._api = Web(notify), HfApi(endpoint=self.endpoint)
        set_client_factory(_client)

    def find(self, dataset: Dataset, pin: Pin | None = None) -> Found:
        """Return the parquet files of a data set at a commit that was found before, else the newest of its revision.

        Raises MissingError where it has that commit no more, UserError where there are none, or the hub refuses.
        """
        repo, revision, given = dataset.repo, dataset.revision, pin
        try:
            pin = pin or Pin(self._commit(repo, revision))
            files = self._files(repo, pin.commit, dataset.config)
            if not (files or revision or given):
                pin = Pin(self._commit(repo, _CONVERSION), is_conversion=True)
                files = self._files(repo, pin.commit, dataset.config)
        except RevisionNotFoundError:
            if given:
                raise MissingError(given.commit) from None
            if pin is None:
                raise UserError(f"{self.endpoint} has no {shown(revision)} of {repo}: look at the name") from None
            files = []
        if not files:
            raise UserError(
                f"{self.endpoint} has no parquet files of {dataset}{', nor made any' * (not revision)}: "
                "look at the name, or download its text and give --data its path"
            )
        return Found(repo, pin, tuple(files))

    def open(self, found: Found, file: HubFile) -> RemoteFile:
        """Return a file of a data set, opened. Raises MissingError where the hub has no such file."""
        return RemoteFile(self._web, lambda: self._location(found, file.path))

    def _commit(self, repo: str, revision: str) -> str:
        """Return the commit that a revision stands for, "" for the newest."""
        sha = self._asked(repo, lambda: self._api.dataset_info(repo, revision=revision or None).sha)
        if not isinstance(sha, str) or not re.fullmatch(r"[0-9a-f]{4,64}", sha):
            raise UserError(f"{self.endpoint} names no commit of {repo}: look at HF_ENDPOINT, this is no hub")
        return sha

    def _files(self, repo: str, commit: str, config: str) -> list[HubFile]:
        """Return the parquet files of a configuration; its folder is a short list, that of everything may be long."""
        for folder in (config, "") if config else ("",):
            try:
                if files := _of_config(self._listed(repo, commit, folder), config):
                    return files
            except MissingError:
                continue
        return []

    def _listed(self, repo: str, commit: str, folder: str) -> list[HubFile]:
        """List a folder of a data set with everything in it. Raises MissingError where there is none."""

        def ask() -> list[HubFile]:
            entries = self._api.list_repo_tree(
                repo, folder or None, recursive=True, revision=commit, repo_type="dataset"
            )
            return _sound(islice(entries, _MOST_FILES))

        return self._asked(repo, ask)

    def _location(self, found: Found, path: str) -> Location:
        """Return where the bytes of a file are now. The identity is the hub's own: that of its stores may vary."""
        url = hf_hub_url(found.repo, path, repo_type="dataset", revision=found.pin.commit, endpoint=self.endpoint)

        def ask() -> Location:
            token = get_token()  # may have to renew it
            about = get_hf_file_metadata(url, token=token, endpoint=self.endpoint)
            if about.size is None or not is_address(about.location):
                raise TroubleError(f"{self._host} does not say where {path} is")
            is_here = urlsplit(about.location)[:2] == urlsplit(self.endpoint)[:2]
            headers = {"Authorization": f"Bearer {token}"} if token and is_here else {}
            return Location(about.location, about.size, about.etag or "", headers)

        return self._asked(found.repo, ask)

    def _asked(self, repo: str, ask: Callable[[], Answer]) -> Answer:
        """Return what the hub answers; trouble that may pass is waited for.

        Raises MissingError, RevisionNotFoundError, and UserError where it refuses or is no hub.
        """
        answers: list[Answer] = []

        def action() -> bool:
            try:
                answers.append(ask())
            except HfHubHTTPError as error:
                raise self._meaning(repo, error) from None
            except httpx2.HTTPError as error:
                raise TroubleError(f"{self._host}: {reason_of(error)}") from None
            except HFValidationError as error:
                raise UserError(f"{shown(repo)} cannot be the name of a data set: {one_line(error)}") from None
            except (ValueError, KeyError, TypeError, AttributeError, httpx2.InvalidURL):
                raise UserError(f"{self.endpoint} does not answer as a hub does: look at HF_ENDPOINT") from None
            return True

        self._web.persistently(action)
        return answers[0]

    def _meaning(self, repo: str, error: HfHubHTTPError) -> Exception:
        """Return the exception that says what an answer of the hub means for the user."""
        status, headers = error.response.status_code, error.response.headers
        words = shown(headers.get("X-Error-Message", ""))[1:-1]
        if isinstance(error, RevisionNotFoundError):
            return error
        if isinstance(error, EntryNotFoundError):
            return MissingError(repo)
        if isinstance(error, GatedRepoError):
            return UserError(
                f"{repo} is given only to those whom its owner lets in ({words or status}): ask for access at "
                f"{self.endpoint}/datasets/{repo}, and log in with `hf auth login` or set HF_TOKEN"
            )
        if status == 401 and headers.get("X-Error-Code") != "RepoNotFound" and get_token():
            return UserError(
                f"{self.endpoint} does not accept your token ({words or status}), which even public data sets need to "
                "be valid: log in again with `hf auth login`, or remove it and unset HF_TOKEN"
            )
        if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
            return UserError(
                f"{self.endpoint} has no data set {repo}, or it is private: look at the name, "
                "or log in with `hf auth login`"
            )
        return UserError(f"{self.endpoint} refuses {repo} ({status}{words and f': {words}'})")


def _client() -> httpx2.Client:
    """Return the client that the library uses: every request ends some time, and trouble is told, not waited for."""

    def limit(request: httpx2.Request) -> None:
        request.extensions["timeout"] = TIMEOUT.as_dict()

    def tell(response: httpx2.Response) -> None:
        host = response.url.netloc.decode("ascii")
        if trouble := passing(response.status_code, response.headers, host):
            raise trouble

    return httpx2.Client(follow_redirects=True, event_hooks={"request": [limit], "response": [tell]})


def _of_config(files: Sequence[HubFile], config: str) -> list[HubFile]:
    """Return the parquet files of a configuration: of its splits, those to train on and those to validate with.

    A split named validation goes before one named test. Without any such name, all files are to train on.
    """
    parquet = sorted((file for file in files if file.path.endswith(".parquet")), key=lambda file: file.path)
    if config:
        inside = [file for file in parquet if f"/{config}/" in f"/{file.path}"]
        parquet = inside or [file for file in parquet if file.path.rsplit("/", 1)[-1].startswith(config)]
    named = {split: [file for file in parquet if _is_of(split, file.path)] for split in _SPLITS}
    held_out = {file.path for split in _SPLITS[1:] for file in named[split]}
    training = named["train"] or [file for file in parquet if file.path not in held_out]
    validating = named["validation"] or named["test"]
    known = {file.path for file in training}
    if not training:
        return validating
    return training + [HubFile(file.path, file.size, True) for file in validating if file.path not in known]


def _is_of(split: str, path: str) -> bool:
    """Return whether a folder or the name of a file says that it is of a split."""
    return re.search(rf"(^|[/_-])({_WORDS[split]})([/_.-]|$)", path) is not None


def _sound(entries: Iterable[object]) -> list[HubFile]:
    """Return the files of a listing, without empty ones and names that no file can have."""
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return [
        HubFile(file.path, file.size)
        for file in files
        if isinstance(file.path, str) and _is_path(file.path) and type(file.size) is int and 0 < file.size < _LARGEST
    ]


def _is_path(name: str) -> bool:
    """Return whether it can be the path of a file within a data set."""
    fits = len(name) <= 1000 and name.isprintable()
    return fits and not any(part in ("", ".", "..") for part in name.split("/"))
