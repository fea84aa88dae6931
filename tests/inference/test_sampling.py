"""Choosing tokens: the cuts at their exact borders, and the distribution that is left."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.errors import UserError
from picogpt.inference.sampling import sample
from picogpt.rng import generator

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2])).astype(np.float32)


def frequencies(
    logits: np.ndarray, count: int = 4000, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> np.ndarray:
    rng = generator(3, "draws")
    drawn = [sample(logits, temperature, top_k, top_p, rng) for _ in range(count)]
    return np.bincount(drawn, minlength=len(logits)) / count


def test_greedy() -> None:
    rng = generator(0, "greedy")
    assert {sample(LOGITS, 0, 0, 1.0, rng) for _ in range(20)} == {1}
    assert sample(np.array([1.0, 7.0, 7.0]), 0, 0, 1.0, rng) == 1  # the first of a tie
    assert type(sample(LOGITS, 0, 0, 1.0, rng)) is type(sample(LOGITS, 1, 0, 1.0, rng)) is int


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_told(temperature: float, value: float) -> None:
    logits = np.array([0.0, value, 1.0], np.float32)
    with pytest.raises(UserError, match="is not a number: its training diverged"):
        sample(logits, temperature, 0, 1.0, generator(0, "none"))


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    rng = generator(0, "cold")
    far = np.array([-3e38, 500.0, 3e38, -1.0, 499.0], np.float32)
    assert {sample(far, temperature, 0, 1.0, rng) for _ in range(50)} == {2}
    assert {sample(LOGITS, temperature, 0, 0.9, rng) for _ in range(50)} == {1}
    assert {sample(LOGITS, temperature, 3, 1.0, rng) for _ in range(50)} == {1}


@pytest.mark.parametrize("temperature", [1e6, 1e308, float("inf")])
def test_a_huge_temperature_is_uniform(temperature: float) -> None:
    np.testing.assert_allclose(frequencies(LOGITS, temperature=temperature), 0.2, atol=0.03)
    cut = frequencies(LOGITS, temperature=temperature, top_k=2)  # and chooses among what is left all the same
    np.testing.assert_allclose(cut, [0, 0.5, 0, 0.5, 0], atol=0.03)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_distribution_is_the_softmax(temperature: float) -> None:
    p = np.exp(LOGITS.astype(float) / temperature)
    np.testing.assert_allclose(frequencies(LOGITS, temperature=temperature), p / p.sum(), atol=0.03)


def test_top_k_keeps_the_likeliest_in_proportion() -> None:
    np.testing.assert_allclose(frequencies(LOGITS, top_k=2), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0], atol=0.03)
    assert np.count_nonzero(frequencies(LOGITS, top_k=1)) == 1
    for k in (5, 6, 1000):
        assert np.array_equal(frequencies(LOGITS, top_k=k), frequencies(LOGITS))


def test_top_k_keeps_ties() -> None:
    tied = np.array([2.0, 5.0, 3.0, 3.0, 3.0, 1.0])
    assert np.flatnonzero(frequencies(tied, 500, top_k=2)).tolist() == [1, 2, 3, 4]
    assert np.flatnonzero(frequencies(np.zeros(4), 500, top_k=1)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-9, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.64, [1, 3]),
        (0.66, [1, 3, 4]),
        (0.86, [1, 2, 3, 4]),
        (0.96, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_includes_the_token_that_crosses(top_p: float, kept: list[int]) -> None:
    found = frequencies(LOGITS, 800, top_p=top_p)
    assert np.flatnonzero(found).tolist() == kept
    p = np.exp(LOGITS[kept]) / np.exp(LOGITS[kept]).sum()
    np.testing.assert_allclose(found[kept], p, atol=0.06)


def test_top_p_exactly_reached_keeps_no_more() -> None:
    quarters = np.zeros(4)  # 0.25 each, exactly
    assert np.flatnonzero(frequencies(quarters, 200, top_p=0.5)).tolist() == [0, 1]
    assert np.flatnonzero(frequencies(quarters, 200, top_p=0.5000001)).tolist() == [0, 1, 2]


def test_top_p_counts_what_top_k_left() -> None:
    # After top_k 2 the probabilities are 0.62 and 0.38.
    assert np.flatnonzero(frequencies(LOGITS, 200, top_k=2, top_p=0.6)).tolist() == [1]
    assert np.flatnonzero(frequencies(LOGITS, 200, top_k=2, top_p=0.7)).tolist() == [1, 3]


class Fixed:
    """A generator that draws one number."""

    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


@pytest.mark.parametrize("draw", [0.0, np.nextafter(1.0, 0.0)])
def test_a_token_of_probability_zero_is_never_drawn(draw: float) -> None:
    """At both ends of the draw, with nothing likely in the first and last places."""
    logits = np.array([-np.inf, -1e9, 0.0, -np.inf, 0.5, -1e9, -np.inf])
    assert sample(logits, 1.0, 0, 1.0, Fixed(draw)) in (2, 4)  # type: ignore[arg-type]
    assert sample(logits, 1.0, 2, 1.0, Fixed(draw)) in (2, 4)  # type: ignore[arg-type]
    assert sample(logits, 1.0, 0, 0.3, Fixed(draw)) == 4  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 25),
    top_p=st.floats(0, 1, exclude_min=True),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_what_is_drawn_is_allowed(
    logits: list[float], temperature: float, top_k: int, top_p: float, draw: float
) -> None:
    array = np.array(logits, np.float32)
    before = array.copy()
    chosen = sample(array, temperature, top_k, top_p, Fixed(draw))  # type: ignore[arg-type]
    assert 0 <= chosen < len(logits) and np.array_equal(array, before)
    if top_k:
        assert (array > array[chosen]).sum() < top_k
