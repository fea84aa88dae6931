"""A run in figures, as its log tells them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import log as ln
from pathlib import Path

import numpy as np

from picogpt.runs.log import Evaluation, LogContent, Values, is_finite, read_log, series, values_of
from picogpt.tokenizers.registry import unit_of

_ABOUT = ("parameters", "machine", "tokenizer")  # what a log's config holds beside the settings
_VALUE_CHARACTERS = 300


@dataclass(frozen=True, eq=False)
class Summary:
    """A run in figures; None stands for what its log does not tell."""

    name: str
    log: LogContent

    @cached_property
    def points(self) -> list[Evaluation]:
        """The evaluations of its log. Where older logs lack bits a character and a token is one, they are made."""
        if self._unit != "char":
            return self.log.points
        return [
            replace(point, bits_per_char=point.val_loss / ln(2))
            if point.bits_per_char is None and is_finite(point.val_loss)
            else point
            for point in self.log.points
        ]

    @property
    def axis(self) -> str:
        """What its points are counted by: "step" or "evaluation"."""
        return self.log.axis

    @cached_property
    def settings(self) -> dict[str, object]:
        """The settings it was trained with, by "section.field"."""
        return {name: value for name, value in flat_settings(self.log.config) if name not in _ABOUT}

    @property
    def parameters(self) -> float | None:
        """The number of its parameters."""
        return number_or_none(self.log.config.get("parameters"))

    @property
    def machine(self) -> str:
        """The machine it was trained on, in one line, or "" where the log does not tell."""
        text = self.log.config.get("machine")
        return text[:_VALUE_CHARACTERS] if isinstance(text, str) else ""

    @property
    def _unit(self) -> str:
        return unit_of(self.settings.get("data.tokenizer"))

    @property
    def train_loss(self) -> float | None:
        """The training loss at the last evaluation, in nats a token."""
        return self._last("train_loss")

    @property
    def val_loss(self) -> float | None:
        """The validation loss at the last evaluation, in nats a token."""
        return self._last("val_loss")

    @property
    def tokens(self) -> float | None:
        """The tokens it has trained on."""
        return self._last("tokens")

    @property
    def seconds(self) -> float | None:
        """The seconds it has trained."""
        return self._last("seconds")

    @property
    def steps(self) -> float | None:
        """The optimizer steps it has done."""
        return self._last("step") if self.axis == "step" else None

    @property
    def best(self) -> tuple[float, float] | None:
        """Step and value of the lowest validation loss on the text of the last evaluation."""
        text = self.points[-1].text if self.points else None
        steps, values = series([point for point in self.points if point.text == text], "val_loss")
        return (float(steps[values.argmin()]), float(values.min())) if values.size else None

    @property
    def bits_per_char(self) -> float | None:
        """The validation loss in bits a character."""
        return self._last("bits_per_char")

    @property
    def bits_per_byte(self) -> float | None:
        """The validation loss in bits a byte: of a text with accents or in another script, a character is several."""
        return self._last("bits_per_byte")

    @property
    def unknown(self) -> float | None:
        """The share of the text's characters that its tokenizer does not know."""
        return self._last("unknown")

    @property
    def tokens_per_second(self) -> float | None:
        """The median speed over its evaluations."""
        values = series(self.points, "tokens_per_second")[1]
        return float(np.median(values)) if values.size else None

    @property
    def memory_mb(self) -> float | None:
        """The most memory it has held, in MB."""
        values = series(self.points, "memory_mb")[1]
        return float(values.max()) if values.size else None

    @property
    def tokens_per_step(self) -> float | None:
        """The tokens of an optimizer step, on average."""
        return self.tokens / self.steps if self.tokens and self.steps else None

    @property
    def share(self) -> float | None:
        """The share of its steps or minutes that is done, whichever is larger."""
        steps, minutes = (number_or_none(self.settings.get(f"train.{name}")) for name in ("steps", "minutes"))
        parts = [self.steps / steps] if self.steps is not None and steps else []
        parts += [self.seconds / (60 * minutes)] if self.seconds is not None and minutes else []
        return max(parts, default=None)

    def curve(self, field: str, axis: str) -> Values:
        """Return the finite values of a field of the evaluations over `axis`: "step", "tokens" or "evaluation"."""
        if axis == "evaluation":
            return values_of((i, getattr(point, field)) for i, point in enumerate(self.points, start=1))
        key = "tokens" if axis == "tokens" else "step"
        pairs = [(getattr(point, key), getattr(point, field)) for point in self.points]
        return values_of((at, value) for at, value in pairs if is_finite(at))

    def _last(self, field: str) -> float | None:
        """Return a field of the last evaluation."""
        return number_or_none(getattr(self.points[-1], field)) if self.points else None


def read_runs(paths: Sequence[Path]) -> list[Summary]:
    """Read these logs. The runs are named by their folders, or by the paths of these where two have the same name.

    Raises UserError for a log that is missing or damaged.
    """
    names = [path.absolute().parent.name for path in paths]
    unique = [
        path.parent.as_posix() if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)
    ]
    return [Summary(name, read_log(path)) for path, name in zip(paths, unique, strict=True)]


def flat_settings(config: dict[str, object]) -> Iterable[tuple[str, object]]:
    """Yield the settings of nested dicts, named as "section.field"."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", it) for inner, it in flat_settings(value))
        else:
            yield str(name), value


def shown_value(value: object) -> str:
    """Return the value of a setting as text of limited length."""
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value[:100]))
    return str(value)[:_VALUE_CHARACTERS]


def number_or_none(value: object) -> float | None:
    """Return a finite number as it is, and None for anything else."""
    return value if is_finite(value) and not isinstance(value, bool) else None
