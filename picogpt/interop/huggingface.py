"""Hugging Face's folders of a GPT-2 or a GPT-Neo: config.json beside the weights, whole or in shards.

    GPT-2     h.0.attn.c_attn.weight (C, 3C), and all matrices of the blocks (inputs, outputs): the transpose of ours
    GPT-Neo   h.0.attn.attention.{q,k,v,out}_proj.weight (C, C), q, k and v without biases, (outputs, inputs) as ours

The names may begin with "transformer.". The masks some files hold beside the weights are left out.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.config import Activation, ModelConfig, UserError, shown
from picogpt.engine.backend import Array
from picogpt.files import new_folder
from picogpt.interop.foreign import (
    Foreign,
    Pieces,
    common_kind,
    few,
    in_kind,
    plain,
    refuse,
    require_weights,
    shortest_pattern,
)
from picogpt.interop.safetensors import read_safetensors, write_safetensors
from picogpt.interop.stored import Stored
from picogpt.interop.torchfile import read_torch

CONFIG = "config.json"
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
EPSILON = 1e-5  # of the layer norms
_JSON_MOST = 64 << 20  # bytes; the index of the largest model has some 100 KB
_SHARDS_MOST = 1000
_FILE = re.compile(r"\w[\w.-]*")
_PREFIX = re.compile(r"^(_orig_mod\.|module\.)*(transformer\.)?")
_MASK = re.compile(r"(^|\.)attn\.(attention\.)?(bias|masked_bias)$")
_MATRIX = re.compile(r"h\.\d+\.(attn|mlp)\.c_\w+\.weight")
_ACTIVATIONS: Mapping[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def read_huggingface(path: Path) -> Foreign:
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
            turned, found = family == "gpt2" and _MATRIX.fullmatch(name), [tensors.pop(part) for part in parts]
            weights[name] = tuple(piece.transposed if turned else piece for piece in found)
    require_weights(file, model, weights, tensors)
    if head and not _equal(head, weights["wte.weight"][0]):
        raise UserError(f"{file}: lm_head.weight differs from the token table that {CONFIG} ties it to")
    return Foreign(family, model, weights, settings.end_of_text)


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


def _named(file: Path, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """By names without a prefix, and without masks. Raises UserError."""
    named: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        bare = _PREFIX.sub("", name)
        if bare in named:
            raise UserError(f"{file} has {plain(bare)} twice, with and without a prefix: get it again")
        if not _MASK.search(bare):
            named[bare] = tensor
    return named


def _equal(one: Stored, other: Stored) -> bool:
    """The same numbers, compared a few rows at a time."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if (one.storage, one.start, one.strides) == (other.storage, other.start, other.strides):
        return True
    a, b = one.raw(), other.raw()
    return all(a[i : i + 1024].tobytes() == b[i : i + 1024].tobytes() for i in range(0, len(a), 1024))


def _tensors(file: Path) -> dict[str, Stored]:
    if file.suffix == ".json":
        return _sharded(file)
    return read_safetensors(file) if file.suffix == ".safetensors" else read_torch(file)


def _sharded(index: Path) -> dict[str, Stored]:
    """The tensors of all files that an index names. Raises UserError where one is not where it should be."""
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(type(place) is str for place in places.values()):
        raise UserError(f"{index} does not say which file has which weights: get it again")
    files = sorted(set(places.values()))
    if len(files) > _SHARDS_MOST or not all(_FILE.fullmatch(name) for name in files):
        raise UserError(f"{index} names files in other folders, or too many of them: it is not loaded")
    if any(name.endswith(".json") for name in files):
        raise UserError(f"{index} names an index where weights are expected: get it again")
    tensors: dict[str, Stored] = {}
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
        if type(name) is not str or name not in _ACTIVATIONS:
            raise UserError(f"{self._path}: the activation {shown(name)} is none of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[name]


def write_huggingface(
    folder: Path, config: ModelConfig, arrays: Mapping[str, Array], end_of_text: int | None, tokenizer: str = ""
) -> None:
    """Write a model as a folder that Hugging Face's programs read, a GPT-2 or a GPT-Neo, in the numbers it is kept in.

    arrays: by picogpt's names. tokenizer: the text of a tokenizer.json. Raises UserError for what neither of them can
    be, where there is such a folder already, and where the disk refuses.
    """
    family = _writable(config)
    kind = common_kind(arrays)
    turned = _Turned(config, family, arrays, kind)
    with new_folder(folder) as place:
        write_safetensors(place / FILES[0], turned, {"format": "pt"})
        settings = _settings(config, family, kind, end_of_text)
        (place / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if tokenizer:
            (place / "tokenizer.json").write_text(tokenizer, encoding="utf-8")


def _writable(config: ModelConfig) -> str:
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


class _Turned(Mapping[str, npt.NDArray[Any]]):
    """A model's weights by Hugging Face's names and in its layout, each made when it is asked for."""

    def __init__(self, config: ModelConfig, family: str, arrays: Mapping[str, Array], kind: np.dtype[Any]) -> None:
        self._kind, self._ways = kind, dict[str, Callable[[], Array]]()
        for name, parts in foreign_names(config, family).items():
            if name not in arrays:
                continue
            for i, part in enumerate(parts):
                prefix = "" if part.startswith("lm_head") else "transformer."
                self._ways[prefix + part] = self._way(arrays, name, i, len(parts), family)

    def _way(self, arrays: Mapping[str, Array], name: str, part: int, parts: int, family: str) -> Callable[[], Array]:
        def made() -> Array:
            raw = in_kind(arrays[name], self._kind)
            if family == "gpt2" and _MATRIX.fullmatch(name):
                return raw.T
            height = len(raw) // parts
            return raw[part * height : (part + 1) * height]

        return made

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return np.ascontiguousarray(self._ways[name]())

    def __iter__(self) -> Iterator[str]:
        return iter(self._ways)

    def __len__(self) -> int:
        return len(self._ways)


def _settings(config: ModelConfig, family: str, kind: np.dtype[Any], end_of_text: int | None) -> dict[str, Any]:
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
