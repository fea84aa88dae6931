"""One step of the trainer: clipped gradients, losses that are not finite, micro-batches and dropout."""

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest

from picogpt.config import ModelConfig, RunConfig, TrainConfig
from picogpt.engine.lanes import Lanes
from picogpt.errors import UserError
from picogpt.model.initialization import initial_arrays
from picogpt.model.parameters import parameter_shapes
from picogpt.rng import generator
from picogpt.training.trainer import Trainer

MODEL = ModelConfig(context_len=8, vocab_size=17, n_layer=1, n_head=2, n_embd=8)


def applied_norm(grad_clip: float) -> tuple[float, float]:
    """Return the norm of the gradient in one step, and the norm of what the optimizer gets, as AdamW's mean shows."""
    train = TrainConfig(optimizer="adamw", grad_clip=grad_clip, batch_size=4, micro_batch=2, lanes=2)
    arrays = initial_arrays(MODEL, 0)
    ids = generator(0, "ids").integers(0, 17, (4, 9)).astype(np.int32)
    with Lanes(2) as pool:
        trainer = Trainer(RunConfig(MODEL, train=train), arrays, pool)
        _, raw = trainer.accumulate(ids[:, :-1], ids[:, 1:], 0)
        trainer.step(ids[:, :-1], ids[:, 1:], 0, 1.0)
    means = [array / 0.1 for name, array in trainer.optimizer.state.items() if name.startswith("mean.")]
    return raw, sqrt(sum(float((mean.astype(np.float64) ** 2).sum()) for mean in means))


def test_clipping_to_the_norm() -> None:
    raw, unclipped = applied_norm(0.0)
    assert unclipped == pytest.approx(raw, rel=1e-5) and raw > 0.1
    assert applied_norm(raw / 4)[1] == pytest.approx(raw / 4, rel=1e-4)
    assert applied_norm(raw * 4)[1] == pytest.approx(raw, rel=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_divergence_is_told_and_changes_nothing(poison: float) -> None:
    train = TrainConfig(batch_size=2, micro_batch=1, lanes=1)
    arrays = initial_arrays(MODEL, 0)
    arrays["h.0.mlp.c_fc.bias"][0] = poison
    ids = np.ones((2, 9), np.int32)
    with Lanes(1) as pool:
        trainer = Trainer(RunConfig(MODEL, train=train), arrays, pool)
        with pytest.raises(UserError, match=r"step 5: loss .*diverged"):
            trainer.step(ids[:, :-1], ids[:, 1:], 4, 1.0)
    assert all(np.array_equal(trainer.arrays[name], array, equal_nan=True) for name, array in arrays.items())
    assert not any(array.any() for array in trainer.optimizer.state.values())


@pytest.mark.parametrize("lane_count", [1, 2, 3])
def test_micro_batches_add_up_to_the_batch(lane_count: int) -> None:
    ids = generator(0, "ids").integers(0, 17, (7, 17)).astype(np.int32)
    found = []
    for micro, count in ((7, 1), (2, lane_count)):
        train = TrainConfig(batch_size=7, micro_batch=micro, context=16)
        with Lanes(count) as pool:
            trainer = Trainer(RunConfig(MODEL, train=train), initial_arrays(MODEL, 0), pool)
            loss, _ = trainer.accumulate(ids[:, :-1], ids[:, 1:], 0)
            assert trainer.evaluate(ids[:, :-1], ids[:, 1:]) == pytest.approx(loss, rel=1e-5)
        found.append((loss, trainer.gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name in parameter_shapes(MODEL):
        np.testing.assert_allclose(found[0][1][name], found[1][1][name], atol=1e-6)


def test_dropout_follows_the_step_and_the_place_in_the_batch() -> None:
    """Neither the lane nor earlier work decides what is dropped."""
    config = RunConfig(replace(MODEL, dropout=0.3), train=TrainConfig(batch_size=4, micro_batch=1))
    row = generator(0, "ids").integers(0, 17, 9).astype(np.int32)
    ids = np.stack([row] * 4)  # only dropout tells the four apart
    losses = {}
    for count in (1, 2, 3):
        with Lanes(count) as pool:
            trainer = Trainer(config, initial_arrays(MODEL, 0), pool)
            losses[count] = [trainer.accumulate(ids[:, :-1], ids[:, 1:], step)[0] for step in (0, 1, 0)]
            one, _ = trainer.accumulate(ids[:1, :-1], ids[:1, 1:], 0)
            assert one != pytest.approx(losses[count][0], abs=1e-7)
    assert losses[1] == losses[2] == losses[3]
    assert losses[1][0] == losses[1][2] != losses[1][1]
