"""The `picogpt` command: runs the command that is named, and prints a problem the user can solve as one line."""

import ast
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from picogpt.errors import UserError

COMMANDS = {
    "train": "picogpt.commands.train",
    "generate": "picogpt.commands.generate",
    "export": "picogpt.commands.export",
    "import": "picogpt.commands.import_",
    "prepare": "picogpt.commands.prepare",
    "tokenizer": "picogpt.commands.tokenizer",
    "info": "picogpt.commands.info",
    "logs": "picogpt.commands.logs",
    "report": "picogpt.commands.report",
    "sweep": "picogpt.commands.sweep",
    "bench": "picogpt.commands.bench",
}
"""The module of each command: its docstring is the line in the list of commands, and its `run` takes the options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 2, after one line on stderr, for a problem the user can solve."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not None, when closed, nor what replaces it in tests and notebooks
            stream.reconfigure(errors="replace")  # a character that cannot be shown or decoded is no reason to stop
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(_usage())
            return 0
        if argv[0] not in COMMANDS:
            raise UserError(f"no command is called {argv[0]!r}; there are {', '.join(COMMANDS)}")
        import_module(COMMANDS[argv[0]]).run(argv[1:])
        if sys.stdout:
            sys.stdout.flush()
        return 0
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of the output has ended, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        _print_error(f"picogpt: {error}")
        return 2
    except MemoryError as error:
        _print_error(f"picogpt: out of memory ({error}): try --low-memory, a smaller model, batch or number of samples")
        return 2
    except KeyboardInterrupt:
        _print_error("")
        return 130


def _print_error(line: str) -> None:
    with suppress(OSError):  # then only the exit status tells
        print(line, file=sys.stderr, flush=True)


def _summary(module: str) -> str:
    """Return the docstring of a module, without importing it and all that it needs."""
    path = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _usage() -> str:
    lines = [f"  {name:10}{_summary(module)}" for name, module in COMMANDS.items()]
    return "\n".join(["usage: picogpt COMMAND [options]    (each command has --help)", "", *lines])
