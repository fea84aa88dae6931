"""A model of another program, as its file was understood: nothing of the weights is read yet."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from picogpt.config import ModelConfig, UserError
from picogpt.interop.stored import Stored
from picogpt.model.parameters import parameter_shapes

Pieces = tuple[Stored, ...]
"""Tensors that lie one under the other in one of picogpt's, as q, k and v do in c_attn."""


@dataclass(frozen=True)
class Foreign:
    """What a reader found."""

    family: str
    """gpt2, gpt_neo or picogpt."""
    model: ModelConfig
    weights: dict[str, Pieces]
    """By picogpt's names and in its layout: linear weights are (outputs, inputs)."""
    end_of_text: int | None = None
    """The token that ends a text, where the file says so."""


def shape_of(pieces: Pieces) -> tuple[int, ...]:
    """Of the pieces one under the other."""
    return (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])


def require_weights(path: Path, model: ModelConfig, weights: Mapping[str, Pieces], unused: Iterable[str] = ()) -> None:
    """Raises UserError unless the weights are those of the model: what is missing, foreign or of another shape.

    unused: names in the file that stand for no parameter.
    """
    shapes = parameter_shapes(model)
    wrong = {name for name in weights.keys() & shapes if shape_of(weights[name]) != shapes[name]}
    faults = {
        "missing": shapes.keys() - weights.keys(),
        "unexpected": {*(weights.keys() - shapes), *unused},
        "misshapen": {f"{name} {shape_of(weights[name])}, not {shapes[name]}" for name in wrong},
    }
    if any(faults.values()):
        told = "; ".join(f"{what}: {_few(names)}" for what, names in faults.items() if names)
        raise UserError(f"{path} does not hold the weights its configuration describes ({told})")


def refuse(format: str, features: Mapping[str, bool]) -> None:
    """Raises UserError with what a model has and a format cannot say. features: whether the model has each."""
    if told := [name for name, there in features.items() if there]:
        raise UserError(f"{format} cannot hold {' or '.join(told)}: export the model in another format")


def unwritten(path: Path, error: OSError) -> UserError:
    """What to say where the disk refused."""
    what = "free some disk space or look at the folder's permissions"
    return UserError(f"cannot write {path} ({error.strerror or error}): {what}")


def _few(names: Iterable[str]) -> str:
    shown = sorted(name[:80] for name in names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
