"""The signals that ask a program to stop, and a sleep that a stop interrupts."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signals(notify: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a stop was asked for: by Ctrl-C, SIGTERM or a closed terminal.

    A second Ctrl-C or SIGTERM raises KeyboardInterrupt at once. A closed terminal never does, because systems send it
    after a SIGTERM. Signals that are ignored, as by nohup, stay so. notify: called from the handler, with "" if there
    is nothing new to say.
    """
    received: list[int] = []
    immediate = (signal.SIGINT, signal.SIGTERM)

    def ask(number: int, _: FrameType | None) -> None:
        if number in immediate and any(earlier in immediate for earlier in received):
            raise KeyboardInterrupt
        received.append(number)
        notify("stopping after this step; once more to stop at once" if len(received) == 1 else "")

    previous = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, ask) for number in handled}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def sleep(seconds: float, ended: Callable[[], bool]) -> None:
    """Wait for so many seconds, or until `ended()` is true, which is checked ten times a second."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not ended():
        time.sleep(0.1)
