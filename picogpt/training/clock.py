"""The time a run takes, and the signals that end it."""

import time
from collections.abc import Callable

_PAUSE, _FACTOR = 60.0, 10  # a lap this long, in seconds and in the longest laps before it, was no work


class Clock:
    """Seconds since the last look, and training speed since the last evaluation.

    It knows nothing of the time of day, so that may jump. Time in which the machine was asleep or the process was
    suspended does not count.
    """

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify, self._longest = notify, 0.0
        self.last_lap = 0.0
        """Seconds, as they count."""
        self._last = time.perf_counter()
        self.reset()

    def reset(self) -> None:
        self._tokens, self._seconds = 0, 0.0

    def lap(self) -> float:
        now = time.perf_counter()
        self.last_lap, self._last = now - self._last, now
        if self._longest and self.last_lap > max(_PAUSE, _FACTOR * self._longest):
            self._notify(f"nothing was done for {self.last_lap / 60:,.0f} minutes, as if asleep: they are not counted")
            self.last_lap = self._longest
        self._longest = max(self._longest, self.last_lap)
        return self.last_lap

    def skip(self) -> None:
        """What was since the last look does not count."""
        self._last = time.perf_counter()

    def trained(self, tokens: int) -> None:
        """The last lap trained on so many tokens."""
        self._tokens += tokens
        self._seconds += self.last_lap

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0
