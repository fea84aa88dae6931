"""Command lines from dataclasses: a field is an option, its docstring the help, and what is wrong is one line."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from picogpt.errors import UserError

DASHBOARD_PORT = "8050"
Args = TypeVar("Args")


def with_port(argv: Sequence[str]) -> list[str]:
    """Give --dashboard its value where it has none, which the parser cannot."""
    following = [*argv[1:], "-"]
    bare = [i for i, word in enumerate(argv) if word == "--dashboard" and following[i].startswith("-")]
    return [part for i, word in enumerate(argv) for part in ([word, DASHBOARD_PORT] if i in bare else [word])]


@dataclass(frozen=True)
class Preset:
    """Which named run the other options start from."""

    preset: str = "pico"
    """The named run to start from; its settings are the defaults of all other options."""

    @property
    def preset_name(self) -> str:
        return self.preset


def parse(kind: type[Args], program: str, argv: Sequence[str], default: Args | None = None) -> Args:
    """The options as a `kind`. `program`: what the user typed before them. Raises UserError for a wrong option."""
    options: Any = OmitArgPrefixes[kind]  # type: ignore[valid-type, misc]
    settings: dict[str, Any] = {} if default is None else {"default": default}
    with _one_line_errors(program):
        parsed: Args = tyro.cli(options, prog=program, args=argv, **settings)
    return parsed


def first_of(kind: type[Args], program: str, argv: Sequence[str]) -> Args:
    """Those of the options that are needed before the others can be read, whose defaults they set."""
    with _one_line_errors(program):
        chosen, _ = tyro.cli(kind, args=argv, return_unknown_args=True, add_help=False)
    return chosen


@contextmanager
def _one_line_errors(program: str) -> Iterator[None]:
    """Say what is wrong with the options in one line, as every other error: tyro draws a box of several."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    except SystemExit as stop:
        if stop.code != 2:
            raise
        lines = [line.strip("\u2502 ") for line in said.getvalue().splitlines()]
        rules = [i for i, line in enumerate(lines) if line and not line.strip("-\u2500")] + [len(lines)]
        # Some boxes have their title in the border, others above a rule of its own.
        first, end = (1, rules[0]) if rules[0] > 1 else (2, rules[1])
        reason = " ".join(lines[first:end]).strip()
        raise UserError(f"{reason or 'these options are not right'} (see {program} --help)") from None


@dataclass(frozen=True)
class RunsArgs:
    runs: Positional[Annotated[tuple[str, ...], arg(metavar="RUN...", help_behavior_hint="")]]
    """A run in logs/, its folder, or a log.pkl; or several. A folder of runs stands for all of them. The first is what
    the others are compared with."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("give one run or more (see --help)")


def output_file(name: str, *kinds: str) -> Path | None:
    """The file to write, of one of these kinds, so that a slip overwrites nothing else. Raises UserError."""
    if name and Path(name).suffix.lower() not in kinds:
        raise UserError(f"--out {name} is not the name of a {' or '.join(kinds)} file: give one")
    return Path(name) if name else None
