"""The engines that generate text: NumPy, and ONNX Runtime with a run's ONNX file, which is exported when needed."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from picogpt.config import Precision
from picogpt.errors import UserError, one_line
from picogpt.inference.generator import Generator
from picogpt.inference.language_model import LanguageModel, model_of
from picogpt.inference.onnx.session import OnnxModel, OnnxReader, why_unavailable
from picogpt.model.parameters import LARGE, parameter_count
from picogpt.runs.checkpoint import fingerprint, read_record
from picogpt.runs.find import use_checkpoint
from picogpt.runs.layout import onnx_path
from picogpt.runs.trained_model import read_model
from picogpt.system import hardware
from picogpt.tokenizers.base import LibraryMissingError

Floats = npt.NDArray[np.floating]

_TAKES_LONG = 100_000_000  # bytes of weights; the export of more is announced


def export_checkpoint(place: Path, precision: Precision, portable: bool) -> Path:
    """Write the ONNX file of a checkpoint folder. Returns its path.

    Raises UserError where the checkpoint is damaged, or the file cannot be written.
    """
    try:
        return _export(place, precision, portable)
    except _NoOnnxError as error:
        raise UserError(str(error)) from None


def open_generator(
    run: str, engine: str, precision: Precision | Literal["auto"], notify: Callable[[str], None]
) -> tuple[Generator, str]:
    """Return the run's best sound checkpoint, or an ONNX file by its path, ready to write, and the engine's name.

    engine: "onnx", which exports the run first where its file is missing or of other weights, or "numpy". precision:
    "auto" for that of the file there is, or one that fits into memory. Where ONNX Runtime cannot be used, or the file
    cannot be written, NumPy runs the model and `notify` gets the reason. Raises UserError where there is no such run or
    file, or it does not go with the engine or the precision.
    """
    if Path(run).suffix == ".onnx":
        return _open_file(Path(run), engine, precision, notify)
    return use_checkpoint(run, lambda place: _open_checkpoint(place, engine, precision, notify), notify)


def _open_checkpoint(
    place: Path, engine: str, precision: Precision | Literal["auto"], notify: Callable[[str], None]
) -> tuple[Generator, str]:
    if engine == "onnx":
        try:
            model = _current_model(place, precision, notify)
            return onnx_generator(model), f"onnx {model.precision}"
        except _NoOnnxError as error:
            notify(f"{error}; generating with NumPy")
    return model_of(read_model(place)).generator, "numpy"


def _open_file(
    path: Path, engine: str, precision: Precision | Literal["auto"], notify: Callable[[str], None]
) -> tuple[Generator, str]:
    if reason := why_unavailable() or ("--engine numpy needs a run" if engine == "numpy" else ""):
        raise UserError(f"{path} is an ONNX file: {reason}")
    model = open_onnx(path)
    if precision not in ("auto", model.precision):
        raise UserError(f"{path} is {model.precision}: export the run again for {precision}")
    if model.rolls is None and model.config.can_roll:
        notify(f"{path} does not say whether its model was trained to roll: plain windows are used; export it again")
    return onnx_generator(model), f"onnx {model.precision}"


class _NoOnnxError(Exception):
    """ONNX Runtime cannot run the model, for the reason in the text."""


def onnx_generator(model: OnnxModel) -> Generator:
    """Return a generator that runs an exported model on ONNX Runtime."""
    return Generator(model.config, model.tokenizer, lambda batch: OnnxReader(model, batch), bool(model.rolls))


def _export(place: Path, precision: Precision, portable: bool) -> Path:
    """Write the ONNX file of a checkpoint folder. Returns its path.

    Raises UserError where the checkpoint is damaged, _NoOnnxError where the file cannot be written.
    """
    source, found, path = fingerprint(place), read_model(place), onnx_path(place)
    try:
        from picogpt.inference.onnx.export import export

        rolls = found.checkpoint.meta.rolls
        export(path, found.config, found.arrays, found.tokenizer, precision, portable, source, rolls)
    except (UserError, ImportError) as error:
        raise _NoOnnxError(one_line(error, 1000)) from None
    return path


def arrays_of(model: LanguageModel) -> dict[str, Floats]:
    """Return a model's weights by their names."""
    return {name: tensor.data for name, tensor in model.model.named_parameters()}


def _current_model(place: Path, precision: Precision | Literal["auto"], notify: Callable[[str], None]) -> OnnxModel:
    """Open the ONNX file of a checkpoint in a precision, exporting it where there is none or one that is not current.

    Raises _NoOnnxError where ONNX Runtime cannot be used or the file cannot be written.
    """
    if reason := why_unavailable():
        raise _NoOnnxError(reason)
    path, portable = onnx_path(place), False
    if path.is_file():
        try:
            model = open_onnx(path)
        except LibraryMissingError:
            raise
        except UserError as error:
            notify(f"{error}; exporting it again")
        else:
            precision, portable = model.precision if precision == "auto" else precision, model.portable
            current = model.rolls is not None and model.precision == precision
            if current and model.source == fingerprint(place):
                return model
    size = 4 * parameter_count(read_record(place).meta.config.model)[0]  # in fp32, whatever the checkpoint has
    precision = _precision_that_fits(size, notify) if precision == "auto" else precision
    if size > _TAKES_LONG:
        notify(f"exporting {place} to {path}")
    return open_onnx(_export(place, precision, portable))


def open_onnx(path: Path) -> OnnxModel:
    """Open an ONNX file to run on the cores that nothing else is using. Raises UserError as `OnnxModel` does."""
    cores, free = hardware.physical_cores(), hardware.free_cores()
    return OnnxModel(path, max(1, min(cores, round(free))), spin=free > cores - 0.5)


def _precision_that_fits(size: int, notify: Callable[[str], None]) -> Precision:
    """Return fp32, or int8 where so many bytes of weights are large or would take half of the memory that is free."""
    if size > LARGE:
        notify(f"int8: {size / 1e9:.1f} GB of weights would take more memory than most machines have to spare")
    elif size > hardware.available_memory() / 2:
        notify(f"int8: {size / 1e9:.1f} GB of weights would take more than half of the memory that is free")
    else:
        return "fp32"
    return "int8"
