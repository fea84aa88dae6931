"""What a run's log says of it, in figures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log as ln
from pathlib import Path
from typing import Any

import numpy as np

from picogpt.runs.log import Evaluation, LogContent, Values, is_finite, read_log, series, values_of

_ABOUT = ("parameters", "machine")  # what a log's config holds beside the settings

_VALUE_CHARACTERS = 300


@dataclass(frozen=True, eq=False)
class Summary:
    """A run in figures; None is what its log does not tell."""

    name: str
    log: LogContent

    @cached_property
    def points(self) -> list[Evaluation]:
        return self.log.points

    @property
    def axis(self) -> str:
        return self.log.axis

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Of its configuration, by "section.field"."""
        return {name: value for name, value in flat_settings(self.log.config) if name not in _ABOUT}

    @property
    def parameters(self) -> float | None:
        return number_or_none(self.log.config.get("parameters"))

    @property
    def machine(self) -> str:
        """One line, or "" for a log that does not tell."""
        told = self.log.config.get("machine")
        return told[:_VALUE_CHARACTERS] if isinstance(told, str) else ""

    @property
    def unit(self) -> str:
        """What a token is, as far as bits are concerned."""
        return "token" if self.settings.get("data.tokenizer") in ("bpe", "ids") else "char"

    @property
    def train_loss(self) -> float | None:
        return self._last("train_loss")

    @property
    def val_loss(self) -> float | None:
        """Of the last evaluation."""
        return self._last("val_loss")

    @property
    def tokens(self) -> float | None:
        return self._last("tokens")

    @property
    def seconds(self) -> float | None:
        return self._last("seconds")

    @property
    def steps(self) -> float | None:
        return self._last("step") if self.axis == "step" else None

    @property
    def best(self) -> tuple[float, float] | None:
        """Step and value of the lowest validation loss on the text that it was validated with at the end."""
        text = self.points[-1].text if self.points else None
        steps, values = series([point for point in self.points if point.text == text], "val_loss")
        return (float(steps[values.argmin()]), float(values.min())) if values.size else None

    @property
    def bits(self) -> float | None:
        return None if self.val_loss is None else self.val_loss / ln(2)

    @property
    def tokens_per_second(self) -> float | None:
        """The median over its evaluations."""
        values = series(self.points, "tokens_per_second")[1]
        return float(np.median(values)) if values.size else None

    @property
    def memory_mb(self) -> float | None:
        values = series(self.points, "memory_mb")[1]
        return float(values.max()) if values.size else None

    @property
    def tokens_per_step(self) -> float | None:
        return self.tokens / self.steps if self.tokens and self.steps else None

    @property
    def share(self) -> float | None:
        """How much of what was asked for is done, by steps or by minutes, whichever is further."""
        steps, minutes = (number_or_none(self.settings.get(f"train.{name}")) for name in ("steps", "minutes"))
        parts = [self.steps / steps] if self.steps is not None and steps else []
        parts += [self.seconds / (60 * minutes)] if self.seconds is not None and minutes else []
        return max(parts, default=None)

    def curve(self, field: str, axis: str) -> Values:
        """The finite values of a field over `axis`: step, tokens or evaluation."""
        if axis == "evaluation":
            return values_of((i, getattr(point, field)) for i, point in enumerate(self.points, start=1))
        key = "tokens" if axis == "tokens" else "step"
        pairs = [(getattr(point, key), getattr(point, field)) for point in self.points]
        return values_of((at, value) for at, value in pairs if is_finite(at))

    def _last(self, field: str) -> float | None:
        return number_or_none(getattr(self.points[-1], field)) if self.points else None


def read_runs(paths: Sequence[Path]) -> list[Summary]:
    """The runs of these logs, named by their folders, or by their paths where two have the same name.

    Raises UserError for a log that is missing or damaged.
    """
    names = [path.absolute().parent.name for path in paths]
    long = [path.parent.as_posix() if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
    return [Summary(name, read_log(path)) for path, name in zip(paths, long, strict=True)]


def flat_settings(config: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", it) for inner, it in flat_settings(value))
        else:
            yield str(name), value


def shown_value(value: object) -> str:
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value[:100]))
    return str(value)[:_VALUE_CHARACTERS]


def number_or_none(value: Any) -> float | None:
    return value if is_finite(value) and not isinstance(value, bool) else None
