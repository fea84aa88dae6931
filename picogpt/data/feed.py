"""What a run reads: a batch for every position, and windows to validate with.

Text that is all there is one `Loader`. A stream is read in parts: what has arrived so far is a part, gone through once
in the loader's order; the next is what arrived meanwhile or, where nothing did, all of it again. Until the first row
group is sealed, the embedded sample stands in. Which part it is takes a few integers, which a checkpoint keeps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from picogpt.config import DataConfig, RunConfig
from picogpt.data.loader import Batch, Loader, validation_windows
from picogpt.data.prepare import Prepared, prepare
from picogpt.data.sources.hub import only_dataset
from picogpt.data.streaming.feed import FeedState, StreamFeed
from picogpt.data.streaming.plan import plan_for
from picogpt.tokenizers.base import Tokenizer


class Feed(Protocol):
    """The text of a run, as training sees it."""

    @property
    def source(self) -> str:
        """What the text is, for people."""
        ...

    @property
    def text(self) -> str:
        """Which text the losses are of, where that may change; else ""."""
        ...

    @property
    def warning(self) -> str:
        """What nobody may miss: that it is not the text that was asked for which is read. Else ""."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digits that are others for another text, split or vocabulary."""
        ...

    @property
    def validation(self) -> Batch:
        """Windows to validate with: x and y, (B, T) each."""
        ...

    @property
    def state(self) -> FeedState | None:
        """Where it stands; None where the position alone says so."""
        ...

    def describe(self) -> str:
        """Return one line about the text and how much there is of it."""
        ...

    def begin(self, position: int) -> list[str]:
        """Get ready for the batch at `position`. Returns what the user should know. Raises UserError."""
        ...

    def look(self, position: int) -> list[str]:
        """Before every batch, see whether there is other text. Returns what the user should know. Raises UserError."""
        ...

    def status(self) -> str:
        """Return a few words for the line that shows progress."""
        ...

    def batch(self, position: int, count: int) -> Batch:
        """Return sequences position..position + count - 1 of the run: x and y, (count, context) each, y a token later.

        Raises OSError where the text cannot be read just now, UserError where it never can.
        """
        ...

    def restore(self, state: FeedState | None) -> None:
        """Be again as when `state` was this. Raises UserError for another feed's."""
        ...

    def close(self) -> None:
        """Let go of what runs in the background."""
        ...


class CorpusFeed:
    """Text that is all there."""

    text = ""
    warning = ""
    state: FeedState | None = None

    def __init__(self, data: Prepared, context: int, seed: int, windows: int) -> None:
        """windows: to validate with. Raises UserError where the text is too short for one."""
        self.source, self.tokenizer, self.fingerprint = data.corpus.source, data.tokenizer, data.fingerprint
        self._tokens = len(data.train), len(data.val)
        self._loader = Loader(data.train, context, seed)
        self.validation = validation_windows(data.val, context, windows)

    def describe(self) -> str:
        """See `Feed`."""
        train, val = self._tokens
        return f"{self.source}: {train:,} tokens to train on, {val:,} to validate"

    def begin(self, position: int) -> list[str]:
        """See `Feed`: there is nothing to get ready."""
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

    def restore(self, state: FeedState | None) -> None:
        """See `Feed`: the position says all."""

    def close(self) -> None:
        """See `Feed`: nothing runs."""


def open_feed(
    config: RunConfig,
    dataset_dir: Path,
    notify: Callable[[str], None],
    tokenizer: Tokenizer | None,
    windows: int,
    state: FeedState | None,
) -> Feed:
    """Open what `config` names, ready to be read.

    tokenizer: that of a model to fine-tune, in place of the text's own. windows: to validate with. state: of a run that
    goes on. Raises UserError for what is wrong with the text, the disk or the tokenizer.
    """
    data, context, seed = config.data, config.context, config.train.seed
    dataset = only_dataset(data.names)
    if dataset is None:
        return CorpusFeed(prepare(data, dataset_dir, notify, tokenizer), context, seed, windows)
    plan = plan_for(dataset, data, tokenizer, dataset_dir)
    sample = prepare(DataConfig(), dataset_dir, lambda _: None, tokenizer)
    return StreamFeed(plan, sample, context, seed, windows, state)
