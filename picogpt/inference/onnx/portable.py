"""The graph in standard ONNX operators only, for runtimes that have no others."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from picogpt.engine.backend import Array
from picogpt.inference.onnx.graph import Graph
from picogpt.inference.onnx.initializers import row_blocks
from picogpt.inference.onnx.ports import spans
from picogpt.inference.onnx.quantize import block_of, quantize
from picogpt.model.layers import NORM_EPSILON


class PortableGraph(Graph):
    """The dialect of standard operators. Every step reads whole caches, so their unwritten part must hold no NaN."""

    opset: ClassVar = {"": 21}

    def prepare(self) -> None:
        """Make, for each span of attention, the rows where new keys go and a mask (P, N).

        The mask is zero where a key is seen, else -inf.
        """
        self._rows, self._masks = {}, {}
        for span, layer in spans(self.config).items():
            window = self.config.window_of(layer)
            positions = self.input(f"{span}positions", TensorProto.INT64, "P") if span else "positions"
            rows = self.node("Unsqueeze", positions, self.integers(1))  # (P, 1)
            self._rows[window] = self.node("Reshape", positions, self.integers(1, 1, -1, 1))
            keys = self.constant(f"{span}keys", np.arange(self.config.cache_of(layer)))
            visible = self.node("LessOrEqual", keys, rows)
            if window:
                first = self.node("Sub", rows, self.integers(window - 1))
                visible = self.node("And", visible, self.node("GreaterOrEqual", keys, first))
            zero, infinity = (
                self.constant("zero", np.array(0, np.float32)),
                self.constant("infinity", np.array(-np.inf, np.float32)),
            )
            self._masks[window] = self.node("Where", visible, zero, infinity)

    def add_and_norm(self, x: str, branch: str, bias: str, norm: str) -> tuple[str, str]:
        if branch:
            x = self.node("Add", x, self.biased(branch, bias))
        gain, shift = self.parameter(f"{norm}.weight"), self.parameter(f"{norm}.bias")
        return x, self.node("LayerNormalization", x, gain, shift, axis=-1, epsilon=NORM_EPSILON)

    def attention(self, x: str, layer: int) -> str:
        name, H, D = f"h.{layer}.attn.c_attn", self.config.n_head, self.config.head_size
        qkv = self.biased(self.linear(x, f"{name}.weight"), f"{name}.bias")
        heads = self.node("Reshape", qkv, self.integers(0, 0, 3, H, D))
        heads = self.node("Transpose", heads, perm=[2, 0, 3, 1, 4])  # (3, B, H, P, D)
        q, *new = [self.node("Gather", heads, self.constant(f"part.{part}", np.array(part))) for part in range(3)]
        past_key, past_value, key, value = self.caches(layer, D)
        window = self.config.window_of(layer)
        rows = self.node("Expand", self._rows[window], self.node("Shape", q))
        for past, update, present in ((past_key, new[0], key), (past_value, new[1], value)):
            self.node("ScatterElements", past, rows, update, axis=2, out=present)
        q = self.node("Mul", q, self.constant("scale", np.array(self.config.score_scale, np.float32)))
        scores = self.node("MatMul", q, self.node("Transpose", key, perm=[0, 1, 3, 2]))
        scores = self.node("Add", scores, self._masks[window])
        y = self.node("MatMul", self.node("Softmax", scores, axis=-1), value)
        return self.node("Reshape", self.node("Transpose", y, perm=[0, 2, 1, 3]), self.integers(0, 0, H * D))

    def activation(self, x: str, bias: str) -> str:
        x = self.biased(x, bias)
        if self.config.activation == "relu":
            return self.node("Relu", x)
        return self.node("Gelu", x, approximate="tanh" if self.config.activation == "gelu_tanh" else "none")

    def quantized_product(self, x: str, name: str, weight: Array, out: str) -> str:
        (M, K), block = weight.shape, block_of(self.config.n_embd)
        table, scales, done = np.empty((K, M), np.int8), [], 0
        for rows in row_blocks(weight):
            quantized, scale = quantize(rows, self.bits, block)
            table[:, done : done + len(rows)] = quantized.reshape(len(rows), -1)[:, :K].T
            scales.append(scale)
            done += len(rows)
        kind, pieces = (TensorProto.INT8, iter([table])) if self.bits == 8 else (TensorProto.INT4, _nibbles(table))
        integers = self.weights(f"{name}.integers", kind, table.shape, pieces)
        floats = self.node(
            "DequantizeLinear",
            integers,
            self.floats(f"{name}.scales", np.concatenate(scales).T),
            axis=0,
            block_size=block,
        )
        return self.node("MatMul", x, floats, out=out)


def _nibbles(table: npt.NDArray[np.int8]) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the bytes of a table of 4-bit integers, in pieces: two in a byte, the first one lower.

    The last byte of an odd number of integers is filled up with zero.
    """
    flat, step = table.reshape(-1).view(np.uint8), 1 << 20
    for start in range(0, flat.size, step):
        piece = np.zeros(min(step, -(-(flat.size - start) // 2) * 2), np.uint8)
        piece[: flat.size - start] = flat[start : start + step] & 15
        yield np.bitwise_or(piece[::2], np.left_shift(piece[1::2], 4))
