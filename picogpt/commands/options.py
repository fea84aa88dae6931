"""Command lines from dataclasses: a field is an option, its docstring the help text, and an error is one line."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from picogpt.config import RunConfig
from picogpt.config.training import NO_LIMIT
from picogpt.errors import UserError

DASHBOARD_PORT = "8050"
Args = TypeVar("Args")


def with_dashboard_port(argv: Sequence[str]) -> list[str]:
    """Return the words with a port after a --dashboard that has no value, which the parser would refuse."""
    following = [*argv[1:], "-"]
    bare = [i for i, word in enumerate(argv) if word == "--dashboard" and following[i].startswith("-")]
    return [part for i, word in enumerate(argv) for part in ([word, DASHBOARD_PORT] if i in bare else [word])]


@dataclass(frozen=True)
class PresetArgs:
    """The option that names a preset."""

    preset: str = "pico"
    """A named set of settings, which are the defaults of all other options."""


def parse(kind: type[Args], program: str, argv: Sequence[str], default: Args | None = None) -> Args:
    """Return the options as a `kind`, with `default` for those that are not given.

    program: what the user typed before them. Raises UserError for a wrong option.
    """
    options: type[Args] = OmitArgPrefixes[kind]  # type: ignore[valid-type, misc]
    with _one_line_errors(program):
        if default is None:
            return tyro.cli(options, prog=program, args=argv)
        return tyro.cli(options, prog=program, args=argv, default=default)


def parse_known(kind: type[Args], program: str, argv: Sequence[str]) -> Args:
    """Return only the options that `kind` has: they set the defaults of the others, which are parsed after them."""
    with _one_line_errors(program):
        known, _ = tyro.cli(kind, args=argv, return_unknown_args=True, add_help=False)
    return known


@dataclass(frozen=True)
class LengthArgs:
    """The options that say how long a run is."""

    steps: int = 0
    minutes: float = 0.0

    def applied(self, start: RunConfig) -> RunConfig:
        """Return the settings, without a last step where minutes are asked for and no steps."""
        ends = self.steps or not self.minutes > 0
        return start if ends else replace(start, train=replace(start.train, steps=NO_LIMIT))


@contextmanager
def _one_line_errors(program: str) -> Iterator[None]:
    """Raise UserError with one line for an error that tyro would print as a box of several lines."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            yield
    except SystemExit as stop:
        if stop.code != 2:
            raise
        lines = [line.strip("\u2502 ") for line in box.getvalue().splitlines()]
        rules = [i for i, line in enumerate(lines) if line and not line.strip("-\u2500")] + [len(lines)]
        # Some boxes have their title in the border, others above a separate rule.
        first, end = (1, rules[0]) if rules[0] > 1 else (2, rules[1])
        reason = " ".join(lines[first:end]).strip()
        raise UserError(f"{reason or 'these options are wrong'} (see {program} --help)") from None


@dataclass(frozen=True)
class RunsArgs:
    """The runs that a command reads."""

    runs: Positional[Annotated[tuple[str, ...], arg(metavar="RUN...", help_behavior_hint="")]]
    """A run in logs/, its folder, or a log.pkl; or several. A folder of runs stands for all of them.
    The others are compared with the first run."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("give one run or more (see --help)")


def output_file(name: str, *kinds: str) -> Path | None:
    """Return the file to write, or None for "". Raises UserError for another suffix: it may be a slip."""
    if name and Path(name).suffix.lower() not in kinds:
        raise UserError(f"--out {name} is not the name of a {' or '.join(kinds)} file: give one")
    return Path(name) if name else None
