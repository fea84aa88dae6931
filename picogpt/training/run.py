"""A run: a folder under logs/ with checkpoints and a log, begun, continued or begun from another run."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from picogpt.config import GenerateConfig, RunConfig, UserError
from picogpt.data.feed import Feed, open_feed
from picogpt.data.tokenizer import Tokenizer, from_dict
from picogpt.engine.backend import to_device, to_host
from picogpt.inference.writer import Writer
from picogpt.model.footprint import footprint
from picogpt.model.parameters import Arrays, initial_arrays, parameter_count, parameter_shapes
from picogpt.model.reader import NumpyReader
from picogpt.rng import generator
from picogpt.training import checkpoint, monitor
from picogpt.training.checkpoint import Checkpoint
from picogpt.training.device import fitted_here, gpu_in_words, lanes_in_words, open_lanes
from picogpt.training.optim import learning_rate_factor
from picogpt.training.plot import Plotter
from picogpt.training.runlog import RunLog
from picogpt.training.screen import Screen
from picogpt.training.trainer import Trainer

# What may differ when a run goes on: how long it trains and how the machine does it, not what it learns.
FREE = ("steps", "minutes", "micro_batch", "lanes", "device", "tf32", "recompute", "low_memory", "data", "data_limit")
EVALUATION_SHARE = 0.03  # of the time spent training
SAMPLE = GenerateConfig(tokens=128, temperature=0.5)
SAMPLE_PROMPT = "He is a"


class Run:
    """One training run. `train()` brings it to its last step.

    config: as asked for; its vocabulary may grow to the corpus. run_dir: logs/<name>. init_from: a checkpoint folder
    whose weights and tokenizer the run starts with. Raises UserError for everything the user can put right, before
    anything on the disk is changed.
    """

    def __init__(
        self, config: RunConfig, run_dir: Path, dataset_dir: Path, fresh: bool = False, init_from: Path | None = None
    ) -> None:
        self.dir, self.screen = run_dir, Screen()
        newest = None if fresh else checkpoint.latest(run_dir)
        origin = newest or init_from
        found = checkpoint.load(origin, optimizer=newest is not None) if origin else None
        tokenizer = from_dict(found.meta["tokenizer"]) if found and init_from else None
        if tokenizer and tokenizer.name != config.data.tokenizer:
            raise UserError(f"{init_from} was trained with the tokenizer {tokenizer.name}: leave --tokenizer out")
        self.resumed = found if newest else None
        meta = self.resumed.meta if self.resumed else {}
        train = config.train
        windows = max(8, round(EVALUATION_SHARE * 3 * train.eval_interval * train.batch_size))  # forward is 1/3
        self.feed = open_feed(config, dataset_dir, self.screen.notice, tokenizer, windows, meta.get("feed"))
        self.config = fit_vocabulary(config, self.feed.tokenizer)
        if self.resumed:
            _refuse_differences(self.resumed, self.config, self.feed)
        elif found and parameter_shapes(self.config.model) != {name: a.shape for name, a in found.model.items()}:
            raise UserError(f"{init_from} has another shape than the model asked for: leave the model's flags out")
        self.fitted = fitted_here(self.config, self.screen.notice)
        _require_memory(self.fitted, self.screen.notice)
        if found:
            self.arrays: Arrays = {name: found.model[name] for name in parameter_shapes(self.config.model)}
        else:
            self.arrays = initial_arrays(self.config.model, config.train.seed)
        self.done: int = self.resumed.step if self.resumed else 0
        self._begun = self.feed.begin(self.done * train.batch_size)  # it may fail: before anything is removed
        if fresh:
            _remove_run(run_dir)
        about = {**self.config.to_dict(), "parameters": parameter_count(self.config.model)[0]}
        self.log = RunLog.open(run_dir / "log.pkl", about)
        if self.log.evaluations and not self.resumed:
            raise UserError(f"{run_dir} has a log but no checkpoint to go on from: start over with --fresh")
        self.log.rewind(self.resumed.step if self.resumed else 0)
        self.plotter = Plotter(run_dir / "log.pkl", run_dir / "log.png")
        self.seconds: float = meta.get("seconds", 0.0)
        self.recent: list[float] = meta.get("recent", [])  # training losses since the last evaluation
        self.depth = self.config.model.n_layer  # blocks that train

    def train(self) -> None:
        """Train, evaluate, save, until the steps or the minutes are over or the user stops it."""
        train = self.config.train
        if self._progress() >= 1:
            self.screen.notice(
                f"run {self.dir.name} has trained its {self.done} steps already: raise --steps or --minutes to go on, "
                "or start over with --fresh"
            )
            self.feed.close()
            return
        with ExitStack() as stack:
            lanes = stack.enter_context(open_lanes(self.fitted))
            stopped = stack.enter_context(_signals(self.screen.notice))
            stack.callback(self.feed.close)
            stack.callback(self._finish_plot)
            stack.callback(self.screen.close)
            self._tell(self._begun)
            trainer = Trainer(self.fitted, self.arrays, lanes)
            if self.resumed:
                for name, array in trainer.optimizer.state.items():
                    array[...] = to_device(self.resumed.optimizer[name], array)
                self.resumed.optimizer.clear()
                self.resumed.model.clear()
            self.arrays.clear()  # the trainer has its own
            self.log.save()  # a folder that cannot be written to is found now, not at the first evaluation
            self._announce(trainer)
            if self.feed.warning:
                self.screen.warning(self.feed.warning)
                self.log.notice(self.feed.warning)
            self.screen.start(self.done, train.steps, train.minutes, _work(trainer, train.steps))
            saved = self.done
            clock = _Clock()
            while self._progress() < 1 and not stopped():
                self._step(trainer, clock)
                if self.done % train.eval_interval == 0 or self._progress() >= 1:
                    self._evaluate(trainer, clock)
                    saved = self.done
            if saved != self.done:
                self._save(trainer, None)
        self._farewell(stopped())

    def _progress(self) -> float:
        """Share of the run that is done, by steps or by minutes, whichever is further."""
        train = self.config.train
        return max(self.done / train.steps, self.seconds / (60 * train.minutes) if train.minutes else 0.0)

    def _step(self, trainer: Trainer, clock: "_Clock") -> None:
        train = self.config.train
        position = self.done * train.batch_size
        self._tell(self.feed.look(position))
        x, y = self.feed.batch(position, train.batch_size)
        progress = self._progress()
        self.factor, depth = learning_rate_factor(train, self.done, progress), trainer.depth_at(progress)
        if depth != self.depth:
            self.depth = depth
            self.screen.notice(f"from step {self.done + 1:,} on {depth} of {self.config.model.n_layer} blocks train")
        loss = trainer.step(x, y, self.done, self.factor, depth)
        self.done += 1
        self.recent.append(loss)
        self.seconds += clock.lap()
        clock.trained(y.size)
        self.screen.step(self.done, loss, clock.tokens_per_second, self.seconds, self.feed.status())

    def _tell(self, notices: list[str]) -> None:
        """What the user should know now, and find in the log again."""
        for notice in notices:
            self.screen.notice(notice)
            self.log.notice(notice)

    def _evaluate(self, trainer: Trainer, clock: "_Clock") -> None:
        entry: dict[str, Any] = {
            "step": self.done,
            "tokens": self.done * self.config.train.batch_size * self.config.context,
            "lr": self.config.train.learning_rate * self.factor,
            "train_loss": float(np.mean(self.recent)),
            "val_loss": trainer.evaluate(*self.feed.validation),
            "tokens_per_second": clock.tokens_per_second,
            "memory_mb": monitor.peak_memory() / 2**20,
            "sample": self._sample(trainer),
            **({"text": self.feed.text} if self.feed.text else {}),
        }
        self.seconds += clock.lap()
        entry["seconds"] = self.seconds
        self.recent.clear()
        # The log first: one that is ahead of its checkpoint is cut back on resuming, one behind would have a gap.
        self.log.evaluation(**entry)
        self.log.save()
        self.screen.evaluation(entry)
        self._save(trainer, entry["val_loss"])
        self.plotter.redraw()
        self.seconds += clock.lap()
        clock.reset()

    def _finish_plot(self) -> None:
        self.plotter.close()
        if self.plotter.problem:
            self.screen.notice(self.plotter.problem)

    def _sample(self, trainer: Trainer) -> str:
        tokenizer = self.feed.tokenizer
        writer = Writer(self.config.model, tokenizer, lambda batch: NumpyReader(trainer.replicas[0], batch))
        seed = int(generator(self.config.train.seed, "sample", self.done).integers(1 << 31))
        shown = tokenizer.decode(tokenizer.encode(SAMPLE_PROMPT))
        return shown + "".join(writer.stream(SAMPLE_PROMPT, replace(SAMPLE, seed=seed)))

    def _save(self, trainer: Trainer, val_loss: float | None) -> None:
        meta = {
            "config": self.config.to_dict(),
            "tokenizer": self.feed.tokenizer.to_dict(),
            "data": self.feed.fingerprint,
            "feed": self.feed.state,
            "text": self.feed.text,
            "val_loss": val_loss,
            "seconds": self.seconds,
            "recent": self.recent,
        }
        model, optimizer = (
            {name: to_host(array) for name, array in arrays.items()}
            for arrays in (trainer.arrays, trainer.optimizer.state)
        )
        checkpoint.save(self.dir, self.done, model, optimizer, meta)
        checkpoint.prune(self.dir)

    def _announce(self, trainer: Trainer) -> None:
        train = self.config.train
        place = gpu_in_words(self.fitted) if self.fitted.train.device == "cuda" else lanes_in_words(trainer.lanes.count)
        micro = f"{trainer.micro_batch} at a time" + (", recomputed" if self.fitted.train.recompute else "")
        self.screen.notice(
            f"{self.feed.describe()}; a step is "
            f"{train.batch_size} sequences of {self.config.context}, {micro}, on {place}"
        )
        if self.resumed:
            self.screen.notice(f"going on with run {self.dir.name} after step {self.done}")

    def _farewell(self, stopped: bool) -> None:
        if stopped:
            self.screen.notice(f"stopped and saved after step {self.done}: the same command goes on from here")
        elif (best := self.log.best_loss) is not None:
            self.screen.notice(
                f"done: best validation loss {best:.3f}; sample it with: python inference.py --run {self.dir.name}"
            )


def _work(trainer: Trainer, steps: int) -> Callable[[int], float]:
    """What so many first steps cost: a step as much as it trains blocks."""
    progress = np.linspace(0, 1, 1001)
    work = np.concatenate([[0], np.cumsum([max(1, trainer.depth_at(share)) for share in progress[:-1]])])
    return lambda step: float(np.interp(step / steps, progress, work))


class _Clock:
    """Seconds since the last look, and training speed since the last evaluation."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.reset()

    def reset(self) -> None:
        self._tokens, self._seconds = 0, 0.0

    def lap(self) -> float:
        now = time.perf_counter()
        self._lap, self._last = now - self._last, now
        return self._lap

    def trained(self, tokens: int) -> None:
        """The last lap trained on so many tokens."""
        self._tokens += tokens
        self._seconds += self._lap

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / self._seconds if self._seconds else 0.0


def fit_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """A table with a row for every token; rows the tokenizer does not use stay as the config has them."""
    size = max(config.model.vocab_size, tokenizer.vocab_size)
    return replace(config, model=replace(config.model, vocab_size=size))


def _require_memory(config: RunConfig, notify: Callable[[str], None]) -> None:
    """Raises UserError where the machine could never hold the run, and says so where it cannot now."""
    if config.train.device == "cuda":
        return  # its own memory was looked at
    batch = 2 * 4 * config.train.batch_size * config.context
    needed, total = footprint(config).total + batch, monitor.total_memory()
    if needed > total:
        raise UserError(
            f"this run needs about {needed / 2**30:,.1f} GB of memory and the machine has {total / 2**30:,.1f}: "
            "try --low-memory, a smaller --batch-size or a smaller model"
        )
    if needed > (free := monitor.available_memory()):
        notify(
            f"this run needs about {needed / 2**20:,.0f} MB of memory and {free / 2**20:,.0f} are free: it may swap; "
            "close other programs or try --low-memory"
        )


def _refuse_differences(saved: Checkpoint, config: RunConfig, feed: Feed) -> None:
    """Raises UserError where a run was trained with other settings or on another text than asked for now."""
    before = RunConfig.from_dict(saved.meta["config"])
    free = {name: getattr(config.train, name) for name in FREE if hasattr(config.train, name)}
    # One window is the default context, and it is the text that counts, not what it is called.
    old = replace(before.train, context=before.context, **free)
    new = replace(config.train, context=config.context)
    differences = [
        f"{field.name} was {getattr(mine, field.name)}, now {getattr(yours, field.name)}"
        for mine, yours in ((before.model, config.model), (before.data, config.data), (old, new))
        for field in fields(mine)
        if field.name not in FREE and getattr(mine, field.name) != getattr(yours, field.name)
    ]
    if not differences and saved.meta["data"] != feed.fingerprint:
        differences = [f"the text of {feed.source} has changed"]
    if differences:
        name = saved.path.parent.parent.name
        raise UserError(
            f"run {name} was trained differently ({'; '.join(differences)}): "
            "give the old settings to go on, another --run NAME, or --fresh to start over"
        )


def _remove_run(run_dir: Path) -> None:
    """Forget what was trained here. Files that are not ours stay."""
    checkpoint.clear(run_dir)
    for name in ("log.pkl", "log.png"):
        (run_dir / name).unlink(missing_ok=True)


@contextmanager
def _signals(notify: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """While open, Ctrl-C, SIGTERM or a closed terminal asks to stop after the step in hand, a second at once."""
    asked: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        notify("stopping after this step; once more to stop at once")

    previous = {}
    if threading.current_thread() is threading.main_thread():  # no other may ask for signals
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        previous = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
