"""Hugging Face's folders of a GPT-2 or a GPT-Neo: config.json beside the weights, whole or in shards.

    GPT-2     h.0.attn.c_attn.weight (C, 3C), and all matrices of the blocks (inputs, outputs): the transpose of ours
    GPT-Neo   h.0.attn.attention.{q,k,v,out}_proj.weight (C, C), q, k and v without biases, (outputs, inputs) as ours

The names may begin with "transformer.". The masks some files hold beside the weights are left out.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from picogpt.config import Activation, ModelConfig
from picogpt.errors import UserError, shown
from picogpt.interop.foreign_model import ForeignModel, Pieces, few, plain, require_weights, shortest_pattern
from picogpt.interop.huggingface.families import ACTIVATIONS, EPSILON, MATRIX, foreign_names
from picogpt.tensorfiles.lazy_tensor import LazyTensor
from picogpt.tensorfiles.safetensors import read_safetensors
from picogpt.tensorfiles.torch_files import read_torch

CONFIG = "config.json"

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_JSON_MOST = 64 << 20  # bytes; the index of the largest model has some 100 KB

_SHARDS_MOST = 1000

_FILE = re.compile(r"\w[\w.-]*")

_PREFIX = re.compile(r"^(_orig_mod\.|module\.)*(transformer\.)?")

_MASK = re.compile(r"(^|\.)attn\.(attention\.)?(bias|masked_bias)$")


def read_huggingface(path: Path) -> ForeignModel:
    """The model of a folder, or of a file of weights in it; nothing of the weights is read yet.

    Raises UserError for what is damaged, of another architecture, or lacks weights or has others.
    """
    folder = path if path.is_dir() else path.parent
    file = (
        path
        if path.is_file() and path.name != CONFIG
        else next((folder / name for name in FILES if (folder / name).is_file()), None)
    )
    if file is None:
        raise UserError(f"{folder} has no weights: one of {', '.join(FILES)} is looked for")
    settings = _Settings(folder / CONFIG)
    family, model = settings.family, settings.model()
    tensors = _named(file, _tensors(file))
    head = tensors.pop("lm_head.weight", None) if model.tied_head else None
    weights: dict[str, Pieces] = {}
    for name, parts in foreign_names(model, family).items():
        missing = [part for part in parts if part not in tensors]
        if 0 < len(missing) < len(parts):
            raise UserError(f"{file} lacks {', '.join(missing)}, which belongs to what it has: get it again")
        if not missing:
            turned, found = family == "gpt2" and MATRIX.fullmatch(name), [tensors.pop(part) for part in parts]
            weights[name] = tuple(piece.transposed if turned else piece for piece in found)
    require_weights(file, model, weights, tensors)
    if head and not _equal(head, weights["wte.weight"][0]):
        raise UserError(f"{file}: lm_head.weight differs from the token table that {CONFIG} ties it to")
    return ForeignModel(family, model, weights, settings.end_of_text)


def _named(file: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """By names without a prefix, and without masks. Raises UserError."""
    named: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        bare = _PREFIX.sub("", name)
        if bare in named:
            raise UserError(f"{file} has {plain(bare)} twice, with and without a prefix: get it again")
        if not _MASK.search(bare):
            named[bare] = tensor
    return named


def _equal(one: LazyTensor, other: LazyTensor) -> bool:
    """The same numbers, compared a few rows at a time."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if (one.storage, one.start, one.strides) == (other.storage, other.start, other.strides):
        return True
    a, b = one.raw(), other.raw()
    return all(a[i : i + 1024].tobytes() == b[i : i + 1024].tobytes() for i in range(0, len(a), 1024))


def _tensors(file: Path) -> dict[str, LazyTensor]:
    if file.suffix == ".json":
        return _sharded(file)
    return read_safetensors(file) if file.suffix == ".safetensors" else read_torch(file)


def _sharded(index: Path) -> dict[str, LazyTensor]:
    """The tensors of all files that an index names. Raises UserError where one is not where it should be."""
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(type(place) is str for place in places.values()):
        raise UserError(f"{index} does not say which file has which weights: get it again")
    files = sorted(set(places.values()))
    if len(files) > _SHARDS_MOST or not all(_FILE.fullmatch(name) for name in files):
        raise UserError(f"{index} names files in other folders, or too many of them: it is not loaded")
    if any(name.endswith(".json") for name in files):
        raise UserError(f"{index} names an index where weights are expected: get it again")
    tensors: dict[str, LazyTensor] = {}
    for name in files:
        for key, tensor in _tensors(index.with_name(name)).items():
            if places.get(key) != name:
                raise UserError(f"{index.with_name(name)} has {plain(key)}, which {index.name} does not expect there")
            tensors[key] = tensor
    if missing := places.keys() - tensors:
        raise UserError(f"the files {index} names lack {few(missing)}: get them again")
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_MOST:
            raise ValueError
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): it belongs beside the weights") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not JSON as it should be: get it again")
    return found


class _Settings:
    """What config.json says. Every method raises UserError for what picogpt's model cannot be."""

    def __init__(self, path: Path) -> None:
        self._path, self._fields = path, _read_json(path)
        inferred = "gpt_neo" if "attention_types" in self._fields else "gpt2" if "n_embd" in self._fields else ""
        self.family = self._fields.get("model_type", inferred)
        if self.family not in ("gpt2", "gpt_neo"):
            raise UserError(f"{path} is of the family {shown(self.family)}; gpt2 and gpt_neo can be imported")

    @property
    def end_of_text(self) -> int | None:
        found = self._fields.get("eos_token_id")
        return found if type(found) is int and 0 <= found < self._fields["vocab_size"] else None

    def model(self) -> ModelConfig:
        self._require("layer_norm_epsilon", EPSILON)
        tied = self._fields.get("tie_word_embeddings", True)
        positions, n_layer, n_head, n_embd, inner = (
            ("n_positions", "n_layer", "n_head", "n_embd", "n_inner")
            if self.family == "gpt2"
            else ("max_position_embeddings", "num_layers", "num_heads", "hidden_size", "intermediate_size")
        )
        width = self._integer(n_embd)
        if self._fields.get(inner) is not None:
            self._require(inner, 4 * width)
        shape = ModelConfig(
            context_len=self._integer(positions),
            vocab_size=self._integer("vocab_size"),
            n_layer=self._integer(n_layer),
            n_head=self._integer(n_head),
            n_embd=width,
            qkv_bias=self.family == "gpt2",
            activation=self._activation(),
            tied_head=tied,
            init="gpt2",
            context_slot=False,
        )
        return self._gpt2(shape) if self.family == "gpt2" else self._gpt_neo(shape)

    def _gpt2(self, shape: ModelConfig) -> ModelConfig:
        self._require("scale_attn_by_inverse_layer_idx", False)
        self._require("add_cross_attention", False)
        return replace(shape, attention_scale="head" if self._fields.get("scale_attn_weights", True) else "none")

    def _gpt_neo(self, shape: ModelConfig) -> ModelConfig:
        n_layer = shape.n_layer
        spans = list(self._spans(n_layer))
        if len(spans) != n_layer or not all(span in ("global", "local") for span in spans):
            raise UserError(f"{self._path}: attention_types does not say global or local of each of {n_layer} layers")
        window = self._integer("window_size", 256)
        return replace(shape, attention_scale="none", layer_pattern=shortest_pattern(spans), local_window=window)

    def _spans(self, n_layer: int) -> Iterator[Any]:
        """The span of each layer: [[["global", "local"], 6]] is these two, six times."""
        match self._fields.get("attention_types"), self._fields.get("attention_layers"):
            case list(types), _:
                for entry in types:
                    match entry:
                        case [list(spans), int(count)] if spans and 0 <= count <= n_layer // len(spans):
                            yield from spans * count
            case None, list(spans):
                yield from spans
            case None, None:
                yield from (["global", "local"] * n_layer)[:n_layer]

    def _integer(self, name: str, default: int | None = None) -> int:
        found = self._fields.get(name, default)
        if type(found) is not int or not 0 < found < 1 << 32:
            raise UserError(f"{self._path}: {name} is {shown(found)}, where a number is expected: get it again")
        return found

    def _require(self, name: str, value: object) -> None:
        found = self._fields.get(name, value)
        if found != value:
            raise UserError(f"{self._path}: {name} is {shown(found)}, and picogpt's models have {value} there alone")

    def _activation(self) -> Activation:
        name = self._fields.get("activation_function", "gelu_new")
        if type(name) is not str or name not in ACTIVATIONS:
            raise UserError(f"{self._path}: the activation {shown(name)} is none of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]
