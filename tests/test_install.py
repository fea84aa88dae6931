"""Nobody is told to install `picogpt` from the package index: the name belongs to another program there."""

import re
import tomllib
from pathlib import Path

import pytest

from picogpt.errors import install_extra
from tests.support.paths import ROOT

KINDS = ("*.py", "*.md", "*.toml", "*.yml", "*.html")
TEXTS = sorted(path for kind in KINDS for path in ROOT.rglob(kind) if ".venv" not in path.parts)
BY_NAME = re.compile(r"pip3?\s+install\b[^\n|;&`]*?[\s'\"]picogpt(?![\w-])")


@pytest.mark.parametrize("path", [*TEXTS, ROOT / ".ci" / "run"], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_text_says_so(path: Path) -> None:
    if path != Path(__file__):
        assert not BY_NAME.search(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text",
    ["pip install picogpt", "pip install 'picogpt[cuda]'", 'python -m pip install --upgrade "picogpt"'],
)
def test_the_pattern_finds_it(text: str) -> None:
    assert BY_NAME.search(text)


def test_messages_name_extras_that_there_are() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "picogpt-numpy"
    named = {
        name
        for path in TEXTS
        for called, listed in re.findall(r"install_extra\(['\"](\w+)|\.\[([\w,]+)\]'", path.read_text(encoding="utf-8"))
        for name in (called or listed).split(",")
    }
    assert named >= {"cuda", "bpe", "sweep", "tensorboard", "test"} and named <= project["optional-dependencies"].keys()
    assert install_extra("cuda").endswith("python -m pip install --editable '.[cuda]'")
