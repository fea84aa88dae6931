"""The time that a run trains."""

import time
from collections.abc import Callable

_PAUSE, _FACTOR = 60.0, 10  # a lap longer than this, in seconds and in longest laps so far, was a pause


class Clock:
    """Measures laps in seconds, and the training speed since the last evaluation.

    It does not use the time of day, which may jump. Time in which the machine was asleep or the process was suspended
    does not count.
    """

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify, self._longest = notify, 0.0
        self.last_lap = 0.0
        """Seconds of the last lap, without a pause."""
        self._last = time.perf_counter()
        self._tokens, self._seconds = 0, 0.0

    def reset(self) -> None:
        """Measure the training speed from now on."""
        self._tokens, self._seconds = 0, 0.0

    def lap(self) -> float:
        """End a lap and begin the next. Returns its seconds."""
        now = time.perf_counter()
        self.last_lap, self._last = now - self._last, now
        if self._longest and self.last_lap > max(_PAUSE, _FACTOR * self._longest):
            self._notify(f"nothing ran for {self.last_lap / 60:,.0f} minutes, as if asleep: they are not counted")
            self.last_lap = self._longest
        self._longest = max(self._longest, self.last_lap)
        return self.last_lap

    def skip(self) -> None:
        """Begin the next lap now, without counting the time since the last one."""
        self._last = time.perf_counter()

    def trained(self, tokens: int) -> None:
        """Count the last lap, which trained on so many tokens, for the training speed."""
        self._tokens += tokens
        self._seconds += self.last_lap

    @property
    def tokens_per_second(self) -> float:
        """The training speed since the last `reset`; 0 where nothing was counted."""
        return self._tokens / self._seconds if self._seconds else 0.0
