"""Hugging Face's files, made without its libraries: safetensors by hand, in any kind of number."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from picogpt.tensorfiles.safetensors import read_safetensors
from picogpt.tensorfiles.torch_files import read_torch
from tests.support.paths import GOLDEN as GOLDEN_FOLDER
from tests.support.torchfiles import save, tensor

GOLDEN = GOLDEN_FOLDER / "huggingface"
LOGITS = json.loads((GOLDEN / "logits.json").read_text(encoding="utf-8"))
FAMILIES = ("gpt2", "gpt_neo")
CONFIGS = {family: json.loads((GOLDEN / family / "config.json").read_text(encoding="utf-8")) for family in FAMILIES}
KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def weights_of(family: str) -> dict[str, np.ndarray]:
    """Return the weights of the golden model, without masks and the head that shares its table."""
    if family == "gpt2":
        return {name: found.read() for name, found in read_safetensors(GOLDEN / family / "model.safetensors").items()}
    found = read_torch(GOLDEN / family / "pytorch_model.bin")
    return {
        name: tensor.read()
        for name, tensor in found.items()
        if tensor.shape and name.startswith("transformer") and tensor.dtype == "F32"
    }


def tiny_with_words(family: str) -> dict[str, Any]:
    """Return the golden model's configuration and weights, with a table of 400 tokens."""
    tensors, name = weights_of(family), "transformer.wte.weight"
    shape = (400, tensors[name].shape[1])
    table = np.random.default_rng(5).standard_normal(shape, np.float32) * np.float32(0.3)
    return {"config": {**CONFIGS[family], "vocab_size": 400, "eos_token_id": 399}, "tensors": {**tensors, name: table}}


def rounded(array: np.ndarray, kind: str) -> np.ndarray:
    """Round to numbers of this kind; bfloat16 ones are the upper halves of float32, ties to even."""
    if kind != "bfloat16":
        return array.astype(kind)
    bits = array.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def container(tensors: Mapping[str, np.ndarray], kind: str) -> bytes:
    """Return the bytes of a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, array in tensors.items():
        data = rounded(array, kind).tobytes()
        place = [len(content), len(content) + len(data)]
        header[name] = {"dtype": KINDS[kind], "shape": list(array.shape), "data_offsets": place}
        content += data
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def write_weights(file: Path, tensors: Mapping[str, np.ndarray], kind: str) -> None:
    """Write safetensors or PyTorch's format, as the name of the file says."""
    if file.suffix == ".safetensors":
        file.write_bytes(container(tensors, kind))
    else:
        state = {name: tensor(rounded(array, kind), bfloat16=kind == "bfloat16") for name, array in tensors.items()}
        save(file, state)


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: str = "float32",
    name: str = "model.safetensors",
    shards: int = 1,
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if shards == 1:
        write_weights(folder / name, tensors, kind)
        return folder
    stem, _, suffix = name.partition(".")
    names, places = list(tensors), {}
    for i in range(shards):
        file = f"{stem}-{i + 1:05d}-of-{shards:05d}.{suffix}"
        share = {key: tensors[key] for key in names[i::shards]}
        write_weights(folder / file, share, kind)
        places |= dict.fromkeys(share, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{name}.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
