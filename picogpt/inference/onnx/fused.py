"""The graph in ONNX Runtime's own operators, which fuse several steps (see graph.py for the letters)."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from picogpt.engine.backend import Array
from picogpt.inference.onnx.graph import MICROSOFT, Graph
from picogpt.inference.onnx.initializers import row_blocks
from picogpt.inference.onnx.ports import LOCAL, cached_head_size, spans
from picogpt.inference.onnx.quantize import block_of, packed, quantize
from picogpt.model.layers import NORM_EPSILON

Floats = npt.NDArray[np.float32]


class FusedGraph(Graph):
    """The dialect for ONNX Runtime: fused attention, norms and activations, and matrices in 8 or 4 bits."""

    opset: ClassVar = {"": 21, MICROSOFT: 1}

    def prepare(self) -> None:
        for span in spans(self.config):
            self.input(f"{span}seqlens_k", TensorProto.INT32, "B")
            self.input(f"{span}total_sequence_length", TensorProto.INT32, 1)

    def array(self, name: str) -> Array:
        """Return a parameter with its heads filled up with zeros to the size in the cache: no result changes."""
        weight, H, D = super().array(name), self.config.n_head, self.config.head_size
        E = cached_head_size(self.config, portable=False)
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
            return x, self.node("LayerNormalization", x, gain, shift, axis=-1, epsilon=NORM_EPSILON)
        inputs = [x, branch, gain, shift, *([self.parameter(bias)] if bias in self.arrays else [])]
        outputs = [f"{norm}.normed", "", "", f"{norm}.sum"]
        operator = "SkipLayerNormalization"
        self.nodes.append(helper.make_node(operator, inputs, outputs, domain=MICROSOFT, epsilon=NORM_EPSILON))
        return outputs[3], outputs[0]

    def attention(self, x: str, layer: int) -> str:
        name, H = f"h.{layer}.attn.c_attn", self.config.n_head
        qkv = self.biased(self.linear(x, f"{name}.weight"), f"{name}.bias")
        *past, key, value = self.caches(layer, cached_head_size(self.config, portable=False))
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

    def quantized_product(self, x: str, name: str, weight: Array, out: str) -> str:
        (M, K), block = weight.shape, block_of(self.config.n_embd)
        scales: list[Floats] = []

        def integers() -> Iterator[npt.NDArray[np.uint8]]:
            for rows in row_blocks(weight):
                quantized, scale = quantize(rows, self.bits, block)
                scales.append(scale)
                yield packed(quantized, self.bits)

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
