"""A run: a folder under logs/ with checkpoints and a log, begun, continued or begun from another run."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from math import inf, isfinite, nan
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np

from picogpt.config import MonitoringConfig, RunConfig
from picogpt.data.feed import Feed
from picogpt.data.loader import Batch
from picogpt.engine.backend import to_host
from picogpt.errors import UserError
from picogpt.evaluation.samples import sample
from picogpt.monitoring.observers import Observers
from picogpt.monitoring.screen import Screen
from picogpt.optim.schedule import learning_rate_factor
from picogpt.rng import generator
from picogpt.runs import checkpoints
from picogpt.runs.checkpoint import require_meta
from picogpt.runs.layout import TENSORBOARD
from picogpt.runs.lock import run_lock
from picogpt.system import hardware
from picogpt.system.signals import sleep, stop_signals
from picogpt.training.clock import Clock
from picogpt.training.device import gpu_in_words, lanes_in_words, open_lanes, trained_in_words
from picogpt.training.divergence import RETURNS, SKIPS, SLOWER, Divergence
from picogpt.training.pauses import Pauses
from picogpt.training.resume import find_start, require_shapes, way_of
from picogpt.training.saver import RETRY_SECONDS, Saver
from picogpt.training.trainer import NotFiniteError, Trainer

WATCH = MonitoringConfig()
FIRST_SAVE = 2.0  # seconds that training waits for it, to know whether it works
SLOW_DISK = 10.0  # seconds


class Run:
    """One training run. `train()` brings it to its last step.

    config: as asked for; its vocabulary may grow to the corpus. run_dir: logs/<name>. init_from: a checkpoint folder
    whose weights and tokenizer the run starts with. after_evaluation: told of each one, as the log has it, when it is
    being saved; returns whether to go on. Making one changes nothing in run_dir. Raises UserError for everything the
    user can put right.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        dataset_dir: Path,
        fresh: bool = False,
        init_from: Path | None = None,
        watch: MonitoringConfig = WATCH,
        after_evaluation: Callable[[dict[str, Any]], bool] = lambda _: True,
    ) -> None:
        self._spared, self._after_evaluation, self.given_up = watch, after_evaluation, False
        self.dir, self.screen, self._fresh = run_dir, Screen(), fresh
        self._seen = checkpoints.state_of(run_dir)
        start = find_start(config, run_dir, dataset_dir, fresh, init_from, self.screen.notice)
        self.config, self.fitted, self.feed, self.log = start.config, start.fitted, start.feed, start.log
        self.arrays, self.resumed = start.arrays, start.resumed
        self.done: int = self.resumed.step if self.resumed else 0
        self.watch = Observers(watch, run_dir, self.screen, self.log)
        for notice in start.notices:
            self.watch.tell(notice)
        meta = self.resumed.meta if self.resumed else {}
        self.saver, self.seconds = Saver(run_dir), float(meta.get("seconds", 0.0))
        self.depth = self.config.model.n_layer  # blocks that train
        self._memory_told = self._undrawn = False
        self._stand(meta)

    def _stand(self, meta: dict[str, Any]) -> None:
        """Where a checkpoint's meta says the run stands; the log forgets what came after. {}: at the beginning."""
        # Sum and number of the training losses since the last evaluation.
        self.recent: tuple[float, int] = tuple(meta.get("recent", (0.0, 0)))
        events: list[dict[str, Any]] = []
        self.divergence = Divergence()
        if "divergence" in meta:
            try:
                self.divergence, events = Divergence.from_dict(meta["divergence"])
            except ValueError as error:
                raise UserError(f"{self.dir}: {error}: start over with --fresh") from None
        self.log.rewind(self.done, events)
        self._saved = self.done if meta else -1  # the step of the last save that was begun
        # The last evaluation's step and loss; the beginning counts as one, so that a run can go back to it.
        evaluated = (self.done, meta["val_loss"]) if meta.get("evaluated") else (0, None)
        self._evaluated: tuple[int, float | None] = evaluated

    def train(self) -> None:
        """Train, evaluate, save, until the steps or the minutes are over or the user stops it.

        Raises UserError where another process trains the run, and for what goes wrong on the way; what was saved
        before is then sound.
        """
        if self.progress() >= 1:
            self.screen.notice(
                f"run {self.dir.name} has trained its {self.done} steps already: raise --steps or --minutes to go on, "
                "or start over with --fresh"
            )
            self.feed.close()
            return
        with ExitStack() as stack:
            stack.callback(self.feed.close)
            for notice in self.feed.begin(self.done * self.config.train.batch_size):
                self.watch.tell(notice)
            stack.enter_context(run_lock(self.dir, self.watch.tell))
            if checkpoints.state_of(self.dir) != self._seen:
                raise UserError(f"run {self.dir.name} was trained by another process meanwhile: give the command again")
            stopped = stack.enter_context(stop_signals(self.screen.interrupt))
            lanes = stack.enter_context(open_lanes(self.fitted))
            stack.push(self._close)
            trainer, roof = Trainer(self.fitted, self.arrays, lanes), self.watch.measure(lanes, self.fitted)
            if self.resumed:
                trainer.restore(self.resumed.model, self.resumed.optimizer)
                self.resumed.optimizer.clear()
                self.resumed.model.clear()
            self.arrays.clear()  # the trainer has its own
            self.watch.serve()  # where that fails, nothing is lost yet
            self._clear_the_way()
            lanes.begin()  # before a thread saves
            self.watch.notice(announcement(self.config, self.fitted, self.feed, trainer.micro_batch))
            if self.resumed:
                self.watch.notice(f"going on with run {self.dir.name} after step {self.done}")
            if self.feed.warning:
                self.watch.warn(self.feed.warning)
            self.watch.begin(self.config, self.feed.source, self.done, trainer.work(self.config.train.steps), roof())
            self._train(trainer, stopped)
        self._farewell(stopped())

    def _close(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let a save that was begun end, and the picture; but one who interrupts does not want to wait."""
        at_once = kind is KeyboardInterrupt
        try:
            self.saver.wait(1.0 if at_once else inf)
        finally:
            self.watch.close(at_once)

    def _clear_the_way(self) -> None:
        """Take away what the run does not go on from, and write the log: a folder that refuses is found now."""
        if self._fresh:
            checkpoints.clear(self.dir)
            for name in ("log.pkl", "log.png"):
                (self.dir / name).unlink(missing_ok=True)
            rmtree(self.dir / TENSORBOARD, ignore_errors=True)
        elif self.resumed:
            checkpoints.set_aside(self.dir, self.done)  # damaged ones
            checkpoints.prune(self.dir)  # and what a save left that was killed: the room may be wanted
        self.log.save()
        self._log_saved = self.log.to_bytes()

    def _train(self, trainer: Trainer, stopped: Callable[[], bool]) -> None:
        train, clock, memory = self.config.train, Clock(self.watch.tell), hardware.MemoryWatch()
        care = Pauses(self._spared, self.watch.tell, self.watch.pausing)
        if self._saved < 0:
            self._save(trainer)
            if self.saver.wait(FIRST_SAVE) and self.saver.problem:
                raise UserError(self.saver.problem)  # nothing is lost yet
        while self._goes_on(stopped):
            try:
                batch = self._batch(clock, stopped)
            except UserError:
                self._last_save(trainer, stopped)
                raise
            if batch is None:
                break
            if not self._step(trainer, clock, batch):
                continue  # it went back, to where all is saved
            if self.done % train.eval_interval == 0 or self.progress() >= 1:
                self._evaluate(trainer, clock)
            elif self.saver.is_due(train.save_minutes):
                self._save(trainer)
            self._look_at_saves()
            if memory.is_short():
                self._shrink(trainer)
            if self._goes_on(stopped):  # else nothing is left to spare the machine from
                self._spare(trainer, care, clock, stopped)
        self._last_save(trainer, stopped)

    def _goes_on(self, stopped: Callable[[], bool]) -> bool:
        return self.progress() < 1 and not stopped() and not self.given_up

    def _spare(self, trainer: Trainer, care: Pauses, clock: Clock, stopped: Callable[[], bool]) -> None:
        """Rest where the processor is too hot; where the battery is low, save and wait, which does not count."""
        care.cool(stopped)
        if care.is_battery_low():
            if self._saved != self.done:
                self._save(trainer)
            self.saver.wait()
            self._look_at_saves()
            care.wait_for_mains(stopped)
            clock.skip()

    def progress(self) -> float:
        """Share of the run that is done, by steps or by minutes, whichever is further."""
        train = self.config.train
        return max(self.done / train.steps, self.seconds / (60 * train.minutes) if train.minutes else 0.0)

    def _batch(self, clock: Clock, stopped: Callable[[], bool]) -> Batch | None:
        """The next batch. Text that cannot be read, as on a network that is gone, is waited for; None: until a stop."""
        position, told = self.done * self.config.train.batch_size, False
        while not stopped():
            try:
                for notice in self.feed.look(position):
                    self.watch.tell(notice)
                return self.feed.batch(position, self.config.train.batch_size)
            except OSError as error:
                if not told:
                    self.watch.tell(
                        f"the text cannot be read ({error.strerror or error}): waiting for it; Ctrl-C stops"
                    )
                told = True
                sleep(RETRY_SECONDS, stopped)
                clock.skip()
        return None

    def _step(self, trainer: Trainer, clock: Clock, batch: Batch) -> bool:
        """Returns whether the run is a step further, and not back where all was well."""
        (x, y), progress, further = batch, self.progress(), True
        factor, depth = learning_rate_factor(self.config.train, self.done, progress), trainer.depth_at(progress)
        self.factor = factor * self.divergence.rate
        if depth != self.depth:
            self.depth = depth
            self.screen.notice(f"from step {self.done + 1:,} on {depth} of {self.config.model.n_layer} blocks train")
        way = trainer.micro_batch, trainer.recompute
        try:
            loss = trainer.step(x, y, self.done, self.factor, depth)
        except NotFiniteError as error:
            loss, further = nan, self._leave_out(error)
            if not further:
                self._go_back(trainer, error)
        else:
            self.divergence.skipped = 0
            self.recent = self.recent[0] + loss, self.recent[1] + 1
            self.done += 1
        if way != (trainer.micro_batch, trainer.recompute):
            self._tell_smaller(trainer, "there was no memory left")
        self.seconds += clock.lap()
        clock.trained(y.size)
        took, progress, data = clock.last_lap, self.progress(), self.feed.status()
        self.watch.step(self.done, loss, took, self.seconds, progress, self.factor, depth, data)
        return further

    def _leave_out(self, error: NotFiniteError) -> bool:
        """Go on without this step, unless too many before it were left out."""
        if self.divergence.skipped == SKIPS:
            return False
        self.divergence.skipped += 1
        self.done += 1
        self._tell_divergence(f"{error.what}: step {self.done:,} is left out")
        return True

    def _go_back(self, trainer: Trainer, error: NotFiniteError) -> None:
        """Go on from where all was well, more slowly. Raises UserError where that has not helped."""
        self.saver.wait()
        if not os.path.isdir(self.dir):
            raise UserError(f"{error.what}, and {self.dir} has gone, where there is a sound checkpoint: bring it back")
        state, found = self.divergence, None
        if state.returns < RETURNS:
            found = checkpoints.before_divergence(self.dir, again=state.returns > 0)
        if found is None:
            raise error
        require_meta(found)
        require_shapes(found, self.config)
        self.saver.problem = ""  # of a course that is given up
        checkpoints.set_aside(self.dir, found.step)
        at, events = error.step + 1, self.log.divergence
        trainer.restore(found.model, found.optimizer)
        self.feed.restore(found.meta["feed"])
        self.done = found.step
        self.watch.went_back(self.done)
        self._stand(found.meta)
        self.log.divergence = events
        self.divergence = Divergence(state.rate * SLOWER, 0, state.returns + 1, max(at, state.furthest))
        slower = f"with {self.divergence.rate:g} of the learning rates"
        self._tell_divergence(f"{error.what} at step {at:,}: back to step {self.done:,}, {slower}")

    def _tell_divergence(self, text: str) -> None:
        self.screen.notice(text)
        self.log.diverged(self.done, text)

    def _evaluate(self, trainer: Trainer, clock: Clock) -> None:
        val_loss = trainer.evaluate(*self.feed.validation)
        if not isfinite(val_loss):  # the weights are spoilt, and not worth a line in the log
            self._go_back(trainer, NotFiniteError(self.done - 1, f"validation loss {val_loss}"))
            return
        seed = int(generator(self.config.train.seed, "sample", self.done).integers(1 << 31))
        entry: dict[str, Any] = {
            "step": self.done,
            "tokens": self.done * self.config.train.batch_size * self.config.context,
            "lr": self.config.train.learning_rate * self.factor,
            "train_loss": self.recent[0] / self.recent[1] if self.recent[1] else None,
            "val_loss": val_loss,
            "tokens_per_second": clock.tokens_per_second,
            "memory_mb": hardware.peak_memory() / 2**20,
            "sample": sample(trainer.replicas[0], self.feed.tokenizer, seed, self.config.rolls),
            **({"text": self.feed.text} if self.feed.text else {}),
        }
        self.seconds += clock.lap()
        entry["seconds"] = self.seconds
        self.recent = 0.0, 0
        if self.done >= self.divergence.furthest and not self.divergence.skipped:
            self.divergence.returns = 0
        self._evaluated = self.done, val_loss
        self.log.evaluation(**entry)
        self.watch.evaluation(entry)
        self._save(trainer)
        self._undrawn = True
        self.given_up = not self._after_evaluation(entry)
        self.seconds += clock.lap()
        clock.reset()

    def _save(self, trainer: Trainer) -> bool:
        """Begin to save what is now, but never what diverged. `_look_at_saves` tells how it ended.

        Returns whether it is worth saving.
        """
        model, optimizer = (
            {name: to_host(array) for name, array in arrays.items()}
            for arrays in (trainer.arrays, trainer.optimizer.state)
        )
        if not all(np.isfinite(model[name]).all() for name in trainer.trained):
            return False
        if not self.saver.wait(SLOW_DISK):
            self.screen.notice("saving takes longer than training from one save to the next: waiting for the disk")
        self.saver.wait()
        self._look_at_saves()
        self._saved = self.done
        step, val_loss = self._evaluated
        if step != self.done:
            val_loss = None
        meta = {
            "config": self.config.to_dict(),
            "tokenizer": self.feed.tokenizer.to_dict(),
            "data": self.feed.fingerprint,
            "feed": self.feed.state,
            "text": self.feed.text,
            "val_loss": val_loss,
            "evaluated": step == self.done,
            "seconds": self.seconds,
            "recent": self.recent,
            "way": way_of(self.fitted),
            "divergence": self.divergence.to_dict(self.log.divergence),
        }
        self._log_saved = self.log.to_bytes()
        self.saver.save(self.done, model, optimizer, meta, self._log_saved)
        return True

    def _look_at_saves(self) -> None:
        """Tell what there is to say of them, and draw what was saved."""
        if news := self.saver.news():
            self.watch.tell(news)
        if self._undrawn and self.saver.is_through:
            self._undrawn = False
            self.watch.saved()

    def _last_save(self, trainer: Trainer, stopped: Callable[[], bool]) -> None:
        """Raises UserError where it cannot be and nobody is at the terminal to make room."""
        was_stopped = stopped()
        if self._saved != self.done:
            self._save(trainer)
        self.saver.wait()
        self._look_at_saves()
        while self.saver.problem:
            if not self.screen.interactive or stopped() != was_stopped:
                raise UserError(self.saver.problem)
            self.screen.notice(f"step {self.done} is not saved yet: it is tried again and again; Ctrl-C gives up")
            sleep(RETRY_SECONDS, lambda: stopped() != was_stopped)
            if not self._save(trainer):
                raise UserError(self.saver.problem)
            self.saver.wait()
            self._look_at_saves()
        if self.log.to_bytes() != self._log_saved:  # something was told since
            self.log.save()

    def _shrink(self, trainer: Trainer) -> None:
        free = f"memory runs short ({hardware.available_memory() / 2**20:,.0f} MB free)"
        if self.fitted.train.device == "cpu" and trainer.shrink():
            self._tell_smaller(trainer, free)
        elif not self._memory_told:
            self._memory_told = True
            self.watch.tell(f"{free} and there is no smaller way to train: close other programs")

    def _tell_smaller(self, trainer: Trainer, why: str) -> None:
        how = f"{trainer.micro_batch} at a time in each lane{', recomputed' * trainer.recompute}"
        self.watch.tell(f"{why}: until the next start {how}, which changes the last bits")

    def _farewell(self, stopped: bool) -> None:
        if stopped:
            same = "the same command" + (" without --fresh" if self._fresh else "")
            self.screen.notice(f"stopped and saved after step {self._saved}: {same} goes on from here")
        elif self.divergence.returns:
            raise UserError(
                f"training diverged before its time was over: run {self.dir.name} has it up to step {self._saved}"
            )
        elif (best := self.log.best_loss) is not None:
            name = self.dir.as_posix().removeprefix("logs/")  # one of a sweep lies deeper
            self.screen.notice(
                f"done: best validation loss {best:.3f}; sample it with: python inference.py --run {name}"
            )


def announcement(config: RunConfig, fitted: RunConfig, feed: Feed, micro_batch: int) -> str:
    """What is trained on what, and how."""
    train = config.train
    place = gpu_in_words(fitted) if fitted.train.device == "cuda" else lanes_in_words(fitted.train.lanes)
    trains = "" if train.train == "all" else f", which trains {trained_in_words(config)}"
    micro = f"{micro_batch} at a time" + (", recomputed" if fitted.train.recompute else "")
    sequences = f"{train.batch_size} sequences of {config.context}"
    return f"{feed.describe()}; a step is {sequences}, {micro}, on {place}{trains}"
