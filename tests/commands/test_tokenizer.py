"""`picogpt tokenizer`, and runs that share the file it writes, or one of another program."""

import json
import pickle
from pathlib import Path

import pytest

from picogpt.runs.checkpoint import read_record
from picogpt.tokenizers.bpe import BpeTokenizer
from tests.support.commands import SHAPE, is_one_line
from tests.support.running import status_of
from tests.support.vocabularies import whole, write_tables

pytestmark = pytest.mark.usefixtures("no_plots", "short_samples")

TEXT = "".join(f"she sells {number} sea shells by the sea shore.\n" for number in range(900))
TRAIN = ["train", *SHAPE, "--lanes", "1", "--batch-size", "2", "--eval-interval", "2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def test_it_is_made_shown_and_shared_by_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("tokenizer", "--data", "text.txt", "--size", "300", "--out", "shells.json") == 0
    out = capsys.readouterr().out
    assert "characters" in out and " 300 " in out and "|" in out and "--tokenizer shells.json" in out
    fingerprints = []
    for run in ("one", "two"):
        for steps in ("2", "4"):
            words = ["--data", "text.txt", "--tokenizer", "./shells.json", "--run", run, "--steps", steps]
            assert status_of(*TRAIN, *words) == 0
        out = capsys.readouterr().out
        assert f"continuing run {run} after step 2" in out
        log = pickle.loads(Path("logs", run, "log.pkl").read_bytes())
        assert log["config"]["model"]["vocab_size"] == 300 and log["evaluations"][-1]["bits_per_char"] > 0
        record = read_record(Path("logs", run, "checkpoints", "00000004"))
        fingerprints.append(json.dumps(record.meta.tokenizer))
    assert fingerprints[0] == fingerprints[1]
    Path("shells.json").unlink()  # a run has its own
    words = ["--data", "text.txt", "--tokenizer", "./shells.json", "--run", "one", "--steps", "6"]
    assert status_of(*TRAIN, *words) == 0
    assert status_of("generate", "--run", "one", "--prompt", "she", "--tokens", "4") == 0


@pytest.mark.parametrize("form", ["tokenizer.json", "a folder of vocab.json and merges.txt"])
def test_another_programs_tokenizer(form: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "theirs").mkdir()
    name = "theirs/"
    if form == "tokenizer.json":
        name = "theirs/tokenizer.json"
        (folder / name).write_text(json.dumps(whole()), encoding="utf-8")
    else:
        write_tables(folder / "theirs")
    for command in (["prepare"], [*TRAIN, "--steps", "2", "--run", "x"]):
        assert status_of(*command, "--data", "text.txt", "--tokenizer", name) == 0
    assert pickle.loads(Path("logs/x/log.pkl").read_bytes())["config"]["data"]["tokenizer"] == name
    assert status_of(*TRAIN, "--init-from", "x", "--run", "y", "--data", "text.txt", "--steps", "2") == 0
    capsys.readouterr()
    other = ["--init-from", "x", "--run", "z", "--data", "text.txt", "--tokenizer", "other.json"]
    assert status_of(*TRAIN, *other) == 2
    assert "leave --tokenizer out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("{", "this is no byte-level BPE tokenizer"),
        (json.dumps({**whole(), "model": {"type": "Unigram"}}), "this is no byte-level BPE tokenizer"),
    ],
)
def test_a_file_that_is_none_is_one_line(
    content: str | None, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (folder / "no.json").write_text(content, encoding="utf-8")
    assert status_of(*TRAIN, "--data", "text.txt", "--tokenizer", "no.json", "--run", "x") == 2
    error = capsys.readouterr().err
    assert is_one_line(error) and told in error and "no.json" in error and not Path("logs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data", "missing.txt"], "there is no missing.txt"),
        (["--data", "wiki:de"], "is streamed"),
        (["--size", "100"], "bytes and marks alone are 261"),
        (["--out", "shells.txt"], "is not the name of a .json file"),
        (["--out", "no/shells.json"], "cannot write no/shells.json"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("tokenizer", *words) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_what_it_shows_is_of_the_text_to_validate_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "text.txt").write_text("aaaa bbbb " * 5000 + "the only words here\n" * 250, encoding="utf-8")
    assert status_of("tokenizer", "--data", "text.txt", "--out", "a.json") == 0
    out = capsys.readouterr().out
    assert "the only words here" in out.replace("|", "")
    tokenizer = BpeTokenizer.open(folder / "a.json")
    assert not any(b"only" in tokenizer.spell(id) for id in range(tokenizer.vocab_size))
