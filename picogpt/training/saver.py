"""Saving while training goes on: files are written between two steps, and a thread waits for the disk."""

import os
import threading
import time
from collections.abc import Mapping
from math import inf
from pathlib import Path

import numpy as np

from picogpt.engine.backend import Array, to_host
from picogpt.errors import UserError
from picogpt.runs import checkpoints
from picogpt.runs.checkpoints import Draft
from picogpt.runs.layout import LOG
from picogpt.runs.log import write_log
from picogpt.runs.meta import CheckpointMeta
from picogpt.system.signals import sleep
from picogpt.training.state import Session

RETRY_SECONDS = 20.0  # after a save that failed
FIRST_SAVE = 2.0  # seconds that training waits for it, to know whether it works
SLOW_DISK = 10.0  # seconds


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
        self, step: int, model: Mapping[str, Array], optimizer: Mapping[str, Array], meta: CheckpointMeta, log: bytes
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
            write_log(self._dir / LOG, log)
            checkpoints.publish(draft)
            self.problem = ""
            checkpoints.prune(self._dir)
        except (UserError, OSError) as error:
            self.problem = str(error)
            draft.drop()

    @property
    def busy(self) -> bool:
        """Whether a save is not through yet."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_through(self) -> bool:
        """Whether all that `save` was given is on the disk."""
        return not self.busy and not self.problem

    def is_due(self, minutes: float) -> bool:
        """Return whether it is time to save: `minutes` after the last one, if not 0, or soon after one that failed."""
        since = time.monotonic() - self._began
        return not self.busy and (0 < 60 * minutes < since or (bool(self.problem) and since > RETRY_SECONDS))

    def news(self) -> str:
        """Return what there is to say of saves: once that they fail, and once that they work again; else ""."""
        if self.busy or bool(self.problem) == self._failing:
            return ""
        self._failing = bool(self.problem)
        return f"{self.problem}; training goes on, and saving is tried again" if self._failing else "saved again"

    def wait(self, seconds: float = inf) -> bool:
        """Wait until the save in hand has ended, but no longer than so many seconds. Returns whether it has."""
        until = time.monotonic() + seconds
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < until:
            self._thread.join(min(0.5, until - time.monotonic()))  # Windows hears no Ctrl-C in a longer one
        return not self.busy


class RunSaver:
    """What of a run is saved, and when: decides for a `Saver`, and tells the user how it ended."""

    def __init__(self, session: Session, saver: Saver, saved: int) -> None:
        """saved: the step of the checkpoint that the run goes on from; -1 where there is none."""
        self._session, self._saver = session, saver
        self.step = saved
        """Of the last save that was begun."""
        self._log = session.log.to_bytes()  # as it was saved last
        self._is_undrawn = False  # whether the log has an evaluation that no observer was told is on the disk

    def first(self) -> None:
        """Save the beginning of a run, so that it can go back there. Raises UserError where saving does not work."""
        if self.step < 0:
            self.save()
            if self._saver.wait(FIRST_SAVE) and self._saver.problem:
                raise UserError(self._saver.problem)  # nothing is lost yet

    def save(self) -> bool:
        """Begin to save what is now, but never weights that are not finite. `report` tells how it ended.

        Returns whether it is worth saving.
        """
        session, trainer = self._session, self._session.trainer
        model, optimizer = (
            {name: to_host(array) for name, array in arrays.items()}
            for arrays in (trainer.arrays, trainer.optimizer.state)
        )
        if not all(np.isfinite(model[name]).all() for name in trainer.trained):
            return False
        if not self._saver.wait(SLOW_DISK):
            session.observer.notice("saving takes longer than training from one save to the next: waiting for the disk")
        self._saver.wait()
        self.report()
        self.step, self._log = session.state.step, session.log.to_bytes()
        self._saver.save(self.step, model, optimizer, session.meta(), self._log)
        return True

    def save_evaluation(self) -> None:
        """`save` after an evaluation: observers are told when it is on the disk."""
        self.save()
        self._is_undrawn = True

    def is_due(self) -> bool:
        """Return whether it is time for a checkpoint between two evaluations."""
        return self._saver.is_due(self._session.config.train.save_minutes)

    def report(self) -> None:
        """Tell what there is to say of the saves that have ended."""
        if news := self._saver.news():
            self._session.notify(news)
        if self._is_undrawn and self._saver.is_through:
            self._is_undrawn = False
            self._session.observer.saved()

    def settle(self) -> None:
        """Save where there is something new, and wait until it is on the disk."""
        if self.step != self._session.state.step:
            self.save()
        self._saver.wait()
        self.report()

    def went_back(self, step: int) -> None:
        """The run goes on from the checkpoint of this step: what became of later saves does not count."""
        self.step, self._saver.problem = step, ""

    def wait(self) -> None:
        """Wait for the save in hand."""
        self._saver.wait()

    def last(self) -> None:
        """Save at the end. Raises UserError where it cannot be and nobody is at the terminal to make room."""
        session, saver = self._session, self._saver
        was_stopped = session.stopped()
        self.settle()
        while saver.problem:
            if not session.observer.is_attended or session.stopped() != was_stopped:
                raise UserError(saver.problem)
            session.observer.notice(
                f"step {session.state.step} is not saved yet: it is tried again and again; Ctrl-C gives up"
            )
            sleep(RETRY_SECONDS, lambda: session.stopped() != was_stopped)
            if not self.save():
                raise UserError(saver.problem)
            saver.wait()
            self.report()
        if session.log.to_bytes() != self._log:  # something was told since
            session.log.save()
