"""What a run does about steps whose loss or gradient is not finite: leave them out, then go back and learn slower."""

import os
from dataclasses import replace

from picogpt.errors import UserError
from picogpt.runs import checkpoints
from picogpt.runs.meta import DivergenceState
from picogpt.training.resume import require_shapes
from picogpt.training.saver import RunSaver
from picogpt.training.state import Session
from picogpt.training.trainer import NotFiniteError

SKIPS = 2  # steps in a row that are left out; the next one sends the run back
RETURNS = 5  # without an evaluation behind what sent the run back
SLOWER = 0.5  # learning rates after a return, as a share of those before


class Recovery:
    """Brings a run that diverges back to where all was well, and keeps count. Its state is in the run's."""

    def __init__(self, session: Session, saver: RunSaver) -> None:
        self._session, self._saver = session, saver

    def leave_out(self, error: NotFiniteError) -> bool:
        """Go on without the step that failed, unless too many before it were left out. Returns whether it does."""
        state = self._session.state
        if state.divergence.skipped == SKIPS:
            return False
        state.divergence = replace(state.divergence, skipped=state.divergence.skipped + 1)
        state.step += 1
        self._tell(f"{error.what}: step {state.step:,} is left out")
        return True

    def step_is_sound(self) -> None:
        """A step was finite: those before it that were left out are not in a row with what comes."""
        state = self._session.state
        if state.divergence.skipped:
            state.divergence = replace(state.divergence, skipped=0)

    def evaluation_is_sound(self) -> None:
        """An evaluation was finite: behind all that diverged, a run may go back as often as before."""
        state = self._session.state
        if state.step >= state.divergence.furthest and not state.divergence.skipped:
            state.divergence = replace(state.divergence, returns=0)

    def go_back(self, error: NotFiniteError) -> None:
        """Go on from where all was well, more slowly. Raises UserError where that has not helped."""
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
        log.rewind(found.step, log.divergence)  # what was done about divergence stays to be read
        state.restore(found)
        state.divergence = DivergenceState(before.rate * SLOWER, 0, before.returns + 1, max(at, before.furthest))
        slower = f"with {state.divergence.rate:g} of the learning rates"
        self._tell(f"{error.what} at step {at:,}: back to step {state.step:,}, {slower}")

    def _tell(self, text: str) -> None:
        self._session.observer.notice(text)
        self._session.log.diverged(self._session.state.step, text)
