"""The schedules of the learning rate."""

from dataclasses import replace
from math import cos, pi

import numpy as np
import pytest

from picogpt.config import TrainConfig
from picogpt.optim.schedule import learning_rate_factor


def test_warm_up_stable_decay() -> None:
    config = TrainConfig(schedule="wsd", warmup_steps=10, decay_fraction=0.4, min_lr_fraction=0.1)
    factors = [learning_rate_factor(config, step, step / 100) for step in range(100)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    assert all(factor == 1.0 for factor in factors[9:61])
    np.testing.assert_allclose(factors[60:], 0.1 + 0.9 * (1 - np.arange(60, 100) / 100) / 0.4)
    assert np.all(np.diff(factors[60:]) < 0) and factors[-1] > 0.1
    assert learning_rate_factor(config, 100, 1.0) == pytest.approx(0.1)


def test_cosine() -> None:
    config = TrainConfig(schedule="cosine", warmup_steps=0, min_lr_fraction=0.2)
    for progress in (0.0, 0.25, 0.5, 0.9, 1.0):
        expected = 0.2 + 0.8 * (1 + cos(pi * progress)) / 2
        assert learning_rate_factor(config, 7, progress) == pytest.approx(expected)
    assert learning_rate_factor(replace(config, warmup_steps=16), 7, 0.0) == 0.5


def test_a_constant_rate() -> None:
    config = TrainConfig(schedule="wsd", warmup_steps=0, decay_fraction=0.0)
    assert {learning_rate_factor(config, step, step / 50) for step in range(50)} == {1.0}


def test_decay_over_the_whole_run() -> None:
    config = TrainConfig(schedule="wsd", warmup_steps=0, decay_fraction=1.0)
    assert [learning_rate_factor(config, step, step / 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_decay_follows_progress_and_warm_up_follows_steps() -> None:
    """Progress may come from the clock: then few steps still decay, and many steps do not."""
    config = TrainConfig(schedule="wsd", warmup_steps=10, decay_fraction=0.5)
    assert learning_rate_factor(config, 3, 0.75) == pytest.approx(0.4 * 0.5)
    assert learning_rate_factor(config, 10**6, 0.25) == 1.0
