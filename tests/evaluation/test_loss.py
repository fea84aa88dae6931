"""The loss over a whole text, and of each token."""

from pathlib import Path

import numpy as np
import pytest

from picogpt.data.shards.reader import Shards
from picogpt.data.shards.writer import ShardWriter
from picogpt.engine.lanes import Lanes
from picogpt.evaluation import loss as loss_module
from picogpt.evaluation.loss import full_loss, token_losses
from picogpt.model.gpt import GPT
from picogpt.model.parameters import as_tensors
from picogpt.model.rolling_context import sequence_logits
from picogpt.training.trainer import Trainer
from tests.support.models import lively_arrays
from tests.support.running import config_for


def shards(folder: Path, ids: np.ndarray) -> Shards:
    with ShardWriter(folder, np.uint8, "mine", "") as writer:
        writer.append(ids.astype(np.uint8))
    return Shards(folder, "mine")


@pytest.mark.parametrize("count", [2, 5, 17, 64, 65, 66, 150])  # tokens; windows of 16, sequences of 32
@pytest.mark.parametrize("pass_tokens", [1, 64, 1 << 20])
def test_the_full_loss_counts_every_token_once(
    count: int, pass_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "PASS_TOKENS", pass_tokens)
    config = config_for(tmp_path, context=32, micro_batch=2)
    arrays = lively_arrays(config.model)
    ids = np.random.default_rng(count).integers(0, 88, count)
    expected, model = 0.0, GPT(config.model, as_tensors(arrays))
    for start in range(0, count - 1, 32):
        x, y = ids[start : start + 32][: count - 1 - start], ids[start + 1 : start + 33]
        logits = np.asarray(sequence_logits(model, x[None].astype(np.int32)).data[0], np.float64)
        expected += float(np.sum(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]))
    with Lanes(2) as lanes:
        loss = full_loss(Trainer(config, arrays, lanes), shards(tmp_path / "val", ids))
    assert loss == pytest.approx(expected / (count - 1), rel=1e-5)


def test_token_losses() -> None:
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]], np.float32)) + 50
    np.testing.assert_allclose(token_losses(logits, np.array([[1, 2]])), -np.log([[0.25, 0.8]]), rtol=1e-5)
