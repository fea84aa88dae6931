"""`picogpt export --format`: write a run's model in another program's format."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from picogpt.errors import UserError
from picogpt.interop.dat import DataType, write_dat
from picogpt.interop.foreign_model import common_kind
from picogpt.interop.huggingface.writer import write_huggingface
from picogpt.interop.picogpt_log import Log, write_picogpt_log
from picogpt.model.parameters import is_large
from picogpt.runs.checkpoint import finish, write_arrays
from picogpt.runs.eight_bits import rounded
from picogpt.runs.find import use_checkpoint
from picogpt.runs.layout import LOG
from picogpt.runs.log import read_log
from picogpt.runs.trained_model import TrainedModel, read_model
from picogpt.system.files import new_folder
from picogpt.tokenizers.characters import PicoTokenizer

Format = Literal["huggingface", "dat", "picogpt", "compact"]

_DATA_TYPES: dict[str, DataType] = {"uint16": "BFLOAT16", "float16": "FLOAT16", "float32": "FLOAT32"}


def export_model(run: str, form: Format, out: Path, notify: Callable[[str], None]) -> None:
    """Write the best checkpoint of a run as a folder of Hugging Face's or huplay's, a log of PicoGPT's, or compact.

    Numbers of 16 bits stay so, and a compact checkpoint has 8. Raises UserError for a model
    that the format cannot hold, where `out` exists already, and where the disk refuses.
    """
    found = use_checkpoint(run, read_model, notify)
    model, arrays, tokenizer = found.config, found.arrays, found.tokenizer
    if form == "picogpt":
        if not isinstance(tokenizer, PicoTokenizer):
            raise UserError(f"PicoGPT has one tokenizer, and this model's is {tokenizer.name}: choose another --format")
        write_picogpt_log(out, _log(found))
        return
    if form == "compact":
        _write_compact(out, found)
        return
    tokenizer_json = tokenizer.tokenizer_json()
    if form == "dat":
        write_dat(out, model, arrays, _DATA_TYPES[common_kind(arrays).name], tokenizer.end_of_text)
    else:
        write_huggingface(out, model, arrays, tokenizer.end_of_text, tokenizer_json)
    if form == "dat" or not tokenizer_json:
        notify(f"the tokenizer ({tokenizer.name}) is not exported: this format has no place for it")


def _write_compact(out: Path, found: TrainedModel) -> None:
    """Write a checkpoint folder to hand on: 8-bit matrices, no optimizer, and the text's name without its folder."""
    if is_large(found.config):
        raise UserError("a model of billions of parameters is kept in 16 bits: choose another --format")
    meta = found.checkpoint.meta
    names = tuple(name if name.startswith("hf:") else Path(name).name for name in meta.config.data.names)
    data = replace(meta.config.data, data=names[0] if len(names) == 1 else names)
    train = replace(meta.config.train, train="all")  # its low-rank matrices are merged
    config = replace(meta.config, model=found.config, data=data, train=train)
    with new_folder(out) as place:
        write_arrays(place, rounded(found.arrays), {})
        finish(place, found.checkpoint.step, replace(meta, config=config).to_dict())


def _log(found: TrainedModel) -> Log:
    """Return the log of a checkpoint's model, with the losses of the run's own log where the checkpoint has one."""
    path = found.checkpoint.path.parent.parent / LOG
    evaluations = read_log(path).evaluations if path.is_file() else []
    pairs = [(entry.train_loss, entry.val_loss) for entry in evaluations]
    known = [(train, val) for train, val in pairs if train is not None and val is not None]
    train, val = ([pair[side] for pair in known] for side in (0, 1))
    floats = {name: np.asarray(array) for name, array in found.arrays.items()}
    return Log(found.config, floats, train, val, found.checkpoint.meta.val_loss, found.checkpoint.step)
