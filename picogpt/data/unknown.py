"""What a tokenizer does not know of a text: how much it is, and when that is too much to train on."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from picogpt.errors import UserError
from picogpt.system.files import write_durably
from picogpt.tokenizers.base import Mark, Tokenizer

_START, _STARTS = 2_000, 500  # characters of a piece, and pieces, that are searched
_SOME_UNKNOWN, _MOST_UNKNOWN = 0.01, 0.05  # shares of the text
_FILE, _FILE_LIMIT = "unknown.json", 10_000  # bytes
_SHOWN = 20  # characters that are named


class TextSample:
    """The first characters of pieces that are spread evenly over a text, whose length is not known beforehand."""

    def __init__(self) -> None:
        self._starts: list[str] = []
        self._pieces, self._step = 0, 1  # every so many pieces, one is taken

    def add(self, piece: str) -> None:
        """Take the start of the next piece, if it is its turn. Marks and line breaks between documents are none."""
        if isinstance(piece, Mark) or not piece.strip("\n"):
            return
        if self._pieces % self._step == 0:
            self._starts.append(piece[:_START])
        self._pieces += 1
        if len(self._starts) > _STARTS:
            self._starts, self._step = self._starts[::2], 2 * self._step

    @property
    def text(self) -> str:
        """All that was taken."""
        return "".join(self._starts)


@dataclass(frozen=True)
class Unknown:
    """What a tokenizer does not know of a text."""

    share: float = 0.0
    """Of the characters."""
    characters: str = ""
    """Some of them, each once."""

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer) -> "Unknown":
        """Return what the tokenizer does not know of this text."""
        unknown, counts = tokenizer.unknown(text), Counter(text)
        return cls(sum(counts[character] for character in unknown) / max(1, len(text)), unknown[:_SHOWN])

    def require_little(self, tokenizer: Tokenizer, is_given: bool, is_allowed: bool) -> str:
        """Return what to notify the user of: a model would learn to write the mark for it; "" for almost nothing.

        is_given: the tokenizer is that of a model to fine-tune. Raises UserError where it is so much that a run would
        be spent in vain, unless that is allowed.
        """
        what = f"{self.share:.0%} of the text is unknown to the tokenizer {tokenizer.name} ({self.characters!r})"
        advice = "train from scratch with --tokenizer bpe" if is_given else "take --tokenizer bpe, or bytes"
        if self.share > _MOST_UNKNOWN and not is_allowed:
            raise UserError(f"{what}: {advice}, for any text; --allow-unknown trains on it all the same")
        if self.share <= _SOME_UNKNOWN:
            return ""
        return f"{what}, and read as {tokenizer.decode(tokenizer.encode(self.characters[:1]))!r}: {advice}"


def read_unknown(folder: Path) -> Unknown:
    """Return what the tokenizer of a folder does not know of its text; nothing where that was not written."""
    try:
        with (folder / _FILE).open("rb") as file:
            content: object = json.loads(file.read(_FILE_LIMIT))
    except (OSError, ValueError, RecursionError):
        return Unknown()
    match content:
        case {"share": float(share), "characters": str(characters)} if 0 <= share <= 1:
            return Unknown(share, characters)
    return Unknown()


def write_unknown(folder: Path, unknown: Unknown) -> None:
    """Write what the tokenizer of a folder does not know of its text. Raises OSError."""
    write_durably(folder / _FILE, json.dumps(asdict(unknown)).encode())
