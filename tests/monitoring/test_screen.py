"""A screen that is readable on a terminal, on a pipe and in a log file."""

import io
import itertools
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from picogpt.monitoring import screen as screen_module
from picogpt.monitoring.screen import Screen
from picogpt.runs.log import Evaluation


class Stream(io.TextIOWrapper):
    """A standard output of a given encoding that says whether it is a terminal."""

    def __init__(self, terminal: bool, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="\n")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


@pytest.fixture(autouse=True)
def ordinary_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


ENTRY = Evaluation(
    step=50,
    tokens=102_400,
    seconds=31.2,
    lr=0.004,
    train_loss=2.9131,
    val_loss=2.8009,
    bits_per_char=1.2345,
    bits_per_byte=1.2002,
    tokens_per_second=3412.4,
    memory_mb=312.2,
    sample="the [bold]roman[/bold] [/] empire",
)


def run(stream: Stream, width: int = 120, eta: float | None = 93.6, **changes: Any) -> str:
    screen = Screen(Console(file=stream, width=width))
    screen.start()
    screen.draw(Text("what is drawn"))
    screen.evaluation(replace(ENTRY, **changes), 200, eta)
    screen.notice("the picture [of it] was not drawn")
    screen.close()
    screen.close()
    return stream.text()


@pytest.mark.parametrize("reason", ["pipe", "dumb", "ci"])
def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    if reason == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    if reason == "ci":
        monkeypatch.setenv("CI", "true")
    text = run(Stream(terminal=reason != "pipe"), width=40)
    assert text.splitlines() == [
        "step 50/200  train 2.913  val 2.801 nats/token  1.234 bits/char  1.200 bits/byte  3,412 tokens/s  lr 0.0040  "
        "0:00:31  ETA 0:01:34  312 MB",
        "    the [bold]roman[/bold] [/] empire",
        "note: the picture [of it] was not drawn",
    ]
    assert "\r" not in text and "\x1b" not in text


def test_forced_colours_on_a_pipe_do_not_animate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\r" not in run(Stream(terminal=False))


def test_lines_are_flushed_at_once() -> None:
    stream = Stream(terminal=False)
    screen = Screen(Console(file=stream))
    screen.start()
    screen.evaluation(Evaluation(0, None, 4.5, sample=""), 10, None)
    assert isinstance(stream.buffer, io.BytesIO)
    assert stream.buffer.getvalue() == b"step 0/10  val 4.500 nats/token\n"


def test_a_terminal_gets_a_panel_that_goes_and_evaluations_above_it() -> None:
    text = run(Stream(terminal=True))
    assert text.count("what is drawn") == 4  # again below each line, and before it goes
    assert "step 50/200  train 2.913  val 2.801 nats/token  1.234 bits/char  1.200 bits/byte  3,412 tokens/s" in text
    assert "lr" not in text and "ETA" not in text  # the panel has them
    assert "the picture [of it] was not drawn" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is back
    assert text.rindex("the [bold]roman[/bold] [/] empire") > text.rindex("\x1b[2K")  # the last sample stays


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("width", [20, 120])
def test_a_sample_can_hold_anything(encoding: str, terminal: bool, width: int) -> None:
    text = run(Stream(terminal, encoding), width, sample="a\x1b[31mb\r\n\x07 ← é [/x] \ud800" + "y" * 10_000)
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\s", "", text)  # without styles and the breaks of wrapped lines
    assert r"a\x1b[31mb\r\n\x07" in shown and r"[/x]\ud800yyy" in shown and "yyy..." in shown
    assert ("←" in text) == (encoding == "utf-8") and ("é" in text) == (encoding != "ascii")
    assert "\x07" not in text and shown.count("y") < 200


def test_a_terminal_is_drawn_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times a second, or where that takes long, for half of a hundredth of the time."""
    now = 100.0
    monkeypatch.setattr(screen_module, "time", SimpleNamespace(monotonic=lambda: now))
    screen = Screen(Console(file=Stream(terminal=True), width=100))
    assert not screen.is_due()  # before it is started
    screen.start()
    assert screen.is_due()
    screen.draw(Text("quick"))
    for now, due in ((100.2, False), (100.3, True)):  # noqa: B007
        assert screen.is_due() == due

    class Slow:
        def __rich__(self) -> str:
            nonlocal now
            now += 0.01
            return "slow"

    screen.draw(Slow())
    drawn = now
    for now, due in ((drawn + 0.9, False), (drawn + 8.1, True)):  # noqa: B007
        assert screen.is_due() == due
    screen.close()
    assert not screen.is_due()


def test_nothing_is_drawn_where_there_is_no_terminal() -> None:
    screen = Screen(Console(file=Stream(terminal=False)))
    screen.start()
    assert not screen.is_due()


def test_a_screen_that_cannot_be_written_to_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that was closed, a pipe without a reader, a full disk."""
    for terminal in (False, True):
        with Path(os.devnull).open("wb") as sink:
            stream = Stream(terminal)
            screen = Screen(Console(file=stream, width=100))
            screen.start()

            def gone(_: str) -> int:
                raise OSError(5, "Input/output error")

            monkeypatch.setattr(stream, "write", gone)
            monkeypatch.setattr(stream, "fileno", sink.fileno)
            screen.draw(Text("a panel"))
            screen.notice("something")
            screen.warning("something worse")
            screen.evaluation(ENTRY, 100, None)
            screen.close()


@pytest.mark.parametrize(("rate", "shown"), [(0.004, "lr 0.0040"), (0.0, "lr 0.0000"), (3e-5, "lr 3.0e-05")])
def test_small_learning_rates_stay_readable(rate: float, shown: str) -> None:
    assert shown in run(Stream(terminal=False), lr=rate)


class Stuck(Stream):
    """A pipe that nobody reads: it takes nothing, until a signal comes."""

    def __init__(self, screen: list[Screen]) -> None:
        super().__init__(terminal=False)
        self._screen, self.taken = screen, list[str]()

    def write(self, text: str) -> int:
        if text.startswith("note: first"):
            self._screen[0].interrupt("stopping")  # what the handler of a signal would do meanwhile
        self.taken.append(text)
        return len(text)


@pytest.mark.parametrize(("seconds", "given_up"), [(0.5, False), (5.0, True)])
def test_a_signal_while_nobody_reads(seconds: float, given_up: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(100.0, seconds)
    alarms: list[float] = []
    monkeypatch.setattr(screen_module, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(signal, "setitimer", lambda _, seconds: alarms.append(seconds), raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    screens: list[Screen] = []
    stream = Stuck(screens)
    with Path(os.devnull).open("wb") as sink:
        monkeypatch.setattr(stream, "fileno", sink.fileno)
        screens.append(Screen(Console(file=stream)))
        screens[0].interrupt("nothing is being written")
        screens[0].notice("first")
    said = ["note: nothing is being written\n", "note: first\n", "note: stopping\n"]
    assert stream.taken == ([said[0], said[2]] if given_up else said)
    assert alarms == ([] if given_up else [1.1, 0.0])  # it may be stuck only a moment later; unset when it was not
