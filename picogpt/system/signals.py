"""The signals that ask a program to stop, and waiting that a stop ends."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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
