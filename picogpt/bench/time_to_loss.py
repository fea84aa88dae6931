"""`picogpt bench time-to-loss`: how long it takes to learn a text, from opening it to a loss on what was held back."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from picogpt.config import DataConfig, RunConfig
from picogpt.data.loader import Loader, validation_windows
from picogpt.data.prepare import prepare
from picogpt.data.sources.corpora import open_corpus
from picogpt.errors import UserError
from picogpt.evaluation.loss import full_loss
from picogpt.model.initialization import initial_arrays
from picogpt.model.parameters import parameter_count
from picogpt.optim.schedule import learning_rate_factor
from picogpt.system import hardware
from picogpt.system.terminal import to_stderr
from picogpt.training.device import fitted_here, open_lanes
from picogpt.training.resume import fit_vocabulary
from picogpt.training.trainer import Trainer

SLICE = 16  # one validation window in so many is looked at along the way

NEAR = 0.03  # nats from the target at which all of them are


@dataclass(frozen=True)
class Outcome:
    """How one seed went: `seconds` without the evaluations over the whole validation split, `total_seconds` with."""

    reached: bool
    steps: int
    val_loss: float
    seconds: float
    total_seconds: float
    peak: int  # bytes of memory

    def sentence(self, target: float) -> str:
        figures = f"validation loss {self.val_loss:.4f} after {self.steps:,} steps and {self.seconds:.1f} s"
        return figures if self.reached else f"NOT REACHED: {figures}, where {target:g} was asked for"


def measure(
    config: RunConfig, target: float, seeds: Sequence[int], dataset_dir: Path, tell: Callable[[int, Outcome], None]
) -> dict[str, Any]:
    """Train from scratch with each seed until the validation loss is at most `target`, or to the end of the schedule.

    The clock starts when the text is opened and runs through tokenizing, initialisation, every step and the looks at
    one validation window in 16 that tell when a full evaluation is worth it, every eval_interval steps. It stands
    still during the full evaluations. `dataset_dir`: where a corpus that is downloaded lands, before the clock starts.
    `tell` is told each seed's outcome. The result has one entry a seed under each of Outcome's names.
    Raises UserError for what is wrong with the text or the options, and where training diverges.
    """
    if not seeds:
        raise UserError("there is nothing to measure without a seed: give --seeds 1 2 3")
    if not isfinite(target):
        raise UserError(f"target must be a finite number, not {target}")
    data = _on_disk(config.data, dataset_dir)
    outcomes = []
    for seed in seeds:
        seeded = replace(config, data=data, train=replace(config.train, seed=seed))
        # Where a failure still holds the token files open, Windows cannot delete them: the failure is the news.
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            outcomes.append(race(seeded, target, Path(folder)))
        tell(seed, outcomes[-1])
    return {
        "seconds": [round(outcome.seconds, 2) for outcome in outcomes],
        "val_loss": [round(outcome.val_loss, 6) for outcome in outcomes],
        "reached": [outcome.reached for outcome in outcomes],
        "steps": [outcome.steps for outcome in outcomes],
        "total_seconds": [round(outcome.total_seconds, 2) for outcome in outcomes],
        "seeds": list(seeds),
        "target": target,
        "parameters": parameter_count(config.model)[0],
        "peak_rss_mb": round(max(outcome.peak for outcome in outcomes) / 2**20, 1),
        "machine": hardware.machine(),
    }


def _on_disk(data: DataConfig, dataset_dir: Path) -> DataConfig:
    """The same text as files of this disk, downloaded if need be: a download is not training."""
    files = open_corpus(data, dataset_dir).files
    return replace(data, data=str(files[0])) if len(files) == 1 else data


def race(config: RunConfig, target: float, dataset_dir: Path) -> Outcome:
    """Train one seed. Tokens are written to `dataset_dir`."""
    train = config.train
    began, evaluating = time.perf_counter(), 0.0  # evaluating: seconds that do not count

    def seconds() -> float:
        return time.perf_counter() - began - evaluating

    data = prepare(config.data, dataset_dir, lambda _: None)
    loader = Loader(data.train, config.context, train.seed)
    glance = validation_windows(data.val, config.context, max(1, len(data.val) // config.context // SLICE))
    config = fitted_here(fit_vocabulary(config, data.tokenizer), to_stderr)
    with open_lanes(config) as lanes:
        trainer = Trainer(config, initial_arrays(config.model, train.seed), lanes)
        done, progress = 0, 0.0
        while True:
            x, y = loader.batch(done * train.batch_size, train.batch_size)
            trainer.step(x, y, done, learning_rate_factor(train, done, progress), trainer.depth_at(progress))
            done += 1
            progress = max(done / train.steps, seconds() / (60 * train.minutes) if train.minutes else 0.0)
            if progress >= 1 or (done % train.eval_interval == 0 and trainer.evaluate(*glance) < target + NEAR):
                paused = time.perf_counter()
                loss = full_loss(trainer, data.val)
                evaluating += time.perf_counter() - paused
                if loss <= target or progress >= 1:
                    total = seconds() + evaluating
                    return Outcome(loss <= target, done, loss, seconds(), total, hardware.peak_memory())
