"""The plan of a stream: what it fetches, where to, and the file with its status."""

import json
import os
import re
import secrets
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal, cast, get_args

from picogpt.config import DataConfig, TokenizerName
from picogpt.data.shards.index import INDEX
from picogpt.data.shards.reader import Shards
from picogpt.data.sources.corpora import columns_of
from picogpt.data.sources.datasets import Dataset, Pin
from picogpt.data.sources.formats import Columns
from picogpt.data.token_folder import PARTS, TOKENIZER, read_tokenizer, require_known, val_share, write_tokenizer
from picogpt.errors import UserError
from picogpt.system.files import make_folder, sync_file
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.bpe import DEFAULT_SIZE
from picogpt.tokenizers.registry import TOKENIZERS

_DEFAULT_LIMIT = 20 * 1000**3  # bytes of tokens
_PIN = "commit.txt"
_STATUS_LIMIT = 100_000  # bytes of a status; it usually has a few hundred

StreamState = Literal["working", "waiting", "complete", "incomplete", "failed"]
"""complete: all is here that there is or that fits; incomplete: but for what could not be read."""


@dataclass(frozen=True)
class StreamStatus:
    """The status of a stream. text: a line for users."""

    state: StreamState
    text: str
    tokens: int = 0
    mark: str = ""  # differs each time it is written


@dataclass(frozen=True)
class Plan:
    """What a stream fetches, and where to."""

    dataset: Dataset
    columns: Columns
    val_fraction: float
    folder: Path
    limit: int  # bytes of tokens
    is_given: bool = False  # whether the tokenizer is that of a model, in place of the stream's own
    allow_unknown: bool = False
    learns: tuple[TokenizerName, int] | None = None
    """The name and the size of a tokenizer that is to be learnt from the first text, where the folder has none."""

    def to_json(self) -> str:
        """Return the plan as the argument of a process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Return the plan that `to_json` wrote."""
        plan = json.loads(text)
        qa = plan["columns"]["qa"]
        columns = Columns(plan["columns"]["text"], tuple(qa) if qa else None)
        rest = {name: plan[name] for name in ("val_fraction", "limit", "is_given", "allow_unknown")}
        learns = plan["learns"] and tuple(plan["learns"])
        return cls(Dataset(**plan["dataset"]), columns, folder=Path(plan["folder"]), learns=learns, **rest)


def plan_for(dataset: Dataset, data: DataConfig, tokenizer: Tokenizer | None, dataset_dir: Path) -> Plan:
    """Return the plan of a data set, after making its folder. tokenizer: that of a model to fine-tune, or None.

    The folder has no tokenizer yet where that is to be learnt (filler.py). Raises UserError for a tokenizer that has
    to know the whole text before the first token, and where the disk refuses.
    """
    require_known(data, tokenizer)
    kind = TOKENIZERS[data.tokenizer_name]
    if tokenizer is None and kind.origin == "corpus":
        raise UserError(f"{dataset} is streamed, so its characters are not known beforehand: use --tokenizer bpe")
    share, columns = val_share(data, sys.maxsize), columns_of(data)

    def folder_of(tokens: str) -> Path:
        parts = (dataset, columns, share, tokens, *[dataset.revision] * bool(dataset.revision))
        key = sha256(repr(parts).encode()).hexdigest()[:12]
        return dataset_dir / "tokens" / f"{dataset.name}-{key}"

    folder = folder_of(data.tokenizer)
    is_given = tokenizer is not None and not _has(folder, tokenizer)
    if kind.origin == "fixed" or is_given:
        tokenizer = tokenizer or kind.from_corpus(())
        folder = folder_of(tokenizer.fingerprint())
    try:
        make_folder(folder)
        if tokenizer and not (folder / TOKENIZER).exists():
            write_tokenizer(folder, tokenizer)
        room = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.glob("*/*.bin"))
    except OSError as error:
        raise UserError(f"the tokens cannot be written to {folder}: {error.strerror or error}") from error
    limit = data.limit_bytes or min(_DEFAULT_LIMIT, room // 4)
    learns = None if tokenizer else (kind.name, data.tokenizer_size or DEFAULT_SIZE)
    return Plan(dataset, columns, share, folder, limit, is_given, data.allow_unknown, learns)


def _has(folder: Path, tokenizer: Tokenizer) -> bool:
    """Return whether a folder has this tokenizer."""
    try:
        return read_tokenizer(folder).fingerprint() == tokenizer.fingerprint()
    except UserError:
        return False


def shards_of(plan: Plan) -> tuple[Shards, Shards] | None:
    """Return the shards to train on and to validate with, None before there are any. Raises UserError for damage."""
    folders = [plan.folder / part for part in PARTS]
    if not all((folder / INDEX).exists() for folder in folders):
        return None
    fingerprint = read_tokenizer(plan.folder).fingerprint()
    train, val = (Shards(folder, fingerprint) for folder in folders)
    return train, val


def read_pin(folder: Path) -> Pin | None:
    """Return the version of the data set that the text of a stream's folder is of, None where none was found yet.

    Raises UserError where the file is damaged.
    """
    try:
        text = (folder / _PIN).read_bytes().decode("ascii", "replace")
    except FileNotFoundError:
        return None
    match = re.fullmatch(r"([0-9a-f]{4,64})( conversion)?\s*", text)
    if match is None:
        raise UserError(f"{folder / _PIN} is damaged: delete {folder}, whose text is fetched anew then")
    return Pin(match[1], match[2] is not None)


def write_pin(folder: Path, pin: Pin) -> None:
    """Write the version for `read_pin`, which later runs read: so their text is of one."""
    part = folder / f"{_PIN}.part"
    part.write_text(pin.commit + " conversion" * pin.is_conversion, encoding="ascii")
    sync_file(part)
    os.replace(part, folder / _PIN)


def write_status(folder: Path, status: StreamStatus) -> None:
    """Write the status of a stream in one step, for `read_status` in another process."""
    part = folder / "status.part"
    part.write_text(json.dumps(asdict(replace(status, mark=secrets.token_hex(8)))), encoding="utf-8")
    with suppress(PermissionError):  # on Windows, while it is being read: the next one will follow
        os.replace(part, folder / "status.json")


def read_status(folder: Path) -> StreamStatus | None:
    """Return the status of a stream, None where it is missing or damaged."""
    try:
        with (folder / "status.json").open("rb") as file:
            content: object = json.loads(file.read(_STATUS_LIMIT))
    except (OSError, ValueError, RecursionError):
        return None
    match content:
        case {"state": str(state), "text": str(text), "tokens": tokens, "mark": str(mark)} if (
            state in get_args(StreamState) and type(tokens) is int and 0 <= tokens < 1 << 63
        ):
            return StreamStatus(cast(StreamState, state), " ".join(text.split()), tokens, mark)
    return None
