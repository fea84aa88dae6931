"""The names of data sets of the Hugging Face hub, without a request: that is hub.py's."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from picogpt.errors import UserError

_WIKIPEDIA, _SNAPSHOT = "wikimedia/wikipedia", "20231101"
_ENGLISH = (f"{_SNAPSHOT}.en", f"{_SNAPSHOT}.simple")
_TRUE = ("1", "on", "yes", "true")


@dataclass(frozen=True)
class Dataset:
    """A data set of the hub: `owner/name`, and its configuration, "" for all of it."""

    repo: str
    config: str = ""
    revision: str = field(default="", repr=False)  # not in the repr, of which the names of folders are made
    """A branch, a tag or a commit; "" for the newest."""

    @property
    def name(self) -> str:
        """A name that a folder can have."""
        return re.sub(r"[^\w.-]+", "-", f"{self.repo}-{self.config}" if self.config else self.repo)

    @property
    def may_be_english(self) -> bool:
        """Whether it is the Wikipedia in English, or a data set whose language its name does not tell."""
        return self.repo != _WIKIPEDIA or self.config in _ENGLISH

    def __str__(self) -> str:
        at = f"{self.repo}@{self.revision}" if self.revision else self.repo
        return f"{at} ({self.config})" if self.config else at


@dataclass(frozen=True)
class Pin:
    """One version of a data set, which all requests name."""

    commit: str
    is_conversion: bool = False
    """Whether it is the hub's own conversion of the data set to parquet files."""


def dataset_named(data: str) -> Dataset | None:
    """Return the data set of wiki, wiki-simple, wiki:<lang> or hf:<owner>/<name>[:<config>][@<revision>], else None.

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
        match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?::([\w./-]+))?(?:@([\w./-]+))?", data)
        if match is None:
            raise UserError(
                f"{data!r} names no data set: write --data hf:OWNER/NAME, hf:OWNER/NAME:CONFIG or ...@COMMIT"
            )
        return Dataset(match[1], match[2] or "", match[3] or "")
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
