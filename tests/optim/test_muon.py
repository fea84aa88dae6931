"""Muon against a float64 reference, and its orthogonalisation against the singular value decomposition."""

from math import sqrt

import numpy as np
import pytest

from picogpt.config import TrainConfig
from picogpt.engine.lanes import Lanes
from picogpt.model.parameters import is_hidden_matrix
from picogpt.optim.muon import NEWTON_SCHULZ, orthogonalise
from picogpt.rng import generator
from tests.support.optimizers import HIDDEN, SHAPES, ExampleOptimizer, in_float64, random_arrays


@pytest.mark.parametrize("shape", [(64, 64), (32, 128), (128, 32), (16, 200), (200, 16), (1, 8), (8, 1), (1, 1)])
def test_orthogonalise(shape: tuple[int, int]) -> None:
    """Singular vectors stay, singular values come near 1 (the quintic leaves them between about 0.7 and 1.2)."""
    for scale in (1e-4, 1.0, 1e4):
        matrix = (generator(0, "matrix").standard_normal(shape) * scale).astype(np.float32)
        u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        result = orthogonalise(matrix)
        assert result.shape == shape and result.dtype == np.float32
        inside = u.T @ result @ vt.T
        values = np.diag(inside)
        solid = s > 0.02 * np.sqrt((s**2).sum())  # what is nearly zero takes more than five steps
        assert (values[solid] > 0.6).all() and (values < 1.3).all() and (values > 0).all()
        assert np.abs(inside - np.diag(values)).max() < 1e-3


def test_orthogonalise_leaves_its_input_and_survives_zeros() -> None:
    matrix = generator(0, "matrix").standard_normal((6, 9), np.float32)
    before = matrix.copy()
    orthogonalise(matrix)
    assert np.array_equal(matrix, before)
    assert not orthogonalise(np.zeros((3, 5), np.float32)).any()


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Return what the iteration makes of the matrix as it is written in its source, in float64."""
    a, b, c = NEWTON_SCHULZ
    x = matrix / np.linalg.norm(matrix)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_against_float64(lanes: Lanes, weight_decay: float) -> None:
    config = TrainConfig(optimizer="muon", learning_rate=2e-3, muon_learning_rate=0.02, weight_decay=weight_decay)
    arrays = random_arrays("parameters")
    expected, optimizer = in_float64(arrays), ExampleOptimizer(config, arrays, lanes)
    momentum = {name: np.zeros(SHAPES[name]) for name in HIDDEN}
    for step in range(20):
        gradients = random_arrays("gradients", step)
        factor, scale = 1 - step / 40, 0.6
        optimizer.apply(gradients, step, factor, scale)
        for name in HIDDEN:
            g = gradients[name].astype(np.float64) * scale
            momentum[name] = config.muon_momentum * momentum[name] + g
            nesterov = g + config.muon_momentum * momentum[name]
            parts = np.split(nesterov, 3) if "c_attn" in name else [nesterov]
            height, width = parts[0].shape
            update = np.concatenate([newton_schulz(part) for part in parts]) * sqrt(max(1, height / width))
            expected[name] *= 1 - config.learning_rate * factor * weight_decay
            expected[name] -= config.muon_learning_rate * factor * update
    for name in HIDDEN:
        np.testing.assert_allclose(optimizer.parameters.named[name], expected[name], atol=3e-5, err_msg=name)
        np.testing.assert_allclose(optimizer.state[f"momentum.{name}"], momentum[name], atol=1e-5)


def test_muon_takes_hidden_matrices_and_adamw_the_rest(lanes: Lanes) -> None:
    first = ExampleOptimizer(TrainConfig(optimizer="muon"), random_arrays("parameters"), lanes)
    second = ExampleOptimizer(TrainConfig(optimizer="adamw"), random_arrays("parameters"), lanes)
    muon, adamw = first.parameters.named, second.parameters.named
    rest = [name for name in SHAPES if name not in HIDDEN]
    assert [name for name, array in muon.items() if is_hidden_matrix(name, array.shape)] == HIDDEN
    assert set(first.state) == {f"momentum.{n}" for n in HIDDEN} | {
        f"{m}.{n}" for n in rest for m in ("mean", "square")
    }
    assert set(second.state) == {f"{moment}.{name}" for name in SHAPES for moment in ("mean", "square")}
    for optimizer in (first, second):
        optimizer.apply(random_arrays("gradients"), 0, 1.0, 1.0)
    for name in SHAPES:
        assert np.array_equal(muon[name], adamw[name]) == (name in rest), name


def test_q_k_and_v_are_three_matrices(lanes: Lanes) -> None:
    """As three parameters of their own would: a gradient in v alone moves v alone, and by as much as ever."""
    config = TrainConfig(optimizer="muon", weight_decay=0.0, muon_learning_rate=1.0)
    name = "h.0.attn.c_attn.weight"
    joint = ExampleOptimizer(config, {name: np.zeros((36, 12), np.float32)}, lanes)
    parts = [ExampleOptimizer(config, {"h.0.q.weight": np.zeros((12, 12), np.float32)}, lanes) for _ in range(3)]
    gradient = generator(0, "gradient").standard_normal((36, 12), np.float32)
    gradient[24:] *= 1000
    joint.apply({name: gradient}, 0, 1.0, 1.0)
    for part, alone in enumerate(parts):
        rows = slice(12 * part, 12 * part + 12)
        alone.apply({"h.0.q.weight": gradient[rows]}, 0, 1.0, 1.0)
        assert np.array_equal(joint.parameters.named[name][rows], alone.parameters.named["h.0.q.weight"])
        assert 0.6 < np.linalg.norm(joint.parameters.named[name][rows]) / sqrt(12) < 1.2
