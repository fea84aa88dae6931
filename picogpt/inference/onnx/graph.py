"""A GPT as one ONNX graph, which reads a prompt and then continues token by token.

There are two dialects of the same model. `FusedGraph` (fused.py) uses ONNX Runtime's own operators: attention that
writes its keys and values into caches it shares with the caller, residual sums fused with layer norms, matrices in 8 or
4 bits. `PortableGraph` (portable.py) uses only standard operators. Both have these inputs and outputs, but for two:

    ids            (B, T)  int64    the tokens to read
    positions      (P,)    int64    rows of the position table: of the context slot, where it is read, and of the tokens
    context        (B, S, C)        the context vector where a window begins (S = 1), nothing elsewhere (S = 0)
    running_sum    (B, C)           sum of the output vectors of the window so far
    past_key.i, past_value.i  (B, H, N, E)   caches of block i; only the positions before this call are read
    seqlens_k (B,), total_sequence_length (1,)  int32   the last position, and one more; only in the fused dialect
    local_positions, or local_seqlens_k and local_total_sequence_length   likewise for the caches of local blocks
    ->
    logits         (B, V)           of the token after the last
    new_running_sum (B, C)
    present_key.i, present_value.i  the caches with the new positions; may be the same memory as past_*

A model without a context slot has no context and no sums; a bigram table has only ids and logits. The caches of local
blocks are shorter, and the caller moves their content (model/kv_cache.py); a model without local blocks has no local
inputs.

B batch   T tokens   S slots   P = S + T positions   N places of a block's cache   C width   V vocabulary
H heads   D head size   E head size in the cache (fused: the next multiple of 8, filled with zeros)
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, TensorProto, helper, numpy_helper

from picogpt.config import ModelConfig
from picogpt.engine.backend import Array
from picogpt.inference.onnx.initializers import Arrays, Store, row_blocks

MICROSOFT = "com.microsoft"


class Graph(ABC):
    """A graph with the forward pass of a model, written with a few operations that the dialects define.

    The initializers have the names of their parameters; a linear weight is transposed, or is integers and scales.
    """

    opset: ClassVar[dict[str, int]]  # the version of each domain

    def __init__(self, graph: GraphProto, config: ModelConfig, arrays: Arrays, bits: int, store: Store) -> None:
        """Build the model into `graph`, which is empty, with the weights in `store`.

        bits: 32, 8 or 4, of the matrices inside the blocks, and of a head that is larger than those.
        """
        self.config, self.arrays, self.bits = config, arrays, bits
        self.nodes, self._graph, self._store = graph.node, graph, store
        self._known: set[str] = set()  # names of initializers
        self.build()

    # Building blocks

    def node(self, operator: str, *inputs: str, out: str = "", domain: str = "", **attributes: Any) -> str:
        """Append a node with one output. Returns the output's name."""
        out = out or f"{operator}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [out], domain=domain, **attributes))
        return out

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        """Add an initializer of a few numbers, which stay in the graph. Returns its name."""
        if name not in self._known:
            self._known.add(name)
            self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, name: str, kind: int, shape: tuple[int, ...], pieces: Iterable[npt.NDArray[Any]]) -> str:
        """Add an initializer whose numbers come in pieces, in order; nothing is read where it is there already.

        Returns its name.
        """
        if name not in self._known:
            self._known.add(name)
            self._store(self._graph.initializer.add(name=name, data_type=kind, dims=shape), pieces)
        return name

    def floats(self, name: str, weight: Array) -> str:
        """Add an initializer of float32 numbers. Returns its name."""
        return self.weights(name, TensorProto.FLOAT, weight.shape, row_blocks(weight))

    def integers(self, *values: int) -> str:
        """Add an initializer of a few integers. Returns its name."""
        return self.constant(f"integers.{'.'.join(map(str, values))}", np.array(values, np.int64))

    def parameter(self, name: str) -> str:
        """Add a parameter as an initializer. Returns its name."""
        return self.floats(name, self.array(name))

    def input(self, name: str, kind: int, *shape: int | str) -> str:
        """Add an input of the graph. Returns its name."""
        self._graph.input.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, *shape: int | str) -> str:
        """Add an output of the graph, of float32 numbers. Returns its name."""
        self._graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def biased(self, x: str, name: str) -> str:  # (..., M) -> (..., M)
        """Add a parameter to x where the model has it. Returns the name of the result, as all below do."""
        return self.node("Add", x, self.parameter(name)) if name in self.arrays else x

    def linear(self, x: str, name: str, out: str = "") -> str:  # (..., K) -> (..., M)
        """Multiply x by a transposed weight, without the bias."""
        weight = self.array(name)
        if self.bits < 32:
            return self.quantized_product(x, name, weight, out)
        return self.node("MatMul", x, self.floats(name, np.asarray(weight).T), out=out)

    def array(self, name: str) -> Array:
        """Return a parameter as the dialect needs it, in one of the forms that `Arrays` have."""
        return self.arrays[name]

    # The model

    def build(self) -> None:
        """Add the inputs, the forward pass and the outputs."""
        config = self.config
        ids = self.input("ids", TensorProto.INT64, "B", "T")
        x = self.node("Gather", self.parameter("wte.weight"), ids)  # (B, T, C)
        self.output("logits", "B", config.vocab_size)
        if not config.n_layer:
            self.node("Gather", x, self.constant("last", np.array(-1)), axis=1, out="logits")
            return
        positions = self.input("positions", TensorProto.INT64, "P")
        if config.context_slot:
            x = self.node("Concat", self.input("context", TensorProto.FLOAT, "B", "S", config.n_embd), x, axis=1)
        x = self.node("Add", x, self.node("Gather", self.parameter("wpe.weight"), positions))
        self.prepare()
        # A branch is added to the residual stream in the same operation as the next layer norm.
        branch = bias = ""
        for layer in range(config.n_layer):
            h = f"h.{layer}"
            x, normed = self.add_and_norm(x, branch, bias, f"{h}.ln_1")
            branch = self.linear(self.attention(normed, layer), f"{h}.attn.c_proj.weight")
            x, normed = self.add_and_norm(x, branch, f"{h}.attn.c_proj.bias", f"{h}.ln_2")
            branch, bias = self.mlp(normed, f"{h}.mlp"), f"{h}.mlp.c_proj.bias"
        x, hidden = self.add_and_norm(x, branch, bias, "ln_f")
        if config.context_slot:
            total = self.node("ReduceSum", hidden, self.integers(1), keepdims=0)
            sum_ = self.input("running_sum", TensorProto.FLOAT, "B", config.n_embd)
            self.node("Add", sum_, total, out=self.output("new_running_sum", "B", config.n_embd))
        self.head(self.node("Gather", hidden, self.constant("last", np.array(-1)), axis=1))

    def mlp(self, x: str, name: str) -> str:  # (B, P, C) -> (B, P, C)
        """Add an MLP, without the bias of its second layer."""
        x = self.activation(self.linear(x, f"{name}.c_fc.weight"), f"{name}.c_fc.bias")
        return self.linear(x, f"{name}.c_proj.weight")

    def head(self, x: str) -> None:  # (B, C) -> (B, V)
        """Add the head, which makes the output `logits`."""
        name = "wte.weight" if self.config.tied_head else "lm_head.weight"
        bias = "lm_head.bias"
        out = "" if bias in self.arrays else "logits"
        if self.bits < 32 and self.config.has_large_head:
            logits = self.linear(x, name, out)
        else:
            logits = self.node("Gemm", x, self.parameter(name), transB=1, out=out)
        if not out:
            self.node("Add", logits, self.parameter(bias), out="logits")

    def caches(self, layer: int, size: int) -> tuple[str, str, str, str]:
        """Add a block's caches. Returns the names of past keys and values, and of present ones. size: of a head."""
        shape = ("B", self.config.n_head, self.config.cache_of(layer), size)
        past = [self.input(f"past_{kind}.{layer}", TensorProto.FLOAT, *shape) for kind in ("key", "value")]
        present = [self.output(f"present_{kind}.{layer}", *shape) for kind in ("key", "value")]
        return past[0], past[1], present[0], present[1]

    # What the dialects define

    @abstractmethod
    def prepare(self) -> None:
        """Add the inputs and nodes that all blocks share."""

    @abstractmethod
    def add_and_norm(self, x: str, branch: str, bias: str, norm: str) -> tuple[str, str]:
        """Return x + branch + bias, and its layer norm.

        branch: "" before the first block. bias: the name of a parameter, which the model may not have.
        """

    @abstractmethod
    def attention(self, x: str, layer: int) -> str:  # (B, P, C) -> (B, P, H E), the heads side by side
        """Add causal attention of the new positions over all so far, without the projection that follows."""

    @abstractmethod
    def activation(self, x: str, bias: str) -> str:
        """Add the MLP's activation of x + bias. bias: the name of a parameter, which the model may not have."""

    @abstractmethod
    def quantized_product(self, x: str, name: str, weight: Array, out: str) -> str:  # (..., K) -> (..., M)
        """Multiply x by the transposed weight (M, K), quantized to `bits` bits."""
