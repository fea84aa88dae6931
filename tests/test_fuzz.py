"""The targets of tests/fuzz work without its engine: on what they begin from, and on a few changes of that."""

import os
import random
from pathlib import Path

import pytest

from tests.fuzz import __main__ as command
from tests.fuzz.target import Finding, Target, changed, watched
from tests.fuzz.targets import TARGETS

NATIVE = ("onnx", "parquet")  # where a library's fault would end the tests with it


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds_and_changes_of_them(name: str, tmp_path: Path) -> None:
    target, chance = TARGETS[name], random.Random(0)
    seeds = target.seeds(tmp_path)
    assert seeds
    for seed in seeds:
        target(tmp_path, seed)
        for _ in range(0 if name in NATIVE else 5):
            if target.is_json:
                target(tmp_path, changed(seed, chance))
            other = bytearray(seed)
            for _ in range(chance.randint(1, 3)):
                other[chance.randrange(len(other))] = chance.randrange(256)
            target(tmp_path, bytes(other))


def test_what_is_no_error_of_ours_is_a_finding(tmp_path: Path) -> None:
    def fail(folder: Path, data: bytes) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        Target(fail, TARGETS["status"].seeds)(tmp_path, b"")
    with pytest.raises(Finding, match=r"os\.system"):
        watched(lambda: os.system("exit 1"))
    assert os.system("exit 0") == 0  # nobody watches any more


def test_it_says_what_it_takes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["fuzz", "--only", "nothing"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command.main() == 2
    assert (
        capsys.readouterr().err
        == "tests.fuzz: atheris is not installed: in picogpt's folder run: python -m pip install --editable '.[fuzz]'\n"
    )
