"""What holds for both optimizers: updates in place, from any number of lanes, of summed gradients; and the state."""

from typing import Any

import numpy as np
import pytest

from picogpt.config import TrainConfig
from picogpt.engine.backend import BLOCK
from picogpt.engine.lanes import Lanes, SharedArrays
from picogpt.optim.optimizer import Optimizer, in_groups, state_shapes
from tests.support.optimizers import SHAPES, ExampleOptimizer, fill, in_float64, random_arrays

LARGE = {
    "wte.weight": (BLOCK // 32 + 3, 64),  # more than one slice of AdamW's
    "h.0.attn.c_attn.weight": (192, 64),
    "h.0.mlp.c_fc.weight": (256, 64),
    "h.0.mlp.c_proj.weight": (64, 256),
    "ln_f.weight": (64,),
}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_number_of_lanes_does_not_matter(optimizer: Any) -> None:
    results = []
    for count in (1, 2, 3):
        arrays = random_arrays("parameters", shapes=LARGE)
        with Lanes(count) as pool:
            example = ExampleOptimizer(TrainConfig(optimizer=optimizer), arrays, pool)
            for step in range(3):
                example.apply(random_arrays("gradients", step, LARGE), step, 1.0, 0.9)
        results.append({**example.parameters.named, **example.state})
    for other in results[1:]:
        for name, array in results[0].items():
            assert array.tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_arrays_are_changed_in_place(lanes: Lanes, optimizer: Any) -> None:
    example = ExampleOptimizer(TrainConfig(optimizer=optimizer), random_arrays("parameters"), lanes)
    held, before, state = dict(example.parameters.named), in_float64(example.parameters.named), dict(example.state)
    gradients = random_arrays("gradients")
    example.apply(gradients, 0, 1.0, 1.0)
    for name, array in example.parameters.named.items():
        assert array is held[name] and not np.array_equal(array, before[name])
        assert np.array_equal(example.gradients[0].named[name], gradients[name]), "the gradient is only read"
    assert all(example.state[name] is array and array.any() for name, array in state.items())


@pytest.mark.parametrize("busy", [1, 2, 3])
def test_gradients_of_the_lanes_are_summed(lanes: Lanes, busy: int) -> None:
    config, parameters = TrainConfig(), SharedArrays.zeros(in_groups(TrainConfig(), random_arrays("lane", 0, LARGE)))
    gradients = [SharedArrays.zeros(parameters.named) for _ in range(3)]
    for lane, own in enumerate(gradients):
        fill(own, random_arrays("lane", lane, LARGE))
    expected = {name: sum(in_float64(own.named)[name] for own in gradients[:busy]) for name in LARGE}
    squares = Optimizer(config, parameters, gradients, lanes).reduce(busy)
    for name, total in expected.items():
        np.testing.assert_allclose(gradients[0].named[name], total, atol=1e-6)
    assert sum(squares) == pytest.approx(sum((total**2).sum() for total in expected.values()), rel=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_shapes_of_the_state_are_known_beforehand(lanes: Lanes, name: Any) -> None:
    config = TrainConfig(optimizer=name)
    state = ExampleOptimizer(config, random_arrays("parameters"), lanes).state
    assert {key: array.shape for key, array in state.items()} == state_shapes(config, SHAPES)
