"""A run's ONNX file: made, made again when the run has learnt more, opened, and its precision measured."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from picogpt.api import DATASET, LanguageModel, find_checkpoint, load
from picogpt.config import Precision, RunConfig, UserError
from picogpt.data.feed import open_feed
from picogpt.data.loader import Batch
from picogpt.data.tokenizer import from_dict
from picogpt.inference.session import OnnxModel, OnnxReader, why_not
from picogpt.inference.writer import Writer
from picogpt.training import checkpoint, monitor

Notify = Callable[[str], None]
Floats = npt.NDArray[np.floating]

NAME = "model.onnx"
TOLERANCE = 0.01  # nats a token that an export may lose before it says so
_MEASURED = 4096  # tokens to measure that on
_TAKES_LONG = 100_000_000  # bytes of weights whose export is announced


def export_run(run: str, precision: Precision, portable: bool, notify: Notify) -> Path:
    """Write the ONNX file of a run's best checkpoint. What few bits lose is told.

    Raises UserError where there is no such run, or the disk refuses.
    """
    place = find_checkpoint(run)
    path = _write(place, load(place), precision, portable)
    notify(f"wrote {path}: {precision}{', portable' * portable}, {path.stat().st_size / 1e6:,.1f} MB")
    if precision != "fp32":
        notify(_quality(place, path, precision, notify))
    return path


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
            model = _opened(path)
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
        return _opened(_write(place, trained, precision, portable))
    except UserError as error:  # the disk refuses
        raise _NoOnnxError(str(error)) from None


def _opened(path: Path) -> OnnxModel:
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


def _quality(place: Path, path: Path, precision: Precision, notify: Notify) -> str:
    """What the rounded weights lose, in words, on windows of the run's validation text."""
    x, y = _validation(place, notify)
    reader = OnnxReader(_opened(path), len(x))
    logits = np.stack([reader.read(x[:, t : t + 1]).copy() for t in range(x.shape[1])], axis=1)
    rounded, exact = token_losses(logits, y).mean(), token_losses(load(place).logits(x), y).mean()
    verdict = f", more than {TOLERANCE}: fp32 writes better" if rounded - exact > TOLERANCE else ""
    return (
        f"loss over {x.size:,} tokens of the validation text: {precision} {rounded:.4f}, fp32 {exact:.4f}; "
        f"{precision} loses {rounded - exact:+.4f} nats a token{verdict}"
    )


def token_losses(logits: Floats, targets: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Cross entropy of each token, in nats. (B, T, V), (B, T) -> (B, T)"""
    scores = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(scores, targets[..., None].astype(np.int64), axis=-1)[..., 0]
    return np.asarray(np.log(np.exp(scores).sum(axis=-1)) - chosen)


def _validation(place: Path, notify: Notify) -> Batch:  # -> (B, W), (B, W)
    """Windows of the text that the run is validated with; of the embedded sample where that is not to be had."""
    meta = checkpoint.load(place, optimizer=False).meta
    config, tokenizer = RunConfig.from_dict(meta["config"]), from_dict(meta["tokenizer"])
    config = replace(config, train=replace(config.train, context=0))
    windows = max(2, _MEASURED // config.context)
    try:
        if "-" in config.data.names:
            raise UserError("the run read the standard input")
        feed = open_feed(config, DATASET, notify, tokenizer, windows, meta.get("feed"))
    except UserError as error:
        notify(f"{error}: measuring on the embedded sample")
        config = replace(config, data=replace(config.data, data="sample"))
        feed = open_feed(config, DATASET, notify, tokenizer, windows, None)
    return feed.validation
