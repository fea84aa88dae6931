"""picogpt sweep: every run is trained once, the same command continues, and the table has signs and spreads."""

import os
import signal
import subprocess
import sys
import time
from math import log as ln
from pathlib import Path
from typing import Any

import pytest

from picogpt.commands import sweep
from picogpt.config import RunConfig
from picogpt.config.training import NO_LIMIT
from picogpt.errors import UserError
from picogpt.runs import checkpoints
from picogpt.sweep import study
from picogpt.sweep.cases import Case, Published, varied
from picogpt.sweep.result import CaseResult, Estimate, difference, is_clear, markdown, notes, table
from picogpt.sweep.study import Study, Trial
from picogpt.sweep.worker import Figures, Outcome
from tests.support.commands import is_one_line
from tests.support.paths import ROOT
from tests.support.running import EASY, status_of

TINY = "--data easy.txt --steps 4 --batch-size 4 --n-layer 1 --n-embd 16 --context-len 16 --eval-interval 2 --lanes 1"
SWEEP = ["sweep", "--vary", "n_head=1,2", "--seeds", "2", "--run", "s", *TINY.split()]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "easy.txt").write_text(EASY, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


class Imitation:
    """Takes the place of the processes: every run ends with the given outcome, or with a good one.

    half: loss of the runs with such an outcome after half of their steps; default: that of all others.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, half: float | None = None, **outcomes: Outcome) -> None:
        self.outcomes, self.half, self.trained = outcomes, half, list[str]()
        monkeypatch.setattr(sweep, "Worker", self._worker)

    def _worker(self, order: Any) -> Any:
        name = order.run_dir.name
        self.trained.append(name)
        loss = 2.0 + 0.1 * order.config.model.n_head + 0.001 * order.config.train.seed
        outcome = self.outcomes.get(name.replace("-", "_"))
        half = loss if outcome is None or self.half is None else self.half
        return ImitatedWorker([(0.5, half), outcome or done(loss)])


class ImitatedWorker:
    def __init__(self, news: list[Any]) -> None:
        self._news = news

    def next(self, stopped: bool) -> Any:
        return self._news.pop(0)

    def answer(self, goes_on: bool) -> None:
        if not goes_on:
            self._news = [Outcome("pruned")]

    def close(self) -> None:
        pass


def done(val_loss: float, tokens: int = 256) -> Outcome:
    """Return the outcome of a run that came to its end."""
    return Outcome(
        "done",
        Figures(
            val_loss, val_loss - 0.1, val_loss / ln(2), val_loss / ln(2), 4000, tokens, 6.0, 100.0, 50.0, "x|y", "he is"
        ),
    )


def test_every_case_is_trained_with_every_seed_and_only_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = [*SWEEP, "--seeds", "1"]
    assert status_of(*one) == 0
    out = capsys.readouterr().out
    assert "run 2 of 2: n_head=2, seed 1337" in out and "one seed alone tells nothing of chance" in out
    runs = sorted(path.parent.name for path in home.glob("logs/s/*/log.pkl"))
    assert runs == ["n_head-1-1337", "n_head-2-1337"]
    page = (home / "logs/s/table.md").read_text(encoding="utf-8")
    assert "| n_head=1 | 1 |" in page and "| first |" in page and "before training:" in page
    before = {path: path.stat().st_mtime_ns for path in home.glob("logs/s/*/checkpoints/*/meta.json")}
    assert status_of(*one) == 0
    again = capsys.readouterr().out
    assert "run 1" not in again and "n_head=2" in again
    assert before == {path: path.stat().st_mtime_ns for path in home.glob("logs/s/*/checkpoints/*/meta.json")}
    assert status_of("logs", "s") == 0 and "n_head-2-1337" in capsys.readouterr().out
    assert (
        status_of("generate", "--run", "s/n_head-1-1337", "--prompt", "she", "--tokens", "2", "--engine", "numpy") == 0
    )


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no such signals")
def test_stopped_and_killed_it_goes_on_to_the_same_bits(home: Path) -> None:
    long = [*SWEEP, "--vary", "n_head=1", "--steps", "300", "--eval-interval", "20", "--seeds", "1", "--fresh"]
    long = [word for word in long if word != "n_head=1,2"]
    long.remove("--vary")
    program = [sys.executable, "-m", "picogpt", *long]
    for number in (signal.SIGINT, signal.SIGKILL):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(program, cwd=home, env=environment, stdout=subprocess.PIPE, text=True)
        newest = home / "logs/s/n_head-1-1337/log.pkl"
        until = time.monotonic() + 120
        while not newest.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(number)
        out, _ = process.communicate(timeout=120)
        if number == signal.SIGINT:
            assert process.returncode == 0 and "continues from here" in out
        program = [word for word in program if word != "--fresh"]
    until = time.monotonic() + 60
    while time.monotonic() < until:  # the run that was left alone ends at its next evaluation
        if status_of(*[word for word in long if word != "--fresh"]) == 0:
            break
        time.sleep(0.2)
    whole = [*(word for word in long if word not in ("s", "--run")), "--run", "whole"]
    assert status_of(*whole) == 0
    places = [checkpoints.newest(home / "logs" / sweep / "n_head-1-1337") for sweep in ("s", "whole")]
    mine, theirs = (checkpoints.load(place) for place in places if place)
    assert mine.step == theirs.step == 300
    assert all(mine.model[key].tobytes() == theirs.model[key].tobytes() for key in theirs.model)


def test_a_run_that_fails_is_told_of_and_the_others_go_on(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imitation = Imitation(monkeypatch, n_head_2_1337=Outcome("failed", reason="training diverged"))
    assert status_of(*SWEEP) == 0
    out = capsys.readouterr().out
    assert "n_head=2, seed 1337, failed: training diverged" in out and "1, 1 failed" in out
    assert len(imitation.trained) == 4
    assert status_of(*SWEEP) == 0 and len(imitation.trained) == 4  # it would fail again
    assert status_of(*SWEEP[:3], "--seeds", "3", *SWEEP[5:]) == 0  # and more seeds are more runs
    assert imitation.trained[4:] == ["n_head-1-1339", "n_head-2-1339"]


def test_one_that_was_stopped_comes_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imitation = Imitation(monkeypatch, n_head_1_1338=Outcome("stopped"))
    assert status_of(*SWEEP) == 0 and "the same command continues from here" in capsys.readouterr().out
    assert imitation.trained == ["n_head-1-1337", "n_head-2-1337", "n_head-1-1338"]
    imitation.outcomes.clear()
    assert status_of(*SWEEP) == 0 and "continues from here" not in capsys.readouterr().out
    assert imitation.trained[3:] == ["n_head-1-1338", "n_head-2-1338"]


@pytest.mark.parametrize("prunes", [True, False])
def test_a_hopeless_run_is_given_up_where_that_is_asked_for(
    prunes: bool, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Imitation(monkeypatch, half=9.0, n_head_2_1338=done(9.0))
    assert status_of(*SWEEP, *(["--prune"] if prunes else [])) == 0
    out = capsys.readouterr().out
    assert ("given up: worse than the median" in out) == prunes and ("pruned" in out) == prunes
    page = (home / "logs/s/table.md").read_text(encoding="utf-8")
    assert ("1 pruned" in page) == prunes


def test_other_options_are_another_sweep(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imitation = Imitation(monkeypatch)
    assert status_of(*SWEEP) == 0
    for changed, said in (
        (["--batch-size", "8"], "batch_size was 4, now 8"),
        (["--vary", "bias=true,false"], "its cases were"),
    ):
        assert status_of(*SWEEP, *changed) == 2
        assert is_one_line(err := capsys.readouterr().err) and said in err
    assert status_of(*SWEEP, "--batch-size", "8", "--fresh") == 0
    assert len(imitation.trained) == 8


def test_fresh_deletes_a_sweep_and_nothing_else(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "logs/s").mkdir(parents=True)
    (home / "logs/s/log.pkl").write_bytes(b"a run")
    assert status_of(*SWEEP, "--fresh") == 2
    assert is_one_line(err := capsys.readouterr().err) and "is no sweep" in err
    assert (home / "logs/s/log.pkl").read_bytes() == b"a run"


def test_fresh_leaves_what_others_put_into_a_sweep(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Imitation(monkeypatch)
    assert status_of(*SWEEP) == 0
    for name in ("n_head-1-1337", "mine"):
        (home / "logs/s" / name).mkdir()
        (home / "logs/s" / name / "log.pkl").write_bytes(b"")
    assert status_of(*SWEEP, "--fresh") == 0
    assert not (home / "logs/s/n_head-1-1337").exists() and (home / "logs/s/mine/log.pkl").exists()


def test_what_the_user_can_put_right_stops_the_sweep_and_comes_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imitation = Imitation(monkeypatch, n_head_2_1337=Outcome("refused", reason="the disk is full"))
    assert status_of(*SWEEP) == 2 and "picogpt: the disk is full" in capsys.readouterr().err
    imitation.outcomes.clear()
    assert status_of(*SWEEP) == 0
    assert imitation.trained == ["n_head-1-1337", *["n_head-2-1337"] * 2, "n_head-1-1338", "n_head-2-1338"]


def test_a_study_that_cannot_be_written_any_more_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(ImitatedWorker):
        def next(self, stopped: bool) -> Any:
            (home / "logs/s/study.db").write_bytes(b"something else" * 1000)
            return super().next(stopped)

    monkeypatch.setattr(sweep, "Worker", lambda order: Broken([done(2.0)]))
    assert status_of(*SWEEP) == 2
    assert is_one_line(err := capsys.readouterr().err) and "cannot be used any more" in err


def test_killed_as_a_run_was_noted_no_case_gets_the_figures_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = varied(RunConfig(), ["n_head=1,2,4"])

    def killed(*_: Any) -> None:
        raise InterruptedError

    study = Study(tmp_path, cases, [7], prune=False, fresh=False)
    monkeypatch.setattr(study._study, "ask", killed)
    with pytest.raises(InterruptedError):
        study.open(cases[0], 7)
    study = Study(tmp_path, cases, [7], prune=False, fresh=False)
    for case in cases:
        study.close(study.open(case, 7), done(float(case.values["n_head"])))
    found = [(trial.case, trial.outcome.figures and trial.outcome.figures.val_loss) for trial in study.trials()]
    assert found == [("n_head=1", 1.0), ("n_head=2", 2.0), ("n_head=4", 4.0)]


def test_a_run_that_diverges_fails_for_good(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = ["--vary", "learning_rate=0.01,1e30", "--seeds", "1", "--optimizer", "adamw", "--grad-clip", "0"]
    assert status_of("sweep", *wild, *TINY.split(), "--run", "s", "--steps", "40") == 0
    out = capsys.readouterr().out
    assert "learning_rate=1e30, seed 1337, failed:" in out and "0, 1 failed" in out


def test_minutes_alone_end_every_run(home: Path) -> None:
    words = ["--vary", "n_head=1,2", "--minutes", "5"]
    for more, steps in (([], NO_LIMIT), (["--steps", "7"], 7)):
        _, cases = sweep._parse_cases([*words, *more])
        assert {case.config.train.steps for case in cases} == {steps}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["sweep"], "say what to compare"),
        (["sweep", "--vary", "heads=1,2"], "is not NAME=VALUE"),
        (["sweep", "--vary", "n_head=1,2", "--seeds", "0"], "--seeds must be at least 1"),
        (["sweep", "--vary", "n_head=1,2", "--data", "wiki"], "streamed"),
        (["sweep", "--vary", "n_head=1,2", "--budget", "hours"], "--budget"),
        (["sweep", "--preset", "exercise", "--vary", "n_head=1,2"], "four cases already"),
        (["sweep", "--preset", "nothing", "--vary", "n_head=1,2"], "no preset"),
        (["sweep", "--vary", "n_head=1,2", "--run", "../x"], "a run is named with"),
    ],
)
def test_wrong_options_are_one_line(argv: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*argv) == 2
    assert is_one_line(err := capsys.readouterr().err) and said in err
    assert not (home / "logs").exists()


def test_a_damaged_study_and_a_missing_library_are_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "logs/s").mkdir(parents=True)
    (home / "logs/s/study.db").write_bytes(b"no database at all" * 100)
    assert status_of(*SWEEP) == 2
    assert is_one_line(err := capsys.readouterr().err) and "cannot be used" in err
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install --editable '\.\[sweep\]'"):
        study._library()


# Statistics


def test_means_spreads_and_differences() -> None:
    first, worse = Estimate.of([1.0, 2.0, 3.0]), Estimate.of([4.0])
    assert first == Estimate(2.0, 1.0, 3) and worse == Estimate(4.0, None, 1) and Estimate.of([]) is None
    assert difference(worse, first) == 100.0 and difference(first, worse) == -50.0 and difference(None, first) is None


def test_what_seeds_may_explain() -> None:
    base = Estimate(2.0, 0.03, 3)
    # The standard error of the difference is 0.03 * sqrt(2 / 3) = 0.0245.
    assert is_clear(Estimate(2.08, 0.03, 3), base) is True and is_clear(Estimate(1.92, 0.03, 3), base) is True
    assert is_clear(Estimate(2.07, 0.03, 3), base) is False
    assert is_clear(Estimate(2.5, None, 1), base) is None


def results_of(losses: dict[str, list[float]], **tokens: int) -> list[CaseResult]:
    found = []
    for name, values in losses.items():
        case = Case(name, {}, RunConfig(), Published(1.0, 2.0, None if name == "base" else 1.14))
        trials = [Trial(name, seed, done(value, tokens=tokens.get(name, 256))) for seed, value in enumerate(values)]
        found.append(CaseResult(case, trials))
    return found


def test_the_table_has_signs_marks_and_what_was_published() -> None:
    found = results_of({"base": [2.0, 2.02], "better": [1.0, 1.02], "same": [2.01, 2.04]}, better=512)
    titles, base, better, same = table(found)
    at = {title: i for i, title in enumerate(titles)}
    assert (base[at["vs first"]], better[at["vs first"]], same[at["vs first"]]) == ("first", "-49.75 %", "+0.75 % ?")
    assert base[at["val"]] == "2.0100 ± 0.0141" and base[at["seeds"]] == "2" and base[at["min"]] == "0.1"
    assert base[-2:] == ["2.0000 (1.0000)", "-"]
    assert better[-1] == "+1.14 %"
    assert notes(found)[1] == (
        "trained on more tokens than the first, which is part of the difference: better (2 times as many)"
    )
    page = markdown("study", found, "a machine")
    assert page.startswith("# study\n") and "+0.75 % ?" in page and "    x|y\n" in page


def test_a_case_without_a_finished_run_has_no_figures() -> None:
    found = [
        *results_of({"base": [2.0]}),
        CaseResult(Case("hopeless", {}, RunConfig()), [Trial("hopeless", 1, Outcome("pruned"))]),
    ]
    row = table(found)[2]
    assert row[:2] == ["hopeless", "0, 1 pruned"] and set(row[2:]) == {"-"}
    assert table(results_of({"base": [2.0]}))[1][6] == "2.0000"  # one seed has no spread
