"""Upper bounds of training speed: what a machine's matrix multiplication allows.

N rows   C width   V vocabulary   P positions of a window   H heads   D head size (C = H D)   B sequences
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
from threadpoolctl import threadpool_limits

from picogpt.config import ModelConfig, RunConfig
from picogpt.engine.backend import Array
from picogpt.engine.lanes import Lanes
from picogpt.engine.peak_flops import sgemm_gflops
from picogpt.rng import generator

SGEMM_SIZE = 2048

Operands = tuple[Array, Array, Array]  # left, right, out


def sgemm_on(threads: int) -> float:
    """Measure a large matrix product on this many BLAS threads, in billions of float32 operations a second."""
    with threadpool_limits(threads, user_api="blas"):
        return sgemm_gflops(SGEMM_SIZE, 5)


class MatmulBound:
    """Runs only the matrix products of a forward and backward pass over one micro-batch, on every lane.

    They are the dense layers, the head, and attention as T x T products a head, of which none is skipped for being
    causal. Every layer and window uses the same operands. `shapes` says how often each product comes in one pass.
    """

    def __init__(self, config: RunConfig, micro_batch: int, lanes: Lanes) -> None:
        self.lanes, self.tokens = lanes, micro_batch * config.context
        windows = config.context // config.window
        self._times = [windows * config.model.n_layer, windows]  # of a block's products, of the head's
        model = replace(config.model, context_len=config.window)
        self._make = cache(lambda: _products(model, micro_batch))  # once a lane, at first use
        self._on_lanes = lanes.task(self._run)

    @property
    def shapes(self) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
        """The shape of the left side, that of the right side, and how often, for each product."""
        groups = zip(self._make(), self._times, strict=True)
        return [(left.shape, right.shape, times) for group, times in groups for left, right, _ in group]

    def tokens_per_second(self, seconds: float) -> float | None:
        """Measure for about so many seconds, at least one pass. Returns None where the model has no matrix product."""
        return sum(self._on_lanes(range(self.lanes.count), seconds)) if self.shapes else None

    def _run(self, lane: int, _: int, seconds: float) -> float:
        """Measure on one lane. Returns tokens a second."""
        groups = self._make()
        began, passes = time.perf_counter(), 0
        while passes == 0 or time.perf_counter() - began < seconds:
            for group, times in zip(groups, self._times, strict=True):
                for _ in range(times):
                    for left, right, out in group:
                        np.matmul(left, right, out=out)
            passes += 1
        return passes * self.tokens / (time.perf_counter() - began)


def _products(config: ModelConfig, B: int) -> tuple[list[Operands], list[Operands]]:
    """Return the operands of one block's products and of the head's: forward, then backward."""
    if config.n_layer == 0:
        return [], []  # a bigram table is looked up
    C, P, rng = config.n_embd, config.n_position, generator(0, "bound")

    def filled(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    # The head reads the tokens' positions only.
    dense = [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)]
    block = [product for K, M in dense for product in _linear(filled, B * P, K, M)]
    block += _attention(filled, B, config.n_head, P, config.head_size)
    return block, list(_linear(filled, B * config.context_len, C, config.vocab_size))


def _linear(filled: Callable[..., Array], N: int, K: int, M: int) -> Iterator[Operands]:
    """Yield the operands of y = x W^T, dx = dy W, dW = dy^T x. x (N, K), W (M, K), y (N, M)."""
    x, weight, y = filled(N, K), filled(M, K), filled(N, M)
    yield x, weight.T, y
    yield y, weight, np.empty_like(x)
    yield y.T, x, np.empty_like(weight)


def _attention(filled: Callable[..., Array], B: int, H: int, P: int, D: int) -> Iterator[Operands]:
    """Yield the operands of the scores, their product with V, and the gradients of V, the weights, Q and K."""
    q, k, v = filled(B, H, P, D), filled(B, H, P, D), filled(B, H, P, D)
    weights, result = filled(B, H, P, P), np.empty((B, H, P, D), np.float32)
    yield q, k.swapaxes(2, 3), weights
    yield weights, v, result
    yield weights.swapaxes(2, 3), q, result  # dV: its right side is dO, of Q's shape
    yield q, v.swapaxes(2, 3), weights  # dO V^T
    yield weights, k, result  # dQ
    yield weights.swapaxes(2, 3), q, result  # dK
