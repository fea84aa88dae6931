"""A run's ONNX file: made, made again when the run has learnt more, and opened."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from picogpt.api import LanguageModel, find_checkpoint, load
from picogpt.config import Precision, UserError
from picogpt.inference.session import OnnxModel, OnnxReader, why_not
from picogpt.inference.writer import Writer
from picogpt.training import checkpoint, monitor

Notify = Callable[[str], None]
Floats = npt.NDArray[np.floating]

NAME = "model.onnx"
_TAKES_LONG = 100_000_000  # bytes of weights whose export is announced


def export_checkpoint(place: Path, precision: Precision, portable: bool) -> Path:
    """Write the ONNX file of a checkpoint folder. Raises UserError where that is damaged, or the disk refuses."""
    return _write(place, load(place), precision, portable)


def open_writer(run: str, engine: str, precision: Precision | Literal["auto"], notify: Notify) -> tuple[Writer, str]:
    """The run's best checkpoint, ready to write, and what runs it, in words.

    engine: "onnx", which exports the run first where its file is missing or of other weights, or "numpy". precision:
    "auto" for that of the file there is, or what fits into memory. Where ONNX Runtime cannot be had, or the file cannot
    be written, NumPy runs the model and `notify` is told.
    """
    place = find_checkpoint(run)
    if engine == "onnx":
        try:
            model = _current(place, precision, notify)
            return onnx_writer(model), f"onnx {model.precision}"
        except _NoOnnxError as error:
            notify(f"{error}; generating with NumPy")
    return load(place).writer, "numpy"


class _NoOnnxError(Exception):
    """Why ONNX Runtime cannot run the model."""


def onnx_writer(model: OnnxModel) -> Writer:
    return Writer(model.config, model.tokenizer, lambda batch: OnnxReader(model, batch))


def _write(place: Path, trained: LanguageModel, precision: Precision, portable: bool) -> Path:
    from picogpt.inference.export import export

    path, source = onnx_path(place), checkpoint.fingerprint(place)
    export(path, trained.config, arrays_of(trained), trained.tokenizer, precision, portable, source)
    return path


def arrays_of(model: LanguageModel) -> dict[str, Floats]:
    return {name: tensor.data for name, tensor in model.model.named_parameters()}


def onnx_path(place: Path) -> Path:
    """Of a checkpoint: in its run's folder, or in its own when that is in no run."""
    return (place.parent.parent if place.parent.name == checkpoint.FOLDER else place) / NAME


def _current(place: Path, precision: Precision | Literal["auto"], notify: Notify) -> OnnxModel:
    """The file of this checkpoint in this precision, made anew where there is another or none. Raises _NoOnnxError."""
    if reason := why_not():
        raise _NoOnnxError(reason)
    path, portable = onnx_path(place), False
    if path.is_file():
        try:
            model = opened(path)
        except UserError as error:
            notify(f"{error}; exporting it again")
        else:
            precision, portable = model.precision if precision == "auto" else precision, model.portable
            if (model.source, model.precision) == (checkpoint.fingerprint(place), precision):
                return model
    precision = _fitting(place, notify) if precision == "auto" else precision
    if (place / checkpoint.MODEL).stat().st_size > _TAKES_LONG:
        notify(f"exporting {place} to {path}")
    trained = load(place)
    try:
        return opened(_write(place, trained, precision, portable))
    except UserError as error:  # the disk refuses
        raise _NoOnnxError(str(error)) from None


def opened(path: Path) -> OnnxModel:
    """On the cores that nothing else is using."""
    cores, free = monitor.physical_cores(), monitor.free_cores()
    return OnnxModel(path, max(1, min(cores, round(free))), spin=free > cores - 0.5)


def _fitting(place: Path, notify: Notify) -> Precision:
    """fp32, or int8 where its weights would take half of the memory that is free."""
    size = (place / checkpoint.MODEL).stat().st_size
    if size < monitor.available_memory() / 2:
        return "fp32"
    notify(f"int8: {size / 1e9:.1f} GB of weights would take more than half of the memory that is free")
    return "int8"
