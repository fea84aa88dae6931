"""What training costs in memory, and the micro-batch that follows from it."""

from dataclasses import dataclass
from math import prod

from picogpt.config import RunConfig
from picogpt.engine.ops.attention import QUERY_BLOCK
from picogpt.model.parameters import is_hidden_matrix, parameter_count, parameter_shapes

FLOAT = 4  # bytes
CACHE_BYTES = 2 << 20  # of the widest activation of a micro-batch: about what stays near a core's caches
ACTIVATION_BYTES = 256 << 20  # of all lanes' activations


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training run, beside the interpreter's own."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def footprint(config: RunConfig, lanes: int) -> Footprint:
    """Bytes for weights, all lanes' gradients, the optimizer's state, and all lanes' activations."""
    weights = FLOAT * parameter_count(config.model)[0]
    shapes = parameter_shapes(config.model).items()
    matrices = FLOAT * sum(prod(shape) for name, shape in shapes if is_hidden_matrix(name, shape))
    optimizer = 2 * weights - (matrices if config.train.optimizer == "muon" else 0)
    micro_batch = config.train.micro_batch or choose_micro_batch(config, lanes)
    return Footprint(weights, lanes * weights, optimizer, lanes * micro_batch * sequence_bytes(config))


def sequence_bytes(config: RunConfig) -> int:
    """Bytes one training sequence keeps until its backward pass."""
    model = config.model
    if model.n_layer == 0:
        return FLOAT * config.context * model.vocab_size * 2
    windows = config.context // model.context_len
    T, C = model.n_position, model.n_embd
    # A block of a window keeps: normalised input, its scaled copy, q/k/v, attention output (C, C, 3C, C), the same two
    # of the second norm (2C), the MLP's hidden layer and its slope (8C; relu keeps the output only), attention weights.
    seen = min(T, model.local_window) if "local" in model.layer_pattern else T
    weights = model.n_head * (seen + min(T, QUERY_BLOCK)) // 2
    block = T * ((4 if model.activation == "relu" else 8) * C + 8 * C + weights)
    kept = block + (model.n_layer * windows - 1) * (T * C if config.train.recompute else block)
    peak = T * 10 * C  # gradients on their way back through one block
    return FLOAT * (kept + peak + windows * 3 * T * C)


def choose_micro_batch(config: RunConfig, lanes: int) -> int:
    """Sequences a micro-batch: near the caches, within a lane's memory, and an equal number for every lane."""
    tokens = max(1, CACHE_BYTES // (FLOAT * 4 * config.model.n_embd))
    near_cache = max(1, round(tokens / config.model.context_len))
    fitting = max(1, ACTIVATION_BYTES // lanes // sequence_bytes(config))
    most = min(near_cache, fitting, -(-config.train.batch_size // lanes))
    rounds = -(-config.train.batch_size // (most * lanes))  # micro-batches each lane takes
    return -(-config.train.batch_size // (rounds * lanes))
