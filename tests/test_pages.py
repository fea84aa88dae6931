"""The pages for contributors and the workflow say what is so: files, functions, folders in their order, commands."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.test_imports import FOLDERS

README, WORKFLOW = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", ".github/workflows/ci.yml"))
PAGES = {
    name: (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("architecture.md", "CONTRIBUTING.md", "extending.md")
}
SPAN = re.compile(r"`([^`]+)`")
FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)*(?:/|\.(?:py|md|yml|yaml|toml))")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)?")


def place_of(span: str, before: list[Path]) -> Path | None:
    """What is called so from the repository, from the package, or from a folder that the line has named before."""
    folders = [ROOT, ROOT / "picogpt", *(path if path.is_dir() else path.parent for path in reversed(before))]
    return next((folder / span for folder in folders if (folder / span).exists()), None)


def files_in(text: str) -> Iterator[tuple[str, Path | None]]:
    """Each file and folder that a page names, and where it is: None for one that is nowhere."""
    for line in text.splitlines():
        before: list[Path] = []
        for span in filter(FILE.fullmatch, SPAN.findall(line)):
            place = place_of(span, before)
            before += [place] if place else []
            yield span, place


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, classes, methods (alone and behind their class) and constants of a file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef():
                found.add(node.name)
            case ast.ClassDef():
                methods = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
                found |= {node.name, *methods, *(f"{node.name}.{method}" for method in methods)}
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return frozenset(found)


def functions_in(text: str) -> Iterator[tuple[str, str]]:
    """Each name that a page puts into a file, and this file.

    It says `FILE` `NAME`, `NAME`, or `NAME` in (or of) `FILE`, or has a row of a table that begins with `FILE`.
    """
    file = r"`((?:picogpt|tests)/[\w/]+\.py)`"
    for path, names in re.findall(rf"{file} (`{NAME.pattern}`(?:, `{NAME.pattern}`)*)", text):
        yield from ((path, name) for name in SPAN.findall(names) if NAME.fullmatch(name))
    for name, path in re.findall(rf"`({NAME.pattern})`,?\s(?:a Protocol )?(?:in|of)\s{file}", text):
        yield path, name
    for path, row in re.findall(rf"^\| {file} \| (.+) \|$", text, re.M):
        yield from ((path, name) for name in SPAN.findall(row) if NAME.fullmatch(name))


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    found = list(files_in(PAGES[page]))
    assert len(found) > 5
    assert [span for span, place in found if place is None] == []


@pytest.mark.parametrize(("page", "fewest"), [("architecture.md", 30), ("extending.md", 15)])
def test_what_a_page_puts_into_a_file_is_in_it(page: str, fewest: int) -> None:
    found = list(functions_in(PAGES[page]))
    assert len(found) > fewest
    assert [f"{path}: {name}" for path, name in found if name not in names_in(ROOT / path)] == []


def test_what_is_not_there_is_found() -> None:
    assert [place for _, place in files_in("`engine/`, `ops/` and `tape.py`, `nowhere.py`, `tests/fuzz/`")][3] is None
    assert list(functions_in("`picogpt/rng.py` `generator`, `A.b`, and `UserError` in `picogpt/errors.py`")) == [
        ("picogpt/rng.py", "generator"),
        ("picogpt/rng.py", "A.b"),
        ("picogpt/errors.py", "UserError"),
    ]
    row = "| `tests/test_pages.py` | its line in `PAGES`, with `--a`, as `nowhere` has it |"
    assert list(functions_in(row)) == [("tests/test_pages.py", "PAGES"), ("tests/test_pages.py", "nowhere")]
    assert "Tape.backward" in names_in(ROOT / "picogpt" / "engine" / "tape.py") >= {"Tape", "backward", "record"}
    assert "records" not in names_in(ROOT / "picogpt" / "engine" / "tape.py")


def test_the_architecture_has_the_folders_of_the_import_law_in_their_order() -> None:
    table = PAGES["architecture.md"].partition("\n|---|---|\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", table, re.M)
    assert tuple(rows) == FOLDERS


def test_the_readme_has_them_too() -> None:
    tree = re.search(r"^    picogpt/\n((?:      .+\n)+)", README, re.M)
    assert tree is not None
    called = [re.split(r"  +", line.strip())[0] for line in tree[1].splitlines()]
    names = [name.removesuffix("/").removesuffix(".py") for part in called for name in part.split()]
    assert tuple(names) == tuple(name for name in FOLDERS if not name.startswith("__"))


def test_every_page_is_in_the_readme() -> None:
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"](docs/{page.name})" not in README] == []


# The workflow. It is looked at as text, for no parser of YAML is among the packages that the tests need.


def readme_test_command() -> str:
    found = re.search(r"<!-- tests -->\n```sh\n(.+)\n```", README)
    assert found is not None
    return found[1]


def runs() -> list[str]:
    """The commands of the workflow."""
    return re.findall(r"^ +(?:- )?run: (.+)$", WORKFLOW, re.M)


def test_the_workflow_tests_every_python_from_the_oldest_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = re.fullmatch(r">=3\.(\d+)", project["project"]["requires-python"])
    listed = re.search(r"^ +python: \[(.+)\]$", WORKFLOW, re.M)
    assert oldest is not None and listed is not None
    minors = [int(minor) for minor in re.findall(r'"3\.(\d+)"', listed[1])]
    assert minors == list(range(int(oldest[1]), int(oldest[1]) + len(minors))) and len(minors) >= 4
    assert f'python-version: "3.{oldest[1]}"' in WORKFLOW  # of style and types, as mypy is set
    assert project["tool"]["mypy"]["python_version"] == f"3.{oldest[1]}"


def test_the_workflow_runs_the_readmes_command_on_every_system() -> None:
    assert re.search(r"^ +os: \[ubuntu-latest, macos-latest, windows-latest\]$", WORKFLOW, re.M)
    command = readme_test_command()
    windows = command.replace("python3 ", "python ").replace(".venv/bin/", ".venv/Scripts/")
    assert [run for run in runs() if "pytest" in run] == [command, windows]


def test_the_workflow_makes_the_checks_that_contributors_make() -> None:
    section = PAGES["CONTRIBUTING.md"].partition("\n## Check\n")[2]
    block = re.search(r"```sh\n(.+?)\n```", section, re.S)
    assert block is not None
    checks = block[1].splitlines()
    assert checks[-1] == readme_test_command().rpartition(" && ")[2]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert len(checks) == 4 and all(check in runs() and check in script for check in checks[:-1])


def test_the_workflow_may_do_little_and_takes_what_was_looked_at() -> None:
    jobs = re.findall(r"^  \w+:\n(?=    name: )(?:(?:    .*)?\n)+", WORKFLOW, re.M)
    assert len(jobs) == 2
    assert re.search(r"^permissions: \{\}$", WORKFLOW, re.M) and "write" not in WORKFLOW and "secrets" not in WORKFLOW
    assert all("    permissions:\n      contents: read\n" in job and "    timeout-minutes: " in job for job in jobs)
    actions = re.findall(r"uses: (.+)", WORKFLOW)
    assert actions and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action) for action in actions)
    assert WORKFLOW.count("persist-credentials: false") == WORKFLOW.count("uses: actions/checkout@")
