"""Saving while training goes on: files are written between two steps, and a thread waits for the disk."""

import os
import threading
import time
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from picogpt.engine.backend import Array
from picogpt.errors import UserError
from picogpt.runs import checkpoints
from picogpt.runs.checkpoints import Draft
from picogpt.runs.log import write_log

RETRY_SECONDS = 20.0  # after a save that failed


class Saver:
    """Saves the log and the checkpoints of one run, one save at a time.

    A step waits as long as it takes to copy the arrays into files. Flushing them, reading them back and deleting older
    checkpoints is the thread's. The log goes first: one that is ahead of its checkpoint is cut back when the run goes
    on, one behind would have a gap.
    """

    def __init__(self, run_dir: Path) -> None:
        self._dir = run_dir
        self._thread: threading.Thread | None = None
        self._began, self._failing = time.monotonic(), False
        self.problem = ""
        """Why the last save failed, as one line; "" where it has not. Of no meaning while one is `busy`."""

    def save(
        self, step: int, model: Mapping[str, Array], optimizer: Mapping[str, Array], meta: dict[str, Any], log: bytes
    ) -> None:
        """Begin a save, when the one before is through. What goes wrong is in `problem` when `busy` is false."""
        self.wait()
        self._began = time.monotonic()
        if not os.path.isdir(self._dir):  # unlike Path's, this answers no to whatever a dead network says
            self.problem = f"{self._dir} has gone: bring it back"
            return
        try:
            draft = checkpoints.write(self._dir, step, model, optimizer, meta)
        except (UserError, OSError) as error:
            self.problem = str(error)
            return
        self.problem = "the last save broke off"
        thread = threading.Thread(target=self._finish, args=(draft, log), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread to give
            self._finish(draft, log)
        else:
            self._thread = thread

    def _finish(self, draft: Draft, log: bytes) -> None:
        try:
            write_log(self._dir / "log.pkl", log)
            checkpoints.publish(draft)
            self.problem = ""
            checkpoints.prune(self._dir)
        except (UserError, OSError) as error:
            self.problem = str(error)
            draft.drop()

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_through(self) -> bool:
        """Whether all that `save` was given is on the disk."""
        return not self.busy and not self.problem

    def is_due(self, minutes: float) -> bool:
        """Whether it is time to save: so many minutes after the last one, if not 0, or soon after one that failed."""
        since = time.monotonic() - self._began
        return not self.busy and (0 < 60 * minutes < since or (bool(self.problem) and since > RETRY_SECONDS))

    def news(self) -> str:
        """What there is to say of saves: once that they fail, and once that they work again."""
        if self.busy or bool(self.problem) == self._failing:
            return ""
        self._failing = bool(self.problem)
        return f"{self.problem}; training goes on, and saving is tried again" if self._failing else "saved again"

    def wait(self, seconds: float = inf) -> bool:
        """Until the save in hand has ended, but no longer than so many seconds. Returns whether it has."""
        until = time.monotonic() + seconds
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < until:
            self._thread.join(min(0.5, until - time.monotonic()))  # Windows hears no Ctrl-C in a longer one
        return not self.busy
