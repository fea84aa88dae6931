"""What the tests of the optimizers share: a few named arrays, and an optimizer of them without a model."""

import numpy as np

from picogpt.config import TrainConfig
from picogpt.engine.lanes import Lanes, SharedArrays
from picogpt.model.parameters import Arrays
from picogpt.optim.optimizer import Optimizer, in_groups
from picogpt.rng import generator

SHAPES = {
    "wte.weight": (40, 12),
    "h.0.ln_1.weight": (12,),
    "h.0.attn.c_attn.weight": (36, 12),
    "h.0.attn.c_attn.bias": (36,),
    "h.0.mlp.c_fc.weight": (48, 12),
    "h.0.mlp.c_proj.weight": (12, 48),
    "lm_head.weight": (40, 12),
}
HIDDEN = [name for name in SHAPES if name.startswith("h.") and len(SHAPES[name]) == 2]


def random_arrays(purpose: str, step: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Arrays:
    """Return normally distributed arrays of these shapes, the same ones for the same purpose and step."""
    rng = generator(0, purpose, step)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


class ExampleOptimizer(Optimizer):
    """Updates copies of the parameters with the gradients that it is given at every step."""

    def __init__(self, config: TrainConfig, parameters: Arrays, lanes: Lanes) -> None:
        grouped = in_groups(config, parameters)
        shared, gradients = SharedArrays.zeros(grouped), SharedArrays.zeros(grouped)
        fill(shared, parameters)
        super().__init__(config, shared, [gradients], lanes)

    def apply(self, gradients: Arrays, step: int, factor: float, scale: float) -> None:
        """Do one step from these gradients, with every transformer block in training."""
        fill(self.gradients[0], gradients)
        self.step(step, factor, scale, depth=99)


def fill(arrays: SharedArrays, values: Arrays) -> None:
    """Copy the values into the arrays of the same names."""
    for name, value in values.items():
        arrays.named[name][...] = value


def in_float64(arrays: Arrays) -> Arrays:
    """Return copies of the arrays in float64."""
    return {name: array.astype(np.float64) for name, array in arrays.items()}
