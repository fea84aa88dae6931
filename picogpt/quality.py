"""What an export in few bits loses, measured on the text that the run is validated with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from picogpt.api import DATASET, load
from picogpt.config import RunConfig, UserError
from picogpt.data.feed import open_feed
from picogpt.data.loader import Batch
from picogpt.data.tokenizer import from_dict
from picogpt.exporting import opened
from picogpt.inference.session import OnnxReader
from picogpt.training import checkpoint

Notify = Callable[[str], None]
Floats = npt.NDArray[np.floating]

TOLERANCE = 0.01  # nats a token that an export may lose before it says so
_MEASURED = 4096  # tokens to measure that on


def quality(place: Path, path: Path, notify: Notify) -> str:
    """What the rounded weights lose, in words, on windows of the run's validation text."""
    x, y = _validation(place, notify)
    model = opened(path)
    reader, precision = OnnxReader(model, len(x)), model.precision
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
