"""The model that comes with picogpt: it writes at once, anywhere, and others begin from it."""

from pathlib import Path

import pytest

import picogpt
from picogpt import cli
from picogpt.errors import UserError
from picogpt.runs.checkpoint import read_record
from picogpt.runs.checkpoints import newest
from picogpt.runs.find import newest_run, trained_runs
from picogpt.runs.layout import BASE, LOGS, PRETRAINED, onnx_path
from picogpt.runs.log import read_log

MOST = 16_000_000  # bytes of it


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without runs, as that of somebody who has just installed picogpt."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_in_the_package() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in PRETRAINED.rglob("*")}


def test_it_is_small_and_says_nothing_of_the_machine_it_comes_from() -> None:
    assert sum(path.stat().st_size for path in (PRETRAINED / BASE).iterdir()) <= MOST
    config = read_record(PRETRAINED / BASE).meta.config
    assert all(Path(name).name == name for name in config.data.names)


@pytest.mark.parametrize("engine", ["onnx", "numpy"])
def test_it_writes_before_anything_was_trained(engine: str, nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_in_the_package()
    argv = ["generate", "--prompt", "Once upon a time", "--tokens", "30", "--seed", "1"]
    assert cli.main([*argv, "--engine", engine]) == 0
    out, error = capsys.readouterr()
    assert out.startswith("Once upon a time") and len(out) > 60
    assert "base writes, the model of old novels that comes with picogpt" in error
    assert newest_run() == BASE and trained_runs() == []
    assert files_in_the_package() == before
    assert onnx_path(PRETRAINED / BASE) == LOGS / BASE / "model.onnx"
    assert (nowhere / "logs/base/model.onnx").is_file() == (engine == "onnx")


def test_the_engines_write_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for engine in ("onnx", "numpy"):
        argv = ["generate", "--run", "base", "--prompt", "The old man", "--temperature", "0", "--tokens", "60"]
        assert cli.main([*argv, "--engine", engine]) == 0
        out, error = capsys.readouterr()
        assert error == ""
        texts.append(out)
    assert texts[0] == texts[1]
    model = picogpt.load("base")
    assert texts[0] == f"The old man{model.generate('The old man', temperature=0, tokens=60)}\n"


def test_another_run_begins_from_it(nowhere: Path, no_plots: None) -> None:
    (nowhere / "tale.txt").write_text("It was a dark night, and the wind was in the trees. " * 120, encoding="utf-8")
    small = ["--context", "32", "--batch-size", "2", "--eval-interval", "2", "--depth-warmup", "0", "--lanes", "1"]
    argv = ["train", "--data", "tale.txt", "--init-from", "base", "--run", "tale", "--steps", "2", *small]
    assert cli.main(argv) == 0
    place = newest(Path("logs/tale"))
    assert place is not None
    records = [read_record(folder).meta.config.model for folder in (place, PRETRAINED / BASE)]
    assert records[0] == records[1]
    first = read_log(Path("logs/tale/log.pkl")).evaluations[0]
    assert first.val_loss is not None and first.val_loss < 5.5  # of a vocabulary of 4,096: from nothing it is 8.3
    assert newest_run() == "tale"


def test_a_run_of_that_name_goes_first(nowhere: Path, no_plots: None) -> None:
    (nowhere / "tale.txt").write_text("It was a dark night, and the wind was in the trees. " * 120, encoding="utf-8")
    shape = ["--preset", "bigram", "--n-embd", "8", "--tokenizer", "chars", "--batch-size", "2"]
    assert cli.main(["train", "--data", "tale.txt", "--run", "base", "--steps", "2", *shape]) == 0
    assert picogpt.load("base").config.n_embd == 8


def test_its_name_stands_among_those_there_are() -> None:
    with pytest.raises(UserError, match=r"there is base, and python train\.py makes others"):
        picogpt.load("bass")
