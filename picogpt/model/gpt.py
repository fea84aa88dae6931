"""The GPT: attention, MLP, block, model; each on one screen.

B batch   T positions (tokens, and the context slot where there is one)   W tokens of a window   C width   V vocabulary
"""

from collections.abc import Callable, Mapping
from copy import deepcopy

import numpy as np

from picogpt.config import ModelConfig
from picogpt.engine import Tensor, concatenate, ops, recompute
from picogpt.engine.backend import Array, array_module
from picogpt.model.kv_cache import KVCache
from picogpt.model.layers import Dropout, Embedding, LayerNorm, Linear, Module

_ACTIVATIONS = {"relu": ops.relu, "gelu": ops.gelu, "gelu_tanh": ops.gelu_tanh}

Rng = np.random.Generator | None


class Attention(Module):
    """Causal self-attention with several heads, over the whole window or over the last positions of it."""

    def __init__(self, config: ModelConfig, parameters: Mapping[str, Tensor], name: str, layer: int) -> None:
        self.c_attn = Linear(parameters, f"{name}.c_attn")
        self.c_proj = Linear(parameters, f"{name}.c_proj")
        self.n_head, self.layer, self.window = config.n_head, layer, config.window_of(layer)
        self.scale, self.dropout = config.score_scale, Dropout(config.dropout)

    def __call__(self, x: Tensor, rng: Rng, cache: KVCache | None, replay: bool) -> Tensor:  # (B, T, C) -> (B, T, C)
        qkv = self.c_attn(x)
        if cache is None:
            y = ops.causal_attention(qkv, self.n_head, self.scale, self.window, self.dropout.probability, rng)
        else:
            keys, values = cache.keys[self.layer], cache.values[self.layer]
            length = cache.local.length if self.window else cache.length
            y = Tensor(ops.cached_attention(qkv.data, keys, values, length, self.n_head, self.scale, self.window))
        return self.dropout(self.c_proj(y, replay), rng)


class MLP(Module):
    """Two linear layers, 4 C wide between them, with the activation in the middle."""

    def __init__(self, config: ModelConfig, parameters: Mapping[str, Tensor], name: str) -> None:
        self.c_fc = Linear(parameters, f"{name}.c_fc")
        self.c_proj = Linear(parameters, f"{name}.c_proj")
        self.activation, self.dropout = _ACTIVATIONS[config.activation], Dropout(config.dropout)

    def __call__(self, x: Tensor, rng: Rng, replay: bool) -> Tensor:  # (B, T, C) -> (B, T, 4C) -> (B, T, C)
        return self.dropout(self.c_proj(self.activation(self.c_fc(x)), replay), rng)


class Block(Module):
    """Attention and MLP, each after a layer norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, parameters: Mapping[str, Tensor], name: str, layer: int) -> None:
        self.ln_1 = LayerNorm(parameters, f"{name}.ln_1")
        self.attn = Attention(config, parameters, f"{name}.attn", layer)
        self.ln_2 = LayerNorm(parameters, f"{name}.ln_2")
        self.mlp = MLP(config, parameters, f"{name}.mlp")
        self.is_trained = any(tensor.node for _, tensor in self.named_parameters())

    def __call__(
        self, x: Tensor, rng: Rng = None, cache: KVCache | None = None, recompute: bool = False
    ) -> Tensor:  # (B, T, C) -> (B, T, C)
        """Return x plus what both branches add to it.

        recompute: save only the input of each branch, and run the branch again when its gradients are wanted.
        """

        def attend(x: Tensor, rng: Rng, replay: bool = False) -> Tensor:
            return x + self.attn(self.ln_1(x), rng, cache, replay)

        def transform(x: Tensor, rng: Rng, replay: bool = False) -> Tensor:
            return x + self.mlp(self.ln_2(x), rng, replay)

        for branch in (attend, transform):
            again = recompute and (self.is_trained or x.node is not None)  # else nothing is saved anyway
            x = _recomputed(branch, x, rng) if again else branch(x, rng)
        return x


class Head(Module):
    """The head's own weight and bias, where it has them; without a weight the model uses the token table."""

    def __init__(self, parameters: Mapping[str, Tensor], name: str) -> None:
        self.weight = parameters.get(f"{name}.weight")
        self.bias = parameters.get(f"{name}.bias")


class GPT(Module):
    """The model: ids of one window to hidden states and logits.

    parameters: the tensors of `parameter_shapes(config)`, by name.
    """

    def __init__(self, config: ModelConfig, parameters: Mapping[str, Tensor], recompute: bool = False) -> None:
        self.config, self.recompute = config, recompute
        self.depth = config.n_layer  # blocks that run; see `Trainer.step`
        self.wte = Embedding(parameters, "wte")
        if config.n_layer:
            self.wpe = Embedding(parameters, "wpe")
        self.drop = Dropout(config.dropout)
        self.h = [Block(config, parameters, f"h.{layer}", layer) for layer in range(config.n_layer)]
        if config.n_layer:
            self.ln_f = LayerNorm(parameters, "ln_f")
            self.lm_head = Head(parameters, "lm_head")

    def hidden(
        self, ids: Array, context: Tensor | None = None, rng: Rng = None, cache: KVCache | None = None
    ) -> Tensor:  # (B, W) integers, (B, C) -> (B, T, C); T = W + 1 with a context slot
        """Return the hidden states of one window after the last layer norm; of a bigram table, the logits.

        context: what stands in slot 0, zeros where it is None. With a cache the ids follow the positions in it, and
        slot 0 is there only when the cache is empty.
        """
        x = self.wte(ids)
        if not self.h:
            return x
        start = cache.length if cache else 0
        if self.config.context_slot and start == 0:
            if context is None:
                context = Tensor(array_module(x.data).zeros((len(ids), self.config.n_embd), x.data.dtype))
            x = concatenate([context.reshape(len(ids), 1, self.config.n_embd), x], axis=1)
        T = x.shape[1]
        x = self.drop(x + self.wpe.weight[start : start + T], rng)
        for block in self.h[: self.depth]:
            x = block(x, rng, cache, self.recompute)
        if cache is not None:
            cache.length += T
            cache.local.length += T
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:  # (..., C) -> (..., V)
        """Return the scores of every possible next token."""
        if not self.h:
            return hidden
        return ops.linear(hidden, self.lm_head.weight or self.wte.weight, self.lm_head.bias)

    def loss(self, hidden: Tensor, targets: Array, total: int | None = None) -> Tensor:  # (..., C), (...) -> ()
        """Return the cross entropy summed over the rows and divided by `total` (default: their number), in nats."""
        if not self.h:
            return ops.cross_entropy(hidden, None, None, targets, total)
        return ops.cross_entropy(hidden, self.lm_head.weight or self.wte.weight, self.lm_head.bias, targets, total)


def _recomputed(branch: Callable[..., Tensor], x: Tensor, rng: Rng) -> Tensor:
    """Run a branch so that its backward pass runs it again.

    The replay drops the same entries as the first run. It skips the last product, whose result nothing reads.
    """
    saved = deepcopy(rng)
    return recompute(lambda x: branch(x, rng), x, lambda x: branch(x, deepcopy(saved), replay=True))
