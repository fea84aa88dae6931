"""From a prompt to text, whatever runs the model.

B streams side by side   T tokens   V vocabulary
"""

import secrets
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np

from picogpt.config import GenerateConfig, ModelConfig, UserError
from picogpt.data.tokenizer import Ids, Tokenizer
from picogpt.inference.decoding import Decoder, Recut, WindowReader
from picogpt.inference.sampling import sample
from picogpt.rng import generator

EMPTY = "\n"  # what an empty prompt begins after


class Writer:
    """A model that writes."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, reader: Callable[[int], WindowReader]) -> None:
        """reader: makes one that reads so many streams side by side."""
        self.config, self.tokenizer, self._reader = config, tokenizer, reader

    def begin(self, config: GenerateConfig) -> "Streams":
        """config.samples streams that have read nothing yet. Raises UserError for a context the model cannot have."""
        reader = self._reader(config.samples)
        seed = secrets.randbits(32) if config.seed is None else config.seed
        rngs = [generator(seed, "generate", i) for i in range(config.samples)]
        return Streams(_decoder(reader, config), self.tokenizer, rngs)

    def stream(self, prompt: str, config: GenerateConfig) -> Iterator[str]:
        """The text that follows the prompt, piece by piece; of several samples, the first."""
        streams = self.begin(config)
        streams.read(prompt)
        for pieces in streams.write(config):
            yield pieces[0]


class Streams:
    """Texts with one beginning: what was read and written so far."""

    def __init__(self, decoder: Decoder | Recut, tokenizer: Tokenizer, rngs: list[np.random.Generator]) -> None:
        self._decoder, self._tokenizer, self._rngs = decoder, tokenizer, rngs
        self._piece = cache(lambda id: tokenizer.decode([id]))
        self.written = [0] * len(rngs)
        """Tokens of each stream that the last `write` wrote."""
        # Of the text so far, what the model has yet to see.
        self._unread: Ids = np.empty((len(rngs), 0), tokenizer.dtype)

    def read(self, text: str) -> None:
        """Go on with this text, in which the names of special tokens stand for them."""
        ids = self._tokenizer.encode_marked(text)
        self._unread = np.concatenate([self._unread, np.broadcast_to(ids, (len(self._rngs), len(ids)))], axis=1)

    def write(self, config: GenerateConfig) -> Iterator[list[str]]:
        """Up to config.tokens tokens more: of each stream what can be shown at every step, which may be nothing.

        Ends early when every stream has come to config.stop.
        """
        untils = [Until(config.stop) for _ in self._rngs]
        self.written = [0] * len(untils)
        if not self._unread.shape[1]:
            self.read(EMPTY)
        for left in reversed(range(config.tokens)):
            logits = self._decoder.feed(self._unread)[:, : self._tokenizer.vocab_size]
            chosen = [
                sample(row, config.temperature, config.top_k, config.top_p, rng)
                for row, rng in zip(logits, self._rngs, strict=True)
            ]
            self._unread = np.array(chosen, self._unread.dtype)[:, None]
            for i, until in enumerate(untils):
                self.written[i] += not until.over
            pieces = [until.show(self._piece(id)) for until, id in zip(untils, chosen, strict=True)]
            yield pieces if left else [piece + until.rest() for piece, until in zip(pieces, untils, strict=True)]
            if all(until.over for until in untils):
                return


class Until:
    """Lets text through up to `stop`, and keeps back what may be the beginning of it."""

    def __init__(self, stop: str) -> None:
        self._stop, self._kept, self.over = stop, "", False

    def show(self, piece: str) -> str:
        if not self._stop or self.over:
            return "" if self.over else piece
        text = self._kept + piece
        shown, found, _ = text.partition(self._stop)
        self.over, self._kept = bool(found), ""
        if not found:
            longest = min(len(text), len(self._stop) - 1)
            size = next(n for n in range(longest, -1, -1) if text.endswith(self._stop[:n]))
            shown, self._kept = text[: len(text) - size], text[len(text) - size :]
        return shown

    def rest(self) -> str:
        """What was kept back, when no more text comes."""
        return self._kept


def _decoder(reader: WindowReader, config: GenerateConfig) -> Decoder | Recut:
    W, rolls = reader.config.context_len, reader.config.rolls
    if config.context == "rolling" and not rolls:
        raise UserError("this model has no context slot, so nothing can roll: --context window")
    if config.context == "original":
        return Recut(reader)
    overlap = W // 8 if config.overlap is None else config.overlap
    if overlap >= W:
        raise UserError(f"--overlap {overlap} leaves no room in a window of {W}: at most {W - 1}")
    return Decoder(reader, rolls and config.context != "window", overlap)
