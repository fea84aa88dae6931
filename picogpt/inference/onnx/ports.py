"""The inputs and outputs of an exported graph: their names, types and shapes (graph.py says what they are)."""

from itertools import product

from picogpt.config import ModelConfig

LOCAL = "local_"
"""Prefix of the inputs that belong to blocks with local attention."""

INT64, INT32, FLOAT = "tensor(int64)", "tensor(int32)", "tensor(float)"

Ports = dict[str, tuple[str, list[str | int]]]
"""The inputs or outputs of a graph: type and shape by name, as the runtime gives them."""


def spans(config: ModelConfig) -> dict[str, int]:
    """Return the attention spans of a model by the prefix of their inputs' names, each with one of its blocks."""
    return {LOCAL if config.window_of(layer) else "": layer for layer in range(config.n_layer)}


def cached_head_size(config: ModelConfig, portable: bool) -> int:
    """Return the size of a head in the caches. The fused attention operator takes only multiples of 8."""
    return config.head_size if portable else -(-config.head_size // 8) * 8


def ports(config: ModelConfig, portable: bool) -> tuple[Ports, Ports]:
    """Return the inputs and the outputs of the graph of a model (graph.py has the letters)."""
    inputs: Ports = {"ids": (INT64, ["B", "T"])}
    outputs: Ports = {"logits": (FLOAT, ["B", config.vocab_size])}
    if not config.n_layer:
        return inputs, outputs
    inputs["positions"] = INT64, ["P"]
    if config.context_slot:
        inputs["context"] = FLOAT, ["B", "S", config.n_embd]
        inputs["running_sum"] = outputs["new_running_sum"] = FLOAT, ["B", config.n_embd]
    for span in spans(config):
        if portable:
            inputs[f"{span}positions"] = INT64, ["P"]
        else:
            inputs |= {f"{span}seqlens_k": (INT32, ["B"]), f"{span}total_sequence_length": (INT32, [1])}
    for kind, layer in product(("key", "value"), range(config.n_layer)):
        shape: list[str | int] = ["B", config.n_head, config.cache_of(layer), cached_head_size(config, portable)]
        inputs[f"past_{kind}.{layer}"] = outputs[f"present_{kind}.{layer}"] = FLOAT, shape
    return inputs, outputs
