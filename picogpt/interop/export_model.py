"""`picogpt export --format`: a run's model in other programs' formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from picogpt.config import ModelConfig
from picogpt.errors import UserError
from picogpt.interop.dat import DataType, write_dat
from picogpt.interop.foreign_model import common_kind
from picogpt.interop.huggingface.writer import write_huggingface
from picogpt.interop.picogpt_log import Log, write_log
from picogpt.model.parameters import Arrays
from picogpt.runs.checkpoint import Checkpoint
from picogpt.runs.find import use_checkpoint
from picogpt.runs.layout import LOG
from picogpt.runs.log import read_log
from picogpt.runs.trained_model import read_model
from picogpt.tokenizers.bpe import BpeTokenizer
from picogpt.tokenizers.characters import PicoTokenizer

Format = Literal["huggingface", "dat", "picogpt"]

_DATA_TYPES: dict[str, DataType] = {"uint16": "BFLOAT16", "float16": "FLOAT16", "float32": "FLOAT32"}


def export_model(run: str, form: Format, out: Path, notify: Callable[[str], None]) -> None:
    """Write the best checkpoint of a run as a folder of Hugging Face's or huplay's, or as a log of PicoGPT's.

    Numbers of 16 bits stay such where all of the model's are. Raises UserError for a model that the format cannot
    hold, for a place that is taken, and where the disk refuses.
    """
    found, model, arrays, tokenizer = use_checkpoint(run, read_model, notify)
    if form == "picogpt":
        if tokenizer.name != PicoTokenizer.name:
            raise UserError(f"PicoGPT has one tokenizer, and this model's is {tokenizer.name}: it would read nonsense")
        write_log(out, _log(found, model, arrays))
        return
    words = tokenizer.to_dict()["json"] if isinstance(tokenizer, BpeTokenizer) else ""
    if form == "dat":
        write_dat(out, model, arrays, _DATA_TYPES[common_kind(arrays).name], tokenizer.end_of_text)
    else:
        write_huggingface(out, model, arrays, tokenizer.end_of_text, words)
    if form == "dat" or not words:
        notify(f"the tokenizer ({tokenizer.name}) stays behind: this format has no place for it")


def _log(found: Checkpoint, model: ModelConfig, arrays: Arrays) -> Log:
    """With the losses of the run's own log, where it is in a run."""
    path = found.path.parent.parent / LOG
    evaluations = read_log(path).evaluations if path.is_file() else []
    pairs = [(entry.train_loss, entry.val_loss) for entry in evaluations]
    known = [(train, val) for train, val in pairs if train is not None and val is not None]
    train, val = ([pair[side] for pair in known] for side in (0, 1))
    floats = {name: np.asarray(array) for name, array in arrays.items()}
    return Log(model, floats, train, val, found.meta.val_loss, found.step)
