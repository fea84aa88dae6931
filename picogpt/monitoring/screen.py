"""What training shows on the screen."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import log as ln
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from picogpt.reports.figures import duration, rate
from picogpt.runs.log import Evaluation
from picogpt.system.terminal import visible

_REDRAW_SECONDS = 0.25

_REDRAW_SHARE = 0.005  # of the time; drawing keeps the first lane waiting

_SAMPLE_CHARACTERS = 200

_INDENT = 4


class Screen:
    """The output of training: evaluations above a panel on a terminal, plain lines anywhere else."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        continuous_integration = os.environ.get("CI", "").lower() not in ("", "0", "false")
        terminal = self._console.file.isatty() and self._console.is_interactive
        self.interactive = terminal and not continuous_integration
        self._live: Live | None = None
        self._next = 0.0  # when to draw again
        self._writing, self._waiting = 0.0, list[str]()  # since when, and what is to be said then
        self._sample = ""

    def start(self) -> None:
        """Keep the foot of a terminal for the panel."""
        if self.interactive:
            # no thread draws: it would take the interpreter from the first lane
            self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stderr=False)
            with self._whatever_becomes_of_it():
                self._live.start()

    def is_due(self) -> bool:
        """Whether it is time to `draw`: about four times a second, and more rarely where that would cost too much."""
        return self._live is not None and time.monotonic() >= self._next

    def draw(self, panel: RenderableType) -> None:
        """Show this at the foot of the terminal."""
        if self._live is None:
            return
        began = time.monotonic()
        with self._whatever_becomes_of_it():
            self._live.update(panel, refresh=True)
        ended = time.monotonic()
        self._next = ended + max(_REDRAW_SECONDS, (ended - began) / _REDRAW_SHARE)

    def evaluation(self, entry: Evaluation, steps: int, eta: float | None, unit: str) -> None:
        """Print one evaluation. Its sample is below it, or in the panel where there is one.

        eta: seconds to the end. unit: what a token is.
        """
        self._print(_line(entry, steps, unit) + ("" if self._live else _more(entry, eta)))
        self._sample = entry.sample or ""
        if self._live is None:
            self._print_sample()

    def _print_sample(self) -> None:
        if self._sample:
            more = "..." if len(self._sample) > _SAMPLE_CHARACTERS else ""
            self._print(self._sample[:_SAMPLE_CHARACTERS] + more, "dim", _INDENT)

    def notice(self, text: str) -> None:
        """Print a line the user should see."""
        self._print(f"note: {text}", "yellow")

    def warning(self, text: str) -> None:
        """Print what nobody may miss: framed, and in capitals where there are no colours."""
        if self.interactive:
            panel = Panel(Text(visible(text, self._console.encoding)), style="bold black on yellow")
            with self._whatever_becomes_of_it():
                self._console.print(panel)
        else:
            self._print(f"WARNING: {text.upper()}")

    def close(self) -> None:
        """Give the terminal back, with the last sample on it. Closing twice is fine."""
        if self._live is not None:
            with self._whatever_becomes_of_it():
                self._live.stop()
            self._live = None
            self._print_sample()

    def _print(self, text: str, style: str = "", indent: int = 0) -> None:
        shown = visible(text, self._console.encoding)
        with self._whatever_becomes_of_it():
            if self.interactive:
                self._console.print(Padding(Text(shown, style), (0, 0, 0, indent), expand=False))
            else:
                self._console.file.write(" " * indent + shown + "\n")
                self._console.file.flush()

    @contextmanager
    def _whatever_becomes_of_it(self) -> Iterator[None]:
        """Nobody reads any more (`| head`), the terminal has gone, the disk is full: training goes on, with its log."""
        self._writing = time.monotonic()
        try:
            yield
        except OSError:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self._console.file.fileno())
            self.interactive = False
        finally:
            self._writing = 0.0
        self.interrupt("")

    def interrupt(self, text: str) -> None:
        """A notice from the handler of a signal, which may come in the middle of another; "" for none.

        One that has been written for a second is given up, now or then: nobody takes it.
        """
        self._waiting += [text] if text else []
        if not self._writing:
            while self._waiting:
                self.notice(self._waiting.pop(0))
        elif time.monotonic() - self._writing > 1:
            raise BlockingIOError(text)
        elif hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, lambda *_: self.interrupt(""))
            signal.setitimer(signal.ITIMER_REAL, 1.1)


def _line(entry: Evaluation, steps: int, unit: str) -> str:
    """What an evaluation says."""
    parts = [f"step {entry.step:,}/{steps:,}"]
    parts += [] if entry.train_loss is None else [f"train {entry.train_loss:.3f}"]
    parts += [] if entry.val_loss is None else [f"val {entry.val_loss:.3f}  {entry.val_loss / ln(2):.3f} bits/{unit}"]
    parts += [] if entry.tokens_per_second is None else [f"{entry.tokens_per_second:,.0f} tokens/s"]
    return "  ".join(parts)


def _more(entry: Evaluation, eta: float | None) -> str:
    """And what a panel shows anyway."""
    parts = [] if entry.lr is None else [f"lr {rate(entry.lr)}"]
    if entry.seconds is not None:
        parts += [duration(entry.seconds), f"ETA {'?' if eta is None else duration(eta)}"]
    if entry.memory_mb is not None:
        parts.append(f"{entry.memory_mb:,.0f} MB")
    return "".join(f"  {part}" for part in parts)
