"""The batches of a data set that arrives while it is trained on."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from errno import ENOENT

import numpy as np

from picogpt.data.loader import Batch, Loader, validation_windows
from picogpt.data.prepare import Prepared
from picogpt.data.shards.reader import Span
from picogpt.data.sources.datasets import OFFLINE, is_offline
from picogpt.data.streaming.part import SAMPLE, STREAM, StreamPart
from picogpt.data.streaming.plan import Plan, StreamStatus, shards_of
from picogpt.data.streaming.process import StreamProcess
from picogpt.data.unknown import read_unknown
from picogpt.errors import UserError
from picogpt.rng import generator
from picogpt.tokenizers.base import Tokenizer
from picogpt.tokenizers.registry import TOKENIZERS

_LOOK_SECONDS = 0.5  # between two looks at the stream
_NOTHING = ""  # the text of a part that is none: the run waits
_PATIENCE = 2.0  # seconds that a run waits for the first row group, unless there is trouble


class StreamFeed:
    """A data set that arrives while it is read: a `Feed` (data/feed.py), which describes its methods."""

    def __init__(
        self,
        plan: Plan,
        tokenizer: Tokenizer,
        sample: Prepared | None,
        context: int,
        seed: int,
        windows: int,
        state: StreamPart | None,
        notify: Callable[[str], None],
    ) -> None:
        """sample: read until text arrives; None: the run waits for that. windows: how many to validate with.

        state: of a run that is resumed. notify: gets a line about what it waits for.
        """
        self.source, self.tokenizer = str(plan.dataset), tokenizer
        is_learnt = TOKENIZERS[tokenizer.name].origin == "training" and not plan.is_given
        self.fingerprint = plan.folder.name + (f"-{tokenizer.fingerprint()}" if is_learnt else "")
        self.text = self.warning = ""
        self._plan, self._context, self._seed, self._windows = plan, context, seed, windows
        self._sample, self._notify = sample, notify
        self._part = StreamPart(self.fingerprint, _NOTHING, 0, 0, 0, 0, 0)
        self._validation: Batch | None = None
        self._stream, self._shards = StreamProcess(plan), shards_of(plan)
        self._looked, self._seen = 0.0, StreamStatus("working", f"asking for {plan.dataset}")
        if state and state.of == self.fingerprint:
            self.restore(state)
        elif sample:  # the run refuses the state of another text
            self._enter(StreamPart(self.fingerprint, SAMPLE, 0, 0, 0, len(sample.train), len(sample.val)))

    @property
    def unknown(self) -> float:
        """See `Feed`."""
        if self._sample and self._part.text == SAMPLE:
            return self._sample.unknown.share
        return read_unknown(self._plan.folder).share

    @property
    def validation(self) -> Batch:
        """See `Feed`. Raises UserError before there is any text."""
        if self._validation is None:
            raise UserError(f"nothing of {self.source} is here yet")
        return self._validation

    def describe(self) -> str:
        """See `Feed`."""
        if self._part.text == STREAM and self._shards:
            return f"{self.source}: {sum(map(len, self._shards)):,} tokens so far{self._shards[0].note}"
        return f"{self.source}: nothing of it here yet"

    def begin(self, position: int) -> list[str]:
        """Start the stream, and wait for the first row group; where the sample stands in, only a moment.

        Raises UserError where the data set cannot be fetched at all.
        """
        if not is_offline():
            self._stream.start()
        if self._part.text == _NOTHING:
            return self._wait(position)
        notices, until = self.look(position, at_once=True), time.monotonic() + _PATIENCE
        while self._part.text == SAMPLE and self._seen.state == "working" and time.monotonic() < until:
            time.sleep(0.05)
            notices += self.look(position, at_once=True)
        if self._part.text == SAMPLE:
            reason = OFFLINE if is_offline() else "it is requested again and again"
            self.warning = f"training on the embedded sample until text of {self.source} arrives: {reason}"
        return notices

    def _wait(self, position: int) -> list[str]:
        """Wait until text has arrived. Returns the last notices, those of before are shown meanwhile."""
        notices = self.look(position, at_once=True)
        if self._part.text == _NOTHING:
            if is_offline():
                raise UserError(f"{OFFLINE}, and nothing of {self.source} is here yet")
            self._notify(f"waiting for the first text of {self.source}; Ctrl-C stops")
        while self._part.text == _NOTHING:
            for notice in notices:
                self._notify(notice)
            time.sleep(0.05)
            notices = self.look(position, at_once=True)
        return notices

    def look(self, position: int, at_once: bool = False) -> list[str]:
        """See `Feed`. Raises UserError where no text will ever take the place of the sample."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS and not at_once:
            return []
        self._looked = now
        before, notices = self._seen, []
        self._seen = StreamStatus("waiting", OFFLINE) if is_offline() else self._stream.status()
        if self._seen.state != before.state and (self._seen.state != "working" or before.state == "waiting"):
            notices.append(self._seen.text)
        if self._part.text != STREAM and self._arrived():
            assert self._shards is not None
            train, val = map(len, self._shards)
            self._enter(StreamPart(self.fingerprint, STREAM, 1, position, 0, train, val))
            self.warning = ""
            notices.append(f"text of {self.source} has arrived: training on it from here, {train:,} tokens so far")
            unknown = read_unknown(self._plan.folder)
            if notice := unknown.require_little(self.tokenizer, self._plan.is_given, is_allowed=True):
                notices.append(notice)
        elif self._part.text != STREAM and self._seen.state == "failed":
            raise UserError(self._seen.text)
        elif self._part.text != STREAM and self._seen.state in ("complete", "incomplete"):
            raise UserError(f"{self._seen.text}, and it is too short for a window of {self._context} tokens")
        return notices

    def status(self) -> str:
        """See `Feed`."""
        if self._part.text == SAMPLE:
            return "ON THE SAMPLE: " + self._seen.text
        return f"{self._seen.tokens / 1e6:,.0f}M tokens here" if self._seen.state == "working" else self._seen.text

    def batch(self, position: int, count: int) -> Batch:
        """See `Feed`."""
        before = self._part
        try:
            x, y = (np.concatenate(side) for side in zip(*self._batches(position, count), strict=True))
        except (OSError, UserError):
            self._enter(before)  # the caller repeats this position, or saves the state as it was
            raise
        return x, y

    def _batches(self, position: int, count: int) -> Iterator[Batch]:
        """Yield the batch in pieces: it may go across the end of a part."""
        while count:
            left = count
            if self._part.text == STREAM:
                left = self._part.first + self._loader.windows_per_epoch - position
                if left <= 0:
                    self._enter(self._next(position))
                    continue
            batch = self._loader.batch(position - self._part.first, min(count, left))
            position, count = position + len(batch[0]), count - len(batch[0])
            yield batch

    @property
    def state(self) -> StreamPart | None:
        """See `Feed`."""
        return self._part

    def restore(self, state: StreamPart | None) -> None:
        """See `Feed`."""
        if state is None or state.of != self.fingerprint:
            raise UserError(f"the run does not say which part of {self.source} it was reading: use --fresh")
        self._enter(state)

    def close(self) -> None:
        """See `Feed`."""
        self._stream.close()

    def _arrived(self) -> bool:
        """Look again, and return whether there is enough text to train on and to validate with."""
        self._shards = shards_of(self._plan)
        return self._shards is not None and all(len(shards) > self._context for shards in self._shards)

    def _next(self, position: int) -> StreamPart:
        """Return the part after one that was read to its end."""
        assert self._shards is not None
        if not self._plan.folder.is_dir():  # not damaged: on a network it may come back
            raise FileNotFoundError(ENOENT, "its folder is gone", str(self._plan.folder))
        part, train = self._part, self._shards[0].refresh()
        start = part.stop if train - part.stop > self._context else 0
        return replace(part, number=part.number + 1, first=position, start=start, stop=train)

    def _enter(self, part: StreamPart) -> None:
        """Read this part from now on. Raises UserError where its text is gone."""
        if part.text == STREAM:
            shards = self._shards
            if shards is None or len(shards[0]) < part.stop or len(shards[1]) < part.validation:
                raise UserError(f"{self._plan.folder} has lost text this run was reading: start it over with --fresh")
            train, val = shards
        elif self._sample:
            train, val = self._sample.train, self._sample.val
        else:
            raise UserError(f"this run began on the embedded sample, which is not for {self.source}: use --fresh")
        seed = int(generator(self._seed, "part", part.number).integers(1 << 31)) if part.number > 1 else self._seed
        self._loader = Loader(Span(train, part.start, part.stop), self._context, seed)
        if part.text != self.text:
            self._validation = validation_windows(Span(val, 0, part.validation), self._context, self._windows)
        self._part, self.text = part, part.text
