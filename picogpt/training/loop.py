"""The training loop: a batch, a step, now and then an evaluation and a save, and a rest where the machine needs it."""

from math import isfinite, nan

from picogpt.config import MonitoringConfig
from picogpt.data.loader import Batch
from picogpt.errors import UserError
from picogpt.evaluation.loss import text_bits
from picogpt.evaluation.samples import sample_prompt, write_sample
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
    """Trains until the steps or the minutes are over, the user stops it, or an observer ends it."""

    def __init__(self, session: Session, saver: RunSaver, monitoring: MonitoringConfig) -> None:
        self._session, self._saver = session, saver
        self._config, self._train = session.config, session.config.train
        self._state, self._trainer, self._feed = session.state, session.trainer, session.feed
        self._observer, self._notify = session.observer, session.notify
        self._clock, self._recovery = Clock(session.notify), Recovery(session, saver)
        self._pauses = Pauses(monitoring, session.notify, session.observer.pausing)
        self._memory, self._has_notified_shortage = hardware.MemoryWatch(), False
        self._depth = self._config.model.n_layer  # blocks that train
        self._factor = 1.0  # of the learning rates, in the last step
        self._is_ended = False  # by an observer

    def run(self) -> None:
        """Train to the end, and save. Raises UserError for what goes wrong; earlier checkpoints are then sound."""
        self._saver.save_first()
        while self._continues():
            try:
                batch = self._next_batch()
            except UserError:
                self._saver.save_last()
                raise
            if batch is None:  # the user stopped it while it waited for the text
                break
            if not self._step(batch):
                continue  # the run diverged and went back to a checkpoint
            if self._state.step % self._train.eval_interval == 0 or self._session.progress >= 1:
                self._evaluate()
            elif self._saver.is_due():
                self._saver.save()
            self._saver.report()
            if self._memory.is_short():
                self._shrink()
            if self._continues():  # else there is no need to rest
                self._rest()
        self._saver.save_last()

    def _continues(self) -> bool:
        return self._session.progress < 1 and not self._session.stopped() and not self._is_ended

    def _next_batch(self) -> Batch | None:
        """Return the next batch; None where the user stops the run meanwhile.

        Waits for text that cannot be read, as on a network that is down. Raises UserError for errors that waiting does
        not help against.
        """
        position, has_notified = self._state.step * self._train.batch_size, False
        while not self._session.stopped():
            try:
                for notice in self._feed.look(position):
                    self._notify(notice)
                return self._feed.batch(position, self._train.batch_size)
            except OSError as error:
                if not has_notified:
                    self._notify(f"the text cannot be read ({error.strerror or error}): waiting for it; Ctrl-C stops")
                has_notified = True
                sleep(RETRY_SECONDS, self._session.stopped)
                self._clock.skip()
        return None

    def _step(self, batch: Batch) -> bool:
        """Train on one batch. Returns whether the run is a step further; False where it went back to a checkpoint."""
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
            self._recovery.after_finite_step()
            state.add_loss(loss)
            state.step += 1
        if size_before != (trainer.micro_batch, trainer.recompute):
            self._notify_shrunk("there was no memory left")
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
        """Train this many blocks from now on."""
        if depth != self._depth:
            self._depth = depth
            n_layer = self._config.model.n_layer
            self._observer.notice(f"from step {self._state.step + 1:,} on {depth} of {n_layer} blocks train")

    def _evaluate(self) -> None:
        """Measure the validation loss, generate a sample, and save; go back where the loss is not finite."""
        state, trainer = self._state, self._trainer
        x, y = self._feed.validation
        val_loss = trainer.evaluate(x, y)
        if not isfinite(val_loss):  # the weights are spoilt, and the log gets no entry
            self._recovery.go_back(NotFiniteError(state.step - 1, f"validation loss {val_loss}"))
            return
        seed = int(generator(self._train.seed, "sample", state.step).integers(1 << 31))
        memory = hardware.peak_memory() / 2**20
        prompt = sample_prompt(self._feed.tokenizer, x[0])
        text = write_sample(trainer.replicas[0], self._feed.tokenizer, seed, self._config.rolls, prompt)
        bits_per_char, bits_per_byte = text_bits(val_loss, y.size, self._feed.tokenizer.text_size(y))
        state.seconds += self._clock.lap()
        evaluation = Evaluation(
            step=state.step,
            train_loss=state.train_loss,
            val_loss=val_loss,
            bits_per_char=bits_per_char,
            bits_per_byte=bits_per_byte,
            unknown=self._feed.unknown or None,
            tokens=state.step * self._train.batch_size * self._config.context,
            seconds=state.seconds,
            lr=self._train.learning_rate * self._factor,
            tokens_per_second=self._clock.tokens_per_second,
            memory_mb=memory,
            sample=text,
            text=self._feed.text or None,
        )
        self._recovery.after_finite_evaluation()
        state.recent, state.evaluated, state.val_loss = (0.0, 0), state.step, val_loss
        self._session.log.evaluation(evaluation)
        self._observer.evaluation(evaluation)
        self._saver.save_evaluation()
        self._is_ended = not self._observer.should_continue(evaluation)
        state.seconds += self._clock.lap()
        self._clock.reset()

    def _rest(self) -> None:
        """Rest where the processor is too hot. Where the battery is low, save and wait; that time does not count."""
        self._pauses.cool(self._session.stopped)
        if self._pauses.is_battery_low():
            self._saver.save_and_wait()
            self._pauses.wait_for_power(self._session.stopped)
            self._clock.skip()

    def _shrink(self) -> None:
        """Use less memory where the machine is short of it, or say once that this is not possible."""
        free = f"memory runs short ({hardware.available_memory() / 2**20:,.0f} MB free)"
        if self._session.fitted.train.device == "cpu" and self._trainer.shrink():
            self._notify_shrunk(free)
        elif not self._has_notified_shortage:
            self._has_notified_shortage = True
            self._notify(f"{free} and there is no smaller way to train: close other programs")

    def _notify_shrunk(self, why: str) -> None:
        how = f"{self._trainer.micro_batch} at a time in each lane{', recomputed' * self._trainer.recompute}"
        self._notify(f"{why}: until the next start {how}, which changes the last bits")
