"""Nobody is told to install `picogpt` from the package index: the name belongs to another program there."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from picogpt.errors import install_extra
from tests.support.paths import ROOT

KINDS = ("*.py", "*.md", "*.toml", "*.yml", "*.html")
TEXTS = sorted(path for kind in KINDS for path in ROOT.rglob(kind) if ".venv" not in path.parts)
BY_NAME = re.compile(r"pip3?\s+install\b[^\n|;&`]*?[\s'\"]picogpt(?![\w-])")


def strings_in(source: str) -> Iterator[str]:
    """Return each string of a Python source, whole where adjacent literals make it; f-strings without their values."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=str(text)):
                yield text
            case ast.JoinedStr(values=parts):
                yield "".join(str(part.value) for part in parts if isinstance(part, ast.Constant))


def says_so(text: str, python: bool) -> bool:
    """Return whether a file, or one of its strings where it is Python, tells to install `picogpt` by its name."""
    texts = [text, *strings_in(text)] if python else [text]
    return any(BY_NAME.search(text) for text in texts)


@pytest.mark.parametrize("path", [*TEXTS, ROOT / ".ci" / "run"], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_text_says_so(path: Path) -> None:
    if path != Path(__file__):
        assert not says_so(path.read_text(encoding="utf-8"), python=path.suffix == ".py")


@pytest.mark.parametrize(
    "text",
    ["pip install picogpt", "pip install 'picogpt[cuda]'", 'python -m pip install --upgrade "picogpt"'],
)
def test_the_pattern_finds_it(text: str) -> None:
    assert says_so(text, python=False)


@pytest.mark.parametrize(
    "source",
    [
        'print("cupy is missing: pip install " "picogpt")',
        'raise ValueError(\n    "cupy is missing: "\n    "python -m pip install "\n    "\'picogpt[cuda]\'"\n)',
        'print(f"{name} is missing: pip install " f"--upgrade picogpt[{name}]")',
        "print(f'{name} is missing: pip ' 'install ' 'picogpt')",
        "# pip install picogpt",
    ],
)
def test_it_is_found_in_python_across_literals(source: str) -> None:
    assert says_so(source, python=True)


@pytest.mark.parametrize("source", ['print("pip install ",\n"picogpt")', 'print("pip install " "picogpt-numpy")'])
def test_other_strings_are_no_such_advice(source: str) -> None:
    assert not says_so(source, python=True)


def test_messages_name_extras_that_there_are() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "picogpt-numpy"
    named = {
        name
        for path in TEXTS
        for called, listed in re.findall(r"install_extra\(['\"](\w+)|\.\[([\w,]+)\]'", path.read_text(encoding="utf-8"))
        for name in (called or listed).split(",")
    }
    assert named >= {"cuda", "sweep", "tensorboard", "test"} and named <= project["optional-dependencies"].keys()
    assert install_extra("cuda").endswith("python -m pip install --editable '.[cuda]'")
