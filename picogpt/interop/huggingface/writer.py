"""Hugging Face's folders of a model, written."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.config import ModelConfig
from picogpt.engine.backend import Array
from picogpt.interop.foreign_model import common_kind, in_kind
from picogpt.interop.huggingface.base import HEAD, Family
from picogpt.interop.huggingface.families import family_of_model
from picogpt.interop.huggingface.reader import CONFIG, FILES
from picogpt.system.files import new_folder
from picogpt.tensorfiles.safetensors import write_safetensors


def write_huggingface(
    folder: Path, config: ModelConfig, arrays: Mapping[str, Array], end_of_text: int | None, tokenizer: str = ""
) -> None:
    """Write a model as a folder that Hugging Face's programs read, in the kind of numbers it is kept in.

    arrays: by picogpt's names. tokenizer: the text of a tokenizer.json. Raises UserError for a model that is of no
    family there, where there is such a folder already, and where the disk refuses.
    """
    family = family_of_model(config)
    kind = common_kind(arrays)
    with new_folder(folder) as place:
        write_safetensors(place / FILES[0], _Renamed(arrays, config, family, kind), {"format": "pt"})
        fields = family.config_fields(config, kind, end_of_text)
        (place / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        if tokenizer:
            (place / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
            end = _name_of(tokenizer, end_of_text)
            about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
            about |= {"model_max_length": config.context_len, **({"bos_token": end, "eos_token": end} if end else {})}
            (place / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _name_of(tokenizer: str, id: int | None) -> str:
    """Return the name that a tokenizer.json has for an id, "" for none."""
    return next((token["content"] for token in json.loads(tokenizer)["added_tokens"] if token["id"] == id), "")


class _Renamed(Mapping[str, npt.NDArray[Any]]):
    """A model's weights by a family's names and in its layout, each made when it is asked for."""

    def __init__(self, arrays: Mapping[str, Array], config: ModelConfig, family: Family, kind: np.dtype[Any]) -> None:
        self._arrays, self._family, self._kind = arrays, family, kind
        # The family's name -> picogpt's name, and which of how many pieces of that weight it is.
        self._places: dict[str, tuple[str, int, int]] = {}
        for ours, theirs in family.names(config).items():
            for piece, name in enumerate(theirs):
                prefix = "" if name == HEAD else family.prefix
                self._places[prefix + name] = ours, piece, len(theirs)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        ours, piece, pieces = self._places[name]
        whole = in_kind(self._arrays[ours], self._kind)
        height = len(whole) // pieces
        rows = whole[piece * height : (piece + 1) * height]
        return np.ascontiguousarray(rows.T if self._family.is_transposed(ours) else rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
