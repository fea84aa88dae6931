"""The folder of a corpus' tokens: its parts, its tokenizer, and how much is kept for validation."""

import json
import os
import secrets
from pathlib import Path

from picogpt.config import DataConfig
from picogpt.errors import UserError
from picogpt.system.files import sync_file, sync_folder
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer
from picogpt.tokenizers.registry import from_dict

PARTS = ("train", "val")

_TOKENIZER = "tokenizer.json"

_TOKENIZER_LIMIT = 16 << 20  # bytes; GPT-2's has about two million

MANY_DOCUMENTS = 20  # documents make a collection


def require_known(data: DataConfig, tokenizer: Tokenizer | None) -> None:
    """Raises UserError where the tokenizer asked for is no text's own, and no model brings it."""
    if tokenizer is None and data.tokenizer not in (PicoTokenizer.name, CharTokenizer.name):
        raise UserError(f"the tokenizer {data.tokenizer} is a model's own: name its run with --init-from")


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder of tokens. Raises UserError where it is not there or damaged."""
    path = folder / _TOKENIZER
    try:
        if path.stat().st_size > _TOKENIZER_LIMIT:
            raise ValueError
        return from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError, UserError):
        raise UserError(f"{path} is not a tokenizer: delete {folder}; it is made again") from None


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    part = beside(folder / _TOKENIZER)
    part.write_text(json.dumps(tokenizer.to_dict()), encoding="utf-8")
    sync_file(part)
    os.replace(part, folder / _TOKENIZER)
    sync_folder(folder)


def beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")


def val_share(data: DataConfig, documents: int) -> float:
    """The share that is kept for validation: of a collection's documents, or of a single text."""
    return data.val_fraction or (0.05 if documents >= MANY_DOCUMENTS else 0.1)
