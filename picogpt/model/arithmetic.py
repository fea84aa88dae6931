"""What reading and writing with a model costs: arithmetic of a token, bytes of the weights and of the caches.

C width   V vocabulary
"""

from math import prod

from picogpt.config import ModelConfig
from picogpt.inference.quantize import block_of
from picogpt.model.parameters import is_hidden_matrix, parameter_shapes

_SCALE = 4  # bytes of the scale that a block of weights in 8 or 4 bits shares


def read_flops(config: ModelConfig, position: int) -> int:
    """To read one token with so many before it in the window, a multiplication and an addition being two.

    Only what is computed counts: the causal half, and of a local block its window.
    """
    matrices = sum(prod(shape) for name, shape in parameter_shapes(config).items() if is_hidden_matrix(name, shape))
    seen = sum(min(position + 1, config.window_of(layer) or position + 1) for layer in range(config.n_layer))
    return 2 * matrices + 4 * config.n_embd * seen  # scores and weighted values, each 2 C a place


def write_flops(config: ModelConfig, position: int) -> int:
    """The same with the logits of the token after it."""
    head = 2 * config.vocab_size * config.n_embd if config.n_layer else 0  # a bigram's are a row of its table
    return read_flops(config, position) + head


def text_flops(config: ModelConfig, read: int, written: int) -> int:
    """To read so many tokens and write some after them, all in one window as far as it goes."""
    last = config.n_position - 1
    total = sum(read_flops(config, min(i, last)) for i in range(read + written - 1))
    return total + written * (write_flops(config, 0) - read_flops(config, 0))


def weight_bytes(config: ModelConfig, bits: int) -> int:
    """With 8 or 4 bits, of an ONNX file: of the matrices and of a large head; all else, and scales, have 32."""
    shapes = parameter_shapes(config)
    if bits >= 16:
        return sum(map(prod, shapes.values())) * bits // 8
    table, large = shapes["wte.weight"], config.has_large_head
    block = block_of(config.n_embd)
    total = _few_bits(table, bits, block) if large else 0
    for name, shape in shapes.items():
        if is_hidden_matrix(name, shape):
            total += _few_bits(shape, bits, block)
        elif name != "lm_head.weight" or not large:
            total += 4 * prod(shape)
    return total


def _few_bits(shape: tuple[int, ...], bits: int, block: int) -> int:
    return shape[0] * -(-shape[1] // block) * (block * bits // 8 + _SCALE)


def cache_bytes(config: ModelConfig) -> int:
    """Keys and values of a full window, float32."""
    return 2 * 4 * config.n_embd * sum(map(config.cache_of, range(config.n_layer)))
