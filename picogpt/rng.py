"""Randomness is an argument: a generator is a pure function of the run's seed, its purpose and counters."""

from zlib import crc32

import numpy as np


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """The same (seed, purpose, counters) gives the same stream everywhere; different ones are independent."""
    return np.random.default_rng([seed, crc32(purpose.encode()), *counters])
