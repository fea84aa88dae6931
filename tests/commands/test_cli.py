"""The command line: every command, and one line on stderr with status 2 for every bad input."""

import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from picogpt.config.presets import PRESETS, preset
from picogpt.model.parameters import parameter_count
from picogpt.runs.log import read_log
from picogpt.system import hardware
from picogpt.tokenizers.bpe import DEFAULT_SIZE, BpeTokenizer
from tests.support.commands import ROOT, SHAPE, TINY, TRAIN, is_one_line, shell
from tests.support.folders import snapshot, without_tokens
from tests.support.running import status_of

# Bad input

BAD = {
    "unknown command": (["fly"], "no command is called 'fly'; there are train, generate"),
    "unknown preset": (["train", "--preset", "huge"], "no preset is called 'huge'; there are pico"),
    "unknown preset, info": (["info", "--preset", "huge"], "no preset is called 'huge'"),
    "two presets": (["train", "-e", "-s"], "-e and -s are two presets"),
    "missing data": ([*TRAIN, "--data", "missing.txt"], "there is no missing.txt"),
    "no data": ([*TRAIN, "--data", ""], "--data has an empty name: it takes sample, "),
    "not text": ([*TRAIN, "--data", "logs/pico-easy/log.pkl"], "is not .txt, .md, "),
    "empty file": ([*TRAIN, "--data", "empty.txt"], "empty.txt is empty"),
    "empty folder": ([*TRAIN, "--data", "folder"], "folder has no file with text"),
    "not UTF-8": ([*TRAIN, "--data", "latin.txt"], "latin.txt is not UTF-8 at byte 3"),
    "shorter than a window": ([*TRAIN, "--data", "short.txt"], "use more text or a smaller --context-len"),
    "no steps": ([*TRAIN, "--steps", "0"], "steps must be at least 1"),
    "ragged context": (
        [*TRAIN, "--context", "40"],
        "must be at most the window (16) or a multiple of it: try --context 32",
    ),
    "context without a slot": (["train", "-s", "--context", "32"], "needs a model with a context slot"),
    "heads": (["train", "--n-head", "3"], "n_embd (256) must be a multiple of n_head (3)"),
    "a folder as run": ([*TRAIN, "--run", "a/b"], "give another --run"),
    "up and away": ([*TRAIN, "--run", ".."], "give another --run"),
    "other settings": ([*TRAIN, "--learning-rate", "1"], "learning_rate was 0.01, now 1.0"),
    "fresh": ([*TRAIN, "--data", "missing.txt", "--run", "pico-easy", "--fresh"], "there is no missing"),
    "unknown origin": (
        [*TRAIN, "--init-from", "nobody", "--run", "tuned"],
        "no trained run is called 'nobody'; there are: pico",
    ),
    "unknown run": (["generate", "--prompt", "a", "--run", "nobody"], "no trained run is called 'nobody'"),
    "cold": (["generate", "--prompt", "a", "--temperature", "-1"], "temperature must not be negative"),
    "no log": (["logs", "nobody"], "there is no log at"),
    "not a log": (["logs", "easy.txt"], "easy.txt is damaged or not a log"),
    "no log inside": (["logs", "folder"], "cannot read the log"),
    "hostile log": (["logs", "hostile"], "names the class"),
    "one of the logs": (["logs", "pico-easy", "nobody"], "there is no log at"),
    "a picture of what kind": (["logs", "pico-easy", "--out", "easy.txt"], "not the name of a .png or .svg file"),
    "a picture nowhere": (["logs", "pico-easy", "--out", "no/x.png"], "cannot write no/x.png (No such file"),
    "no run to report": (["report", "nobody"], "there is no log at"),
    "a hostile report": (["report", "pico-easy", "hostile"], "names the class"),
    "a report of what kind": (["report", "pico-easy", "--out", "easy.txt"], "not the name of a .html or .htm file"),
    "a report nowhere": (["report", "pico-easy", "--out", "no/x.html"], "cannot write no/x.html (No such file"),
    "bench what": (["bench", "tea"], "picogpt bench measures one of: train, time-to-loss, data, generate"),
    "bench nothing": (["bench"], "picogpt bench measures one of: train"),
    "bench no time": (["bench", "train", "--seconds", "0"], "seconds must be positive, not 0.0"),
    "bench no file": (["bench", "time-to-loss", "--data", "none.txt"], "there is no none.txt"),
    "bench one seed": (["bench", "time-to-loss", "--data", "easy.txt", "--seed", "7"], "give them with --seeds"),
    "bench no seed": (["bench", "time-to-loss", "--data", "easy.txt", "--seeds"], "give --seeds"),
    "bench bad seed": (["bench", "time-to-loss", "--data", "easy.txt", "--seeds", "-1"], "seed must not be negative"),
    "bench no target": (["bench", "time-to-loss", "--data", "easy.txt", "--target", "nan"], "target must be a finite"),
    "bench a short text": (["bench", "time-to-loss", "--data", "short.txt"], "use more text or a smaller"),
    "bench no text": (["bench", "data", "--data", "none.txt"], "there is no none.txt"),
    "bench less than no text": (["bench", "data", "--megabytes", "-1"], "megabytes must not be negative"),
    "bench no run": (["bench", "generate", "--run", "nobody"], "no trained run is called 'nobody'"),
    "bench two models": (["bench", "generate", "--run", "pico-easy", "--preset", "bigram"], "give one of them"),
    "bench one token": (["bench", "generate", "--tokens", "1"], "nothing to measure"),
}


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_changes_nothing(name: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "empty.txt").touch()
    (home / "short.txt").write_text("too short", encoding="utf-8")
    (home / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (home / "folder").mkdir()
    (home / "logs" / "hostile").mkdir()
    (home / "logs" / "hostile" / "log.pkl").write_bytes(pickle.dumps(Hostile()))
    before = without_tokens(home)
    argv, message = BAD[name]
    assert status_of(*argv) == 2
    error = capsys.readouterr().err
    assert is_one_line(error) and message in error, error
    assert without_tokens(home) == before


def test_a_truncated_checkpoint(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = home / "logs/pico-easy/checkpoints/00000004/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    shutil.rmtree(path.parent.with_name("00000002"))  # which would be gone on from
    before = without_tokens(home)
    for argv in (
        [*TRAIN, "--steps", "8"],
        ["train", "--steps", "8", "--run", "tuned", "--init-from", str(path.parent)],
        ["generate", "--run", str(path.parent), "--prompt", "a"],
        ["export", "--run", "pico-easy"],
    ):
        assert status_of(*argv) == 2
        error = capsys.readouterr().err
        assert is_one_line(error) and "model.safetensors is damaged" in error
    assert without_tokens(home) == before


def test_nothing_trained_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status_of("generate", "--prompt", "a", "--run", "pico") == 2
    error = capsys.readouterr().err
    assert is_one_line(error) and "python train.py" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv", [["train", "--nope", "1"], ["train", "--steps", "many"], ["generate", "--tokens"], ["logs"]]
)
def test_what_the_parser_refuses(argv: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(home)
    assert status_of(*argv) == 2
    printed = capsys.readouterr()
    assert printed.err and not printed.out and "Traceback" not in printed.err
    assert snapshot(home) == before


def test_bad_input_in_a_process_of_its_own(home: Path) -> None:
    for argv in (["train.py", "--data", "missing.txt"], ["inference.py", "--run", "nobody", "--prompt", "a"]):
        status, out, error = shell(home, *argv)
        assert status == 2 and is_one_line(error) and not out


def test_divergence_is_one_line_too(home: Path) -> None:
    hot = ["--optimizer", "adamw", "--learning-rate", "1e30", "--warmup-steps", "0", "--grad-clip", "0"]
    status, _, error = shell(home, "train.py", *TINY, "--data", "easy.txt", "--run", "hot", *hot)
    assert status == 2 and "diverged" in error
    assert is_one_line(error), error


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("picogpt.commands.info.run", interrupted)
    assert status_of("info") == 130
    assert capsys.readouterr().err == "\n"


# train


def test_train_goes_on_and_says_when_it_is_done(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*TRAIN) == 0
    assert "has trained its 4 steps already" in capsys.readouterr().out
    assert status_of(*TRAIN, "--steps", "6") == 0
    out = capsys.readouterr().out
    assert "continuing run pico-easy after step 4" in out and "step 6/6" in out and "step 4/6" not in out
    assert status_of(*TRAIN, "--fresh") == 0
    assert "step 2/4" in capsys.readouterr().out


def test_init_from_takes_the_shape_and_the_tokenizer(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "new.txt").write_text("Sea shells and sailors. " * 60, encoding="utf-8")
    assert status_of(*TRAIN, "--run", "base", "--tokenizer", "chars") == 0
    argv = ["train", "--data", "new.txt", "--run", "tuned", "--init-from", "base", *TINY[len(SHAPE) :]]
    assert status_of(*argv) == 2
    assert "is unknown to the tokenizer chars" in capsys.readouterr().err
    argv.append("--allow-unknown")
    assert status_of(*argv) == 0
    assert "is unknown to the tokenizer chars ('Sndi'), and read as ' '" in capsys.readouterr().out
    assert status_of("generate", "--run", "tuned", "--prompt", "sea", "--tokens", "5") == 0
    assert capsys.readouterr().out.startswith("sea")
    assert status_of(*argv, "--n-embd", "32", "--run", "wide") == 2
    assert "another shape" in capsys.readouterr().err


def test_train_and_generate_in_processes_of_their_own(home: Path) -> None:
    status, out, error = shell(home, "train.py", *TINY, "--data", "easy.txt", "--run", "mine")
    assert (status, error) == (0, "") and "step 4/4" in out
    assert (home / "logs/mine/log.png").exists()
    status, out, error = shell(home, "inference.py", "--prompt", "she", "--tokens", "9")
    assert (status, error) == (0, "") and out.startswith("she") and len(out) > 9


# info, logs


@pytest.mark.parametrize("name", PRESETS)
def test_info(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("info", "--preset", name) == 0
    out = capsys.readouterr().out
    model = preset(name).model
    if name == "swift":  # whose vocabulary is that of the tokenizer it will learn
        model = replace(model, vocab_size=DEFAULT_SIZE)
    total, counted = parameter_count(model)
    assert out.startswith(name) and f"{total:,} / {counted:,}" in out and "fits" in out


def test_info_of_another_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("info", "--n-layer", "1", "--context-len", "32") == 0
    total = 88 * 256 + 33 * 256 + 12 * 256 * 256 + 13 * 256 + 2 * 256
    assert f"{total:,} / " in capsys.readouterr().out


def test_info_counts_the_tokens_of_a_tokenizer_that_is_a_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = BpeTokenizer.from_corpus(("She sells sea shells by the sea shore.",), 300)
    Path("tokenizer.json").write_text(tokenizer.tokenizer_json(), encoding="utf-8")
    shape = ["info", "--preset", "swift", "--n-layer", "1"]
    counts = []
    for words in ([], ["--tokenizer", "./tokenizer.json"], ["--vocab-size", "5000"]):
        assert status_of(*shape, *words) == 0
        counts.append(int(re.findall(r"parameters +([\d,]+)", capsys.readouterr().out)[0].replace(",", "")))
    assert [counts[0] - count for count in counts[1:]] == [256 * (4096 - tokenizer.vocab_size), 256 * (4096 - 5000)]


def test_info_of_a_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("pico-easy", "logs/pico-easy"):
        assert status_of("info", "--run", name, "--flops") == 0
        out = capsys.readouterr().out
        total = 88 * 16 + 17 * 16 + 12 * 16 * 16 + 13 * 16 + 2 * 16
        assert out.startswith(name) and f"{total:,} / " in out and "50 tokens in, 100 out" in out
        assert f"{4 * total:,} bytes" in out
    assert status_of("info", "--run", "nobody") == 2
    assert "no trained run is called 'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["pico-easy", "logs/pico-easy", "logs/pico-easy/log.pkl"])
def test_logs_prints_a_table(place: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("logs", place) == 0
    out = capsys.readouterr().out
    assert out.startswith("pico-easy\n")
    assert all(column in out for column in ("step", "train", "val", "tok/s", "last sample"))


def test_logs_compares_several(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # where no name is folded
    for name in ("10", "9"):
        shutil.copytree(home / "logs/pico-easy", home / "logs/sweep" / name)
    assert status_of("logs", "pico-easy", "sweep", "--out", "both.svg") == 0
    out = capsys.readouterr().out
    assert out.index("a pico-easy") < out.index("b 9 ") < out.index("c 10 ") and "0.00 %" in out
    assert out.endswith("wrote both.svg\n")
    picture = (home / "both.svg").read_text(encoding="utf-8")
    assert picture.startswith("<?xml") and "pico-easy" in picture and "validation loss<" in picture


def test_the_picture_of_one_run_is_the_run_s_own(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("logs", "pico-easy", "--out", "one.PNG") == 0
    assert "last sample" in capsys.readouterr().out
    assert (home / "one.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "path"),
    [
        (["pico-easy"], "logs/pico-easy/report.html"),
        (["logs/pico-easy/log.pkl"], "logs/pico-easy/report.html"),
        (["pico-easy", "logs/pico-easy"], "report.html"),
        (["logs"], "logs/report.html"),
        (["pico-easy", "--out", "page.htm"], "page.htm"),
    ],
)
def test_report_is_where_it_is_looked_for(
    argv: list[str], path: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "logs/pico-easy", home / "logs/second")
    assert status_of("report", *argv) == 0
    assert capsys.readouterr().out == f"wrote {Path(path)}: open it in a browser\n"
    page = (home / path).read_text(encoding="utf-8")
    assert "pico-easy" in page and ("Comparison" in page) == (argv in (["logs"], ["pico-easy", "logs/pico-easy"]))


def test_a_log_tells_the_machine(home: Path) -> None:
    about = read_log(home / "logs/pico-easy/log.pkl").config
    assert about["machine"] == hardware.machine() and about["parameters"] > 1000


# A reader that goes away


@pytest.mark.parametrize("lines", [0, 1])
@pytest.mark.parametrize(
    "argv",
    [
        ["logs", "pico-easy"],
        ["logs", "pico-easy", "pico-easy"],
        ["generate", "--prompt", "she\n", "--tokens", "3000"],
        ["info"],
        [*TRAIN, "--run", "piped"],
    ],
)
def test_a_closed_pipe_does_not_trace_back(argv: list[str], lines: int, home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "picogpt", *argv],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None and process.stderr is not None
    for _ in range(lines):
        process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read().decode()
    process.stderr.close()
    process.wait(60)
    assert error == ""
