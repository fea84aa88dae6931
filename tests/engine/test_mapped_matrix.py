"""Matrices that stay as they lie: their rows and products are those of the float32 numbers they stand for."""

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from picogpt.engine import Tape, Tensor, mapped_matrix, ops
from picogpt.engine.backend import array_module, take_rows, times, times_transposed
from picogpt.engine.bfloat16 import is_exact, narrowed, widened
from picogpt.engine.mapped_matrix import MappedMatrix

BITS = hnp.arrays(np.uint16, st.integers(0, 40))


def random_bits(*shape: int) -> np.ndarray:
    return narrowed(np.random.default_rng(1).standard_normal(shape, np.float32))


FORMS = {
    "bfloat16": random_bits(37, 12),
    "float16": widened(random_bits(37, 12)).astype(np.float16),
    "float32": widened(random_bits(37, 12)) + np.float32(1e-5),
}


def floats_of(raw: np.ndarray) -> np.ndarray:
    return widened(raw) if raw.dtype == np.uint16 else raw.astype(np.float32)


@settings(deadline=None)
@given(BITS)
def test_what_was_bfloat16_comes_back_to_the_bit(bits: np.ndarray) -> None:
    wide = widened(bits)
    assert is_exact(wide)
    assert np.array_equal(narrowed(wide), bits)


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_narrowing_takes_the_nearest_and_of_two_the_even_one(floats: np.ndarray) -> None:
    bits = narrowed(floats)
    below = widened((floats.view(np.uint32) >> 16).astype(np.uint16)).astype(np.float64)
    above = widened(((floats.view(np.uint32) >> 16) + 1).astype(np.uint16)).astype(np.float64)
    found, exact = widened(bits).astype(np.float64), floats.astype(np.float64)
    nearer = np.where(abs(above - exact) < abs(exact - below), above, below)
    tie = abs(above - exact) == abs(exact - below)
    assert np.array_equal(found[~tie], nearer[~tie])
    assert not (bits[tie] & 1).any()


def test_a_number_too_large_for_bfloat16_is_infinite_and_none_stays_none() -> None:
    largest = np.finfo(np.float32).max
    floats = np.array([largest, -largest, np.inf, np.nan, np.uint32(0x7F800001).view(np.float32)], np.float32)
    found = widened(narrowed(floats))
    assert np.array_equal(found, [np.inf, -np.inf, np.inf, np.nan, np.nan], equal_nan=True)
    assert not is_exact(np.array([1, 1 + 2**-20], np.float32))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [1, 30, 1 << 18])
def test_products_and_rows(form: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_matrix, "BLOCK", block)
    raw, rng = FORMS[form], np.random.default_rng(2)
    matrix, exact = MappedMatrix(raw), floats_of(raw)
    assert matrix.shape == exact.shape and matrix.size == exact.size and len(matrix) == 37
    assert np.array_equal(np.asarray(matrix), exact) and np.array_equal(matrix[3:5], exact[3:5])
    for rows in (1, 5):
        x, dy = rng.standard_normal((rows, 12), np.float32), rng.standard_normal((rows, 37), np.float32)
        assert np.allclose(times_transposed(x, matrix, np.empty((rows, 37), np.float32)), x @ exact.T, atol=1e-5)
        assert np.allclose(times(dy, matrix, np.empty((rows, 12), np.float32)), dy @ exact, atol=1e-5)
    ids = np.array([[3, 0], [36, 3]])
    assert np.array_equal(take_rows(matrix, ids, np.empty((2, 2, 12), np.float32)), exact[ids])
    with pytest.raises(IndexError, match="table of 37 rows"):
        take_rows(matrix, np.array([37]), np.empty((1, 12), np.float32))
    assert array_module(matrix) is np


def test_ops_go_through_it_and_gradients_to_what_is_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_matrix, "BLOCK", 24)
    raw = FORMS["bfloat16"]
    results = []
    for weight in (MappedMatrix(raw), floats_of(raw)):
        x = Tensor(np.random.default_rng(3).standard_normal((4, 12), np.float32), requires_grad=True)
        with Tape() as tape:
            y = ops.linear(x, Tensor(weight))
            loss = ops.cross_entropy(x, Tensor(weight), None, np.array([1, 36, 0, 5])) + y.sum()
        tape.backward(loss)
        results.append((y.data, loss.data, x.grad))
    for one, other in zip(*results, strict=True):
        assert np.allclose(one, other, atol=1e-4)


def test_a_mapped_one_is_let_go_and_read_again(tmp_path: Path) -> None:
    raw = FORMS["bfloat16"]
    (tmp_path / "file").write_bytes(raw.tobytes())
    with (tmp_path / "file").open("rb") as file:
        mapping = mmap.mmap(file.fileno(), raw.nbytes, access=mmap.ACCESS_READ)
    matrix = MappedMatrix(np.frombuffer(mapping, np.uint16).reshape(raw.shape), mapping)
    for _ in range(2):
        assert np.array_equal(np.asarray(matrix), floats_of(raw))


@pytest.mark.parametrize("raw", [np.zeros(3, np.float32), np.zeros((2, 2)), np.zeros((2, 2), np.int16)])
def test_other_arrays_cannot_be_kept(raw: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a matrix in 16 or 32 bits"):
        MappedMatrix(raw)


def test_nobody_takes_it_for_an_array_of_its_own() -> None:
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(MappedMatrix(FORMS["bfloat16"]), copy=False)
