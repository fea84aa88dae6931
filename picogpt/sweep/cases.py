"""The cases that a sweep compares: each a whole configuration, of which the first is the base."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Literal

from picogpt.config import RunConfig
from picogpt.config.presets import preset
from picogpt.config.training import NO_LIMIT
from picogpt.errors import UserError, shown

Budget = Literal["own", "tokens", "minutes"]

EXERCISE = "exercise"  # a preset that only sweeps have
_PARTS = ("model", "data", "train")
_MOST_CASES = 200
_OTHER_TEXT = "data", "val_fraction", "text_field", "qa"  # losses do not compare across these


@dataclass(frozen=True)
class Published:
    """What a study reports of a case: losses in nats a token, and the difference to the first in percent."""

    train_loss: float
    val_loss: float
    difference: float | None


@dataclass(frozen=True)
class Case:
    """One of the configurations that a sweep compares."""

    name: str
    values: dict[str, str]
    """The settings that are varied, as they were given."""
    config: RunConfig
    published: Published | None = None

    def run_folder(self, seed: int) -> str:
        """Return the folder of its run with this seed, below that of the sweep."""
        return re.sub(r"[^\w.+-]+", "_", self.name.replace("=", "-")) + f"-{seed}"


# The course's notebook, one seed each. It prints the last difference as an improvement, which it is not.
_STUDY = {
    "base": Published(1.6647, 1.8235, None),
    "iterations": Published(1.5636, 1.7391, -4.63),
    "block": Published(1.6021, 1.7830, -2.22),
    "heads": Published(1.6844, 1.8442, 1.14),
}


def varied(base: RunConfig, options: Sequence[str]) -> list[Case]:
    """Return a case for every combination of the values of NAME=VALUE,VALUE,... options, the first values first.

    Raises UserError for what is no field, no value of it, or no valid configuration together.
    """
    choices: dict[str, list[str]] = {}
    for option in options:
        name, _, values = option.partition("=")
        name = name.strip().replace("-", "_")
        if name in choices:
            raise UserError(f"--vary {name} is given twice: name all its values in one")
        choices[name] = [value.strip() for value in values.split(",")]
        _check_option(base, option, name, choices[name])
    count = 1
    for given in choices.values():
        count *= len(given)
    if count > _MOST_CASES:
        raise UserError(f"these are {count:,} combinations, and a sweep has {_MOST_CASES} at most: vary less")
    cases = []
    for combination in product(*choices.values()):
        chosen = dict(zip(choices, combination, strict=True))
        name = ", ".join(f"{field}={value}" for field, value in chosen.items())
        try:
            cases.append(Case(name, chosen, _with_values(base, chosen)))
        except UserError as error:
            raise UserError(f"--vary {name} cannot be: {error}") from None
    return _distinct(cases)


def exercise(parsed: Callable[[RunConfig], RunConfig]) -> list[Case]:
    """Return the course's four cases. parsed: returns a configuration with the options of the command line.

    Steps on the command line are those of the base; a case that has twice as many gets twice as many.
    """
    starts = {name: preset(f"exercise-{name}") for name in _STUDY}
    configs = {name: parsed(start) for name, start in starts.items()}
    base = starts["base"].train.steps
    given = any(configs[name].train.steps != start.train.steps for name, start in starts.items())
    cases = []
    for name, config in configs.items():
        if given:
            steps = configs["base"].train.steps * starts[name].train.steps // base
            config = replace(config, train=replace(config.train, steps=steps))
        cases.append(Case(name, {"case": name}, config, _STUDY[name]))
    return _distinct(cases)


def within(cases: Sequence[Case], budget: Budget) -> list[Case]:
    """Return the cases with as many tokens or minutes each, or as they are. Raises UserError where they cannot be."""
    first = cases[0].config
    if budget == "own":
        return list(cases)
    if len({case.config.train.steps for case in cases}) > 1:
        raise UserError(f"--budget {budget} is what sets the steps: do not vary them, or leave --budget out")
    if budget == "minutes":
        if not all(case.config.train.minutes for case in cases):
            raise UserError("--budget minutes needs to know how many: give --minutes")
        return [_with_steps(case, NO_LIMIT) for case in cases]
    tokens = first.train.steps * first.train.batch_size * first.context
    return [
        _with_steps(case, max(1, round(tokens / (case.config.train.batch_size * case.config.context))))
        for case in cases
    ]


def seeded(config: RunConfig, seed: int) -> RunConfig:
    """Return the configuration with this seed."""
    return replace(config, train=replace(config.train, seed=seed))


def _with_steps(case: Case, steps: int) -> Case:
    return replace(case, config=replace(case.config, train=replace(case.config.train, steps=steps)))


def _check_option(base: RunConfig, option: str, name: str, values: list[str]) -> None:
    """Raise UserError for a name that cannot be varied, or for values that are empty or twice the same."""
    known = [field.name for part in _PARTS for field in fields(getattr(base, part))]
    if name == "seed":
        raise UserError("--vary seed is what --seeds does: give --seeds 3, say")
    if name in _OTHER_TEXT:
        raise UserError(f"--vary {name} makes cases of other text, whose losses do not compare: vary another")
    if name not in known or "=" not in option:
        raise UserError(f"--vary {shown(option)} is not NAME=VALUE,VALUE,... with the name of an option of train")
    if not all(values) or len(set(values)) < len(values):
        raise UserError(f"--vary {shown(option)} has a value that is empty, or twice the same: give each once")


def _with_values(base: RunConfig, values: dict[str, str]) -> RunConfig:
    """Return the configuration with these values, given as text. Raises UserError where they are not valid."""
    changes: dict[str, dict[str, object]] = {part: {} for part in _PARTS}
    for name, text in values.items():
        part = next(part for part in _PARTS if hasattr(getattr(base, part), name))
        changes[part][name] = _parsed_value(name, text, getattr(getattr(base, part), name))
    return RunConfig(**{part: replace(getattr(base, part), **changes[part]) for part in _PARTS})


def _parsed_value(name: str, text: str, default: object) -> object:
    """Return `text` as a value of the default's type; of a tuple, as layer_pattern, the parts are joined by +."""
    if isinstance(default, tuple):
        return tuple(text.split("+"))
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise UserError(f"{name} is true or false, not {shown(text)}")
        return text.lower() == "true"
    if isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError:
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise UserError(f"{name} is {kind}, not {shown(text)}") from None
    return text


def _distinct(cases: list[Case]) -> list[Case]:
    """Return the cases. Raises UserError where two of them are the same, or have the same folder."""
    for i, case in enumerate(cases):
        for other in cases[:i]:
            if case.config == other.config:
                raise UserError(f"the cases {other.name} and {case.name} are the same with these options")
            if case.run_folder(0) == other.run_folder(0):
                raise UserError(f"the cases {other.name} and {case.name} would have one folder: vary them apart")
    return cases
