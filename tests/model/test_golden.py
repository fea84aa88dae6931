"""The model against PyTorch's results, kept in tests/golden (PyTorch itself is not needed)."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from picogpt.config import ModelConfig, RunConfig, TrainConfig
from picogpt.engine import Tape
from picogpt.engine.lanes import Lanes
from picogpt.model.gpt import GPT
from picogpt.model.parameters import as_tensors, parameter_shapes
from picogpt.model.rolling_context import sequence_logits, sequence_loss
from picogpt.training.trainer import Trainer
from tests.support.paths import GOLDEN

FOLDER = GOLDEN
GOLDEN = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
CASES = GOLDEN["cases"]
TRAINED = [name for name, case in CASES.items() if case["trains"]]


def load(name: str) -> tuple[ModelConfig, dict[str, Any], dict[str, Any]]:
    """The case's model, its parameters, and everything else in its file."""
    case = CASES[name]
    fields = dict(case["config"], layer_pattern=tuple(case["config"]["layer_pattern"]))
    source = load_file(FOLDER / f"{case['parameters']}.safetensors")
    arrays = {key.removeprefix("param."): value for key, value in source.items() if key.startswith("param.")}
    config = ModelConfig(**fields)
    assert {key: value.shape for key, value in arrays.items()} == parameter_shapes(config)
    return config, {key: arrays[key] for key in parameter_shapes(config)}, load_file(FOLDER / f"{name}.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str) -> None:
    config, arrays, golden = load(name)
    logits = sequence_logits(GPT(config, as_tensors(arrays)), golden["x"]).data
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", TRAINED)
def test_loss_and_every_gradient(name: str, recompute: bool) -> None:
    config, arrays, golden = load(name)
    gradients = {key: np.empty_like(value) for key, value in arrays.items()}
    model = GPT(config, as_tensors(arrays, gradients), recompute)
    with Tape() as tape:
        loss = sequence_loss(model, golden["x"], golden["y"])
    tape.backward(loss)
    np.testing.assert_allclose(loss.data, golden["loss"], atol=1e-5)
    for key in arrays:
        np.testing.assert_allclose(gradients[key], golden[f"grad.{key}"], atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", TRAINED)
def test_ten_adamw_steps(name: str) -> None:
    config, arrays, golden = load(name)
    settings = {key: value for key, value in GOLDEN["training"].items() if key != "eps"}
    context = golden["batches.x"].shape[2]
    train = replace(TrainConfig(optimizer="adamw", context=context, batch_size=3, micro_batch=2), **settings)
    with Lanes(2) as lanes:
        trainer = Trainer(RunConfig(config, train=train), arrays, lanes)
        losses = [
            trainer.step(x, y, step, factor=1.0)
            for step, (x, y) in enumerate(zip(golden["batches.x"], golden["batches.y"], strict=True))
        ]
    np.testing.assert_allclose(losses, golden["adamw_losses"], atol=1e-5)
    C = config.n_embd
    for key, array in trainer.arrays.items():
        final, expected = array, golden[f"final.{key}"]
        if key.endswith("c_attn.bias"):
            # Softmax does not feel a bias of the keys: its true gradient is zero, and AdamW makes steps of the noise.
            final, expected = np.delete(final, slice(C, 2 * C)), np.delete(expected, slice(C, 2 * C))
        np.testing.assert_allclose(final, expected, atol=1e-4, err_msg=key)
