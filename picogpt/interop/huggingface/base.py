"""What a family of models is to the reader and the writer of Hugging Face's folders, and what all families share.

Every name of a weight here is without the prefix that the files put before it ("transformer.").
"""

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from picogpt.config import Activation, ModelConfig
from picogpt.errors import UserError, shown
from picogpt.interop.huggingface.config_file import ConfigFile
from picogpt.model.layers import NORM_EPSILON

HEAD = "lm_head.weight"

Names = dict[str, tuple[str, ...]]
"""picogpt's name of a weight -> the names of the weights it is made of, which lie one under the other in it."""

_ACTIVATIONS: Mapping[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

_WRITTEN_ACTIVATIONS: Mapping[Activation, str] = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new"}


@dataclass(frozen=True)
class SizeKeys:
    """The keys under which a family's config.json has the sizes of a model, called as in `ModelConfig`."""

    context_len: str
    n_embd: str
    n_layer: str
    n_head: str
    mlp_width: str
    """The width inside the MLP, which is always 4 * n_embd in picogpt."""


class Family(Protocol):
    """A family of models. A subclass says what is its own.

    It is a protocol so that a type checker finds an attribute that a subclass forgets.
    """

    name: str
    """The value of "model_type" in config.json."""
    architecture: str
    """The class that such a model with its head has in Hugging Face's library."""
    description: str
    """What sets the family apart. The descriptions of all families, with commas between them, make one sentence."""
    own_key: str
    """A key by which a config.json without "model_type" is recognized."""
    keys: SizeKeys
    prefix: str = "transformer."
    """What the names of all weights but the head's begin with; some files leave it out."""
    masks: re.Pattern[str] = re.compile(r"(^|\.)attn\.(attention\.)?(bias|masked_bias)$")
    """The names of attention masks, which some files hold beside the weights."""

    @abstractmethod
    def can_hold(self, model: ModelConfig) -> bool:
        """Return whether a model's attention is of this family's kind."""

    @abstractmethod
    def names(self, model: ModelConfig) -> Names:
        """Return the names of all of a model's weights, in the order in which they are written."""

    @abstractmethod
    def is_transposed(self, name: str) -> bool:
        """Return whether a weight, by picogpt's name, lies in the files as (inputs, outputs)."""

    @abstractmethod
    def with_attention(self, shape: ModelConfig, config: ConfigFile) -> ModelConfig:
        """Return a model of this shape with the attention that config.json describes.

        Raises UserError for one that picogpt does not have.
        """

    @abstractmethod
    def attention_fields(self, model: ModelConfig) -> dict[str, object]:
        """Return the fields of config.json that describe a model's attention."""

    def read_config(self, config: ConfigFile) -> ModelConfig:
        """Return the model that a config.json describes. Raises UserError for one that picogpt does not have."""
        config.require("layer_norm_epsilon", NORM_EPSILON)
        width = config.positive_integer(self.keys.n_embd)
        if config.get(self.keys.mlp_width) is not None:
            config.require(self.keys.mlp_width, 4 * width)
        shape = ModelConfig(
            context_len=config.positive_integer(self.keys.context_len),
            vocab_size=config.positive_integer("vocab_size"),
            n_layer=config.positive_integer(self.keys.n_layer),
            n_head=config.positive_integer(self.keys.n_head),
            n_embd=width,
            activation=_activation(config),
            tied_head=_tied_head(config),
            init="gpt2",
            context_slot=False,
        )
        return self.with_attention(shape, config)

    def config_fields(self, model: ModelConfig, kind: np.dtype[Any], end_of_text: int | None) -> dict[str, object]:
        """Return the fields of a model's config.json. kind: of its numbers, as `common_kind` gives it."""
        return {
            "model_type": self.name,
            "architectures": [self.architecture],
            "vocab_size": model.vocab_size,
            "activation_function": _WRITTEN_ACTIVATIONS[model.activation],
            "layer_norm_epsilon": NORM_EPSILON,
            "tie_word_embeddings": model.tied_head,
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_text,
            "torch_dtype": "bfloat16" if kind == np.uint16 else kind.name,
            self.keys.context_len: model.context_len,
            self.keys.n_embd: model.n_embd,
            self.keys.n_layer: model.n_layer,
            self.keys.n_head: model.n_head,
            **self.attention_fields(model),
        }


def _activation(config: ConfigFile) -> Activation:
    name = config.get("activation_function", "gelu_new")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UserError(f"{config.path}: the activation {shown(name)} is none of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _tied_head(config: ConfigFile) -> bool:
    tied = config.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise UserError(f"tied_head must be of type bool, not {shown(tied)}")
    return tied
