"""`picogpt bench train`: training speed, with the machine's own limits measured in the same minute."""

import time

import numpy as np

from picogpt.bench.matmul_bound import MatmulBound, sgemm_on
from picogpt.config import RunConfig
from picogpt.engine.lanes import Lanes
from picogpt.errors import UserError
from picogpt.model.flops import flops_per_token
from picogpt.model.initialization import initial_arrays
from picogpt.rng import generator
from picogpt.system import hardware
from picogpt.system.terminal import to_stderr
from picogpt.training.device import fitted_here, open_lanes
from picogpt.training.trainer import Trainer

ROUNDS = 5  # one, where there is less than a second for all of them
WARMUP_STEPS = 2  # the first step fills the workspaces, the second reaches the peak of memory


def measure(config: RunConfig, seconds: float) -> dict[str, object]:
    """Train on random ids and return the medians of ROUNDS, each with a measurement of the machine's limits.

    peak_fraction is tokens/s times FLOPs a token over what the same number of threads reach in a large sgemm.
    matmul_fraction is tokens/s over what the lanes reach in this model's matrix products alone, and None where it has
    none. On a GPU both are None. peak_rss_mb is that of training, taken before the limits are measured.
    Raises UserError for no time to measure in.
    """
    if not seconds > 0:
        raise UserError(f"seconds must be positive, not {seconds}")
    config, rounds = fitted_here(config, to_stderr), ROUNDS if seconds >= 1 else 1
    with open_lanes(config) as lanes:
        training = _Training(config, lanes)
        bound = MatmulBound(config, training.trainer.micro_batch, lanes)
        training.tokens_per_second(seconds / rounds, WARMUP_STEPS)
        memory = hardware.peak_memory()
        speeds, peaks, bounds = [], [], []
        for _ in range(rounds):
            speeds.append(training.tokens_per_second(seconds / rounds))
            if config.train.device == "cpu":
                peaks.append(sgemm_on(lanes.count * lanes.blas_threads))
                bounds.append(bound.tokens_per_second(seconds / rounds / 4))
    flops = flops_per_token(config.model)
    possible = [limit for limit in bounds if limit is not None]
    return {
        "tokens_per_second": _median(speeds, 1),
        "sgemm_gflops": _median(peaks, 1) if peaks else None,
        "peak_fraction": _median([s * flops / (p * 1e9) for s, p in zip(speeds, peaks, strict=True)], 3)
        if peaks
        else None,
        "matmul_bound_tokens_per_second": _median(possible, 1) if possible else None,
        "matmul_fraction": _median([s / b for s, b in zip(speeds, possible, strict=True)], 3) if possible else None,
        "peak_rss_mb": round(memory / 2**20, 1),
        "micro_batch": training.trainer.micro_batch,
        "lanes": lanes.count,
        "optimizer": config.train.optimizer,
        "batch_size": config.train.batch_size,
        "context": config.context,
        "mflop_per_token": round(flops / 1e6, 2),
        "machine": hardware.machine(),
    }


class _Training:
    """Trains on one batch of random ids, again and again."""

    def __init__(self, config: RunConfig, lanes: Lanes) -> None:
        seed, shape = config.train.seed, (config.train.batch_size, config.context + 1)
        self.trainer = Trainer(config, initial_arrays(config.model, seed), lanes)
        self._ids = generator(seed, "bench").integers(0, config.model.vocab_size, shape, dtype=np.int32)
        self._done = 0

    def tokens_per_second(self, seconds: float, at_least: int = 1) -> float:
        """Train for about so many seconds and at least so many steps. Returns tokens a second."""
        x, y = self._ids[:, :-1], self._ids[:, 1:]
        began, steps = time.perf_counter(), 0
        while steps < at_least or time.perf_counter() - began < seconds:
            self.trainer.step(x, y, self._done, factor=0.1)
            self._done, steps = self._done + 1, steps + 1
        return steps * x.size / (time.perf_counter() - began)


def _median(values: list[float], digits: int) -> float:
    return round(float(np.median(values)), digits)
