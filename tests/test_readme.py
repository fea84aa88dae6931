"""Every command and program in the README and the docs is run, with fewer steps; every excerpt is what it is of."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support.hf import tiny_with_words, write_folder
from tests.support.hubserver import Hub, serving, wiki_files
from tests.support.paths import ROOT
from tests.support.vocabularies import write_tables

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.md"))
PEERS = "<!-- peers -->\n"  # above a block that makes or needs an environment with PyTorch
CLIENT = r"<!-- client\.\w+ -->\n"  # above a program that tests/inference/onnx/test_clients.py runs
EXCERPT = r"<!-- (picogpt/[\w/]+\.py) -->\n"  # above a block that is a part of this file, and no program


def blocks(language: str, pages: list[Path] = PAGES) -> list[str]:
    """Fenced blocks of one language, over all pages, without the peers' and the excerpts."""
    return [
        block
        for page in pages
        for mark, _, block in re.findall(
            rf"^({PEERS}|{CLIENT}|{EXCERPT})?```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S
        )
        if not mark
    ]


def commands(pages: list[Path]) -> list[str]:
    """The commands of the pages' blocks, without those that set up an environment."""
    lines = [line for block in blocks("sh", pages) for line in block.splitlines()]
    return [line for line in lines if line and ".venv" not in line]


def marked(name: str) -> str:
    """The one command below `<!-- name -->` in the README."""
    found = re.search(rf"<!-- {name} -->\n```sh\n(.*)\n```", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def run(command: str, folder: Path, extra: list[str]) -> str:
    """Run one command of ours in `folder`, as a user with an activated environment would."""
    words = shlex.split(command, comments=True)
    program = words[0].removeprefix(".venv/bin/")
    words = words[1:] if program == "python" else ["-m", program, *words[1:]]
    if words[0] in ("train.py", "inference.py"):
        words[0] = str(ROOT / words[0])
    words = [str(ROOT / word) if word == "dataset/sample.txt" else word for word in words]
    done = subprocess.run(
        [sys.executable, "-W", "error", *words, *extra], cwd=folder, capture_output=True, text=True, timeout=1000
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def shortened(command: str) -> list[str]:
    """Options that make a command of the docs quick; the last one given counts."""
    if "picogpt bench" in command:
        return ["--seconds", "0.1", "--batch-size", "2"]
    if "picogpt sweep" in command:
        return ["--steps", "2", "--batch-size", "4", "--n-layer", "1", "--n-embd", "32", "--seeds", "1"]
    if "train.py" not in command:
        return []
    if "--init-from" in command:
        return ["--steps", "2", "--batch-size", "4"]
    return ["--steps", "2", "--batch-size", "4"] + ([] if "--preset" in command else ["--n-layer", "1"])


def test_the_first_command_trains_and_then_samples(tmp_path: Path) -> None:
    venv, pip, train, sample = marked("train").split(" && ")
    assert venv == "python3 -m venv .venv"
    assert pip == ".venv/bin/python -m pip install --quiet --editable ."
    out = run(re.sub(r"--steps \d+", "--steps 4", train), tmp_path, [])
    assert "step 4/4" in out
    assert (tmp_path / "logs" / "first" / "log.pkl").exists()
    text = run(sample, tmp_path, [])
    assert text.startswith("The sun") and len(text) == len("The sun") + 80 + 1


def test_the_second_command_is_this_suite() -> None:
    assert marked("tests").endswith("&& .venv/bin/python -m pytest")


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on this machine with a little of what the pages ask for."""
    root = tmp_path_factory.mktemp("hub")
    wiki_files(root)
    wiki_files(root, "20231101.simple")
    wiki_files(root, "20231101.ja")
    path = root / "Open-Orca" / "OpenOrca" / "1M-GPT4-Augmented.parquet"
    path.parent.mkdir(parents=True)
    rows = [{"question": f"what is {i}?", "response": f"{i}."} for i in range(50)]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    with serving(Hub(root)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield


def test_every_other_command(tmp_path: Path, hub: None) -> None:
    write_folder(tmp_path / "gpt-neo-125m", **tiny_with_words("gpt_neo"))
    write_tables(tmp_path / "gpt-neo-125m")
    (tmp_path / "novel.txt").write_text("It was a dark and stormy night.\n" * 400)
    found = dict.fromkeys(re.sub(r"\s+#.*", "", command) for command in commands(PAGES))
    assert len(found) >= 10
    for command in found:
        # Shakespeare would be downloaded.
        command = re.sub(r"--data shakespeare", "--data sample", command)
        command = re.sub(r"--(steps|minutes) \d+", "", command)
        command = re.sub(r"--dashboard(?= |$)", "--dashboard 0", command)  # any port that is free
        if command.startswith("echo"):
            prompt, ours = command.split(" | ")
            words = shlex.split(ours, comments=True)
            done = subprocess.run(
                [sys.executable, str(ROOT / words[1]), *words[2:]],
                cwd=tmp_path,
                input=shlex.split(prompt)[1] + "\n",
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0 and done.stdout, done.stderr
            assert "--chat" in words or done.stdout.startswith("A bridge")
            continue
        run(command, tmp_path, shortened(command))
    for program in (block for block in blocks("python") if "picogpt.load" in block):
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# What makes a benchmark of the pages quick; the options given last count.
QUICK = {
    "bench train": ["--seconds", "0.1", "--batch-size", "2"],
    "bench time-to-loss": ["--seeds", "1", "--steps", "2", "--data", "sample"],
    "bench data --gigabytes": ["--gigabytes", "1", "--megabytes", "1", "--seconds", "0.1"],
    "bench data ": ["--megabytes", "1", "--seconds", "0.1"],
    "bench generate": ["--tokens", "4"],
    "benchmarks.memory": ["--model", "tiny"],
    "benchmarks.context": ["--sequences", "2"],
    "benchmarks.tokenizers": ["--preset", "race", "--judged", "3000"],
    "tests.torture": ["--minutes", "0.02", "--load", "0"],
    "benchmarks.compare": ["--seconds", "0.1", "--rounds", "1"],
}


@pytest.mark.parametrize("command", commands(BENCHMARKS))
def test_every_benchmark(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # they are run in the repository's folder
    extra = next(options for kind, options in QUICK.items() if kind in command)
    if "--runs mine" in command:
        shape = ["--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--context-len", "16"]
        run("python train.py --data sample --run mine", tmp_path, ["--steps", "2", "--batch-size", "4", *shape])
    assert run(command, tmp_path, extra)


def test_what_is_left_out_of_the_benchmarks_needs_pytorch() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in BENCHMARKS)
    left_out = re.findall(rf"{PEERS}```sh\n(.*?)```", text, re.S)
    assert left_out and all("peers-venv" in line for block in left_out for line in block.splitlines())


@pytest.mark.parametrize("program", [block for block in blocks("python") if "picogpt.load" not in block])
def test_every_program(program: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "she sells" in program:
        assert done.stdout.splitlines()[-1].startswith("she sells sea shells by the sea shore. she sells")


def test_every_promise_has_the_test_that_keeps_it() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    promised = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(promised) > 40
    for file, name in promised:
        (path,) = (ROOT / "tests").rglob(file)
        assert f"\ndef {name}(" in path.read_text(encoding="utf-8"), f"{file} has no {name}"
    rows = [
        line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| what"))
    ]
    assert all("::test_" in row for row in rows)


EXCERPTS = [
    (page.name, file, excerpt)
    for page in PAGES
    for file, excerpt in re.findall(rf"^{EXCERPT}```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
]


def is_in(excerpt: str, source: str) -> bool:
    """Whether these lines stand in the source as they are, but for the indentation that all of them share."""
    depths = {len(line) - len(line.lstrip(" ")) for line in source.splitlines() if line}
    return any(f"\n{indent(dedent(excerpt), ' ' * depth)}" in f"\n{source}" for depth in depths)


@pytest.mark.parametrize(("page", "file", "excerpt"), EXCERPTS, ids=[f"{page}-{file}" for page, file, _ in EXCERPTS])
def test_every_excerpt_is_what_stands_in_its_file(page: str, file: str, excerpt: str) -> None:
    assert excerpt.strip() and is_in(excerpt, (ROOT / file).read_text(encoding="utf-8")), f"{page} has an old {file}"


def test_excerpts_are_found_and_told_from_others() -> None:
    assert len(EXCERPTS) > 10
    source = "class A:\n    def f(self):\n        x = 1\n\n        return x\n"
    assert is_in("x = 1\n\nreturn x\n", source) and is_in("def f(self):\n    x = 1\n", source)
    assert not is_in("x = 1\nreturn x\n", source) and not is_in("x = 2\n", source) and not is_in("= 1\n", source)
    assert not any("record(output: Array" in block for block in blocks("python"))  # it is not run


def test_files_and_tests_that_the_pages_name_are_there() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:picogpt|tests|benchmarks)/[\w./]*)`", text):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"\ndef {name}(" in tests, f"{page.name} names {name}"
        for link in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
