"""What reading and writing with a model costs: arithmetic of a token, bytes of the weights and of the caches.

C width   V vocabulary
"""

from math import prod

from picogpt.config import ModelConfig
from picogpt.model.parameters import is_hidden_matrix, parameter_count, parameter_shapes


def read_flops(config: ModelConfig, position: int) -> int:
    """Return the floating-point operations of reading one token at a position of its window.

    A multiplication and an addition are two. Only what is computed counts: the causal half, and of a local block its
    window.
    """
    matrices = sum(prod(shape) for name, shape in parameter_shapes(config).items() if is_hidden_matrix(name, shape))
    seen = sum(min(position + 1, config.window_of(layer) or position + 1) for layer in range(config.n_layer))
    return 2 * matrices + 4 * config.n_embd * seen  # scores and weighted values, each 2 C a place


def write_flops(config: ModelConfig, position: int) -> int:
    """Return the operations of `read_flops` and those of the logits of the token after it."""
    head = 2 * config.vocab_size * config.n_embd if config.n_layer else 0  # a bigram's logits are a row of its table
    return read_flops(config, position) + head


def text_flops(config: ModelConfig, read: int, written: int) -> int:
    """Return the operations of reading `read` tokens and writing `written` tokens after them.

    Tokens beyond the first window count as ones at its end.
    """
    last = config.n_position - 1
    total = sum(read_flops(config, min(i, last)) for i in range(read + written - 1))
    return total + written * (write_flops(config, 0) - read_flops(config, 0))


def cache_bytes(config: ModelConfig) -> int:
    """Return the bytes of the keys and values of a full window, float32."""
    return 2 * 4 * config.n_embd * sum(map(config.cache_of, range(config.n_layer)))


def flops_per_token(config: ModelConfig) -> int:
    """Return the operations of training on a token: 6 a parameter (position table aside) + 12 L C T for attention.

    This is how nanoGPT counts a forward and a backward pass (A. Chowdhery et al., PaLM, arXiv 2204.02311, appendix B).
    The masked half of the scores, which is never computed, is counted too.
    """
    return 6 * parameter_count(config)[1] + 12 * config.n_layer * config.n_embd * config.context_len
