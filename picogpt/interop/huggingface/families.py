"""The families of models that Hugging Face's folders can hold. Another one is a class here and an entry in FAMILIES.

    GPT-2     h.0.attn.c_attn.weight (C, 3C), and all matrices of the blocks (inputs, outputs)
    GPT-Neo   h.0.attn.attention.{q,k,v,out}_proj.weight (C, C), q, k and v without biases, (outputs, inputs)

C is the width, n_embd. picogpt's own matrices are (outputs, inputs).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice

from picogpt.config import AttentionSpan, ModelConfig
from picogpt.errors import UserError, shown
from picogpt.interop.foreign_model import refuse, shortest_pattern
from picogpt.interop.huggingface.base import HEAD, Family, Names, SizeKeys
from picogpt.interop.huggingface.config_file import ConfigFile

_GPT2_MATRIX = re.compile(r"h\.\d+\.(attn|mlp)\.c_\w+\.weight")

_SHARED_MODULES = ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")  # of a block, called the same in picogpt

_KINDS = ("weight", "bias")


class GPT2(Family):
    """GPT-2: q, k and v lie in one matrix and have biases, and every layer sees the whole context."""

    name = "gpt2"
    architecture = "GPT2LMHeadModel"
    description = "GPT-2 has biases of q, k and v and global attention"
    own_key = "n_embd"
    keys = SizeKeys("n_positions", "n_embd", "n_layer", "n_head", "n_inner")

    def can_hold(self, model: ModelConfig) -> bool:
        is_global = set(model.layer_pattern) == {"global"}
        return model.qkv_bias and is_global and model.attention_scale in ("head", "none")

    def names(self, model: ModelConfig) -> Names:
        modules = (*_SHARED_MODULES, "attn.c_attn", "attn.c_proj")
        block = [f"{module}.{kind}" for kind in _KINDS for module in modules]
        return _names(model, {name: (name,) for name in block})

    def is_transposed(self, name: str) -> bool:
        return _GPT2_MATRIX.fullmatch(name) is not None

    def with_attention(self, shape: ModelConfig, config: ConfigFile) -> ModelConfig:
        config.require("scale_attn_by_inverse_layer_idx", False)
        config.require("add_cross_attention", False)
        is_scaled = config.get("scale_attn_weights", True)
        return replace(shape, qkv_bias=True, attention_scale="head" if is_scaled else "none")

    def attention_fields(self, model: ModelConfig) -> dict[str, object]:
        return {"scale_attn_weights": model.attention_scale == "head"}


class GPTNeo(Family):
    """GPT-Neo: q, k and v are three matrices without biases, and a layer may see a window of the context only."""

    name = "gpt_neo"
    architecture = "GPTNeoForCausalLM"
    description = "GPT-Neo no such biases and scores that are not scaled"
    own_key = "attention_types"
    keys = SizeKeys("max_position_embeddings", "hidden_size", "num_layers", "num_heads", "intermediate_size")

    def can_hold(self, model: ModelConfig) -> bool:
        return not model.qkv_bias and model.attention_scale == "none"

    def names(self, model: ModelConfig) -> Names:
        modules = {module: module for module in _SHARED_MODULES} | {"attn.c_proj": "attn.attention.out_proj"}
        block: Names = {f"{ours}.{kind}": (f"{theirs}.{kind}",) for kind in _KINDS for ours, theirs in modules.items()}
        block["attn.c_attn.weight"] = tuple(f"attn.attention.{part}_proj.weight" for part in "qkv")
        return _names(model, block)

    def is_transposed(self, name: str) -> bool:
        return False

    def with_attention(self, shape: ModelConfig, config: ConfigFile) -> ModelConfig:
        return replace(
            shape,
            qkv_bias=False,
            attention_scale="none",
            layer_pattern=shortest_pattern(_spans(config, shape.n_layer)),
            local_window=config.positive_integer("window_size", 256),
        )

    def attention_fields(self, model: ModelConfig) -> dict[str, object]:
        spans = [model.span_of(layer) for layer in range(model.n_layer)]
        pattern = shortest_pattern(spans)
        if len(spans) % len(pattern):  # the format repeats a pattern a whole number of times
            pattern = tuple(spans)
        return {
            "attention_types": [[list(pattern), len(spans) // len(pattern)]],
            "window_size": model.local_window,
        }


FAMILIES: dict[str, Family] = {family.name: family for family in (GPT2(), GPTNeo())}
"""By their names. Where a config.json has the own keys of several families, it is of the last of them."""


def family_of_config(config: ConfigFile) -> Family:
    """Return the family of the model that a config.json describes. Raises UserError for one that is not known."""
    inferred = next((name for name in reversed(FAMILIES) if FAMILIES[name].own_key in config), "")
    found = config.get("model_type", inferred)
    if not isinstance(found, str) or found not in FAMILIES:
        raise UserError(f"{config.path} is of the family {shown(found)}; {' and '.join(FAMILIES)} can be imported")
    return FAMILIES[found]


def family_of_model(model: ModelConfig) -> Family:
    """Return the family that can hold a model of picogpt's. Raises UserError where none can."""
    refuse(
        "a folder of Hugging Face's",
        {
            "a context slot": model.context_slot,
            "a bias in the head": model.head_bias,
            "a model without blocks": model.n_layer == 0,
            "linear layers without biases": not model.bias,
        },
    )
    for family in FAMILIES.values():
        if family.can_hold(model):
            return family
    raise UserError(f"{', '.join(family.description for family in FAMILIES.values())}: this model is neither")


def _names(model: ModelConfig, block: Mapping[str, tuple[str, ...]]) -> Names:
    """Return the names of a model's weights, given those of a block; those outside of the blocks are picogpt's own."""
    names: Names = {name: (name,) for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")}
    for layer in range(model.n_layer):
        names |= {f"h.{layer}.{ours}": tuple(f"h.{layer}.{name}" for name in theirs) for ours, theirs in block.items()}
    return names if model.tied_head else names | {HEAD: (HEAD,)}


def _spans(config: ConfigFile, n_layer: int) -> list[AttentionSpan]:
    """Return the span of each layer of a GPT-Neo. Raises UserError where config.json does not say it of each."""
    listed = list(islice(_listed_spans(config, n_layer), n_layer + 1))  # a damaged file may list millions
    spans = [span for span in map(_span, listed) if span is not None]
    if not len(spans) == len(listed) == n_layer:
        raise UserError(f"{config.path}: attention_types does not say global or local of each of {n_layer} layers")
    return spans


def _listed_spans(config: ConfigFile, n_layer: int) -> Iterator[object]:
    """Yield what stands for each layer's span: [[["global", "local"], 6]] is these two, six times."""
    match config.get("attention_types"), config.get("attention_layers"):
        case list(types), _:
            for entry in types:
                match entry:
                    case [list(spans), int(count)] if spans and 0 <= count <= n_layer // len(spans):
                        yield from spans * count
        case None, list(spans):
            yield from spans
        case None, None:
            yield from (["global", "local"] * n_layer)[:n_layer]


def _span(value: object) -> AttentionSpan | None:
    match value:
        case "global":
            return "global"
        case "local":
            return "local"
    return None
