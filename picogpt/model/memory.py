"""What training costs in memory, and how a run is fitted into a machine: lanes, micro-batch, recomputing."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from picogpt.config import RunConfig
from picogpt.engine.ops.attention import QUERY_BLOCK
from picogpt.engine.ops.loss import LOGITS_BLOCK
from picogpt.model.parameters import is_hidden_matrix, is_large, last_blocks, parameter_count, trained_shapes

FLOAT = 4  # bytes
PROGRAM = 46 << 20  # bytes of Python, the libraries and this package in memory
LANE_PROGRAM = 4 << 20  # bytes of those that each lane has for itself
LANE_BLAS = 6 << 20  # bytes of BLAS's own buffers
# Bytes of activations of a lane above which blocks are recomputed: this, or the size of the model if that is larger,
LANE_ACTIVATIONS = 128 << 20
ACTIVATIONS = 1 << 30  # but at most this for all lanes of a large model
LANE_GRADIENTS = 256 << 20  # bytes; the products of a larger model run as fast on two BLAS threads as on two lanes
CACHE_BYTES = 2 << 20  # of the widest activation of a micro-batch: about what stays near a core's caches


@dataclass(frozen=True)
class MemoryEstimate:
    """The bytes of memory that a training run takes at its peak."""

    program: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.program + self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(config: RunConfig) -> MemoryEstimate:
    """Estimate the memory of a configuration whose lanes and micro_batch are chosen (see `fitted`)."""
    train = config.train
    shapes = trained_shapes(config).items()
    trained = _trained_bytes(config)
    matrices = FLOAT * sum(prod(shape) for name, shape in shapes if is_hidden_matrix(name, shape))
    return MemoryEstimate(
        program=PROGRAM + train.lanes * (LANE_PROGRAM + (LANE_BLAS if config.model.n_layer else 0)),
        # The frozen weights of a large model stay in their file.
        weights=trained if is_large(config.model) else FLOAT * parameter_count(config.model)[0],
        gradients=train.lanes * trained,
        optimizer=2 * trained - (matrices if train.optimizer == "muon" else 0),
        activations=train.lanes * (train.micro_batch * sequence_bytes(config) + _head_bytes(config)),
    )


def _trained_bytes(config: RunConfig) -> int:
    return FLOAT * sum(map(prod, trained_shapes(config).values()))


def sequence_bytes(config: RunConfig) -> int:
    """Return the bytes that one training sequence needs until its backward pass."""
    model = config.model
    if model.n_layer == 0:
        return FLOAT * config.context * model.vocab_size * 2
    windows, T, C = config.context // config.window, config.window + model.context_slot, model.n_embd
    # A block saves for each window, in attention: normalised input, its scaled copy, q/k/v, output (C, C, 3C, C), and
    # the attention weights; in the MLP: both copies of its input (2C), the hidden layer and its slope (8C; relu: 4C).
    attention, mlp = T * 6 * C, T * (6 if model.activation == "relu" else 10) * C
    if config.train.train == "biases":  # no input of a matrix: the scaled copies, and the hidden layer
        attention, mlp = attention - T * C, mlp - T * (1 if model.activation == "relu" else 5) * C
    if model.dropout:  # masks: of the attention weights, and of what each branch adds
        attention, mlp = attention + T * C, mlp + T * C
    frozen = model.n_layer - last_blocks(config) if last_blocks(config) else 0  # blocks that save nothing
    layers = range(frozen, model.n_layer)
    weights = [T * model.n_head * _keys(T, model.window_of(layer)) * (2 if model.dropout else 1) for layer in layers]
    saved = windows * (len(layers) * (attention + mlp) + sum(weights))
    if config.train.recompute:  # the input of each branch, and all of one attention and one MLP, whose sizes differ
        saved = windows * 2 * len(layers) * T * C + attention + max(weights) + mlp
    peak = T * 10 * C  # gradients on their way back through one block
    return FLOAT * (saved + peak + windows * 3 * T * C)


def _keys(T: int, window: int) -> int:
    """Return how many keys a query of T is multiplied with on average."""
    rows = min(T, QUERY_BLOCK)
    return min((T + rows) // 2, window + rows if window else T)


def _head_bytes(config: RunConfig) -> int:
    """Return the bytes of a lane for a block of logits, and for the table's gradient where several blocks add to it."""
    model, rows = config.model, config.train.micro_batch * config.window
    logits = min(rows * model.vocab_size, max(LOGITS_BLOCK, model.vocab_size))
    tables = int(rows * model.vocab_size > LOGITS_BLOCK and config.train.train == "all")
    return FLOAT * (logits + tables * model.vocab_size * model.n_embd)


def fitted(config: RunConfig, cores: int, memory: int) -> RunConfig:
    """Return the configuration with lanes, micro_batch and recompute chosen where they are left open.

    The choice is the fastest one that stays within `memory` bytes, or the smallest one where none does.
    """
    choice = config
    for lanes, micro_batch, recompute in _choices(config, cores):
        train = replace(config.train, lanes=lanes, micro_batch=micro_batch, recompute=recompute)
        choice = replace(config, train=train)
        cost = estimate_memory(choice)
        model = cost.total - cost.program - cost.activations
        modest = cost.activations <= max(lanes * LANE_ACTIVATIONS, min(model, ACTIVATIONS))
        if cost.total <= memory and (modest or config.train.micro_batch):
            break
    return choice


def _choices(config: RunConfig, cores: int) -> Iterator[tuple[int, int, bool]]:
    """Yield the possible (lanes, micro_batch, recompute), the fastest first."""
    train = config.train
    wanted = cores if _trained_bytes(config) <= LANE_GRADIENTS else -(-cores // 2)
    most = min(train.lanes or wanted, train.batch_size)
    smallest = (most if train.lanes else 1, train.micro_batch or 1, True)
    if not train.low_memory:
        for lanes in (most,) if train.lanes else _halves(most):
            for recompute in (True,) if train.recompute else (False, True):
                given = train.micro_batch
                for micro_batch in (given,) if given else _halves(choose_micro_batch(config, lanes)):
                    yield lanes, micro_batch, recompute
    yield smallest


def _halves(count: int) -> list[int]:
    """Return count, half of it, and so on down to 1."""
    return [count >> shift for shift in range(count.bit_length())]


def choose_micro_batch(config: RunConfig, lanes: int) -> int:
    """Return how many sequences a micro-batch has: few enough for the caches, and shared evenly by the lanes."""
    tokens = max(1, CACHE_BYTES // (FLOAT * 4 * config.model.n_embd))
    most = min(max(1, round(tokens / config.window)), -(-config.train.batch_size // lanes))
    rounds = -(-config.train.batch_size // (most * lanes))  # micro-batches of each lane
    return -(-config.train.batch_size // (rounds * lanes))
