"""Checkpoints in eight bits: as near as their factors say, and refused where those are missing."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from picogpt.config import RunConfig
from picogpt.runs.checkpoint import DamageError, finish, read, write_arrays
from picogpt.runs.checkpoint_meta import CheckpointMeta
from picogpt.runs.eight_bits import is_scale, restored, rounded

_TINY = 127 * float(np.finfo(np.float32).tiny)  # a row of nothing larger becomes zeros
MATRICES = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-(2.0**60), 2.0**60, width=32),
)


@settings(deadline=None)
@given(MATRICES)
def test_no_number_moves_by_more_than_half_a_factor(matrix: np.ndarray) -> None:
    found = rounded({"w": matrix})
    assert found["w"].dtype == np.int8 and set(found) == {"w", "w.scale"}
    back = restored("w", found["w"].astype(np.int8), found)
    half = found["w.scale"].astype(np.float64)[:, None] / 2
    assert back.dtype == np.float32
    assert np.all(np.abs(back - matrix.astype(np.float64)) <= half * (1 + 1e-4) + _TINY)


def test_what_is_rounded_once_stays() -> None:
    matrix = np.random.default_rng(0).standard_normal((5, 40), np.float32)
    once = restored("w", rounded({"w": matrix})["w"].astype(np.int8), rounded({"w": matrix}))
    again = rounded({"w": once})
    np.testing.assert_array_equal(again["w"], rounded({"w": matrix})["w"])


def test_other_arrays_stay_as_they_are() -> None:
    gain = np.linspace(0, 1, 7, dtype=np.float32)
    assert rounded({"norm.weight": gain}) == {"norm.weight": pytest.approx(gain, abs=0)}
    assert not is_scale("norm.scale", {"norm.scale": gain}) and is_scale("w.scale", {"w": gain, "w.scale": gain})


def checkpoint(folder: Path, **model: np.ndarray) -> Path:
    folder.mkdir()
    write_arrays(folder, model, {})
    finish(folder, 7, CheckpointMeta(RunConfig(), {"name": "picogpt"}, "text").to_dict())
    return folder


@pytest.mark.parametrize("mapped", [True, False])
def test_a_checkpoint_gives_floats(tmp_path: Path, mapped: bool) -> None:
    matrix = np.random.default_rng(1).standard_normal((6, 10), np.float32)
    gain = np.ones(6, np.float32)
    place = checkpoint(tmp_path / "place", **rounded({"w": matrix, "gain": gain}))
    found = read(place, mapped=mapped)
    assert set(found.model) == {"w", "gain"} and found.step == 7
    np.testing.assert_allclose(np.asarray(found.model["w"]), matrix, atol=np.abs(matrix).max() / 250)
    np.testing.assert_array_equal(found.model["gain"], gain)
    assert (place / "model.safetensors").stat().st_size < 600


@pytest.mark.parametrize("scale", [{}, {"w.scale": np.ones(3, np.float32)}, {"w.scale": np.ones((4, 1), np.float32)}])
def test_factors_that_do_not_fit_are_refused(tmp_path: Path, scale: dict[str, np.ndarray]) -> None:
    place = checkpoint(tmp_path / "place", w=np.ones((4, 2), np.int8), **scale)
    with pytest.raises(DamageError, match=r"is damaged \('w' is in eight bits without a factor a row\)"):
        read(place)
