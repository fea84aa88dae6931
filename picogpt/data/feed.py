"""The text that a run reads: a batch for every position, and windows to validate with.

A text that is complete is one `Loader`. A stream is read in parts: what has arrived so far is a part, which is read
once in the loader's order; the next part is what arrived meanwhile or, where nothing did, all of it again. Until the
first row group is sealed, the embedded sample takes its place, or the run waits where the language is another. A
checkpoint stores a few integers that say which part it is.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from picogpt.config import DataConfig, RunConfig
from picogpt.data.loader import Batch, Loader, validation_windows
from picogpt.data.prepare import Prepared, prepare
from picogpt.data.sources.datasets import only_dataset
from picogpt.data.streaming.feed import StreamFeed
from picogpt.data.streaming.learning import stream_tokenizer
from picogpt.data.streaming.part import SAMPLE, StreamPart
from picogpt.data.streaming.plan import plan_for
from picogpt.data.token_folder import file_tokenizer
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.registry import TOKENIZERS


class Feed(Protocol):
    """The text of a run, as training reads it."""

    @property
    def source(self) -> str:
        """A description of the text for users."""
        ...

    @property
    def text(self) -> str:
        """The text that the losses are of, where that may change; else ""."""
        ...

    @property
    def warning(self) -> str:
        """A warning that stays visible while another text is read than the user named; else ""."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the text."""
        ...

    @property
    def unknown(self) -> float:
        """The share of the text's characters that the tokenizer does not know."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digits that differ for another text, split or vocabulary."""
        ...

    @property
    def validation(self) -> Batch:
        """The windows to validate with: x and y, (B, T) each."""
        ...

    @property
    def state(self) -> StreamPart | None:
        """The part that is read, for a checkpoint; None where the position alone says enough."""
        ...

    def describe(self) -> str:
        """Return one line about the text and how much there is of it."""
        ...

    def begin(self, position: int) -> list[str]:
        """Prepare for the batch at `position`. Returns notices for the user. Raises UserError."""
        ...

    def look(self, position: int) -> list[str]:
        """Before every batch, check for new text. Returns notices for the user. Raises UserError."""
        ...

    def status(self) -> str:
        """Return a few words for the line that shows progress."""
        ...

    def batch(self, position: int, count: int) -> Batch:
        """Return sequences position..position + count - 1 of the run: x and y, (count, context) each, y a token later.

        Raises OSError where the text cannot be read just now, UserError where it never can.
        """
        ...

    def restore(self, state: StreamPart | None) -> None:
        """Continue from the state of an earlier feed. Raises UserError for that of another text."""
        ...

    def close(self) -> None:
        """End what runs in the background."""
        ...


class CorpusFeed:
    """A text that is complete: a `Feed`, which describes its methods."""

    text = ""
    warning = ""
    state: StreamPart | None = None

    def __init__(self, data: Prepared, context: int, seed: int, windows: int) -> None:
        """windows: how many to validate with. Raises UserError where the text is too short for one."""
        self.source, self.tokenizer, self.fingerprint = data.corpus.source, data.tokenizer, data.fingerprint
        self.unknown, self._train, self._val = data.unknown.share, data.train, data.val
        self._loader = Loader(data.train, context, seed)
        self.validation = validation_windows(data.val, context, windows)

    def describe(self) -> str:
        """See `Feed`."""
        train, val = len(self._train), len(self._val)
        return f"{self.source}: {train:,} tokens to train on, {val:,} to validate{self._train.note}"

    def begin(self, position: int) -> list[str]:
        """See `Feed`: there is nothing to prepare."""
        return []

    def look(self, position: int) -> list[str]:
        """See `Feed`: nothing changes."""
        return []

    def status(self) -> str:
        """See `Feed`."""
        return ""

    def batch(self, position: int, count: int) -> Batch:
        """See `Feed`."""
        return self._loader.batch(position, count)

    def restore(self, state: StreamPart | None) -> None:
        """See `Feed`: the position says enough."""

    def close(self) -> None:
        """See `Feed`: nothing runs in the background."""


def open_feed(
    config: RunConfig,
    dataset_dir: Path,
    notify: Callable[[str], None],
    tokenizer: Tokenizer | None,
    windows: int,
    state: StreamPart | None,
) -> Feed:
    """Open the text that `config` names, ready to be read.

    tokenizer: that of a model to fine-tune, in place of the text's own. windows: how many to validate with. state: of a
    run that is resumed. Raises UserError for what is wrong with the text, the disk or the tokenizer.
    """
    data, context, seed = config.data, config.context, config.train.seed
    dataset = only_dataset(data.names)
    if dataset is None:
        return CorpusFeed(prepare(data, dataset_dir, notify, tokenizer), context, seed, windows)
    tokenizer = tokenizer or file_tokenizer(data)
    plan = plan_for(dataset, data, tokenizer, dataset_dir)
    own, sample = tokenizer or stream_tokenizer(plan, notify), None
    may_stand_in = dataset.may_be_english or (state is not None and state.text == SAMPLE)  # as it once did for all
    if may_stand_in and (tokenizer or TOKENIZERS[own.name].origin == "fixed"):
        stand_in = DataConfig(tokenizer=own.name, allow_unknown=True)
        sample = prepare(stand_in, dataset_dir, lambda _: None, tokenizer)
    return StreamFeed(plan, own, sample, context, seed, windows, state, notify)
