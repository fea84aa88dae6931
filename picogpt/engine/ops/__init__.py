"""Fused ops: the hot paths of a GPT, each with its backward right below its forward."""

from picogpt.engine.ops.activation import gelu, gelu_tanh, relu
from picogpt.engine.ops.attention import cached_attention, causal_attention
from picogpt.engine.ops.dropout import dropout
from picogpt.engine.ops.embedding import embedding
from picogpt.engine.ops.linear import linear
from picogpt.engine.ops.loss import cross_entropy
from picogpt.engine.ops.norm import layer_norm

__all__ = [
    "cached_attention",
    "causal_attention",
    "cross_entropy",
    "dropout",
    "embedding",
    "gelu",
    "gelu_tanh",
    "layer_norm",
    "linear",
    "relu",
]
