"""The batches of a data set that arrives while it is trained on."""

import time
from collections.abc import Iterator
from dataclasses import replace
from errno import ENOENT

import numpy as np

from picogpt.data.loader import Batch, Loader, validation_windows
from picogpt.data.prepare import Prepared
from picogpt.data.shards.reader import Span
from picogpt.data.sources.hub import is_offline
from picogpt.data.streaming.part import SAMPLE, STREAM, StreamPart
from picogpt.data.streaming.plan import Plan, StreamStatus, shards_of
from picogpt.data.streaming.process import StreamProcess
from picogpt.errors import UserError
from picogpt.rng import generator

OFFLINE = "HF_HUB_OFFLINE is set: nothing is fetched"

_LOOK_SECONDS = 0.5  # between two looks at the stream
_PATIENCE = 2.0  # seconds that a run waits for the first row group, unless there is trouble


class StreamFeed:
    """A data set that arrives while it is read: a `Feed` (data/feed.py), which describes its methods."""

    def __init__(
        self, plan: Plan, sample: Prepared, context: int, seed: int, windows: int, state: StreamPart | None
    ) -> None:
        """sample: read until text arrives. windows: how many to validate with. state: of a run that is resumed."""
        self.source, self.tokenizer, self.fingerprint = str(plan.dataset), sample.tokenizer, plan.folder.name
        self.text = self.warning = ""
        self._plan, self._context, self._seed, self._windows = plan, context, seed, windows
        self._sample = sample.train, sample.val
        self._stream, self._shards = StreamProcess(plan), shards_of(plan)
        self._looked, self._seen = 0.0, StreamStatus("working", f"asking for {plan.dataset}")
        if state and state.of == self.fingerprint:
            self.restore(state)
        else:  # the run refuses the state of another text
            train, val = self._sample
            self._enter(StreamPart(self.fingerprint, SAMPLE, 0, 0, 0, len(train), len(val)))

    def describe(self) -> str:
        """See `Feed`."""
        if self._part.text == STREAM and self._shards:
            return f"{self.source}: {sum(map(len, self._shards)):,} tokens so far"
        return f"{self.source}: nothing of it here yet"

    def begin(self, position: int) -> list[str]:
        """Start the stream, and wait a moment for the first row group unless there is trouble.

        Raises UserError where the data set cannot be fetched at all.
        """
        if not is_offline():
            self._stream.start()
        notices, until = self.look(position, at_once=True), time.monotonic() + _PATIENCE
        while self._part.text == SAMPLE and self._seen.state == "working" and time.monotonic() < until:
            time.sleep(0.05)
            notices += self.look(position, at_once=True)
        if self._part.text == SAMPLE:
            reason = OFFLINE if is_offline() else "it is requested again and again"
            self.warning = f"training on the embedded sample until text of {self.source} arrives: {reason}"
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
        if self._part.text == SAMPLE and self._arrived():
            assert self._shards is not None
            train, val = map(len, self._shards)
            self._enter(StreamPart(self.fingerprint, STREAM, 1, position, 0, train, val))
            self.warning = ""
            notices.append(f"text of {self.source} has arrived: training on it from here, {train:,} tokens so far")
        elif self._part.text == SAMPLE and self._seen.state == "failed":
            raise UserError(self._seen.text)
        elif self._part.text == SAMPLE and self._seen.state == "complete":
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
        else:
            shards = self._sample
        train, val = shards
        seed = int(generator(self._seed, "part", part.number).integers(1 << 31)) if part.number > 1 else self._seed
        self._loader = Loader(Span(train, part.start, part.stop), self._context, seed)
        if part.text != self.text:
            self.validation = validation_windows(Span(val, 0, part.validation), self._context, self._windows)
        self._part, self.text = part, part.text
