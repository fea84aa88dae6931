"""The two dialects of the graph (see graph.py for the letters)."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from picogpt.inference.onnx.graph import EPSILON, LOCAL, MICROSOFT, Graph, spans
from picogpt.inference.onnx.initializers import row_blocks
from picogpt.inference.onnx.quantize import block_of, packed, quantize

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
