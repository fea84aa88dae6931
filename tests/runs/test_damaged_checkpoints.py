"""A run with one checkpoint that is damaged, in any file and in any way: everything uses the others."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import picogpt
from picogpt.runs import checkpoint, checkpoints
from picogpt.runs.checkpoint import META, MODEL, DamageError
from tests.support.checkpoints import DAMAGES, FILES, flip, remove
from tests.support.running import config_for, open_run, result_of, status_of

Damage = Callable[[Path], None]
EACH = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
READ = pytest.mark.parametrize("file", [META, MODEL])  # what generating needs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a folder with a run whose checkpoints are of the steps 8 and 12, the second one better."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("damage")
        patch.chdir(folder)
        patch.setattr("picogpt.monitoring.plotter.Plotter.redraw", lambda self: None)
        patch.setattr("picogpt.evaluation.samples.SAMPLE_CONFIG", picogpt.config.GenerateConfig(tokens=2))
        (folder / "easy.txt").write_text("she sells sea shells by the sea shore. " * 60, encoding="utf-8")
        open_run(config_for(Path("easy.txt"), learning_rate=0.02)).train()
        yield folder


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None) -> Path:
    """Copy that folder, and make the copy the current folder."""
    shutil.copytree(trained, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def folders() -> list[Path]:
    """Return the checkpoints from the newest to the oldest; the newest is also the best."""
    run = Path("logs/run")
    found = sorted((run / "checkpoints").iterdir())[::-1]
    assert [folder.name for folder in found] == ["00000012", "00000008"]
    assert checkpoints.best(run) == checkpoints.newest(run) == found[0]
    return found


@EACH
@pytest.mark.parametrize("file", FILES)
def test_training_goes_on_from_the_one_before_to_the_same_bits(
    file: str, damage: Damage, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(Path("easy.txt"), learning_rate=0.02)
    expected = result_of(open_run(config))
    damage(folders()[0] / file)
    run = open_run(config)
    run.train()
    out = capsys.readouterr().out
    assert "continuing run run after step 8" in out and f"00000012/{file}" in out and "it is left out" in out
    assert result_of(run) == expected


@EACH
@READ
def test_the_next_best_writes_and_it_is_said(
    file: str, damage: Damage, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, other = folders()
    expected = picogpt.load(other).generate("she", temperature=0, tokens=20)
    damage(best / file)
    for engine in ("numpy", "onnx"):
        capsys.readouterr()
        argv = ["--run", "run", "--prompt", "she", "--temperature", "0", "--tokens", "20", "--engine", engine]
        assert status_of("generate", *argv) == 0
        printed = capsys.readouterr()
        assert printed.out == f"she{expected}\n"
        # a folder without its record is no checkpoint: one that was never finished is none either
        assert ("step 8 is used in its place" in printed.err) is not (file == META and damage is remove)
    assert picogpt.load("run").generate("she", temperature=0, tokens=20) == expected


@EACH
@READ
def test_what_else_reads_a_run_takes_the_next_best(
    file: str, damage: Damage, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(folders()[0] / file)
    tuned = ["train", "--init-from", "run", "--run", "tuned", "--data", "easy.txt", "--steps", "1", "--lanes", "1"]
    commands: list[list[str]] = [
        ["export", "--run", "run", "--precision", "int8"],
        ["export", "--run", "run", "--format", "picogpt", "--out", "given.pkl"],
        ["info", "--run", "run"],
        ["logs", "run"],
        tuned,
    ]
    for argv in commands:
        assert status_of(*argv) == 0, capsys.readouterr().err
    assert np.isfinite(picogpt.load("tuned").logits([1, 2, 3])).all()


@EACH
@pytest.mark.parametrize("file", FILES)
def test_one_that_is_named_itself_is_refused_with_the_way_out(file: str, damage: Damage, home: Path) -> None:
    newest, before = folders()
    damage(newest / file)
    if not (newest / META).exists():
        assert checkpoints.newest(home / "logs" / "run") == home / "logs" / "run" / before.relative_to("logs/run")
        return
    with pytest.raises(picogpt.UserError, match=f"delete {newest} to continue from step 8"):
        checkpoints.load(newest)


@EACH
def test_where_none_is_sound_it_is_said_once(damage: Damage, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in folders():
        damage(folder / MODEL)
    assert status_of("generate", "--run", "run", "--prompt", "she", "--engine", "numpy") == 2
    lines = capsys.readouterr().err.splitlines()
    assert "step 8 is used in its place" in lines[0]
    assert lines[1].endswith("start the run again with --fresh") and len(lines) == 2


def test_looking_for_a_sound_one_keeps_no_weights(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checksum pass is enough to name the step of an older one."""
    newest, before = folders()
    flip(newest / MODEL)
    read: list[Path] = []
    original = checkpoint._read_arrays

    def noted(path: Path, *rest: Any) -> Any:
        read.append(path)
        return original(path, *rest)

    monkeypatch.setattr(checkpoint, "_read_arrays", noted)
    with pytest.raises(picogpt.UserError, match="continue from step 8"):
        checkpoints.load(newest)
    assert read == [newest / MODEL]
    checkpoint.verify(before)
    with pytest.raises(DamageError):
        checkpoint.verify(newest)


def test_a_record_that_cannot_be_read_is_no_reason_to_stop(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as on a bad place of the disk."""
    before = checkpoints.state_of(Path("logs/run"))
    newest = folders()[0]
    monkeypatch.setattr(checkpoint, "read_bytes", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    assert before != checkpoints.state_of(Path("logs/run")) == str(newest)
