"""What the tests of the command line share."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

SHAPE = ["--context-len", "16", "--n-layer", "1", "--n-head", "2", "--n-embd", "16"]
TINY = [*SHAPE, "--batch-size", "4", "--steps", "4", "--eval-interval", "2", "--lanes", "1"]
TRAIN = ["train", *TINY, "--preset", "pico", "--data", "easy.txt"]
EASY = "she sells sea shells by the sea shore.\n" * 60


def shell(folder: Path, *argv: str, text: str | bytes = b"", **environment: str) -> tuple[int, str, str]:
    """Run a program of the repository in a process of its own. Returns its (status, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, str(ROOT / argv[0]), *argv[1:]],
        cwd=folder,
        input=text.encode() if isinstance(text, str) else text,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        timeout=600,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def is_one_line(stderr: str) -> bool:
    return stderr.startswith("picogpt: ") and stderr.count("\n") == 1 and stderr.endswith("\n")
