"""Weights in few bits: how far they are from what they were, and how they are packed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from picogpt.inference.onnx.quantize import packed, quantize


def restored(integers: np.ndarray, scales: np.ndarray, inputs: int) -> np.ndarray:
    return (integers * scales[:, :, None]).reshape(len(integers), -1)[:, :inputs]


@settings(max_examples=100, deadline=None)
@given(
    weight=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 70)), elements=st.floats(-8, 8, width=32)
    ),
    bits=st.sampled_from([8, 4]),
    size=st.sampled_from([32, 64]),
)
def test_every_weight_is_within_half_a_step_and_the_largest_of_a_block_exact(
    weight: np.ndarray, bits: int, size: int
) -> None:
    integers, scales = quantize(weight, bits, size)
    groups = -(-weight.shape[1] // size)
    assert integers.shape == (len(weight), groups, size) and scales.shape == (len(weight), groups)
    assert integers.dtype == np.int8 and scales.dtype == np.float32
    assert integers.min() >= -(1 << bits - 1) and integers.max() < 1 << bits - 1
    found = restored(integers, scales, weight.shape[1])
    for group in range(groups):
        block = slice(group * size, (group + 1) * size)
        for row in range(len(weight)):
            step = abs(float(scales[row, group]))
            # A weight of the other sign than the largest may be as large, which is one step out of reach.
            assert np.abs(found[row, block] - weight[row, block]).max() <= step * 1.001 + 1e-37
            largest = np.abs(weight[row, block]).argmax()
            np.testing.assert_allclose(found[row, block][largest], weight[row, block][largest], rtol=1e-6, atol=1e-37)


def test_the_error_is_that_of_the_bits() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    for bits, size, most in ((8, 32, 0.007), (8, 64, 0.008), (4, 32, 0.12), (4, 64, 0.13)):
        error = restored(*quantize(weight, bits, size), 256) - weight
        assert 0 < np.sqrt((error**2).mean()) < most


def test_zeros_stay_zeros() -> None:
    integers, scales = quantize(np.zeros((2, 40), np.float32), 8, 32)
    assert not integers.any() and not scales.any()


@pytest.mark.parametrize(("bits", "expected"), [(8, [120, 128, 129, 135]), (4, [8 << 4 | 0, 15 << 4 | 9])])
def test_packed(bits: int, expected: list[int]) -> None:
    assert packed(np.array([-8, 0, 1, 7], np.int8), bits).tolist() == expected
