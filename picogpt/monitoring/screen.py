"""The output of training on a screen: a terminal with a panel, or plain lines on a pipe or in a file."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel as Frame
from rich.text import Text

from picogpt.reports.number_format import duration, rate, steps_done
from picogpt.runs.log import Evaluation
from picogpt.system.terminal import visible

_REDRAW_SECONDS = 0.25
_REDRAW_SHARE = 0.005  # of the time at most, because the first lane waits while the panel is drawn
_STUCK_SECONDS = 1.0  # after which a write counts as stuck
_SAMPLE_CHARACTERS, _INDENT = 200, 4


class Screen:
    """Prints evaluations above a panel on a terminal, and as plain lines anywhere else."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        continuous_integration = os.environ.get("CI", "").lower() not in ("", "0", "false")
        terminal = self._console.file.isatty() and self._console.is_interactive
        self.interactive = terminal and not continuous_integration
        self._live: Live | None = None
        self._next = 0.0  # when the panel is drawn again
        self._writing_since, self._waiting = 0.0, list[str]()  # 0: not writing; notices to print after that
        self._has_alarm = False
        self._sample = ""

    def start(self) -> None:
        """Reserve the foot of a terminal for the panel."""
        if self.interactive:
            # no thread draws, because it would take the interpreter from the first lane
            self._live = Live(console=self._console, auto_refresh=False, transient=True, redirect_stderr=False)
            with self._ignoring_lost_output():
                self._live.start()

    def is_due(self) -> bool:
        """Return whether it is time to `draw`: about four times a second, less often if drawing takes long."""
        return self._live is not None and time.monotonic() >= self._next

    def draw(self, panel: RenderableType) -> None:
        """Show the panel at the foot of the terminal."""
        if self._live is None:
            return
        began = time.monotonic()
        with self._ignoring_lost_output():
            self._live.update(panel, refresh=True)
        ended = time.monotonic()
        self._next = ended + max(_REDRAW_SECONDS, (ended - began) / _REDRAW_SHARE)

    def evaluation(self, entry: Evaluation, steps: int, eta: float | None) -> None:
        """Print one evaluation, and its sample below it unless there is a panel, which shows it.

        eta: seconds to the end.
        """
        self._print(_losses_and_speed(entry, steps) + ("" if self._live else _details(entry, eta)))
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
        """Print a line the user must see: in a frame, or in capitals where there is no terminal."""
        if self.interactive:
            frame = Frame(Text(visible(text, self._console.encoding)), style="bold black on yellow")
            with self._ignoring_lost_output():
                self._console.print(frame)
        else:
            self._print(f"WARNING: {text.upper()}")

    def close(self) -> None:
        """Remove the panel and print the last sample. Closing twice is fine."""
        if self._live is not None:
            with self._ignoring_lost_output():
                self._live.stop()
            self._live = None
            self._print_sample()

    def _print(self, text: str, style: str = "", indent: int = 0) -> None:
        shown = visible(text, self._console.encoding)
        with self._ignoring_lost_output():
            if self.interactive:
                self._console.print(Padding(Text(shown, style), (0, 0, 0, indent), expand=False))
            else:
                self._console.file.write(" " * indent + shown + "\n")
                self._console.file.flush()

    @contextmanager
    def _ignoring_lost_output(self) -> Iterator[None]:
        """Write without raising OSError: if the output is lost, training continues, and its log has everything.

        It is lost if the reader of a pipe has ended (`| head`), the terminal was closed, or the disk is full.
        """
        self._writing_since = time.monotonic()
        try:
            yield
        except OSError:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self._console.file.fileno())
            self.interactive = False
        finally:
            self._writing_since = 0.0
            if self._has_alarm:  # it would kill a program that ends before it
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                self._has_alarm = False
        self.interrupt("")

    def interrupt(self, text: str) -> None:
        """Print a notice from the handler of a signal, which may come while another text is written; "" for none.

        A write that takes more than a second is given up, now or later: nobody reads the output.
        """
        self._waiting += [text] if text else []
        if not self._writing_since:
            while self._waiting:
                self.notice(self._waiting.pop(0))
        elif time.monotonic() - self._writing_since > _STUCK_SECONDS:
            raise BlockingIOError(text)
        elif hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, lambda *_: self.interrupt(""))
            signal.setitimer(signal.ITIMER_REAL, 1.1 * _STUCK_SECONDS)
            self._has_alarm = True


def bits(entry: Evaluation) -> list[str]:
    """Return what compares the validation loss of an evaluation with those of other tokenizers."""
    figures = {"bits/char": entry.bits_per_char, "bits/byte": entry.bits_per_byte}
    parts = [f"{value:.3f} {unit}" for unit, value in figures.items() if value is not None]
    return parts + ([f"{entry.unknown:.1%} unknown"] if entry.unknown else [])


def _losses_and_speed(entry: Evaluation, steps: int) -> str:
    parts = [f"step {steps_done(entry.step, steps, '/')}"]
    parts += [] if entry.train_loss is None else [f"train {entry.train_loss:.3f}"]
    parts += [] if entry.val_loss is None else [f"val {entry.val_loss:.3f} nats/token", *bits(entry)]
    parts += [] if entry.tokens_per_second is None else [f"{entry.tokens_per_second:,.0f} tokens/s"]
    return "  ".join(parts)


def _details(entry: Evaluation, eta: float | None) -> str:
    """Return the rest of an evaluation, which a panel would show."""
    parts = [] if entry.lr is None else [f"lr {rate(entry.lr)}"]
    if entry.seconds is not None:
        parts += [duration(entry.seconds), f"ETA {'?' if eta is None else duration(eta)}"]
    if entry.memory_mb is not None:
        parts.append(f"{entry.memory_mb:,.0f} MB")
    return "".join(f"  {part}" for part in parts)
