"""Every command and every program in the README and the docs is run, with fewer steps."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    """Fenced blocks of one language, over all pages."""
    return [
        block
        for page in PAGES
        for block in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    ]


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
        [sys.executable, "-W", "error", *words, *extra], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def shortened(command: str) -> list[str]:
    """Options that make a training command of the docs quick; the last one given counts."""
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


def test_every_other_command(tmp_path: Path) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if line and ".venv" not in line]
    assert len(commands) >= 10
    for command in commands:
        # Shakespeare would be downloaded.
        command = re.sub(r"--data shakespeare", "--data sample", command)
        command = re.sub(r"--(steps|minutes) \d+", "", command)
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
            assert done.returncode == 0 and done.stdout.startswith("A bridge"), done.stderr
            continue
        run(command, tmp_path, shortened(command))
    for program in (block for block in blocks("python") if "picogpt.load" in block):
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", [block for block in blocks("python") if "picogpt.load" not in block])
def test_every_program(program: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "she sells" in program:
        assert done.stdout.splitlines()[-1].startswith("she sells sea shells by the sea shore. she sells")
