"""What training shows on the screen."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text

from picogpt.training.runlog import visible

_REDRAW_SECONDS = 0.25
_SAMPLE_CHARACTERS = 200
_INDENT = 4


class Screen:
    """The output of training: a progress line and evaluations on a terminal, plain lines anywhere else."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        continuous_integration = os.environ.get("CI", "").lower() not in ("", "0", "false")
        terminal = self._console.file.isatty() and self._console.is_interactive
        self.interactive = terminal and not continuous_integration
        self._progress: Progress | None = None
        self._drawn = -math.inf
        self._writing, self._waiting = 0.0, list[str]()  # since when, and what is to be said then
        self._steps, self._minutes = 0, 0.0
        # The work of the first step seen and its seconds: the rate counts from there.
        self._began: tuple[float, float] | None = None
        self._work: Callable[[int], float] = float

    def start(self, first_step: int, steps: int, minutes: float, work: Callable[[int], float] = float) -> None:
        """Begin showing a run that goes on after `first_step`, up to `steps` or, where not 0, `minutes`.

        work: what so many first steps cost, in any unit, for the time that is left.
        """
        self._steps, self._minutes, self._work = steps, minutes, work
        self._began = None
        if self.interactive:
            self._progress = Progress(
                BarColumn(24),
                TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="crop")),
                console=self._console,
                auto_refresh=False,  # a thread that draws would take the interpreter from the first lane
                transient=True,
            )
            task = self._progress.add_task(f"step {first_step:,}/{steps:,}", total=1.0)
            self._progress.update(task, completed=first_step / steps)
            with self._whatever_becomes_of_it():
                self._progress.start()

    def step(self, step: int, loss: float, tokens_per_second: float, elapsed_seconds: float, status: str = "") -> None:
        """Tell of an optimizer step that is done. Cheap: the line is drawn about four times a second.

        status: what else goes on.
        """
        if self._began is None:
            self._began = self._work(step), elapsed_seconds
        now = time.monotonic()
        if self._progress is None or now - self._drawn < _REDRAW_SECONDS:
            return
        self._drawn = now
        parts = [f"step {step:,}/{self._steps:,}", f"loss {loss:.3f}", f"{tokens_per_second:,.0f} tokens/s"]
        parts += [_clock(elapsed_seconds), f"ETA {self._remaining(step, elapsed_seconds)}", status]
        done = step / self._steps
        if self._minutes:
            done = max(done, elapsed_seconds / (60 * self._minutes))
        task = self._progress.task_ids[0]
        line = "  ".join(filter(None, parts))
        with self._whatever_becomes_of_it():
            self._progress.update(task, description=line, completed=min(1.0, done), refresh=True)

    def evaluation(self, entry: dict[str, Any]) -> None:
        """Print one evaluation, a dict with the fields of the run's log, and its sample below it."""
        self._print(self._line(entry))
        sample = entry.get("sample") or ""
        if sample:
            more = "..." if len(sample) > _SAMPLE_CHARACTERS else ""
            self._print(sample[:_SAMPLE_CHARACTERS] + more, "dim", _INDENT)

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
        """Give the terminal back. Closing twice is fine."""
        if self._progress is not None:
            with self._whatever_becomes_of_it():
                self._progress.stop()
            self._progress = None

    def _line(self, entry: dict[str, Any]) -> str:
        step, seconds = entry["step"], entry.get("seconds")
        parts = [f"step {step:,}/{self._steps:,}"]
        forms = {
            "train_loss": "train {:.3f}",
            "val_loss": "val {:.3f}",
            "tokens_per_second": "{:,.0f} tokens/s",
        }
        parts += [form.format(entry[name]) for name, form in forms.items() if entry.get(name) is not None]
        rate = entry.get("lr")
        if rate is not None:
            parts.append(f"lr {rate:.4f}" if rate >= 0.001 or rate == 0 else f"lr {rate:.1e}")
        if seconds is not None:
            parts += [_clock(seconds), f"ETA {self._remaining(step, seconds)}"]
        if entry.get("memory_mb") is not None:
            parts.append(f"{entry['memory_mb']:,.0f} MB")
        return "  ".join(parts)

    def _remaining(self, step: int, seconds: float) -> str:
        """Time to the end, of the steps or of the minutes; "?" until two steps have shown a rate."""
        ends = [60 * self._minutes - seconds] if self._minutes else []
        done = self._work(step)
        if self._began and done > self._began[0]:
            rate = (seconds - self._began[1]) / (done - self._began[0])
            ends.append((self._work(self._steps) - done) * rate)
        return _clock(max(0.0, min(ends))) if ends else "?"

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


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
