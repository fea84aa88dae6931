"""A run: a folder under logs/ with checkpoints and a log, begun, continued or begun from another run."""

from contextlib import ExitStack
from math import inf
from pathlib import Path
from shutil import rmtree

from picogpt.config import MonitoringConfig, RunConfig
from picogpt.data.feed import Feed
from picogpt.engine.lanes import Lanes
from picogpt.engine.peak_flops import peak_flops_on
from picogpt.errors import UserError
from picogpt.runs import checkpoints
from picogpt.runs.layout import LOG, PICTURE, TENSORBOARD
from picogpt.runs.lock import run_lock
from picogpt.system.signals import stop_signals
from picogpt.training.device import gpu_in_words, lanes_in_words, open_lanes, trained_in_words
from picogpt.training.loop import Loop
from picogpt.training.observer import Observer, RunInfo
from picogpt.training.resume import find_start
from picogpt.training.saver import RunSaver, Saver
from picogpt.training.state import RunState, Session
from picogpt.training.trainer import Trainer


class Run:
    """A training run. `train()` brings it to its last step.

    config: as asked for; its vocabulary may grow to the corpus. run_dir: logs/<name>. init_from: a checkpoint folder
    whose weights and tokenizer the run starts with. observer: gets everything as it happens. monitoring: when to rest.
    Making a run changes nothing in run_dir. Raises UserError for everything the user can put right.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        dataset_dir: Path,
        observer: Observer,
        fresh: bool = False,
        init_from: Path | None = None,
        monitoring: MonitoringConfig = MonitoringConfig(),  # noqa: B008 (it is frozen)
    ) -> None:
        self.dir, self._observer, self._fresh, self._monitoring = run_dir, observer, fresh, monitoring
        self._seen = checkpoints.state_of(run_dir)
        self.start = find_start(config, run_dir, dataset_dir, fresh, init_from, observer.notice)
        self.config, self.fitted = self.start.config, self.start.fitted
        self.feed, self.log = self.start.feed, self.start.log
        self.state, resumed = RunState(), self.start.resumed
        if resumed:
            self.state.restore(resumed)
        self.log.rewind(self.state.step, resumed.meta.events if resumed else ())
        self.saver = Saver(run_dir)
        for notice in self.start.notices:
            self._notify(notice)

    @property
    def progress(self) -> float:
        """The share of the run that is done, by steps or by minutes, whichever is further."""
        return self.state.progress(self.config.train)

    def train(self) -> None:
        """Train, evaluate and save until the steps or the minutes are over, or the user or the observer stops it.

        Raises UserError where another process trains the run, and for what goes wrong on the way; earlier checkpoints
        are then sound.
        """
        if self.progress >= 1:
            self._observer.notice(
                f"run {self.dir.name} has trained its {self.state.step} steps already: "
                "raise --steps or --minutes to continue, or start over with --fresh"
            )
            self.feed.close()
            return
        with ExitStack() as stack:
            stack.callback(self.feed.close)
            for notice in self.feed.begin(self.state.step * self.config.train.batch_size):
                self._notify(notice)
            stack.enter_context(run_lock(self.dir, self._notify))
            if checkpoints.state_of(self.dir) != self._seen:
                raise UserError(f"run {self.dir.name} was trained by another process meanwhile: give the command again")
            stopped = stack.enter_context(stop_signals(self._observer.interrupted))
            lanes = stack.enter_context(open_lanes(self.fitted))
            stack.push(self._close)
            trainer = Trainer(self.fitted, self.start.arrays, lanes)
            session = Session(
                config=self.config,
                fitted=self.fitted,
                run_dir=self.dir,
                feed=self.feed,
                log=self.log,
                state=self.state,
                trainer=trainer,
                observer=self._observer,
                notify=self._notify,
                stopped=stopped,
            )
            saver = self._prepare(session, lanes)
            Loop(session, saver, self._monitoring).run()
        self._conclude(stopped(), saver.step)

    def _prepare(self, session: Session, lanes: Lanes) -> RunSaver:
        """Restore the state that the run continues from, start the lanes, and announce what is trained."""
        resumed, trainer = self.start.resumed, session.trainer
        is_measured = self._observer.wants_peak_flops and self.fitted.train.device == "cpu"
        peak_gflops = peak_flops_on(lanes) if is_measured and self.config.train.train == "all" else lambda: None
        if resumed:
            trainer.restore(resumed.model, resumed.optimizer)
            resumed.optimizer.clear()
            resumed.model.clear()
        self.start.arrays.clear()  # the trainer has its own
        self._observer.open()  # where that fails, nothing is lost yet
        self._prepare_folder()
        saver = RunSaver(session, self.saver, self.state.step if resumed else -1)
        lanes.begin()  # before a thread saves
        self._observer.notice(announcement(self.config, self.fitted, self.feed, trainer.micro_batch))
        if resumed:
            self._observer.notice(f"continuing run {self.dir.name} after step {self.state.step}")
        if self.feed.warning:
            self._notify(self.feed.warning, loud=True)
        self._observer.begin(
            RunInfo(
                config=self.config,
                source=self.feed.source,
                log=self.log,
                notify=self._notify,
                step=self.state.step,
                work=trainer.work(self.config.train.steps),
                peak_gflops=peak_gflops(),
            )
        )
        return saver

    def _prepare_folder(self) -> None:
        """Delete what the run does not continue from, and write the log: an error of the disk is found now."""
        if self._fresh:
            checkpoints.clear(self.dir)
            for name in (LOG, PICTURE):
                (self.dir / name).unlink(missing_ok=True)
            rmtree(self.dir / TENSORBOARD, ignore_errors=True)
        elif self.start.resumed:
            checkpoints.set_aside(self.dir, self.state.step)  # damaged ones
            checkpoints.prune(self.dir)  # and what a killed save left: its space may be needed
        self.log.save()

    def _close(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until the current save and the picture are finished, but hardly so after an interrupt."""
        at_once = kind is KeyboardInterrupt
        try:
            self.saver.wait(1.0 if at_once else inf)
        finally:
            self._observer.close(at_once)

    def _notify(self, text: str, loud: bool = False) -> None:
        """Show a line to the user, and write it to the log."""
        self._observer.notice(text, loud)
        self.log.notice(text)

    def _conclude(self, is_stopped: bool, saved: int) -> None:
        """Announce how the run ended. Raises UserError where it diverged and has not got past that."""
        if is_stopped:
            same = "the same command" + (" without --fresh" if self._fresh else "")
            self._observer.notice(f"stopped and saved after step {saved}: {same} continues from here")
        elif self.state.divergence.returns:
            raise UserError(
                f"training diverged before its time was over: run {self.dir.name} has it up to step {saved}"
            )
        elif best := self.log.best:
            name = self.dir.as_posix().removeprefix("logs/")  # a run of a sweep is in a subfolder
            figures = {"character": best.bits_per_char, "byte": best.bits_per_byte}
            bits = "".join(f", {value:.3f} bits a {of}" for of, value in figures.items() if value is not None)
            unknown = f" of a text of which {best.unknown:.1%} is unknown to it" if best.unknown else ""
            self._observer.notice(
                f"done: best validation loss {best.val_loss:.3f} nats a token{bits}{unknown}; "
                f"sample it with: python inference.py --run {name}"
            )


def announcement(config: RunConfig, fitted: RunConfig, feed: Feed, micro_batch: int) -> str:
    """Return a line that says what is trained on which text, and how."""
    train = config.train
    place = gpu_in_words(fitted) if fitted.train.device == "cuda" else lanes_in_words(fitted.train.lanes)
    trains = "" if train.train == "all" else f", which trains {trained_in_words(config)}"
    micro = f"{micro_batch} at a time" + (", recomputed" if fitted.train.recompute else "")
    sequences = f"{train.batch_size} sequences of {config.context}"
    return f"{feed.describe()}; a step is {sequences}, {micro}, on {place}{trains}"
