"""The loss that an export in few bits adds, measured on the validation text of its run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from picogpt.data.feed import open_feed
from picogpt.data.loader import Batch
from picogpt.data.streaming.part import SAMPLE
from picogpt.errors import UserError
from picogpt.evaluation.loss import token_losses
from picogpt.inference.engines import open_onnx
from picogpt.inference.language_model import load
from picogpt.inference.onnx.session import OnnxReader
from picogpt.model.parameters import is_large
from picogpt.runs.checkpoint import read_record
from picogpt.runs.layout import DATASET
from picogpt.tokenizers.registry import from_dict

TOLERANCE = 0.01  # nats a token that an export may lose before the user is advised to use fp32
_MEASURED, _MEASURED_LARGE = 4096, 1024  # tokens that the loss is measured on
_SEQUENCE = 256  # tokens of a sequence, at most


def quantization_loss(place: Path, path: Path, notify: Callable[[str], None]) -> str:
    """Return in words what the rounded weights lose on windows of the run's validation text."""
    try:
        text, (x, y) = _validation_windows(place, notify)
    except UserError as error:
        return f"the loss of quality was not measured: {error}"
    model, original = open_onnx(path), load(place)
    reader, precision = OnnxReader(model, len(x)), model.precision
    # A position of all windows, and all positions of a window at a time: the logits of a large vocabulary fill memory.
    rounded = sum(token_losses(reader.read(x[:, t : t + 1]), y[:, t]).sum() for t in range(x.shape[1])) / x.size
    exact = sum(token_losses(original.logits(row)[0], next_).sum() for row, next_ in zip(x, y, strict=True)) / x.size
    verdict = f", more than {TOLERANCE}: fp32 writes better" if rounded - exact > TOLERANCE else ""
    return (
        f"loss over {x.size:,} tokens to validate with, of {text}: {precision} {rounded:.4f}, fp32 {exact:.4f}; "
        f"{precision} loses {rounded - exact:+.4f} nats a token{verdict}"
    )


def _validation_windows(place: Path, notify: Callable[[str], None]) -> tuple[str, Batch]:  # -> name, ((B, W), (B, W))
    """Return windows of the run's validation text, or of the embedded sample where that text cannot be read.

    Raises UserError for a model without a tokenizer.
    """
    meta = read_record(place).meta
    config, tokenizer = meta.config, from_dict(meta.tokenizer)
    if not tokenizer.has_words:
        raise UserError("this model came without a tokenizer, so there is no text for it")
    config = replace(config, train=replace(config.train, context=min(_SEQUENCE, config.model.context_len)))
    windows = max(2, (_MEASURED_LARGE if is_large(config.model) else _MEASURED) // config.context)
    try:
        if "-" in config.data.names:
            raise UserError("the run read the standard input")
        feed = open_feed(config, DATASET, notify, tokenizer, windows, meta.feed)
        return "the embedded sample" if feed.text == SAMPLE else feed.source, feed.validation
    except UserError as error:
        notify(f"{error}: measuring on the embedded sample")
    config = replace(config, data=replace(config.data, data="sample", allow_unknown=True))
    return "the embedded sample", open_feed(config, DATASET, notify, tokenizer, windows, None).validation
