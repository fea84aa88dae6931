"""Saving while training continues: files are written between two steps, and a thread waits for the disk."""

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
from picogpt.runs.checkpoint_meta import CheckpointMeta
from picogpt.runs.checkpoints import Draft
from picogpt.runs.layout import LOG
from picogpt.runs.log import write_log
from picogpt.system.signals import sleep
from picogpt.training.state import Session

RETRY_SECONDS = 20.0  # until a save that failed is tried again
FIRST_SAVE = 2.0  # seconds that training waits for the first save, to find out whether saving works
SLOW_DISK = 10.0  # seconds of waiting for the save before, after which the user is told


class Saver:
    """Saves the log and the checkpoints of one run, one save at a time.

    A step waits while the arrays are copied into files. The thread flushes them, reads them back and deletes older
    checkpoints. The log is written first: one that is ahead of its checkpoint is cut back when the run is resumed, one
    that is behind would have a gap.
    """

    def __init__(self, run_dir: Path) -> None:
        self._dir = run_dir
        self._thread: threading.Thread | None = None
        self._began, self._failing = time.monotonic(), False
        self.problem = ""
        """Why the last save failed, as one line; "" where it did not. Not valid while `busy`."""

    def save(
        self, step: int, model: Mapping[str, Array], optimizer: Mapping[str, Array], meta: CheckpointMeta, log: bytes
    ) -> None:
        """Begin a save when the one before has ended. Errors are in `problem` when `busy` is false again."""
        self.wait()
        self._began = time.monotonic()
        if not os.path.isdir(self._dir):  # unlike Path.is_dir, this is False for any error of a network that is down
            self.problem = f"{self._dir} has gone: bring it back"
            return
        try:
            draft = checkpoints.write(self._dir, step, model, optimizer, meta)
        except (UserError, OSError) as error:
            self.problem = str(error)
            return
        self.problem = "the last save ended unexpectedly"
        thread = threading.Thread(target=self._finish, args=(draft, log), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more threads
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
        """Whether a save has not ended yet."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_through(self) -> bool:
        """Whether everything that `save` was given is on the disk."""
        return not self.busy and not self.problem

    def is_due(self, minutes: float) -> bool:
        """Return whether to save: so many minutes (0: never) after the last save, or soon after one that failed."""
        since = time.monotonic() - self._began
        return not self.busy and (0 < 60 * minutes < since or (bool(self.problem) and since > RETRY_SECONDS))

    def news(self) -> str:
        """Return a notice once when saving fails and once when it works again; else ""."""
        if self.busy or bool(self.problem) == self._failing:
            return ""
        self._failing = bool(self.problem)
        return f"{self.problem}; training continues, and saving is tried again" if self._failing else "saved again"

    def wait(self, seconds: float = inf) -> bool:
        """Wait until the current save has ended, but no longer than so many seconds. Returns whether it has."""
        until = time.monotonic() + seconds
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < until:
            self._thread.join(min(0.5, until - time.monotonic()))  # on Windows, Ctrl-C does not interrupt a longer wait
        return not self.busy


class RunSaver:
    """Decides what of a run a `Saver` saves, and when, and notifies the user of how it ended."""

    def __init__(self, session: Session, saver: Saver, saved: int) -> None:
        """Save nothing yet. saved: step of the checkpoint that the run continues from; -1 where there is none."""
        self._session, self._saver = session, saver
        self.step = saved
        """The step of the last save that was begun."""
        self._log = session.log.to_bytes()  # as it was saved last
        self._has_new_evaluation = False  # in the log, which the observer does not know to be on the disk

    def save_first(self) -> None:
        """Save the beginning of a new run, so that it can go back there. Raises UserError where saving fails."""
        if self.step < 0:
            self.save()
            if self._saver.wait(FIRST_SAVE) and self._saver.problem:
                raise UserError(self._saver.problem)  # nothing is lost yet

    def save(self) -> bool:
        """Begin to save the current state, unless its weights are not finite. `report` says how it ended.

        Returns whether they are finite.
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
        """Begin to save after an evaluation. The observer gets to know when it is on the disk."""
        self.save()
        self._has_new_evaluation = True

    def is_due(self) -> bool:
        """Return whether it is time for a checkpoint between two evaluations."""
        return self._saver.is_due(self._session.config.train.save_minutes)

    def report(self) -> None:
        """Notify the user and the observer of the saves that have ended."""
        if news := self._saver.news():
            self._session.notify(news)
        if self._has_new_evaluation and self._saver.is_through:
            self._has_new_evaluation = False
            self._session.observer.saved()

    def save_and_wait(self) -> None:
        """Save unless this step was, and wait until it is on the disk."""
        if self.step != self._session.state.step:
            self.save()
        self._saver.wait()
        self.report()

    def went_back(self, step: int) -> None:
        """Note that the run went back to the checkpoint of this step: problems of later saves no longer count."""
        self.step, self._saver.problem = step, ""

    def wait(self) -> None:
        """Wait until the current save has ended."""
        self._saver.wait()

    def save_last(self) -> None:
        """Save at the end. Raises UserError where that fails and no one at a terminal can make room on the disk."""
        session, saver = self._session, self._saver
        was_stopped = session.stopped()
        self.save_and_wait()
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
        if session.log.to_bytes() != self._log:  # it has grown since
            session.log.save()
