"""The folder of a corpus' tokens: its parts, its tokenizer, and the share for validation."""

import json
import os
import secrets
from pathlib import Path

from picogpt.config import DataConfig
from picogpt.errors import UserError
from picogpt.system.files import sync_file, sync_folder
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.registry import TOKENIZERS, from_dict

PARTS = ("train", "val")
MANY_DOCUMENTS = 20  # from so many on, the share for validation is of documents, not of one text

TOKENIZER = "tokenizer.json"
_TOKENIZER_LIMIT = 16 << 20  # bytes; GPT-2's has about two million


def require_known(data: DataConfig, tokenizer: Tokenizer | None) -> None:
    """Raise UserError if `data` names a tokenizer that comes with a model, and there is none of a model."""
    if tokenizer is None and TOKENIZERS[data.tokenizer_name].origin == "model":
        raise UserError(f"the tokenizer {data.tokenizer} is a model's own: name its run with --init-from")


def file_tokenizer(data: DataConfig) -> Tokenizer | None:
    """Return the tokenizer of the file that `data` names, None where it names none.

    Raises UserError for a file that is missing, damaged or of another kind.
    """
    if not data.tokenizer_is_file:
        return None
    tokenizer = BpeTokenizer.open(Path(data.tokenizer))
    return tokenizer.with_marks() if data.qa else tokenizer


def read_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder of tokens. Raises UserError where it is missing or damaged."""
    path = folder / TOKENIZER
    try:
        if path.stat().st_size > _TOKENIZER_LIMIT:
            raise ValueError
        return from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError, UserError):
        raise UserError(f"{path} is not a tokenizer: delete {folder}; it is made again") from None


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the tokenizer of a folder of tokens, durably and in one step."""
    part = beside(folder / TOKENIZER)
    part.write_text(json.dumps(tokenizer.to_dict()), encoding="utf-8")
    sync_file(part)
    os.replace(part, folder / TOKENIZER)
    sync_folder(folder)


def beside(folder: Path) -> Path:
    """Return a new name next to a file or folder."""
    return folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.tmp")


def val_share(data: DataConfig, documents: int) -> float:
    """Return the share for validation: of many documents, or of a single text."""
    return data.val_fraction or (0.05 if documents >= MANY_DOCUMENTS else 0.1)
