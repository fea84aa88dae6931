"""Weights in 8 or 4 bits, in blocks along the inputs that share a scale.

M outputs   K inputs   S inputs of a block   G = K / S blocks, the last one filled up with zeros
"""

from math import prod

import numpy as np
import numpy.typing as npt

from picogpt.config import ModelConfig
from picogpt.model.parameters import is_hidden_matrix, parameter_shapes

Floats = npt.NDArray[np.float32]

_SCALE = 4  # bytes of the scale of a block


def block_of(n_embd: int) -> int:
    """Return how many weights share a scale in a model of this width.

    It is more in a wide model, because ONNX Runtime keeps copies of the scales in memory.
    """
    return 32 if n_embd < 2048 else 64


def quantize(
    weight: Floats, bits: int, block: int
) -> tuple[npt.NDArray[np.int8], Floats]:  # (M, K) -> (M, G, S), (M, G)
    """Return integers in -2^(bits-1)..2^(bits-1) - 1 and their scales: weight = integers * scale, nearly.

    The entry of largest magnitude in a block becomes the lowest integer, whichever its sign, and loses nothing. So all
    2^bits values are used (the scheme of ggml's Q4_0).
    """
    M, K = weight.shape
    padded = np.zeros((M, -(-K // block), block), np.float32)
    padded.reshape(M, -1)[:, :K] = weight
    largest = np.take_along_axis(padded, np.abs(padded).argmax(axis=2)[:, :, None], axis=2)
    low = -(1 << bits - 1)
    scales = (largest / low).astype(np.float32)
    steps = np.divide(padded, scales, out=np.zeros_like(padded), where=scales != 0)
    integers = np.clip(np.rint(steps), low, -low - 1)
    return integers.astype(np.int8), scales.reshape(M, -1)


def packed(integers: npt.NDArray[np.int8], bits: int) -> npt.NDArray[np.uint8]:  # (..., n) -> (..., n bits / 8)
    """Return the integers as MatMulNBits takes them: unsigned, with 2^(bits-1) for zero.

    With 4 bits two of them share a byte, the first one lower.
    """
    unsigned: npt.NDArray[np.uint8] = (integers.astype(np.int16) + (1 << bits - 1)).astype(np.uint8)
    return unsigned if bits == 8 else np.bitwise_or(unsigned[..., ::2], unsigned[..., 1::2] << 4)


def weight_bytes(config: ModelConfig, bits: int) -> int:
    """Return the bytes of a model's weights in 32 or 16 bits each, or quantized to 8 or 4 as in an ONNX file.

    There, the matrices in the blocks and a large head are quantized; everything else, and the scales, are float32.
    """
    shapes = parameter_shapes(config)
    if bits >= 16:
        return sum(map(prod, shapes.values())) * bits // 8
    table, large, block = shapes["wte.weight"], config.has_large_head, block_of(config.n_embd)
    total = _quantized_bytes(table, bits, block) if large else 0
    for name, shape in shapes.items():
        if is_hidden_matrix(name, shape):
            total += _quantized_bytes(shape, bits, block)
        elif name != "lm_head.weight" or not large:
            total += 4 * prod(shape)
    return total


def _quantized_bytes(shape: tuple[int, ...], bits: int, block: int) -> int:
    """Return the bytes of a quantized matrix: rows are filled up to whole blocks, and each block has a scale."""
    return shape[0] * -(-shape[1] // block) * (block * bits // 8 + _SCALE)
