"""A model of ours as a folder that Hugging Face's programs read."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.config import ModelConfig
from picogpt.engine.backend import Array
from picogpt.interop.foreign_model import common_kind, in_kind
from picogpt.interop.huggingface.families import MATRIX, family_of, foreign_names, settings_for
from picogpt.interop.huggingface.reader import CONFIG, FILES
from picogpt.system.files import new_folder
from picogpt.tensorfiles.safetensors import write_safetensors


def write_huggingface(
    folder: Path, config: ModelConfig, arrays: Mapping[str, Array], end_of_text: int | None, tokenizer: str = ""
) -> None:
    """Write a model as a folder that Hugging Face's programs read, a GPT-2 or a GPT-Neo, in the numbers it is kept in.

    arrays: by picogpt's names. tokenizer: the text of a tokenizer.json. Raises UserError for what neither of them can
    be, where there is such a folder already, and where the disk refuses.
    """
    family = family_of(config)
    kind = common_kind(arrays)
    turned = _Turned(config, family, arrays, kind)
    with new_folder(folder) as place:
        write_safetensors(place / FILES[0], turned, {"format": "pt"})
        settings = settings_for(config, family, kind, end_of_text)
        (place / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if tokenizer:
            (place / "tokenizer.json").write_text(tokenizer, encoding="utf-8")


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
            if family == "gpt2" and MATRIX.fullmatch(name):
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
