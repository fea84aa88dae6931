"""GPT-2's byte-level byte pair encoding: pieces of a text's UTF-8 that often go together are an id each.

The merging is done by the `tokenizers` library, which is loaded with the first such tokenizer. It is given nothing of
a file but the vocabulary, the merges and the added tokens, all checked; what an id spells is looked up here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.errors import UserError, install_extra, shown
from picogpt.tokenizers.base import BORDER, Ids, LibraryMissingError, Tokenizer, smallest_dtype

ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>")

_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))

_FILE_LIMIT = 16 << 20  # bytes; GPT-2's has about two million

_KEPT_LIMIT = 12 << 20  # bytes of JSON that a checkpoint keeps of it

_MOST_IDS = 1 << 20

_PART = 1 << 14  # characters that the library is given as one text: it is slower with long ones

_PARTS = 64  # given at once: what it says of each token takes many times the text

_MARK = "\ufffd".encode()  # what an id that stands for nothing shows as

_FLAGS = ("single_word", "lstrip", "rstrip", "special")


def _alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: itself where it can be seen, else one from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(0x100) if byte not in seen]
    return {**{chr(byte): byte for byte in seen}, **{chr(0x100 + i): byte for i, byte in enumerate(unseen)}}


_ALPHABET = _alphabet()


class BpeTokenizer(Tokenizer):
    """A byte-level BPE tokenizer as a tokenizer.json describes it."""

    name = "bpe"

    def __init__(self, fields: Any) -> None:
        """fields: of a tokenizer.json. Raises UserError where it is another kind of tokenizer or damaged."""
        try:
            fields = _checked(fields)
            self._json = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
            self._json.encode()
        except (KeyError, TypeError, ValueError) as error:
            raise _foreign(error) from None
        if len(json.dumps(self._json)) > _KEPT_LIMIT:
            raise UserError(f"the tokenizer takes more than {_KEPT_LIMIT >> 20} MB: take a smaller one")
        self._bpe = _load(self._json)
        self._bpe.encode_special_tokens = True  # as text: their ids are for `encode_marked`
        added: dict[str, int] = {token["content"]: token["id"] for token in fields["added_tokens"]}
        if any(self._bpe.token_to_id(name) != id for name, id in added.items()):
            raise _foreign(ValueError("its added tokens do not follow its vocabulary"))
        self.special = {token["content"]: token["id"] for token in fields["added_tokens"] if token["special"]}
        self.end_of_text = next((self.special[name] for name in ENDS if name in self.special), None)
        spelt = {id: _spelt(token) for token, id in fields["model"]["vocab"].items()}
        self._bytes = {spelling[0] for spelling in spelt.values() if len(spelling) == 1}
        spelt |= {id: name.encode() for name, id in added.items()}
        self.vocab_size = max(spelt) + 1
        self.dtype = smallest_dtype(self.vocab_size)
        self._spelt = [spelt.get(id, _MARK) for id in range(self.vocab_size)]
        self._in_parts = len(self.special) == len(added)  # others may go over a border

    @classmethod
    def find(cls, folder: Path) -> "BpeTokenizer | None":
        """Of a model's folder: tokenizer.json, or vocab.json and merges.txt, or encoder.json and vocab.bpe.

        None where none of these is there. Raises UserError where it is damaged or of another kind.
        """
        for names in _FILES:
            paths = [folder / name for name in names]
            if all(path.is_file() for path in paths):
                try:
                    first, *merges = map(_read, paths)
                    if merges:
                        return cls(_with_merges(_parsed(first), *merges) | {"added_tokens": _added_beside(folder)})
                    return cls(_parsed(first))
                except UserError as error:
                    raise UserError(f"{' and '.join(map(str, paths))}: {error}") from None
        return None

    @classmethod
    def from_json(cls, text: str) -> "BpeTokenizer":
        """Raises UserError."""
        return cls(_parsed(text))

    def encode(self, text: str) -> Ids:
        """Halves of surrogate pairs count as U+FFFD, two that follow each other as the character they make."""
        parts = list(self._parts(_sound(text)))
        ids = []
        for start in range(0, len(parts), _PARTS):
            encoded = self._bpe.encode_batch_fast(parts[start : start + _PARTS], add_special_tokens=False)
            ids += [np.array(part.ids, self.dtype) for part in encoded]
        return np.concatenate(ids)

    def _parts(self, text: str) -> Iterator[str]:
        start = 0
        while self._in_parts and (border := BORDER.search(text, start + _PART)):
            yield text[start : border.start()]
            start = border.start()
        yield text[start:]

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of ids (n,): special ones by name, U+FFFD for what is no character and for ids that are none."""
        return b"".join(map(self.spell, np.asarray(ids, np.int64).tolist())).decode(errors="replace")

    def spell(self, id: int) -> bytes:
        return self._spelt[id] if 0 <= id < self.vocab_size else _MARK

    def unknown(self, text: str) -> str:
        """Nothing of any text where every byte has an id, as in GPT-2's vocabulary."""
        return "".join(c for c in dict.fromkeys(text) if _sound(c) != c or not self._bytes.issuperset(c.encode()))

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "json": self._json}


def _sound(text: str) -> str:
    """The text without lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _spelt(token: str) -> bytes:
    if all(character in _ALPHABET for character in token):
        return bytes(_ALPHABET[character] for character in token)
    return token.encode()


def _load(text: str) -> Any:
    """The library's tokenizer of a tokenizer.json. Raises UserError where it refuses, or is not there."""
    try:
        from tokenizers import Tokenizer as Library
    except ImportError:
        raise LibraryMissingError(f"a byte-level BPE tokenizer takes a package more: {install_extra('bpe')}") from None
    try:
        return Library.from_str(text)
    except Exception as error:  # the library's exceptions have no other class in common
        raise _foreign(error) from None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise UserError(f"it cannot be read ({error.strerror or error})") from None
    if len(content) > _FILE_LIMIT:
        raise UserError(f"a tokenizer has no more than {_FILE_LIMIT >> 20} MB: take a smaller one")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _foreign(error) from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _foreign(error) from None


def _added_beside(folder: Path) -> list[dict[str, Any]]:
    """The tokens of added_tokens.json, as tokenizer.json has them, with what tokenizer_config.json says of each."""
    paths = folder / "added_tokens.json", folder / "tokenizer_config.json"
    ids, config = (_parsed(_read(path)) if path.is_file() else {} for path in paths)
    about = config.get("added_tokens_decoder") if isinstance(config, dict) else None
    if not isinstance(ids, dict) or not isinstance(about or {}, dict):
        raise _foreign(ValueError("its added tokens are none"))
    flags = {id: fields for id, fields in (about or {}).items() if isinstance(fields, dict)}
    return [{**flags.get(str(id), {}), "content": name, "id": id} for name, id in ids.items()]


def _with_merges(vocab: Any, merges: str) -> dict[str, Any]:
    """A tokenizer.json's fields of GPT-2's two files."""
    lines = [line.rstrip("\r") for line in merges.split("\n")]
    if lines[0].startswith("#version"):
        del lines[0]
    return {"model": {"type": "BPE", "vocab": vocab, "merges": [line for line in lines if line]}, **_BYTE_LEVEL}


_BYTE_LEVEL: dict[str, Any] = {
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
}


def _checked(fields: Any) -> dict[str, Any]:
    """What decides the ids, of a tokenizer.json, in one order. Raises KeyError, TypeError or ValueError."""
    model, before, after = fields["model"], fields["pre_tokenizer"], fields["decoder"]
    if not type(model) is type(before) is type(after) is dict:
        raise ValueError("it lacks a model, a pre_tokenizer or a decoder")
    if model.get("type", "BPE") != "BPE" or before["type"] != "ByteLevel" or after["type"] != "ByteLevel":
        raise ValueError("its model, pre_tokenizer and decoder are others")
    if fields.get("normalizer") is not None or before.get("add_prefix_space") or before.get("use_regex") is False:
        raise ValueError("it changes the text, or parts it in its own way")
    if any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")):
        raise ValueError("its tokens are marked")
    vocab = _checked_vocab(model["vocab"])
    unknown = model.get("unk_token")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _checked_added(fields.get("added_tokens") or [], vocab),
        **_BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown if isinstance(unknown, str) and unknown in vocab else None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": model.get("ignore_merges") is True,
            "vocab": vocab,
            "merges": [_merge(merge) for merge in model["merges"]],
        },
    }


def _checked_vocab(vocab: Any) -> dict[str, int]:
    """The vocabulary by id. Raises ValueError or TypeError."""
    if type(vocab) is not dict or not vocab:
        raise ValueError("it has no vocabulary")
    if not all(type(id) is int and 0 <= id < _MOST_IDS for id in vocab.values()):
        raise ValueError(f"its ids are not all numbers below {_MOST_IDS:,}")
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("two of its tokens have one id")
    return dict(sorted(vocab.items(), key=lambda item: item[1]))


def _merge(merge: Any) -> str:
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if len(pair) != 2 or not all(isinstance(part, str) and part and " " not in part for part in pair):
        raise ValueError(f"a merge is of two tokens, not {shown(merge)}")
    return " ".join(pair)


def _checked_added(tokens: Any, vocab: dict[str, int]) -> list[dict[str, Any]]:
    """The added tokens by id; GPT-2's end of a text is one even where the file does not say so."""
    added = {
        token["content"]: {name: token.get(name) is True for name in _FLAGS} | {"id": token["id"]} for token in tokens
    }
    if ENDS[0] in vocab and ENDS[0] not in added:
        added[ENDS[0]] = dict.fromkeys(_FLAGS, False) | {"special": True, "id": vocab[ENDS[0]]}
    taken = {id: token for token, id in vocab.items()}
    for content, token in added.items():
        if type(content) is not str or not content or type(token["id"]) is not int or not 0 <= token["id"] < _MOST_IDS:
            raise ValueError("its added tokens are none")
        if taken.setdefault(token["id"], content) != content:
            raise ValueError("two of its tokens have one id")
    return [
        {"content": content, "normalized": False, **added[content]}
        for content in sorted(added, key=lambda name: added[name]["id"])
    ]


def _foreign(error: Exception) -> UserError:
    reason = shown(" ".join(str(error).split()))[1:-1]
    return UserError(f"this is no byte-level BPE tokenizer as GPT-2 has it ({reason}): take the model's own files")
