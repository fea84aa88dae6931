"""What a run reads: a batch for every position, and windows to validate with.

Text that is all there is one `Loader`. A stream is read in parts: what has arrived so far is a part, gone through once
in the loader's order; the next is what arrived meanwhile or, where nothing did, all of it again. Until the first row
group is sealed, the embedded sample stands in. Which part it is takes a few integers, which a checkpoint keeps.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass, replace
from errno import ENOENT
from pathlib import Path
from typing import Any

import numpy as np

from picogpt.config import DataConfig, RunConfig, UserError
from picogpt.data.hub import is_offline, only_dataset
from picogpt.data.loader import Batch, Loader, validation_windows
from picogpt.data.prepare import Prepared, prepare
from picogpt.data.shards import Span
from picogpt.data.stream import Plan, Status, Stream, plan_for, shards_of
from picogpt.data.tokenizer import Tokenizer
from picogpt.rng import generator

_LOOK_SECONDS = 0.5  # between two looks at the stream
_PATIENCE = 2.0  # seconds that a run waits for the first row group, unless there is trouble
OFFLINE = "HF_HUB_OFFLINE is set: nothing is fetched"
SAMPLE, _STREAM = "sample", "stream"


class Feed:
    """Text that is all there."""

    source: str
    """What it is, for people."""
    text: str = ""
    """Which text the losses are of, where that may change."""
    warning: str = ""
    """What nobody may miss: that it is not the text that was asked for which is read."""

    def __init__(self, data: Prepared, context: int, seed: int, windows: int) -> None:
        """windows: to validate with. Raises UserError where the text is too short for one."""
        self.source, self.tokenizer, self.fingerprint = data.corpus.source, data.tokenizer, data.fingerprint
        self._tokens = len(data.train), len(data.val)
        self._loader = Loader(data.train, context, seed)
        self.validation = validation_windows(data.val, context, windows)

    def describe(self) -> str:
        train, val = self._tokens
        return f"{self.source}: {train:,} tokens to train on, {val:,} to validate"

    def begin(self, position: int) -> list[str]:
        """Get ready for the batch at `position`. Returns what the user should know."""
        return []

    def look(self, position: int) -> list[str]:
        """Before every batch: whether there is other text now. Returns what the user should know of it."""
        return []

    def status(self) -> str:
        """A few words for the line that shows progress."""
        return ""

    def batch(self, position: int, count: int) -> Batch:
        """Sequences position..position + count - 1 of the run: x and y, (count, context) each, y one token later."""
        return self._loader.batch(position, count)

    @property
    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of it, fit for JSON."""
        return None

    def restore(self, state: dict[str, Any] | None) -> None:
        """Be again as when `state` was this."""

    def close(self) -> None:
        """Let go of what runs in the background."""


@dataclass(frozen=True)
class _Part:
    """Tokens start..stop - 1 of a text, read once from position `first` on; `number` counts the parts."""

    text: str
    number: int
    first: int
    start: int
    stop: int
    validation: int  # tokens of the text kept for validation that validation windows are taken from


class StreamFeed(Feed):
    """A data set that arrives while it is read."""

    def __init__(
        self, plan: Plan, sample: Prepared, context: int, seed: int, windows: int, state: dict[str, Any] | None
    ) -> None:
        self.source, self.tokenizer, self.fingerprint = str(plan.dataset), sample.tokenizer, plan.folder.name
        self._plan, self._context, self._seed, self._windows = plan, context, seed, windows
        self._stand_in = sample.train, sample.val
        self._stream, self._shards = Stream(plan), shards_of(plan)
        self._looked, self._seen = 0.0, Status("working", f"asking for {plan.dataset}")
        if state and state.get("of") == self.fingerprint:
            self.restore(state)
        else:  # another text's is for the run to refuse
            train, val = self._stand_in
            self._enter(_Part(SAMPLE, 0, 0, 0, len(train), len(val)))

    def describe(self) -> str:
        if self._part.text == _STREAM and self._shards:
            return f"{self.source}: {sum(map(len, self._shards)):,} tokens so far"
        return f"{self.source}: nothing of it here yet"

    def begin(self, position: int) -> list[str]:
        """Start the stream, and wait a moment for the first row group unless there is trouble.

        Raises UserError where the data set cannot be had at all.
        """
        if not is_offline():
            self._stream.start()
        notices, until = self.look(position, at_once=True), time.monotonic() + _PATIENCE
        while self._part.text == SAMPLE and self._seen.state == "working" and time.monotonic() < until:
            time.sleep(0.05)
            notices += self.look(position, at_once=True)
        if self._part.text == SAMPLE:
            how = OFFLINE if is_offline() else "it is asked for again and again"
            self.warning = f"training on the embedded sample until text of {self.source} arrives: {how}"
        return notices

    def look(self, position: int, at_once: bool = False) -> list[str]:
        """Raises UserError where there is nothing to hope for but the sample."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS and not at_once:
            return []
        self._looked = now
        before, notices = self._seen, []
        self._seen = Status("waiting", OFFLINE) if is_offline() else self._stream.status()
        if self._seen.state != before.state and (self._seen.state != "working" or before.state == "waiting"):
            notices.append(self._seen.text)
        if self._part.text == SAMPLE and self._arrived():
            assert self._shards is not None
            train, val = map(len, self._shards)
            self._enter(_Part(_STREAM, 1, position, 0, train, val))
            self.warning = ""
            notices.append(f"text of {self.source} has arrived: training on it from here, {train:,} tokens so far")
        elif self._part.text == SAMPLE and self._seen.state == "failed":
            raise UserError(self._seen.text)
        elif self._part.text == SAMPLE and self._seen.state == "complete":
            raise UserError(f"{self._seen.text}, and it is too short for a window of {self._context} tokens")
        return notices

    def status(self) -> str:
        if self._part.text == SAMPLE:
            return "ON THE SAMPLE: " + self._seen.text
        return f"{self._seen.tokens / 1e6:,.0f}M tokens here" if self._seen.state == "working" else self._seen.text

    def batch(self, position: int, count: int) -> Batch:
        before = self._part
        try:
            x, y = (np.concatenate(side) for side in zip(*self._batches(position, count), strict=True))
        except (OSError, UserError):
            self._enter(before)  # it is asked for this position again, or saved as it was
            raise
        return x, y

    def _batches(self, position: int, count: int) -> Iterator[Batch]:
        """The batch in pieces: it may go over the end of a part."""
        while count:
            left = count
            if self._part.text == _STREAM:
                left = self._part.first + self._loader.windows_per_epoch - position
                if left <= 0:
                    self._enter(self._next(position))
                    continue
            batch = self._loader.batch(position - self._part.first, min(count, left))
            position, count = position + len(batch[0]), count - len(batch[0])
            yield batch

    @property
    def state(self) -> dict[str, Any] | None:
        return {"of": self.fingerprint, **asdict(self._part)}

    def restore(self, state: dict[str, Any] | None) -> None:
        try:
            part = _Part(**{name: value for name, value in (state or {}).items() if name != "of"})
            if (part.text, *map(type, astuple(part)[1:])) not in [(text, *[int] * 5) for text in (SAMPLE, _STREAM)]:
                raise TypeError
        except TypeError:
            raise UserError(f"the run does not say which part of {self.source} it was reading: use --fresh") from None
        self._enter(part)

    def close(self) -> None:
        self._stream.close()

    def _arrived(self) -> bool:
        """Whether there is enough of the text to train on and to validate with."""
        self._shards = shards_of(self._plan)
        return self._shards is not None and all(len(shards) > self._context for shards in self._shards)

    def _next(self, position: int) -> _Part:
        """The part after one that was read to its end."""
        assert self._shards is not None
        if not self._plan.folder.is_dir():  # not damaged: it may be a network's, and come back
            raise FileNotFoundError(ENOENT, "its folder has gone", str(self._plan.folder))
        part, train = self._part, self._shards[0].refresh()
        start = part.stop if train - part.stop > self._context else 0
        return replace(part, number=part.number + 1, first=position, start=start, stop=train)

    def _enter(self, part: _Part) -> None:
        """Read from this part on."""
        if part.text == _STREAM:
            shards = self._shards
            if shards is None or len(shards[0]) < part.stop or len(shards[1]) < part.validation:
                raise UserError(f"{self._plan.folder} has lost text this run was reading: start it over with --fresh")
        else:
            shards = self._stand_in
        train, val = shards
        seed = int(generator(self._seed, "part", part.number).integers(1 << 31)) if part.number > 1 else self._seed
        self._loader = Loader(Span(train, part.start, part.stop), self._context, seed)
        if part.text != self.text:
            self.validation = validation_windows(Span(val, 0, part.validation), self._context, self._windows)
        self._part, self.text = part, part.text


def open_feed(
    config: RunConfig,
    dataset_dir: Path,
    notify: Callable[[str], None],
    tokenizer: Tokenizer | None,
    windows: int,
    state: dict[str, Any] | None,
) -> Feed:
    """What `config` names, ready to be read.

    tokenizer: that of a model to fine-tune, in place of the text's own. windows: to validate with. state: of a run that
    goes on. Raises UserError for what is wrong with the text, the disk or the tokenizer.
    """
    data, context, seed = config.data, config.context, config.train.seed
    dataset = only_dataset(data.names)
    if dataset is None:
        return Feed(prepare(data, dataset_dir, notify, tokenizer), context, seed, windows)
    plan = plan_for(dataset, data, tokenizer, dataset_dir)
    sample = prepare(DataConfig(), dataset_dir, lambda _: None, tokenizer)
    return StreamFeed(plan, sample, context, seed, windows, state)
