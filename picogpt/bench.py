"""`picogpt bench`: speed, measured beside the machine's own limit in the same minute."""

import json
import time

import numpy as np
from rich.console import Console
from threadpoolctl import threadpool_limits

from picogpt.config import RunConfig
from picogpt.engine.lanes import Lanes
from picogpt.model.parameters import flops_per_token, initial_arrays
from picogpt.rng import generator
from picogpt.training import monitor
from picogpt.training.trainer import Trainer

SGEMM_SIZE = 2048
ROUNDS = 5


def bench_train(config: RunConfig, seconds: float, as_json: bool) -> None:
    """Train on random ids and print the medians of five rounds, each beside a measurement of sgemm.

    roof_fraction is tokens/s times FLOPs a token over what the same number of threads reach in a large sgemm.
    """
    arrays = initial_arrays(config.model, config.train.seed)
    rng = generator(config.train.seed, "bench")
    ids = rng.integers(0, config.model.vocab_size, (config.train.batch_size, config.context + 1), dtype=np.int32)
    lanes_count = config.train.lanes or monitor.physical_cores()
    speeds, roofs, fractions = [], [], []
    with Lanes(lanes_count) as lanes:
        trainer = Trainer(config, arrays, lanes)
        step = 0
        for round_ in range(ROUNDS + 1):  # the first warms up
            began, tokens = time.perf_counter(), 0
            while tokens == 0 or time.perf_counter() - began < seconds / ROUNDS:
                trainer.step(ids[:, :-1], ids[:, 1:], step, factor=0.1)
                step, tokens = step + 1, tokens + ids.shape[0] * config.context
            speed = tokens / (time.perf_counter() - began)
            roof = sgemm_gflops(lanes_count)
            if round_:
                speeds.append(speed)
                roofs.append(roof)
                fractions.append(speed * flops_per_token(config.model) / (roof * 1e9))
    result = {
        "tokens_per_second": round(float(np.median(speeds)), 1),
        "sgemm_gflops": round(float(np.median(roofs)), 1),
        "roof_fraction": round(float(np.median(fractions)), 3),
        "peak_rss_mb": round(monitor.peak_memory() / 2**20, 1),
        "micro_batch": trainer.micro_batch,
        "lanes": lanes_count,
        "optimizer": config.train.optimizer,
        "batch_size": config.train.batch_size,
        "context": config.context,
        "mflop_per_token": round(flops_per_token(config.model) / 1e6, 2),
        "machine": monitor.machine(),
    }
    if as_json:
        print(json.dumps(result))
        return
    console = Console()
    for name, value in result.items():
        console.print(f"{name:18} {value}", highlight=False)


def sgemm_gflops(threads: int) -> float:
    """Billions of float32 operations a second of this many BLAS threads in a large matrix product."""
    a = generator(0, "sgemm").standard_normal((SGEMM_SIZE, SGEMM_SIZE), np.float32)
    c = np.empty_like(a)
    with threadpool_limits(threads, user_api="blas"):
        np.matmul(a, a, out=c)
        times = []
        for _ in range(5):
            began = time.perf_counter()
            np.matmul(a, a, out=c)
            times.append(time.perf_counter() - began)
    return 2 * SGEMM_SIZE**3 / float(np.median(times)) / 1e9
