"""AdamW and Muon against float64 references, schedules, clipping, and independence of the lanes."""

from collections.abc import Iterator
from dataclasses import replace
from math import cos, pi, sqrt
from typing import Any

import numpy as np
import pytest

from picogpt.config import ModelConfig, RunConfig, TrainConfig
from picogpt.engine.backend import BLOCK
from picogpt.engine.lanes import Lanes, SharedArrays
from picogpt.errors import UserError
from picogpt.model.initialization import initial_arrays
from picogpt.model.parameters import Arrays, is_hidden_matrix, parameter_shapes
from picogpt.optim.muon import NEWTON_SCHULZ, orthogonalise
from picogpt.optim.optimizer import Optimizer, in_groups
from picogpt.optim.schedule import learning_rate_factor
from picogpt.rng import generator
from picogpt.training.trainer import Trainer

SHAPES = {
    "wte.weight": (40, 12),
    "h.0.ln_1.weight": (12,),
    "h.0.attn.c_attn.weight": (36, 12),
    "h.0.attn.c_attn.bias": (36,),
    "h.0.mlp.c_fc.weight": (48, 12),
    "h.0.mlp.c_proj.weight": (12, 48),
    "lm_head.weight": (40, 12),
}
HIDDEN = [name for name in SHAPES if name.startswith("h.") and len(SHAPES[name]) == 2]
STEPS = 60


def random_arrays(purpose: str, step: int = 0, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Arrays:
    rng = generator(0, purpose, step)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


class Work(Optimizer):
    """The optimizer over copies of these parameters, told the gradients at every step."""

    def __init__(self, config: TrainConfig, parameters: Arrays, lanes: Lanes) -> None:
        grouped = in_groups(config, parameters)
        shared, gradients = SharedArrays.zeros(grouped), SharedArrays.zeros(grouped)
        fill(shared, parameters)
        super().__init__(config, shared, [gradients], lanes)

    def apply(self, gradients: Arrays, step: int, factor: float, scale: float) -> None:
        fill(self.gradients[0], gradients)
        self.step(step, factor, scale, depth=99)


def fill(arrays: SharedArrays, values: Arrays) -> None:
    for name, value in values.items():
        arrays.named[name][...] = value


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    with Lanes(2) as pool:
        yield pool


def wide(arrays: Arrays) -> Arrays:
    return {name: array.astype(np.float64) for name, array in arrays.items()}


# AdamW


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_against_float64(lanes: Lanes, weight_decay: float) -> None:
    config = TrainConfig(optimizer="adamw", learning_rate=3e-3, weight_decay=weight_decay, beta2=0.95)
    arrays = random_arrays("parameters")
    expected, optimizer = wide(arrays), Work(config, arrays, lanes)
    mean, square = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    for step in range(STEPS):
        gradients = random_arrays("gradients", step)
        factor, scale = 0.5 + step / STEPS, 0.7
        optimizer.apply(gradients, step, factor, scale)
        rate = config.learning_rate * factor
        for name, p in expected.items():
            g = gradients[name].astype(np.float64) * scale
            mean[name] = 0.9 * mean[name] + 0.1 * g
            square[name] = 0.95 * square[name] + 0.05 * g * g
            corrected = mean[name] / (1 - 0.9 ** (step + 1))
            spread = np.sqrt(square[name] / (1 - 0.95 ** (step + 1))) + 1e-8
            if p.ndim == 2:  # no decay for gains and biases
                p *= 1 - rate * weight_decay
            p -= rate * corrected / spread
    for name, p in expected.items():
        np.testing.assert_allclose(optimizer.parameters.named[name], p, atol=3e-6, err_msg=name)
        np.testing.assert_allclose(optimizer.state[f"mean.{name}"], mean[name], atol=1e-6)
        np.testing.assert_allclose(optimizer.state[f"square.{name}"], square[name], atol=1e-6)


def test_the_first_adamw_step_is_the_learning_rate(lanes: Lanes) -> None:
    """Whatever the gradient's size: bias correction makes mean / sqrt(square) its sign."""
    arrays = random_arrays("parameters")
    before = wide(arrays)
    gradients = {name: 1e-3 * array for name, array in random_arrays("gradients").items()}
    config = TrainConfig(optimizer="adamw", learning_rate=0.01, weight_decay=0.0)
    work = Work(config, arrays, lanes)
    work.apply(gradients, 0, 1.0, 1.0)
    for name, array in work.parameters.named.items():
        big = np.abs(gradients[name]) > 1e-5
        np.testing.assert_allclose((before[name] - array)[big], 0.01 * np.sign(gradients[name][big]), rtol=2e-3)


def test_decay_alone_shrinks_matrices_only(lanes: Lanes) -> None:
    arrays = random_arrays("parameters")
    before = wide(arrays)
    zeros = {name: np.zeros_like(array) for name, array in arrays.items()}
    config = TrainConfig(optimizer="adamw", learning_rate=0.1, weight_decay=0.5)
    work = Work(config, arrays, lanes)
    work.apply(zeros, 0, 0.5, 1.0)
    for name, array in work.parameters.named.items():
        factor = 1 - 0.1 * 0.5 * 0.5 if array.ndim == 2 else 1.0
        np.testing.assert_allclose(array, before[name] * factor, rtol=1e-6)


# Muon


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
    """The iteration as it is written in the paper, in float64."""
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
    expected, optimizer = wide(arrays), Work(config, arrays, lanes)
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
    first = Work(TrainConfig(optimizer="muon"), random_arrays("parameters"), lanes)
    second = Work(TrainConfig(optimizer="adamw"), random_arrays("parameters"), lanes)
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
    joint = Work(config, {name: np.zeros((36, 12), np.float32)}, lanes)
    parts = [Work(config, {"h.0.q.weight": np.zeros((12, 12), np.float32)}, lanes) for _ in range(3)]
    gradient = generator(0, "gradient").standard_normal((36, 12), np.float32)
    gradient[24:] *= 1000
    joint.apply({name: gradient}, 0, 1.0, 1.0)
    for part, alone in enumerate(parts):
        rows = slice(12 * part, 12 * part + 12)
        alone.apply({"h.0.q.weight": gradient[rows]}, 0, 1.0, 1.0)
        assert np.array_equal(joint.parameters.named[name][rows], alone.parameters.named["h.0.q.weight"])
        assert 0.6 < np.linalg.norm(joint.parameters.named[name][rows]) / sqrt(12) < 1.2


# In place, and the same from any number of lanes

LARGE = {
    "wte.weight": (BLOCK // 32 + 3, 64),  # more than one block of AdamW's
    "h.0.attn.c_attn.weight": (192, 64),
    "h.0.mlp.c_fc.weight": (256, 64),
    "h.0.mlp.c_proj.weight": (64, 256),
    "ln_f.weight": (64,),
}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_number_of_lanes_does_not_matter(optimizer: Any) -> None:
    results = []
    for count in (1, 2, 3):
        arrays = random_arrays("parameters", shapes=LARGE)
        with Lanes(count) as pool:
            work = Work(TrainConfig(optimizer=optimizer), arrays, pool)
            for step in range(3):
                work.apply(random_arrays("gradients", step, LARGE), step, 1.0, 0.9)
        results.append({**work.parameters.named, **work.state})
    for other in results[1:]:
        for name, array in results[0].items():
            assert array.tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_arrays_are_changed_in_place(lanes: Lanes, optimizer: Any) -> None:
    work = Work(TrainConfig(optimizer=optimizer), random_arrays("parameters"), lanes)
    held, before, state = dict(work.parameters.named), wide(work.parameters.named), dict(work.state)
    gradients = random_arrays("gradients")
    work.apply(gradients, 0, 1.0, 1.0)
    for name, array in work.parameters.named.items():
        assert array is held[name] and not np.array_equal(array, before[name])
        assert np.array_equal(work.gradients[0].named[name], gradients[name]), "the gradient is only read"
    assert all(work.state[name] is array and array.any() for name, array in state.items())


@pytest.mark.parametrize("busy", [1, 2, 3])
def test_gradients_of_the_lanes_are_summed(lanes: Lanes, busy: int) -> None:
    config, parameters = TrainConfig(), SharedArrays.zeros(in_groups(TrainConfig(), random_arrays("lane", 0, LARGE)))
    gradients = [SharedArrays.zeros(parameters.named) for _ in range(3)]
    for lane, own in enumerate(gradients):
        fill(own, random_arrays("lane", lane, LARGE))
    expected = {name: sum(wide(own.named)[name] for own in gradients[:busy]) for name in LARGE}
    squares = Optimizer(config, parameters, gradients, lanes).reduce(busy)
    for name, total in expected.items():
        np.testing.assert_allclose(gradients[0].named[name], total, atol=1e-6)
    assert sum(squares) == pytest.approx(sum((total**2).sum() for total in expected.values()), rel=1e-5)


# Clipping, seen in the mean gradient that AdamW keeps

MODEL = ModelConfig(context_len=8, vocab_size=17, n_layer=1, n_head=2, n_embd=8)


def applied_norm(grad_clip: float) -> tuple[float, float]:
    """(norm of the gradient, norm of what the optimizer took of it) in one step."""
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
    """Neither the lane nor what ran before decides what is dropped."""
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


# Schedules


def test_warm_up_stable_decay() -> None:
    config = TrainConfig(schedule="wsd", warmup_steps=10, decay_fraction=0.4, min_lr_fraction=0.1)
    factors = [learning_rate_factor(config, step, step / 100) for step in range(100)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    assert all(factor == 1.0 for factor in factors[9:61])
    np.testing.assert_allclose(factors[60:], 0.1 + 0.9 * (1 - np.arange(60, 100) / 100) / 0.4)
    assert np.all(np.diff(factors[60:]) < 0) and factors[-1] > 0.1
    assert learning_rate_factor(config, 100, 1.0) == pytest.approx(0.1)


def test_cosine() -> None:
    config = TrainConfig(schedule="cosine", warmup_steps=0, min_lr_fraction=0.2)
    for progress in (0.0, 0.25, 0.5, 0.9, 1.0):
        expected = 0.2 + 0.8 * (1 + cos(pi * progress)) / 2
        assert learning_rate_factor(config, 7, progress) == pytest.approx(expected)
    assert learning_rate_factor(replace(config, warmup_steps=16), 7, 0.0) == 0.5


def test_a_constant_rate() -> None:
    config = TrainConfig(schedule="wsd", warmup_steps=0, decay_fraction=0.0)
    assert {learning_rate_factor(config, step, step / 50) for step in range(50)} == {1.0}


def test_decay_over_the_whole_run() -> None:
    config = TrainConfig(schedule="wsd", warmup_steps=0, decay_fraction=1.0)
    assert [learning_rate_factor(config, step, step / 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_decay_follows_progress_and_warm_up_follows_steps() -> None:
    """Progress may come from the clock: then few steps still decay, and many steps do not."""
    config = TrainConfig(schedule="wsd", warmup_steps=10, decay_fraction=0.5)
    assert learning_rate_factor(config, 3, 0.75) == pytest.approx(0.4 * 0.5)
    assert learning_rate_factor(config, 10**6, 0.25) == 1.0
