"""A model that was found in another program's files, and its weights, of which nothing is read yet."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.config import AttentionSpan, ModelConfig
from picogpt.engine.backend import Array
from picogpt.engine.bfloat16 import is_exact, narrowed
from picogpt.engine.mapped_matrix import MappedMatrix
from picogpt.errors import UserError, one_line
from picogpt.model.parameters import parameter_shapes
from picogpt.tensorfiles.lazy_tensor import FLOATING, LazyTensor

_AT_ONCE = 1 << 22  # numbers looked at together

Pieces = tuple[LazyTensor, ...]
"""Tensors that lie one under the other in one of picogpt's, as q, k and v do in c_attn."""


@dataclass(frozen=True)
class ForeignModel:
    """A model that a reader found in another program's files."""

    family: str
    """gpt2 or gpt_neo."""
    model: ModelConfig
    weights: dict[str, Pieces]
    """By picogpt's names and in its layout: linear weights are (outputs, inputs)."""
    end_of_text: int | None = None
    """The token that ends a text, where the file says so."""


def shape_of(pieces: Pieces) -> tuple[int, ...]:
    """Return the shape of the pieces one under the other."""
    return (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])


def require_weights(path: Path, model: ModelConfig, weights: Mapping[str, Pieces], unused: Iterable[str] = ()) -> None:
    """Raise UserError unless the weights are those of the model, with those that are missing, unexpected or misshapen.

    unused: names in the file that stand for no parameter.
    """
    shapes = parameter_shapes(model)
    wrong = {name for name in weights.keys() & shapes if shape_of(weights[name]) != shapes[name]}
    kinds = {name: {piece.dtype for piece in pieces}.difference(FLOATING) for name, pieces in weights.items()}
    faults = {
        "missing": shapes.keys() - weights.keys(),
        "unexpected": {*(weights.keys() - shapes), *unused},
        "misshapen": {f"{name} {shape_of(weights[name])}, not {shapes[name]}" for name in wrong},
        "of other numbers": {f"{name} ({', '.join(sorted(others))})" for name, others in kinds.items() if others},
    }
    if any(faults.values()):
        found = "; ".join(f"{what}: {few(names)}" for what, names in faults.items() if names)
        raise UserError(f"{path} does not hold the weights its configuration describes ({found})")


def shortest_pattern(spans: list[AttentionSpan]) -> tuple[AttentionSpan, ...]:
    """Return the shortest pattern that, repeated, gives the span of each layer."""
    n = len(spans)
    sizes = (size for size in range(1, n + 1) if all(spans[i] == spans[i % size] for i in range(n)))
    return tuple(spans[: next(sizes, n)])


def array_of(pieces: Pieces, rounded: bool = False) -> Array:
    """Return the pieces one under the other, as picogpt keeps them: a matrix in 16 bits where that loses nothing.

    A float32 number whose lower half is zero is kept as bfloat16. rounded: a matrix with other numbers is rounded to
    the nearest bfloat16 ones instead of being kept in float32.
    Raises UserError where a file has no floating numbers, or cannot be read.
    """
    shape, kinds = shape_of(pieces), {piece.dtype for piece in pieces}
    if len(shape) == 2 and kinds in ({"F16"}, {"BF16"}):
        raw = np.empty(shape, np.float16 if kinds == {"F16"} else np.uint16)
        for rows, _, numbers in _rows(pieces):
            raw[rows] = numbers
        return MappedMatrix(raw)
    if len(shape) == 2 and (bits := _as_bfloat16(pieces, rounded)) is not None:
        return MappedMatrix(bits)
    return pieces[0].read() if len(pieces) == 1 else np.concatenate([piece.read() for piece in pieces])


def _as_bfloat16(pieces: Pieces, rounded: bool) -> npt.NDArray[np.uint16] | None:
    """Return a matrix as the bits of bfloat16; None where that loses something and `rounded` is false."""
    bits = np.empty(shape_of(pieces), np.uint16)
    for rows, piece, numbers in _rows(pieces):
        floats = piece.floats(numbers)
        if not rounded and not is_exact(floats):
            return None
        bits[rows] = narrowed(floats)
    return bits


def common_kind(arrays: Mapping[str, Array]) -> np.dtype[Any]:
    """Return the numbers a whole model can be written in without loss: uint16 (bfloat16), float16, or else float32."""
    vectors = [array for array in arrays.values() if array.ndim < 2]
    matrices = {
        array.raw.dtype if isinstance(array, MappedMatrix) else array.dtype
        for array in arrays.values()
        if array.ndim > 1
    }
    if matrices == {np.dtype(np.uint16)} and all(map(is_exact, vectors)):
        return np.dtype(np.uint16)
    if matrices == {np.dtype(np.float16)} and all(map(_is_half, vectors)):
        return np.dtype(np.float16)
    return np.dtype(np.float32)


def _is_half(floats: npt.NDArray[np.float32]) -> bool:
    """Return whether float16 holds all of the numbers exactly."""
    with np.errstate(over="ignore"):
        return np.array_equal(floats.astype(np.float16).astype(np.float32), floats, equal_nan=True)


def in_kind(array: Array, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the array in numbers of a kind that `common_kind` gave; bfloat16 as its bits."""
    if isinstance(array, MappedMatrix) and array.raw.dtype == kind:
        return array.raw
    floats = np.asarray(array)
    return narrowed(floats) if kind == np.uint16 else floats.astype(kind, copy=False)


def _rows(pieces: Pieces) -> Iterator[tuple[slice, LazyTensor, npt.NDArray[Any]]]:
    """Yield a few rows of the pieces at a time: where they go, which piece they are of, and what its file has."""
    start = 0
    for piece in pieces:
        whole = piece.raw()
        step = max(1, _AT_ONCE // max(1, whole.shape[1]))
        for i in range(0, len(whole), step):
            rows = whole[i : i + step]
            yield slice(start, start + len(rows)), piece, rows
            start += len(rows)


def refuse(format: str, features: Mapping[str, bool]) -> None:
    """Raise UserError where a model has what a format cannot hold. features: whether the model has each of them."""
    if found := [name for name, is_there in features.items() if is_there]:
        raise UserError(f"{format} cannot hold {' or '.join(found)}: export the model in another format")


def few(names: Iterable[str]) -> str:
    """Return the first five names in alphabetical order, and how many more there are."""
    ordered = sorted(one_line(name, 80) for name in names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
