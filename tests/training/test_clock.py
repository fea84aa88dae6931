"""The time of a run, what of it counts, and the signals that end it."""

import os
import signal
from types import SimpleNamespace

import pytest

from picogpt.system.signals import stop_signals
from picogpt.training import clock
from picogpt.training.clock import Clock


class Ticks:
    """A clock that shows `now`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: self.now))


def test_laps_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = Ticks(monkeypatch)
    watch = Clock(pytest.fail)
    assert watch.tokens_per_second == 0
    for now in (2.0, 4.0):
        ticks.now = now
        assert watch.lap() == 2
        watch.trained(100)
    assert watch.tokens_per_second == 50
    ticks.now = 9.0
    watch.skip()
    ticks.now = 10.0
    assert watch.lap() == 1
    watch.reset()
    assert watch.tokens_per_second == 0


def test_sleep_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks, told = Ticks(monkeypatch), list[str]()
    watch = Clock(told.append)
    for _ in range(3):
        ticks.now += 2
        watch.lap()
    ticks.now += 8 * 3600
    assert watch.lap() == 2
    assert told == ["nothing ran for 480 minutes, as if asleep: they are not counted"]
    ticks.now += 19  # a slow step, or one while other programs are busy
    assert watch.lap() == 19 and len(told) == 1


def test_a_slow_machine_is_not_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = Ticks(monkeypatch)
    watch = Clock(pytest.fail)
    for seconds in (100.0, 900.0):  # the first step may be of any length, and an evaluation nine times as long
        ticks.now += seconds
        assert watch.lap() == seconds


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_asks_and_the_second_ends(name: str) -> None:
    number = getattr(signal, name)
    before, told = signal.getsignal(number), list[str]()
    with pytest.raises(KeyboardInterrupt), stop_signals(told.append) as stopped:
        assert not stopped()
        os.kill(os.getpid(), number)
        assert stopped() and told == ["stopping after this step; once more to stop at once"]
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no such signal")
@pytest.mark.parametrize("names", [("SIGHUP", "SIGHUP"), ("SIGTERM", "SIGHUP"), ("SIGHUP", "SIGTERM")])
def test_a_terminal_that_closes_never_ends_at_once(names: tuple[str, str]) -> None:
    """The system sends it after a SIGTERM, or several times, when a session ends."""
    told: list[str] = []
    with stop_signals(told.append) as stopped:
        for name in names:
            os.kill(os.getpid(), getattr(signal, name))
        assert stopped() and len([text for text in told if text]) == 1


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_what_is_ignored_stays_ignored(name: str) -> None:
    """They are ignored under nohup, or in the background of a script."""
    number = getattr(signal, name, signal.SIGINT)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_signals(pytest.fail) as stopped:
            os.kill(os.getpid(), number)
            assert not stopped()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
