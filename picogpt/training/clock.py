"""The time a run takes, and the signals that end it."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

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


@contextmanager
def stop_signals(tell: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """While open, Ctrl-C, SIGTERM or a closed terminal asks to stop after the step in hand, a second at once.

    A closed terminal never does so at once: systems send it after a SIGTERM. Signals that are ignored, as by nohup,
    stay so. tell: called from the handler, with "" where there is nothing to say again.
    """
    asked: list[int] = []
    firm = (signal.SIGINT, signal.SIGTERM)

    def ask(number: int, _: FrameType | None) -> None:
        if number in firm and any(earlier in firm for earlier in asked):
            raise KeyboardInterrupt
        asked.append(number)
        tell("stopping after this step; once more to stop at once" if len(asked) == 1 else "")

    previous = {}
    if threading.current_thread() is threading.main_thread():  # no other may ask for signals
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, ask) for number in heard}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def sleep(seconds: float, ended: Callable[[], bool]) -> None:
    """Wait for so many seconds, or until it has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not ended():
        time.sleep(0.1)
