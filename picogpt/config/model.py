"""The shape of a model."""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

from picogpt.config.validation import check_limits, check_types, from_fields
from picogpt.errors import require, shown

Activation = Literal["relu", "gelu", "gelu_tanh"]
AttentionScale = Literal["head", "width", "none"]
AttentionSpan = Literal["global", "local"]
Init = Literal["zero", "gpt2", "normal", "torch"]

_LIMITS = {"context_len": 1 << 20, "vocab_size": 1 << 22, "n_layer": 1024, "n_head": 1 << 16, "n_embd": 1 << 16}
_LIMITS |= {"local_window": 1 << 20, "layer_pattern": 1024, "lora_rank": 1 << 16}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT. The defaults are PicoGPT's 6.34 million parameters."""

    context_len: int = 128
    """Tokens in one window."""
    vocab_size: int = 88
    """Rows of the token table; it grows to the corpus when the tokenizer has more characters."""
    n_layer: int = 8
    """Blocks. With no block at all the model is a bigram table."""
    n_head: int = 8
    """Attention heads a block."""
    n_embd: int = 256
    """Width of the residual stream."""
    bias: bool = True
    """Biases in the linear layers (q, k and v follow qkv_bias)."""
    qkv_bias: bool = True
    """Biases in the q, k and v projections."""
    activation: Activation = "gelu"
    """Non-linearity of the MLP; gelu is the exact (erf) form."""
    attention_scale: AttentionScale = "head"
    """Scores are divided by the square root of the head size, of the width, or not at all."""
    layer_pattern: tuple[AttentionSpan, ...] = ("global",)
    """Attention span of each block, repeated over the blocks: "global", or "local" within local_window."""
    local_window: int = 256
    """Tokens a local block sees, the current one included."""
    tied_head: bool = True
    """The head shares the token table."""
    head_bias: bool = False
    """A bias in the head."""
    dropout: float = 0.0
    """Probability of dropping an activation in training."""
    init: Init = "zero"
    """gpt2: N(0, 0.02), residual projections scaled down; zero: with these projections zero, so that a block begins as
    the identity; normal: N(0, 0.02); torch: PyTorch's layer defaults."""
    context_slot: bool = True
    """Slot 0 of every window holds the rolling mean context."""
    lora_rank: int = 0
    """Rank of the low-rank matrices that --train lora puts beside those of the blocks. 0: 8 there, else none."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("context_len", "vocab_size", "n_head", "n_embd", "local_window"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {shown(getattr(self, name))}")
        check_limits(self, _LIMITS)
        for name in ("n_layer", "lora_rank"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, not {shown(getattr(self, name))}")
        require(
            self.n_embd % self.n_head == 0,
            f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), not {shown(self.dropout)}")
        require(len(self.layer_pattern) > 0, "layer_pattern needs at least one of global, local")
        for span in self.layer_pattern:
            require(span in ("global", "local"), f"layer_pattern holds global or local, not {shown(span)}")

    @classmethod
    def from_dict(cls, fields: object) -> "ModelConfig":
        """Return the shape of fields as JSON has them. Raises UserError on a foreign or ill-typed field."""
        return from_fields(cls, fields, "layer_pattern")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def score_scale(self) -> float:
        """The factor of attention's scores."""
        return 1 / sqrt({"head": self.head_size, "width": self.n_embd, "none": 1}[self.attention_scale])

    @property
    def can_roll(self) -> bool:
        """Whether a context vector can go from window to window: a bigram table makes none."""
        return self.context_slot and self.n_layer > 0

    @property
    def n_position(self) -> int:
        """Rows of the position table: one a token, one more for the context slot."""
        return self.context_len + self.context_slot

    @property
    def has_large_head(self) -> bool:
        """Whether the head is larger than the matrices of a block, and so worth quantizing too."""
        return self.n_layer > 0 and self.vocab_size > 4 * self.n_embd

    def span_of(self, layer: int) -> AttentionSpan:
        """Return which tokens block `layer` sees: the pattern is repeated over all blocks."""
        return self.layer_pattern[layer % len(self.layer_pattern)]

    def window_of(self, layer: int) -> int:
        """Return how many tokens block `layer` sees; 0 means all of them."""
        return self.local_window if self.span_of(layer) == "local" else 0

    def cache_of(self, layer: int) -> int:
        """Return how many positions block `layer` caches keys and values of when decoding (model/kv_cache.py)."""
        return min(self.n_position, 2 * self.window_of(layer) or self.n_position)
