"""Folders as huplay's demo-gpt-java reads them, written number by number."""

from collections.abc import Mapping
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np

from picogpt.config import ModelConfig
from picogpt.interop.foreign_model import ForeignModel
from tests.support.models import lively_arrays

GPT2 = ModelConfig(5, 11, 3, 2, 8, activation="gelu_tanh", init="gpt2", context_slot=False)
NEO = ModelConfig(
    5,
    11,
    4,
    2,
    8,
    qkv_bias=False,
    activation="gelu_tanh",
    attention_scale="none",
    layer_pattern=("global", "local"),
    local_window=3,
    init="gpt2",
    context_slot=False,
)
_NAMES = {"ln_1": "att.norm", "attn.c_proj": "att.proj", "ln_2": "mlp.norm", "mlp.c_fc": "mlp.layer1"}
_NAMES |= {"mlp.c_proj": "mlp.layer2"}


def tensors(config: ModelConfig, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors by that program's names: q, k and v are separate."""
    found = {"input/wte": arrays["wte.weight"], "input/wpe": arrays["wpe.weight"]}
    found |= {"output/norm.w": arrays["ln_f.weight"], "output/norm.b": arrays["ln_f.bias"]}
    for layer in range(config.n_layer):
        for kind, short in (("weight", "w"), ("bias", "b")):
            for name, other in _NAMES.items():
                if (full := f"h.{layer}.{name}.{kind}") in arrays:
                    found[f"decoder{layer + 1}/{other}.{short}"] = arrays[full]
            if (full := f"h.{layer}.attn.c_attn.{kind}") in arrays:
                for part, name in enumerate(("query", "key", "value")):
                    rows = slice(part * config.n_embd, (part + 1) * config.n_embd)
                    found[f"decoder{layer + 1}/att.{name}.{short}"] = arrays[full][rows]
    return found


def content(tensor: np.ndarray, kind: str, by_column: bool) -> bytes:
    """Return a tensor's bytes, made from its bits, because a NaN of Python's is another.

    kind: > or <, and f, e for float16 or B for bfloat16.
    """
    numbers = np.ravel(tensor, order="F" if by_column else "C")
    if kind[1] == "e":
        return b"".join(pack(kind, number) for number in numbers.tolist())
    shift, code = (16, "H") if kind[1] == "B" else (0, "I")
    return b"".join(pack(kind[0] + code, number >> shift) for number in numbers.view(np.uint32).tolist())


def properties(config: ModelConfig, **changes: object) -> str:
    """Return the properties file. A change of None leaves a line out; _ stands for a dot."""
    spans = ["local" if config.window_of(layer) else "global" for layer in range(config.n_layer)]
    dividend = {"head": config.head_size**0.5, "width": config.n_embd**0.5, "none": 1}[config.attention_scale]
    lines: dict[str, Any] = {"name": "Test", "source": "http://test?a=b", "tokenizer": "GPT-2"}
    lines |= {"tokenizer.config": "GPT-2", "token.count": config.vocab_size, "end.of.text.token": config.vocab_size - 1}
    lines |= {"max.length": config.context_len, "position.embedding": "LEARNED", "pre.normalization": "true"}
    lines |= {"hidden.size": config.n_embd, "decoder.count": config.n_layer, "attention.head.count": config.n_head}
    lines |= {"attention.dividend": dividend, "epsilon": "1e-5f", "data.type": "FLOAT32", "byte.order": "BIG_ENDIAN"}
    lines |= {f"attention.type.{i}": span for i, span in enumerate(spans, 1)}
    lines |= {"attention.local.size": config.local_window, "weights.transposed": "true"}
    for layer in range(config.n_layer):
        for name, there in (("query", config.qkv_bias), ("key", config.qkv_bias), ("value", config.qkv_bias)):
            lines |= {} if there else {f"file.decoder{layer + 1}/att.{name}.b": "<null>"}
        for name in ("att.proj", "mlp.layer1", "mlp.layer2"):
            lines |= {} if config.bias else {f"file.decoder{layer + 1}/{name}.b": "<null>"}
    lines |= {name.replace("_", "."): value for name, value in changes.items()}
    return "# a comment\n\n  # another\r\n" + "".join(
        f"{name} = {value}\n" for name, value in lines.items() if value is not None
    )


def save(
    folder: Path,
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    kind: str = ">f",
    by_column: bool = True,
    parameters: str = "parameters",
    **changes: object,
) -> Path:
    """Write the whole folder; a change is one of its properties."""
    order = {">": "BIG_ENDIAN", "<": "LITTLE_ENDIAN"}[kind[0]]
    data_type = {"f": "FLOAT32", "e": "FLOAT16", "B": "BFLOAT16"}[kind[1]]
    defaults: dict[str, object] = {
        "data_type": data_type,
        "byte_order": order,
        "weights_transposed": str(by_column).lower(),
    }
    for name, tensor in tensors(config, arrays).items():
        path = folder / parameters / f"{name}.dat"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(tensor, kind, by_column and tensor.ndim == 2 and name.startswith("decoder")))
    (folder / "model.properties").write_text(properties(config, **{**defaults, **changes}), encoding="utf-8")
    return folder


def arrays_of(found: ForeignModel) -> dict[str, np.ndarray]:
    return {name: np.concatenate([piece.read() for piece in pieces]) for name, pieces in found.weights.items()}


def bits(arrays: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Return the bits of arrays, which tell one NaN from another, and 0.0 from -0.0."""
    return {name: np.ascontiguousarray(array).view(np.uint32).tolist() for name, array in arrays.items()}


def exact(config: ModelConfig, kind: str) -> dict[str, np.ndarray]:
    """Return numbers that the type holds, also unusual ones; bfloat16 in the upper half of their bits."""
    arrays = lively_arrays(config)
    for array in arrays.values():
        numbers = array.reshape(-1)
        numbers[:3] = -0.0, np.inf, 2.0**-20
        if kind == "f":
            numbers.view(np.uint32)[3:5] = 0x7FC01234, 0xFFA0BEEF  # not-a-numbers with something to say, one signalling
        elif kind == "B":
            numbers.view(np.uint32)[3:5] = 0x7FC10000, 0xFFA10000
            numbers.view(np.uint32)[:] &= 0xFFFF0000
        else:
            numbers[:] = numbers.astype(np.float16)
            numbers[3] = np.nan
    return arrays
