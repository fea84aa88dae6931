"""From a prompt to text, with any engine that runs the model.

B streams side by side   T tokens   V vocabulary
"""

import secrets
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from picogpt.config import GenerateConfig, ModelConfig
from picogpt.errors import UserError, shown
from picogpt.inference.sampling import sample
from picogpt.inference.stopping import VisibleText
from picogpt.inference.windows import Decoder, Recut, WindowReader
from picogpt.rng import generator
from picogpt.tokenizers.base import Ids, Tokenizer

EMPTY = "\n"  # what the model reads in place of an empty prompt, where the tokenizer has no end of a text


class Generator:
    """A model that writes text."""

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer, reader: Callable[[int], WindowReader], rolls: bool = False
    ) -> None:
        """reader: returns a new reader of so many streams side by side.

        rolls: the model was trained to continue from the mean of the window before, so the context `auto` does that. A
        model that was not has never seen a context slot that is not empty, and would write worse with one.
        """
        self.config, self.tokenizer, self.rolls, self._reader = config, tokenizer, rolls, reader

    def begin(self, config: GenerateConfig) -> "Streams":
        """Return config.samples streams that have read nothing yet.

        Raises UserError for a context the model cannot have.
        """
        reader = self._reader(config.samples)
        seed = secrets.randbits(32) if config.seed is None else config.seed
        rngs = [generator(seed, "generate", i) for i in range(config.samples)]
        return Streams(_decoder(reader, config, self.rolls), self.tokenizer, self.config.vocab_size, rngs)

    def stream(self, prompt: str, config: GenerateConfig) -> Iterator[str]:
        """Yield the text that follows the prompt, piece by piece; of several samples, the first."""
        streams = self.begin(config)
        streams.read(prompt)
        for pieces in streams.write(config):
            yield pieces[0]


class Streams:
    """Texts with the same beginning, which are written side by side: what was read and written so far."""

    def __init__(
        self, decoder: Decoder | Recut, tokenizer: Tokenizer, vocab_size: int, rngs: list[np.random.Generator]
    ) -> None:
        """vocab_size: that of the model, which may be another than the tokenizer's."""
        self._decoder, self._tokenizer, self._vocab_size, self._rngs = decoder, tokenizer, vocab_size, rngs
        self._spellers = [tokenizer.speller() for _ in rngs]
        self.written = [0] * len(rngs)
        """The number of tokens that the last `write` wrote, of each stream."""
        # The end of the text so far that the model has not read yet.
        self._unread: Ids = np.empty((len(rngs), 0), tokenizer.dtype)

    def read(self, text: str) -> None:
        """Append a text, in which the names of special tokens stand for these tokens.

        Raises UserError for a text that the tokenizer or the model does not take.
        """
        self._read(self._tokenizer.encode_marked(text))

    def read_parts(self, parts: Iterable[str]) -> None:
        """Append a text in parts, of which only marks stand for special tokens. Raises UserError as `read` does."""
        self._read(self._tokenizer.encode_parts(parts))

    def _read(self, ids: Ids) -> None:
        if ids.max(initial=0) >= self._vocab_size:
            named = self._tokenizer.decode(ids[ids >= self._vocab_size][:1])
            raise UserError(f"this model has no token {shown(named)}, though its tokenizer has: leave it out")
        if len(ids):
            self._spellers = [self._tokenizer.speller() for _ in self._rngs]
        self._add(ids)

    def _add(self, ids: Ids) -> None:
        self._unread = np.concatenate([self._unread, np.broadcast_to(ids, (len(self._rngs), len(ids)))], axis=1)

    def write(self, config: GenerateConfig) -> Iterator[list[str]]:
        """Write up to config.tokens tokens more. Yields at every step what can be shown of each stream, maybe nothing.

        It stops early when every stream has come to config.stop or to the end of a text. Texts that are read or written
        later follow that end.
        """
        top_k = self._tokenizer.default_top_k if config.top_k is None else config.top_k
        end = self._tokenizer.end_of_text
        texts = [VisibleText(speller, end, config.stop) for speller in self._spellers]
        self.written = [0] * len(texts)
        if not self._unread.shape[1]:
            self._add(_empty_prompt(self._tokenizer))
        for left in reversed(range(config.tokens)):
            logits = self._decoder.feed(self._unread)[:, : self._tokenizer.vocab_size]
            chosen = [
                sample(row, config.temperature, top_k, config.top_p, rng)
                for row, rng in zip(logits, self._rngs, strict=True)
            ]
            self._unread = np.array(chosen, self._unread.dtype)[:, None]
            for i, text in enumerate(texts):
                self.written[i] += not text.ended
            pieces = [text.add(id) for text, id in zip(texts, chosen, strict=True)]
            yield pieces if left else [piece + text.held_back() for piece, text in zip(pieces, texts, strict=True)]
            if all(text.ended for text in texts):
                return


def _empty_prompt(tokenizer: Tokenizer) -> Ids:
    """Return what the model reads in place of an empty prompt."""
    if tokenizer.end_of_text is not None:
        return np.array([tokenizer.end_of_text], tokenizer.dtype)
    ids = tokenizer.encode(EMPTY)
    return ids if len(ids) else np.zeros(1, tokenizer.dtype)


def _decoder(reader: WindowReader, config: GenerateConfig, rolls: bool) -> Decoder | Recut:
    """Return the decoder for the context of a configuration. rolls: whether the context `auto` means rolling.

    Raises UserError for a context the model cannot have.
    """
    W, rolling = reader.config.context_len, config.context == "rolling" or (config.context == "auto" and rolls)
    if rolling and not reader.config.can_roll:
        raise UserError("this model has no context slot, so nothing can roll: --context window")
    if config.context == "original":
        return Recut(reader)
    overlap = W // 8 if config.overlap is None else config.overlap
    if overlap >= W:
        raise UserError(f"--overlap {overlap} leaves no room in a window of {W}: at most {W - 1}")
    return Decoder(reader, rolling, overlap)
