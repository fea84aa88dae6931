"""Parameters for models in tests."""

import numpy as np

from picogpt.config import ModelConfig
from picogpt.model.parameters import Arrays, parameter_shapes
from picogpt.rng import generator


def lively_arrays(config: ModelConfig, dtype: type = np.float32) -> Arrays:
    """Return parameters so large that each of them changes the logits; initial values are nearly zero."""
    arrays = {}
    for name, shape in parameter_shapes(config).items():
        noise = generator(0, name).standard_normal(shape) * 0.3
        arrays[name] = (noise + (".ln_" in f".{name}" and name.endswith(".weight"))).astype(dtype)
    return arrays
