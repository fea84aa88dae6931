"""`picogpt bench time-to-loss`: how long training takes, from opening a text to a validation loss."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

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

SLICE = 16  # one validation window in so many is evaluated along the way
NEAR = 0.03  # nats from the target at which all of them are


@dataclass(frozen=True)
class SeedResult:
    """Result of one seed: `seconds` without the evaluations over the whole validation split, `total_seconds` with."""

    reached: bool
    steps: int
    val_loss: float
    seconds: float
    total_seconds: float
    peak: int  # bytes of memory

    def sentence(self, target: float) -> str:
        """Return the result in words."""
        figures = f"validation loss {self.val_loss:.4f} after {self.steps:,} steps and {self.seconds:.1f} s"
        return figures if self.reached else f"NOT REACHED: {figures}, where {target:g} was asked for"


def measure(
    config: RunConfig, target: float, seeds: Sequence[int], dataset_dir: Path, report: Callable[[int, SeedResult], None]
) -> dict[str, object]:
    """Train from scratch with each seed until the validation loss is at most `target`, or to the end of the schedule.

    The clock starts when the text is opened. It includes tokenizing, initialisation, every step and, every
    eval_interval steps, the loss on one validation window in 16, which tells whether a full evaluation is worthwhile.
    It is stopped during full evaluations. `dataset_dir`: where a corpus is downloaded to, before the clock starts.
    `report` gets each seed's result. Under each name of a SeedResult's fields there is one value a seed.
    Raises UserError for what is wrong with the text or the options, and where training diverges.
    """
    if not seeds:
        raise UserError("there is nothing to measure without a seed: give --seeds 1 2 3")
    if not isfinite(target):
        raise UserError(f"target must be a finite number, not {target}")
    data = _on_disk(config.data, dataset_dir)
    results = []
    for seed in seeds:
        seeded = replace(config, data=data, train=replace(config.train, seed=seed))
        # After a failure the token files may still be open, and Windows cannot delete them: the failure is reported.
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            results.append(race(seeded, target, Path(folder)))
        report(seed, results[-1])
    return {
        "seconds": [round(result.seconds, 2) for result in results],
        "val_loss": [round(result.val_loss, 6) for result in results],
        "reached": [result.reached for result in results],
        "steps": [result.steps for result in results],
        "total_seconds": [round(result.total_seconds, 2) for result in results],
        "seeds": list(seeds),
        "target": target,
        "parameters": parameter_count(config.model)[0],
        "peak_rss_mb": round(max(result.peak for result in results) / 2**20, 1),
        "machine": hardware.machine(),
    }


def _on_disk(data: DataConfig, dataset_dir: Path) -> DataConfig:
    """Return the data as a file on this disk, downloaded where necessary: a download is not training."""
    files = open_corpus(data, dataset_dir).files
    return replace(data, data=str(files[0])) if len(files) == 1 else data


def race(config: RunConfig, target: float, dataset_dir: Path) -> SeedResult:
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
                    return SeedResult(loss <= target, done, loss, seconds(), total, hardware.peak_memory())
