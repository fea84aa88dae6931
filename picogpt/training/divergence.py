"""Recovery from steps whose loss or gradient is not finite: leave them out, then go back and learn more slowly."""

import os
from dataclasses import replace

from picogpt.errors import UserError
from picogpt.runs import checkpoints
from picogpt.runs.checkpoint_meta import DivergenceState
from picogpt.training.resume import require_shapes
from picogpt.training.saver import RunSaver
from picogpt.training.state import Session
from picogpt.training.trainer import NotFiniteError

SKIPS = 2  # steps in a row that are left out; the next one sends the run back
RETURNS = 5  # times that a run goes back without getting past what sent it back
SLOWER = 0.5  # learning rates after going back, as a share of those before


class Recovery:
    """Brings a run that diverges back to a sound checkpoint, and counts how often. Its state is part of the run's."""

    def __init__(self, session: Session, saver: RunSaver) -> None:
        self._session, self._saver = session, saver

    def leave_out(self, error: NotFiniteError) -> bool:
        """Leave out the step that failed, unless too many before it were. Returns whether it is left out."""
        state = self._session.state
        if state.divergence.skipped == SKIPS:
            return False
        state.divergence = replace(state.divergence, skipped=state.divergence.skipped + 1)
        state.step += 1
        self._notify(f"{error.what}: step {state.step:,} is left out")
        return True

    def after_finite_step(self) -> None:
        """Count the steps that are left out in a row from 0 again."""
        state = self._session.state
        if state.divergence.skipped:
            state.divergence = replace(state.divergence, skipped=0)

    def after_finite_evaluation(self) -> None:
        """Let the run go back as often as at first, where it is past all that diverged."""
        state = self._session.state
        if state.step >= state.divergence.furthest and not state.divergence.skipped:
            state.divergence = replace(state.divergence, returns=0)

    def go_back(self, error: NotFiniteError) -> None:
        """Continue from a sound checkpoint, more slowly. Raises UserError where that has not helped."""
        session, before = self._session, self._session.state.divergence
        run_dir, state, log = session.run_dir, session.state, session.log
        self._saver.wait()
        if not os.path.isdir(run_dir):
            raise UserError(f"{error.what}, and {run_dir} has gone, where there is a sound checkpoint: bring it back")
        found = checkpoints.before_divergence(run_dir, again=before.returns > 0) if before.returns < RETURNS else None
        if found is None:
            raise error
        require_shapes(found, session.config)
        self._saver.went_back(found.step)
        checkpoints.set_aside(run_dir, found.step)
        at = error.step + 1
        session.trainer.restore(found.model, found.optimizer)
        session.feed.restore(found.meta.feed)
        session.observer.went_back(found.step)
        log.rewind(found.step, log.divergence)  # what was done about divergence stays in the log
        seconds = state.seconds
        state.restore(found)
        state.seconds = seconds  # time that was spent in vain counts as well: --minutes is a promise
        state.divergence = DivergenceState(before.rate * SLOWER, 0, before.returns + 1, max(at, before.furthest))
        slower = f"with {state.divergence.rate:g} of the learning rates"
        self._notify(f"{error.what} at step {at:,}: back to step {state.step:,}, {slower}")

    def _notify(self, text: str) -> None:
        self._session.observer.notice(text)
        self._session.log.diverged(self._session.state.step, text)
