"""The files of byte-level BPE tokenizers, read and checked: tokenizer.json, or a vocabulary and its merges.

Of a file, only the vocabulary, the merges and the added tokens are taken. What would make it another kind of tokenizer
is refused.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from picogpt.errors import UserError, one_line

ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>")
"""Names that the end of a text has in these files."""
_FILE_LIMIT = 16 << 20  # bytes; GPT-2's has about two million
_MOST_IDS = 1 << 20
_PATTERN_LIMIT = 2_000  # characters
_FLAGS = ("single_word", "lstrip", "rstrip", "special")


def read_text(path: Path) -> str:
    """Return the text of a file. Raises UserError where it cannot be read, is too large or is no text."""
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise UserError(f"it cannot be read ({error.strerror or error})") from None
    if len(content) > _FILE_LIMIT:
        raise UserError(f"its file has more than {_FILE_LIMIT >> 20} MB: take a smaller one")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise foreign_tokenizer(error) from None


def parsed_json(text: str) -> object:
    """Return the value of a JSON text. Raises UserError for any other text."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise foreign_tokenizer(error) from None
    return value


def added_beside(folder: Path) -> list[dict[str, object]]:
    """Return the tokens of added_tokens.json in tokenizer.json's form, with their flags from tokenizer_config.json."""
    paths = folder / "added_tokens.json", folder / "tokenizer_config.json"
    ids, config = (parsed_json(read_text(path)) if path.is_file() else {} for path in paths)
    flags = config.get("added_tokens_decoder") if isinstance(config, dict) else None
    if not isinstance(ids, dict) or not isinstance(flags or {}, dict):
        raise foreign_tokenizer(ValueError("its added tokens are not objects"))
    by_id = {id: fields for id, fields in flags.items() if isinstance(fields, dict)} if flags else {}
    return [{**by_id.get(str(id), {}), "content": name, "id": id} for name, id in ids.items()]


def with_merges(vocab: object, merges: str) -> dict[str, object]:
    """Return the content of a tokenizer.json for GPT-2's two files."""
    lines = [line.rstrip("\r") for line in merges.split("\n")]
    if lines[0].startswith("#version"):
        del lines[0]
    return {"model": {"type": "BPE", "vocab": vocab, "merges": [line for line in lines if line]}, **BYTE_LEVEL}


BYTE_LEVEL: dict[str, object] = {
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
}


@dataclass(frozen=True)
class AddedToken:
    content: str
    flags: dict[str, bool]  # by the names of _FLAGS
    id: int

    def to_dict(self) -> dict[str, object]:
        return {"content": self.content, "normalized": False, **self.flags, "id": self.id}


@dataclass(frozen=True)
class BpeFields:
    """What decides the ids, of a tokenizer.json."""

    vocab: dict[str, int]  # in the order of the ids
    merges: list[str]
    added: list[AddedToken]  # in the order of the ids
    unknown: str | None
    ignores_merges: bool
    splits: list[dict[str, object]]  # where it splits a text in its own way, else that is GPT-2's

    def to_dict(self) -> dict[str, object]:
        """Return a whole tokenizer.json, always with the same keys in the same order."""
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [token.to_dict() for token in self.added],
            **(BYTE_LEVEL | self._own_splits()),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": self.unknown,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": self.ignores_merges,
                "vocab": self.vocab,
                "merges": self.merges,
            },
        }

    def _own_splits(self) -> dict[str, object]:
        if not self.splits:
            return {}
        bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*self.splits, bytes_alone]}}


def checked_fields(content: object) -> BpeFields:
    """Return what decides the ids, of the content of a tokenizer.json. Raises ValueError where something is wrong."""
    fields = _object(content, "it is no object")
    model, before, after = (
        _object(fields.get(name), f"it has no {name}") for name in ("model", "pre_tokenizer", "decoder")
    )
    if model.get("type", "BPE") != "BPE" or after.get("type") != "ByteLevel":
        raise ValueError("its model or decoder is of another kind")
    if fields.get("normalizer") is not None:
        raise ValueError("it changes the text")
    if any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")):
        raise ValueError("its tokens have a prefix, a suffix or a byte_fallback")
    vocab, unknown = _checked_vocab(model.get("vocab")), model.get("unk_token")
    return BpeFields(
        vocab,
        [_merge(merge) for merge in _list(model.get("merges"), "it has no list of merges")],
        _checked_added(fields.get("added_tokens") or [], vocab),
        unknown if isinstance(unknown, str) and unknown in vocab else None,
        model.get("ignore_merges") is True,
        _checked_splits(before),
    )


def _checked_splits(before: dict[str, object]) -> list[dict[str, object]]:
    """Return how a text is split before its bytes are merged, where that is not GPT-2's way: as Llama 3 does, say.

    Nothing of the text may be lost. Raises ValueError.
    """
    steps = [before]
    if before.get("type") == "Sequence":
        steps = [
            _object(step, "one of its steps is no object") for step in _list(before.get("pretokenizers"), "no steps")
        ]
    if not steps or steps[-1].get("type") != "ByteLevel":
        raise ValueError("its pre_tokenizer is of another kind")
    splits = [_checked_split(step) for step in steps[:-1]]
    is_split_alike = steps[-1].get("use_regex", True) is not False
    if steps[-1].get("add_prefix_space") or is_split_alike == bool(splits):
        raise ValueError("it changes the text, or splits it in another way")
    return splits


def _checked_split(step: dict[str, object]) -> dict[str, object]:
    """Return a step that parts a text before and after what a pattern finds. Raises ValueError for any other."""
    match step:
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"} if not step.get("invert"):
            if len(pattern) <= _PATTERN_LIMIT:
                return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        case {"type": "Digits", "individual_digits": bool(each)}:
            return {"type": "Digits", "individual_digits": each}
    raise ValueError("it splits the text in a way that is not known here")


def _object(value: object, reason: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError(reason)
    return value


def _list(value: object, reason: str) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(reason)
    return value


def _is_id(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _MOST_IDS


def _checked_vocab(value: object) -> dict[str, int]:
    """Return the vocabulary in the order of the ids. Raises ValueError."""
    vocab = {token: id for token, id in _object(value, "it has no vocabulary").items() if _is_id(id)}
    if not vocab or len(vocab) < len(_object(value, "")):
        raise ValueError(f"its vocabulary is empty, or has ids that are not numbers below {_MOST_IDS:,}")
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("two of its tokens have one id")
    return dict(sorted(vocab.items(), key=lambda item: item[1]))


def _merge(value: object) -> str:
    match value:
        case str():
            return value
        case [str(first), str(second)]:  # as newer files have it
            return f"{first} {second}"
    raise ValueError("one of its merges is not a pair")


def _checked_added(values: object, vocab: dict[str, int]) -> list[AddedToken]:
    """Return the added tokens by id; GPT-2's end of text is one even where the file does not say so."""
    added: dict[str, AddedToken] = {}
    for value in _list(values, "its added tokens are not a list"):
        token = _object(value, "one of its added tokens is not an object")
        content, id = token.get("content"), token.get("id")
        if not isinstance(content, str) or not content or not _is_id(id):
            raise ValueError("one of its added tokens has no text or no id")
        added[content] = AddedToken(content, {name: token.get(name) is True for name in _FLAGS}, id)
    if (end := ENDS[0]) in vocab and end not in added:
        added[end] = AddedToken(end, {name: name == "special" for name in _FLAGS}, vocab[end])
    tokens = {id: token for token, id in vocab.items()}
    if any(tokens.setdefault(token.id, token.content) != token.content for token in added.values()):
        raise ValueError("two of its tokens have one id")
    return sorted(added.values(), key=lambda token: token.id)


def foreign_tokenizer(error: Exception) -> UserError:
    return UserError(
        f"this is no byte-level BPE tokenizer as GPT-2 has it ({one_line(error)}): take the model's own files"
    )
