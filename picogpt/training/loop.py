"""The training loop: a batch, a step, now and then an evaluation and a save, and a rest where the machine needs one."""

from math import isfinite, nan

from picogpt.config import MonitoringConfig
from picogpt.data.loader import Batch
from picogpt.errors import UserError
from picogpt.evaluation.samples import sample
from picogpt.optim.schedule import learning_rate_factor
from picogpt.rng import generator
from picogpt.runs.log import Evaluation
from picogpt.system import hardware
from picogpt.system.signals import sleep
from picogpt.training.clock import Clock
from picogpt.training.divergence import Recovery
from picogpt.training.observer import StepInfo
from picogpt.training.pauses import Pauses
from picogpt.training.saver import RETRY_SECONDS, RunSaver
from picogpt.training.state import Session
from picogpt.training.trainer import NotFiniteError


class Loop:
    """Trains until the steps or the minutes are over, the user stops it, or an observer has seen enough."""

    def __init__(self, session: Session, saver: RunSaver, monitoring: MonitoringConfig) -> None:
        self._session, self._saver = session, saver
        self._config, self._train = session.config, session.config.train
        self._state, self._trainer, self._feed = session.state, session.trainer, session.feed
        self._observer, self._notify = session.observer, session.notify
        self._clock, self._recovery = Clock(session.notify), Recovery(session, saver)
        self._pauses = Pauses(monitoring, session.notify, session.observer.pausing)
        self._memory, self._shortage_told = hardware.MemoryWatch(), False
        self._depth = self._config.model.n_layer  # blocks that train
        self._factor = 1.0  # of the learning rates, in the last step
        self._has_seen_enough = False

    def run(self) -> None:
        """Train to the end, and save. Raises UserError for what goes wrong; what was saved before is then sound."""
        self._saver.first()
        while self._goes_on():
            try:
                batch = self._next_batch()
            except UserError:
                self._saver.last()
                raise
            if batch is None:  # stopped while it waited for the text
                break
            if not self._step(batch):
                continue  # the run diverged and went back, to where all is saved
            if self._state.step % self._train.eval_interval == 0 or self._session.progress >= 1:
                self._evaluate()
            elif self._saver.is_due():
                self._saver.save()
            self._saver.report()
            if self._memory.is_short():
                self._shrink()
            if self._goes_on():  # else nothing is left to spare the machine from
                self._rest()
        self._saver.last()

    def _goes_on(self) -> bool:
        return self._session.progress < 1 and not self._session.stopped() and not self._has_seen_enough

    def _next_batch(self) -> Batch | None:
        """Return the next batch; None where the user stopped meanwhile.

        Text that cannot be read, as on a network that is gone, is waited for. Raises UserError for what no waiting
        mends.
        """
        position, is_told = self._state.step * self._train.batch_size, False
        while not self._session.stopped():
            try:
                for notice in self._feed.look(position):
                    self._notify(notice)
                return self._feed.batch(position, self._train.batch_size)
            except OSError as error:
                if not is_told:
                    self._notify(f"the text cannot be read ({error.strerror or error}): waiting for it; Ctrl-C stops")
                is_told = True
                sleep(RETRY_SECONDS, self._session.stopped)
                self._clock.skip()
        return None

    def _step(self, batch: Batch) -> bool:
        """Train on one batch. Returns whether the run is a step further, and not back where all was well."""
        (x, y), state, trainer = batch, self._state, self._trainer
        progress, is_further = self._session.progress, True
        self._factor = learning_rate_factor(self._train, state.step, progress) * state.divergence.rate
        self._set_depth(trainer.depth_at(progress))
        size_before = trainer.micro_batch, trainer.recompute
        try:
            loss = trainer.step(x, y, state.step, self._factor, self._depth)
        except NotFiniteError as error:
            loss, is_further = nan, self._recovery.leave_out(error)
            if not is_further:
                self._recovery.go_back(error)
        else:
            self._recovery.step_is_sound()
            state.add_loss(loss)
            state.step += 1
        if size_before != (trainer.micro_batch, trainer.recompute):
            self._tell_smaller("there was no memory left")
        state.seconds += self._clock.lap()
        self._clock.trained(y.size)
        self._observer.step(
            StepInfo(
                step=state.step,
                loss=loss,
                took=self._clock.last_lap,
                seconds=state.seconds,
                progress=self._session.progress,
                learning_rate=self._factor * self._train.learning_rate,
                depth=self._depth,
                data=self._feed.status(),
            )
        )
        return is_further

    def _set_depth(self, depth: int) -> None:
        if depth != self._depth:
            self._depth = depth
            n_layer = self._config.model.n_layer
            self._observer.notice(f"from step {self._state.step + 1:,} on {depth} of {n_layer} blocks train")

    def _evaluate(self) -> None:
        state, trainer = self._state, self._trainer
        val_loss = trainer.evaluate(*self._feed.validation)
        if not isfinite(val_loss):  # the weights are spoilt, and not worth a line in the log
            self._recovery.go_back(NotFiniteError(state.step - 1, f"validation loss {val_loss}"))
            return
        seed = int(generator(self._train.seed, "sample", state.step).integers(1 << 31))
        memory = hardware.peak_memory() / 2**20
        text = sample(trainer.replicas[0], self._feed.tokenizer, seed, self._config.rolls)
        state.seconds += self._clock.lap()
        evaluation = Evaluation(
            step=state.step,
            train_loss=state.train_loss,
            val_loss=val_loss,
            tokens=state.step * self._train.batch_size * self._config.context,
            seconds=state.seconds,
            lr=self._train.learning_rate * self._factor,
            tokens_per_second=self._clock.tokens_per_second,
            memory_mb=memory,
            sample=text,
            text=self._feed.text or None,
        )
        self._recovery.evaluation_is_sound()
        state.recent, state.evaluated, state.val_loss = (0.0, 0), state.step, val_loss
        self._session.log.evaluation(evaluation)
        goes_on = self._observer.evaluation(evaluation)
        self._saver.save_evaluation()
        self._has_seen_enough = not goes_on
        state.seconds += self._clock.lap()
        self._clock.reset()

    def _rest(self) -> None:
        """Rest where the processor is too hot; where the battery is low, save and wait, which does not count."""
        self._pauses.cool(self._session.stopped)
        if self._pauses.is_battery_low():
            self._saver.settle()
            self._pauses.wait_for_mains(self._session.stopped)
            self._clock.skip()

    def _shrink(self) -> None:
        """Train in less memory where the machine is short of it, or say once that there is no smaller way."""
        free = f"memory runs short ({hardware.available_memory() / 2**20:,.0f} MB free)"
        if self._session.fitted.train.device == "cpu" and self._trainer.shrink():
            self._tell_smaller(free)
        elif not self._shortage_told:
            self._shortage_told = True
            self._notify(f"{free} and there is no smaller way to train: close other programs")

    def _tell_smaller(self, why: str) -> None:
        how = f"{self._trainer.micro_batch} at a time in each lane{', recomputed' * self._trainer.recompute}"
        self._notify(f"{why}: until the next start {how}, which changes the last bits")
