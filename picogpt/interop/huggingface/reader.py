"""Hugging Face's folders of a model, read: config.json beside the weights, which lie in one file or in several."""

import re
from collections.abc import Mapping
from pathlib import Path

from picogpt.errors import UserError, one_line
from picogpt.interop.foreign_model import ForeignModel, Pieces, few, require_weights
from picogpt.interop.huggingface.base import HEAD, Family, Names
from picogpt.interop.huggingface.config_file import ConfigFile, read_json
from picogpt.interop.huggingface.families import family_of_config
from picogpt.tensorfiles.lazy_tensor import LazyTensor
from picogpt.tensorfiles.safetensors import read_safetensors
from picogpt.tensorfiles.torch_files import read_torch

CONFIG = "config.json"

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

_SHARDS_MOST = 1000

_FILE = re.compile(r"\w[\w.-]*")

_WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)*")  # before the names of a model that was compiled or distributed


def read_huggingface(path: Path) -> ForeignModel:
    """Return the model of a folder, or of a file of weights in it; nothing of the weights is read yet.

    Raises UserError for what is damaged, of another architecture, or lacks weights or has others.
    """
    folder = path if path.is_dir() else path.parent
    file = path if path.is_file() and path.name != CONFIG else _weights_file(folder)
    config = ConfigFile(folder / CONFIG)
    family = family_of_config(config)
    model = family.read_config(config)
    tensors = _bare(file, _tensors(file), family)
    head = tensors.pop(HEAD, None) if model.tied_head else None
    names = family.names(model)
    weights = _weights(file, tensors, family, names)
    known = {name for theirs in names.values() for name in theirs}
    require_weights(file, model, weights, tensors.keys() - known)
    if head is not None and not _is_equal(head, weights["wte.weight"][0]):
        raise UserError(f"{file}: {HEAD} differs from the token table that {CONFIG} ties it to")
    return ForeignModel(family.name, model, weights, config.end_of_text(model.vocab_size))


def _weights_file(folder: Path) -> Path:
    """Return the file of a folder that holds the weights or lists where they are. Raises UserError for none."""
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no weights: one of {', '.join(FILES)} is looked for")


def _bare(file: Path, tensors: Mapping[str, LazyTensor], family: Family) -> dict[str, LazyTensor]:
    """Return the tensors by names without a prefix, and without masks. Raises UserError for one that is there twice."""
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        bare = _WRAPPERS.sub("", name).removeprefix(family.prefix)
        if bare in found:
            raise UserError(f"{file} has {one_line(bare, 80)} twice, with and without a prefix: get it again")
        if not family.masks.search(bare):
            found[bare] = tensor
    return found


def _weights(file: Path, tensors: Mapping[str, LazyTensor], family: Family, names: Names) -> dict[str, Pieces]:
    """Return the weights that are there, by picogpt's names and in its layout.

    Raises UserError where only some of the pieces of a weight are there.
    """
    weights: dict[str, Pieces] = {}
    for ours, theirs in names.items():
        missing = [name for name in theirs if name not in tensors]
        if 0 < len(missing) < len(theirs):
            raise UserError(f"{file} lacks {', '.join(missing)}, which belongs to what it has: get it again")
        if not missing:
            pieces = [tensors[name] for name in theirs]
            weights[ours] = tuple(piece.transposed if family.is_transposed(ours) else piece for piece in pieces)
    return weights


def _is_equal(one: LazyTensor, other: LazyTensor) -> bool:
    """Return whether two tensors hold the same numbers. They are compared a few rows at a time."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if (one.storage, one.start, one.strides) == (other.storage, other.start, other.strides):
        return True
    a, b = one.raw(), other.raw()
    return all(a[i : i + 1024].tobytes() == b[i : i + 1024].tobytes() for i in range(0, len(a), 1024))


def _tensors(file: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a file, or of all files that it names. Raises UserError where one of them is damaged."""
    if file.suffix == ".json":
        return _sharded(file)
    return read_safetensors(file) if file.suffix == ".safetensors" else read_torch(file)


def _sharded(index: Path) -> dict[str, LazyTensor]:
    """Return the tensors of all files that an index names. Raises UserError where one is not where it should be."""
    places = _places(index)
    files = sorted(set(places.values()))
    if len(files) > _SHARDS_MOST or not all(_FILE.fullmatch(name) for name in files):
        raise UserError(f"{index} names files in other folders, or too many of them: it is not loaded")
    if any(name.endswith(".json") for name in files):
        raise UserError(f"{index} names an index where weights are expected: get it again")
    tensors: dict[str, LazyTensor] = {}
    for name in files:
        for key, tensor in _tensors(index.with_name(name)).items():
            if places.get(key) != name:
                unexpected = one_line(key, 80)
                raise UserError(f"{index.with_name(name)} has {unexpected}, which {index.name} does not expect there")
            tensors[key] = tensor
    if missing := places.keys() - tensors:
        raise UserError(f"the files {index} names lack {few(missing)}: get them again")
    return tensors


def _places(index: Path) -> dict[str, str]:
    """Return the name of the file that each tensor lies in. Raises UserError where the index does not say it."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(place, str) for place in found.values()):
        raise UserError(f"{index} does not say which file has which weights: get it again")
    return found
