"""AdamW against a float64 reference, and what its step size and weight decay promise."""

import numpy as np
import pytest

from picogpt.config import TrainConfig
from picogpt.engine.backend import BLOCK
from picogpt.engine.lanes import Lanes
from picogpt.optim import adamw
from picogpt.rng import generator
from tests.support.optimizers import SHAPES, ExampleOptimizer, in_float64, random_arrays

STEPS = 60


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_against_float64(lanes: Lanes, weight_decay: float) -> None:
    config = TrainConfig(optimizer="adamw", learning_rate=3e-3, weight_decay=weight_decay, beta2=0.95)
    arrays = random_arrays("parameters")
    expected, optimizer = in_float64(arrays), ExampleOptimizer(config, arrays, lanes)
    mean, square = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for step in range(STEPS):
        gradients = random_arrays("gradients", step)
        factor, scale = 0.5 + step / STEPS, 0.7
        optimizer.apply(gradients, step, factor, scale)
        rate = config.learning_rate * factor
        for name, p in expected.items():
            g = gradients[name].astype(np.float64) * scale
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.95 * square[name] + 0.05 * g * g
            corrected = mean[name] / (1 - 0.9 ** (step + 1))
            spread = np.sqrt(square[name] / (1 - 0.95 ** (step + 1))) + 1e-8
            if p.ndim == 2:  # no decay for gains and biases
                p *= 1 - rate * weight_decay
            p -= rate * corrected / spread
    for name, p in expected.items():
        np.testing.assert_allclose(optimizer.parameters.named[name], p, atol=3e-6, err_msg=name)
        np.testing.assert_allclose(optimizer.state[f"mean.{name}"], mean[name], atol=1e-6)
        np.testing.assert_allclose(optimizer.state[f"square.{name}"], square[name], atol=1e-6)


def test_the_first_adamw_step_is_the_learning_rate(lanes: Lanes) -> None:
    """Whatever the gradient's size: bias correction makes mean / sqrt(square) its sign."""
    arrays = random_arrays("parameters")
    before = in_float64(arrays)
    gradients = {name: 1e-3 * array for name, array in random_arrays("gradients").items()}
    config = TrainConfig(optimizer="adamw", learning_rate=0.01, weight_decay=0.0)
    example = ExampleOptimizer(config, arrays, lanes)
    example.apply(gradients, 0, 1.0, 1.0)
    for name, array in example.parameters.named.items():
        big = np.abs(gradients[name]) > 1e-5
        np.testing.assert_allclose((before[name] - array)[big], 0.01 * np.sign(gradients[name][big]), rtol=2e-3)


def test_decay_alone_shrinks_matrices_only(lanes: Lanes) -> None:
    arrays = random_arrays("parameters")
    before = in_float64(arrays)
    zeros = {name: np.zeros_like(array) for name, array in arrays.items()}
    config = TrainConfig(optimizer="adamw", learning_rate=0.1, weight_decay=0.5)
    example = ExampleOptimizer(config, arrays, lanes)
    example.apply(zeros, 0, 0.5, 1.0)
    for name, array in example.parameters.named.items():
        factor = 1 - 0.1 * 0.5 * 0.5 if array.ndim == 2 else 1.0
        np.testing.assert_allclose(array, before[name] * factor, rtol=1e-6)


def test_the_slices_cover_every_element_once() -> None:
    like = np.empty(0, np.float32)
    for start, stop in ((0, 0), (5, 6), (16, 16 + 3 * BLOCK + 7)):
        parts = adamw.slices(start, stop, like)
        covered = [i for part in parts for i in range(part.start, part.stop)]
        assert covered == list(range(start, stop))


def test_an_update_can_be_cut_anywhere() -> None:
    """The bits of an element do not depend on the slice that it is updated in."""
    arrays = [generator(0, "arrays", i).standard_normal(1000, np.float32) for i in range(3)]
    whole, parts = ([*map(np.copy, arrays), np.abs(arrays[0])] for _ in range(2))
    how = {"step": 3, "rate": 0.01, "decay": 0.001, "betas": (0.9, 0.95), "gradient_scale": 0.7}
    adamw.update(*whole, **how)
    for part in (slice(0, 1), slice(1, 334), slice(334, 1000)):
        adamw.update(*(array[part] for array in parts), **how)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert np.array_equal(whole[1], arrays[1]), "the gradient is only read"
    assert not np.array_equal(whole[0], arrays[0])
