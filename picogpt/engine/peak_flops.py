"""The speed of large matrix products on this machine: the peak that training is measured against."""

import time
from collections.abc import Callable

import numpy as np

from picogpt.engine.lanes import Lanes
from picogpt.rng import generator


def sgemm_gflops(size: int, rounds: int) -> float:
    """Return the GFLOP/s of a float32 product of two (size, size) matrices, the median of `rounds`."""
    a = generator(0, "sgemm").standard_normal((size, size), np.float32)
    c = np.empty_like(a)
    np.matmul(a, a, out=c)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        np.matmul(a, a, out=c)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / float(np.median(times)) / 1e9


def peak_flops_on(lanes: Lanes) -> Callable[[], float]:
    """Return a callable that measures the peak GFLOP/s of all lanes at once. It is a task, made before lanes begin."""
    on_lanes = lanes.task(lambda lane, size, rounds: sgemm_gflops(size, rounds))
    return lambda: sum(on_lanes([1024] * lanes.count, 3))
