"""Text as its UTF-8 bytes: 256 ids for any text in any language, and the marks."""

import numpy as np
import numpy.typing as npt

from picogpt.tokenizers.base import MARKS, Ids, Tokenizer, smallest_dtype, without_surrogates

_UNKNOWN = "\ufffd".encode()  # shown for an id that stands for nothing


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes of the text, and those that follow are the marks."""

    name = "bytes"
    unit = "byte"

    def __init__(self) -> None:
        self.vocab_size = 256 + len(MARKS)
        self.dtype = smallest_dtype(self.vocab_size)
        self.special = {mark: 256 + i for i, mark in enumerate(MARKS)}
        self.end_of_text = self.special[MARKS[0]]
        self._spellings = [bytes([byte]) for byte in range(256)] + [mark.encode() for mark in MARKS]

    def to_dict(self) -> dict[str, object]:
        """Return the name, which says everything."""
        return {"name": self.name}

    def encode(self, text: str) -> Ids:
        """Return the bytes of any text: (n,) of `dtype`. A lone surrogate is read as U+FFFD."""
        return np.frombuffer(without_surrogates(text).encode(), np.uint8).astype(self.dtype)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of ids (n,): marks by name, U+FFFD for bytes and ids that stand for no character."""
        return b"".join(map(self.spell, np.asarray(ids, np.int64).tolist())).decode(errors="replace")

    def spell(self, id: int) -> bytes:
        """Return the byte that an id stands for, the name of a mark, or those of U+FFFD for any other id."""
        return self._spellings[id] if 0 <= id < self.vocab_size else _UNKNOWN

    def unknown(self, text: str) -> str:
        """Return the lone surrogates of the text: bytes stand for everything else."""
        return "".join(c for c in dict.fromkeys(text) if without_surrogates(c) != c)
