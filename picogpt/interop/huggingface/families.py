"""What GPT-2 and GPT-Neo are called and how they lie in Hugging Face's files."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from picogpt.config import Activation, ModelConfig
from picogpt.errors import UserError
from picogpt.interop.foreign_model import refuse, shortest_pattern

EPSILON = 1e-5  # of the layer norms

MATRIX = re.compile(r"h\.\d+\.(attn|mlp)\.c_\w+\.weight")

ACTIVATIONS: Mapping[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def foreign_names(model: ModelConfig, family: str) -> dict[str, list[str]]:
    """The names that each of picogpt's goes by, without a prefix; several lie one under the other in it."""
    names = {name: [name] for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")}
    for h in (f"h.{layer}" for layer in range(model.n_layer)):
        for kind in ("weight", "bias"):
            for part in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"):
                names[f"{h}.{part}.{kind}"] = [f"{h}.{part}.{kind}"]
            if family == "gpt2":
                for part in ("attn.c_attn", "attn.c_proj"):
                    names[f"{h}.{part}.{kind}"] = [f"{h}.{part}.{kind}"]
            else:
                names[f"{h}.attn.c_proj.{kind}"] = [f"{h}.attn.attention.out_proj.{kind}"]
        if family == "gpt_neo":
            names[f"{h}.attn.c_attn.weight"] = [f"{h}.attn.attention.{part}_proj.weight" for part in "qkv"]
    if not model.tied_head:
        names["lm_head.weight"] = ["lm_head.weight"]
    return names


def family_of(config: ModelConfig) -> str:
    """The family whose architecture a model has. Raises UserError."""
    refuse(
        "a folder of Hugging Face's",
        {
            "a context slot": config.context_slot,
            "a bias in the head": config.head_bias,
            "a model without blocks": config.n_layer == 0,
            "linear layers without biases": not config.bias,
        },
    )
    if config.qkv_bias and set(config.layer_pattern) == {"global"} and config.attention_scale in ("head", "none"):
        return "gpt2"
    if not config.qkv_bias and config.attention_scale == "none":
        return "gpt_neo"
    raise UserError(
        "GPT-2 has biases of q, k and v and global attention, GPT-Neo no such biases and scores that are not scaled: "
        "this model is neither"
    )


def settings_for(config: ModelConfig, family: str, kind: np.dtype[Any], end_of_text: int | None) -> dict[str, Any]:
    """config.json."""
    names = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new"}
    settings: dict[str, Any] = {
        "model_type": family,
        "architectures": ["GPT2LMHeadModel" if family == "gpt2" else "GPTNeoForCausalLM"],
        "vocab_size": config.vocab_size,
        "activation_function": names[config.activation],
        "layer_norm_epsilon": EPSILON,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "bfloat16" if kind == np.uint16 else kind.name,
    }
    if family == "gpt2":
        return settings | {
            "n_positions": config.context_len,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "scale_attn_weights": config.attention_scale == "head",
        }
    spans = [config.layer_pattern[layer % len(config.layer_pattern)] for layer in range(config.n_layer)]
    pattern = shortest_pattern(spans)
    if len(spans) % len(pattern):
        pattern = tuple(spans)
    return settings | {
        "max_position_embeddings": config.context_len,
        "hidden_size": config.n_embd,
        "num_layers": config.n_layer,
        "num_heads": config.n_head,
        "attention_types": [[list(pattern), len(spans) // len(pattern)]],
        "window_size": config.local_window,
    }
