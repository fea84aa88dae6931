"""What a run's log says of it, in figures, and what is to be known before two of them are compared."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log as ln
from pathlib import Path
from typing import Any

import numpy as np

from picogpt.config import DataConfig, RunConfig, UserError
from picogpt.training.runlog import Values, entries, is_finite, read_log, series

MOST_RUNS = 52  # a letter for each
_ABOUT = ("parameters", "machine")  # what a log's config holds beside the settings
_VALUE_CHARACTERS = 300


@dataclass(frozen=True, eq=False)
class Summary:
    """A run in figures; None is what its log does not tell."""

    name: str
    log: dict[str, Any]

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        return entries(self.log)[1]

    @property
    def axis(self) -> str:
        return entries(self.log)[0]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Of its configuration, by "section.field"."""
        return {name: value for name, value in _flat(self.log["config"]) if name not in _ABOUT}

    @property
    def parameters(self) -> float | None:
        return _number(self.log["config"].get("parameters"))

    @property
    def machine(self) -> str:
        """One line, or "" for a log that does not tell."""
        told = self.log["config"].get("machine")
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
        text = self.points[-1].get("text") if self.points else None
        steps, values = series([point for point in self.points if point.get("text") == text], "val_loss")
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
        steps, minutes = (_number(self.settings.get(f"train.{name}")) for name in ("steps", "minutes"))
        parts = [self.steps / steps] if self.steps is not None and steps else []
        parts += [self.seconds / (60 * minutes)] if self.seconds is not None and minutes else []
        return max(parts, default=None)

    def curve(self, field: str, axis: str) -> Values:
        """The finite values of a field over `axis`: step, tokens or evaluation."""
        if axis == "evaluation":
            return series([{**point, "step": i} for i, point in enumerate(self.points, start=1)], field)
        key = "tokens" if axis == "tokens" else "step"
        return series([{**point, "step": point[key]} for point in self.points if is_finite(point.get(key))], field)

    def _last(self, field: str) -> float | None:
        return _number(self.points[-1].get(field)) if self.points else None


def find_logs(names: Sequence[str], logs: Path) -> list[Path]:
    """The log.pkl of each name: a run in `logs`, its folder or the file; a folder of runs stands for all of them.

    Raises UserError for a name of nothing.
    """
    found: list[Path] = []
    for name in names:
        places = [logs / name, Path(name)]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise UserError(f"there is no log at {places[0]} or {places[1]}")
        path = place / "log.pkl" if place.is_dir() else place
        inside = [] if path.exists() else sorted(place.glob("*/log.pkl"), key=lambda log: _natural(log.parent.name))
        found += inside or [path]
    if len(found) > MOST_RUNS:
        raise UserError(f"{len(found)} runs are too many to tell apart: name {MOST_RUNS} at most")
    return found


def read_runs(paths: Sequence[Path]) -> list[Summary]:
    """The runs of these logs, named by their folders, or by their paths where two have the same name.

    Raises UserError for a log that is missing or damaged.
    """
    names = [path.absolute().parent.name for path in paths]
    long = [path.parent.as_posix() if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
    return [Summary(name, read_log(path)) for path, name in zip(paths, long, strict=True)]


def common_axis(runs: Sequence[Summary]) -> str:
    """What the runs' losses are drawn over: the same of each, so that the places compare.

    Steps, or tokens where a step is not the same number of them in every run; evaluations where a log has losses alone.
    """
    runs = [run for run in runs if run.points] or runs
    if any(run.axis == "evaluation" for run in runs):
        return "evaluation"
    if len({run.tokens_per_step for run in runs}) == 1 or any(run.tokens is None for run in runs):
        return "step"
    return "tokens"


def difference(run: Summary, first: Summary) -> float | None:
    """Percent by which the validation loss is higher than the first run's; None where that says nothing."""
    a, b = first.val_loss, run.val_loss
    other = _tokenizer(run) != _tokenizer(first) or (_text(run) != _text(first) and _text(run) and _text(first))
    if a is None or b is None or a <= 0 or other:
        return None
    return (b / a - 1) * 100


def notes(runs: Sequence[Summary]) -> list[str]:
    """What makes a comparison of these runs less than fair, a sentence each."""
    found = [f"{run.name} has no evaluation yet" for run in runs if not run.points]
    runs = [run for run in runs if run.points]
    found += [
        f"{run.name} is not at its end: {100 * run.share:.0f} % of its steps or minutes"
        for run in runs
        if run.share is not None and run.share < 1
    ]
    tokenizers = "the losses do not compare, their tokens are of different kinds"
    found += _differing(runs, tokenizers, lambda run: ", vocabulary ".join(_tokenizer(run)))
    found += _differing(runs, "different text, so the losses are of different tasks", _text)
    trained = "they have not trained on equally many tokens, which is part of the difference"
    found += _differing(runs, trained, lambda run: "" if run.tokens is None else f"{run.tokens:,.0f}")
    windows = "the losses are taken from different windows of the validation text, by their settings"
    found += _differing(runs, windows, _validation)
    found += _differing(runs, "time, speed and memory are of different machines", lambda run: run.machine)
    silent = [run.name for run in runs if not run.settings]
    if silent and runs[1:]:
        found.append(f"whether text and tokenizer are the same is not known: {', '.join(silent)} tells no settings")
    return found


def differing_settings(runs: Sequence[Summary]) -> dict[str, list[str]]:
    """Settings that are not the same in all runs, each with the value in every run; of one, what is not the default."""
    every = [run.settings for run in runs]
    if len(runs) == 1:
        every = [dict(_flat(RunConfig().to_dict())), *every]
    names = dict.fromkeys(name for settings in every for name in settings)
    rows = {name: [_shown(settings.get(name, "-")) for settings in every] for name in names}
    return {name: row[-len(runs) :] for name, row in rows.items() if len(set(row)) > 1}


def all_settings(run: Summary) -> dict[str, str]:
    return {name: _shown(value) for name, value in run.settings.items()}


def count(number: float | None) -> str:
    """Three digits of a large number: 6.34M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if number is not None and abs(number) >= 0.9995 * size:  # what would be rounded up to it
            return f"{number / (1e3 if unit == 'k' else size):.3g}{unit}"
    return "-" if number is None else f"{number:,.0f}"


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def signed(percent: float | None) -> str:
    """Always with its sign, but for what is no difference in two decimals."""
    if percent is None:
        return "-"
    return "0.00 %" if abs(percent) < 0.005 else f"{percent:+.2f} %"


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _differing(runs: Sequence[Summary], what: str, of: Callable[[Summary], str]) -> list[str]:
    """The sentence, with which run has what, where those that tell of it do not agree."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(of(run), []).append(run.name)
    groups.pop("", None)
    if len(groups) < 2:
        return []
    return [f"{what} ({'; '.join(f'{_names(names)}: {value}' for value, names in groups.items())})"]


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more"


def _tokenizer(run: Summary) -> tuple[str, ...]:
    """Two runs of the same have tokens of the same kind: characters of the corpus are, if there are equally many."""
    return tuple(_shown(run.settings[name]) for name in ("data.tokenizer", "model.vocab_size") if name in run.settings)


def _text(run: Summary) -> str:
    names = ("data.data", "data.val_fraction", "data.text_field", "data.qa")
    usual = {"data.val_fraction": 0.0, "data.text_field": DataConfig.text_field, "data.qa": DataConfig.qa}
    found = {name: run.settings.get(name) for name in names}
    told = [_shown(value) for name, value in found.items() if value not in (None, usual.get(name))]
    last = run.points[-1].get("text")
    return " ".join([*told, *([f"now {_shown(last)}"] if last else [])])


def _validation(run: Summary) -> str:
    """The settings that choose the windows to validate with: their length, and how many there are."""
    names = ("train.context", "model.context_len", "train.batch_size", "train.eval_interval")
    context, window, batch, interval = (_number(run.settings.get(name)) for name in names)
    if not window or not batch or not interval:
        return ""
    return f"--context {context or window:.0f} --batch-size {batch:.0f} --eval-interval {interval:.0f}"


def _flat(config: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", it) for inner, it in _flat(value))
        else:
            yield str(name), value


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value[:100]))
    return str(value)[:_VALUE_CHARACTERS]


def _number(value: Any) -> float | None:
    return value if is_finite(value) and not isinstance(value, bool) else None


def _natural(name: str) -> list[tuple[int, str]]:
    """run-2 before run-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
