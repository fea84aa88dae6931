"""The two dialects of the graph (see graph.py for the letters)."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from picogpt.inference.graph import EPSILON, MICROSOFT, Graph
from picogpt.inference.quantize import block_of, packed, quantize
from picogpt.inference.sliding import LOCAL, spans
from picogpt.inference.weights import row_blocks

Floats = npt.NDArray[np.float32]


class FusedGraph(Graph):
    """ONNX Runtime's own operators."""

    opset: ClassVar = {"": 21, MICROSOFT: 1}

    def prepare(self) -> None:
        for span in spans(self.config):
            self.input(f"{span}seqlens_k", TensorProto.INT32, "B")
            self.input(f"{span}total_sequence_length", TensorProto.INT32, 1)

    @property
    def cached_head(self) -> int:
        return -(-self.config.head_size // 8) * 8  # the attention operator takes no other sizes

    def array(self, name: str) -> Any:
        """Heads filled up with zeros to the size in the cache, which change no score and no sum."""
        weight, (H, D, E) = super().array(name), (self.config.n_head, self.config.head_size, self.cached_head)
        if E == D or ".attn." not in name or name.endswith("c_proj.bias"):
            return weight
        array = np.asarray(weight)
        if name.endswith("c_proj.weight"):  # (C, H D): the heads are its inputs
            filled = np.zeros((len(array), H, E), np.float32)
            filled[:, :, :D] = array.reshape(-1, H, D)
            return filled.reshape(len(array), H * E)
        filled = np.zeros((3, H, E, array.size // (3 * H * D)), np.float32)
        filled[:, :, :D] = array.reshape(3, H, D, -1)
        return filled.reshape(3 * H * E, *array.shape[1:])

    def add_and_norm(self, x: str, branch: str, bias: str, norm: str) -> tuple[str, str]:
        gain, shift = self.parameter(f"{norm}.weight"), self.parameter(f"{norm}.bias")
        if not branch:
            return x, self.node("LayerNormalization", x, gain, shift, axis=-1, epsilon=EPSILON)
        inputs = [x, branch, gain, shift, *([self.parameter(bias)] if bias in self.arrays else [])]
        outputs = [f"{norm}.normed", "", "", f"{norm}.sum"]
        operator = "SkipLayerNormalization"
        self.nodes.append(helper.make_node(operator, inputs, outputs, domain=MICROSOFT, epsilon=EPSILON))
        return outputs[3], outputs[0]

    def attention(self, x: str, layer: int) -> str:
        name, H = f"h.{layer}.attn.c_attn", self.config.n_head
        qkv = self.biased(self.linear(x, f"{name}.weight"), f"{name}.bias")
        *past, key, value = self.caches(layer, self.cached_head)
        window = self.config.window_of(layer)
        span = LOCAL if window else ""
        inputs = [qkv, "", "", *past, f"{span}seqlens_k", f"{span}total_sequence_length"]
        node = helper.make_node(
            "GroupQueryAttention",
            inputs,
            [f"h.{layer}.attn", key, value],
            domain=MICROSOFT,
            num_heads=H,
            kv_num_heads=H,
            scale=self.config.score_scale,
            local_window_size=window or -1,
        )
        self.nodes.append(node)
        return f"h.{layer}.attn"

    def activation(self, x: str, bias: str) -> str:
        activation, biased = self.config.activation, bias in self.arrays
        if activation == "relu":
            return self.node("Relu", self.biased(x, bias))
        operator = "FastGelu" if activation == "gelu_tanh" else "BiasGelu" if biased else "Gelu"
        return self.node(operator, x, *([self.parameter(bias)] if biased else []), domain=MICROSOFT)

    def quantized_product(self, x: str, name: str, weight: Any, out: str) -> str:
        (M, K), block = weight.shape, block_of(self.config.n_embd)
        scales: list[Floats] = []

        def integers() -> Iterator[npt.NDArray[np.uint8]]:
            for rows in row_blocks(weight):
                some, scale = quantize(rows, self.bits, block)
                scales.append(scale)
                yield packed(some, self.bits)

        shape = M, -(-K // block), block * self.bits // 8
        return self.node(
            "MatMulNBits",
            x,
            self.weights(f"{name}.integers", TensorProto.UINT8, shape, integers()),
            self.floats(f"{name}.scales", np.concatenate(scales)),
            out=out,
            domain=MICROSOFT,
            K=K,
            N=M,
            bits=self.bits,
            block_size=block,
            accuracy_level=4,  # the inputs go to 8 bits too
        )


class PortableGraph(Graph):
    """Standard operators alone. Every step goes over whole caches, which must hold no NaN where nothing was written."""

    opset: ClassVar = {"": 21}

    def prepare(self) -> None:
        """For each span of attention: where new keys go, and a mask (P, N), zero where a key is seen and else -inf."""
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
        return x, self.node("LayerNormalization", x, gain, shift, axis=-1, epsilon=EPSILON)

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

    def quantized_product(self, x: str, name: str, weight: Any, out: str) -> str:
        (M, K), block = weight.shape, block_of(self.config.n_embd)
        table, scales, done = np.empty((K, M), np.int8), [], 0
        for rows in row_blocks(weight):
            some, scale = quantize(rows, self.bits, block)
            table[:, done : done + len(rows)] = some.reshape(len(rows), -1)[:, :K].T
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
    """Two integers of 4 bits in a byte, the first lower, in pieces; the last is filled up."""
    flat, step = table.reshape(-1).view(np.uint8), 1 << 20
    for start in range(0, flat.size, step):
        some = np.zeros(min(step, -(-(flat.size - start) // 2) * 2), np.uint8)
        some[: flat.size - start] = flat[start : start + step] & 15
        yield np.bitwise_or(some[::2], np.left_shift(some[1::2], 4))
