"""The table of `benchmarks.compare`, from canned measurements, and what its options refuse."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import compare
from benchmarks.compare import Compare, contestants, left_out, reason
from benchmarks.table import COLUMNS, PEERS, Results, Row, as_markdown, as_rich, rows


def pico(speed: float, **more: Any) -> dict[str, Any]:
    facts = {"peak_fraction": 0.8, "sgemm_gflops": 205.0, "mflop_per_token": 41.0, "peak_rss_mb": 400.0}
    return {
        "tokens_per_second": speed,
        "matmul_bound_tokens_per_second": 5000.0,
        "matmul_fraction": 0.9,
        **facts,
        **more,
    }


def peer(speed: float) -> dict[str, Any]:
    return {"tokens_per_second": speed, "peak_rss_mb": 700.0}


def timed(seconds: float, reached: bool = True) -> dict[str, Any]:
    loss = 1.8 if reached else 1.9
    return {"seconds": [seconds], "val_loss": [loss], "reached": [reached], "target": 1.8857, "peak_rss_mb": 150.0}


def measured() -> Results:
    """Return two rounds, with the machine at half its speed in one of them."""
    results = {name: [peer(1000.0), peer(500.0)] for name in PEERS}
    results |= {"eager 16": [peer(2000.0), peer(1000.0)], "pico": [pico(4000.0), pico(2400.0)]}
    results |= {name: [pico(9000.0), pico(9000.0)] for name in ("exercise-base", "race", "gpt2")}
    results["rolling"] = [pico(3000.0, peak_rss_mb=440.0), pico(3600.0, peak_rss_mb=440.0)]
    results |= {"pico muon": [pico(3000.0), pico(1500.0)], "rolling muon": [pico(3300.0), pico(1800.0)]}
    results["low-memory"] = [pico(2000.0, peak_rss_mb=190.0), pico(1200.0, peak_rss_mb=190.0)]
    results["time"] = [timed(20.0), timed(10.0)]
    results["time eager"] = [{"seconds": s, "val_loss": 1.88, "peak_rss_mb": 300.0} for s in (100.0, 70.0)]
    return results


def line(table: list[Row], start: str) -> Row:
    [found] = [row for row in table if row.what.startswith(start) or row.beside.startswith(start)]
    return found


def test_the_table() -> None:
    table = rows(measured(), {"time compile": "failed: no compiler"})
    best = table[0]
    assert best == Row(
        "pico, AdamW, batch 16",
        "3,200 tokens/s",
        "best of PyTorch, eager, batch 16: 1,500 tokens/s",
        "2.20",  # the median of 2.0 and 2.4
        "400 / 700",
    )
    assert line(table, "PyTorch compile, batch 4").ratio == "4.40"
    assert line(table, "sgemm").beside == "sgemm, 205 GFLOP/s: 5,000 tokens/s" and line(table, "sgemm").ratio == "0.80"
    assert line(table, "exercise-base") == Row(
        "exercise-base", "9,000 tokens/s", "its matrix products alone: 5,000 tokens/s", "0.90", "400"
    )
    assert line(table, "the same, both with Muon").ratio == "1.15"
    assert line(table, "pico rolling").ratio == "1.12" and line(table, "pico rolling").peak_mb == "440 / 400"
    assert line(table, "pico --low-memory").peak_mb == "190 / 400"
    assert line(table, "gpt2") == Row("gpt2 --low-memory", "9,000 tokens/s", peak_mb="400")
    eager, compiled = (row for row in table if row.what.startswith("time to loss"))
    assert eager == Row(
        "time to loss 1.8857, race",
        "15.0 s, worst loss 1.8000",
        "nanoGPT's recipe, eager: 85.0 s, loss 1.8800",
        "6.00",
        "150 / 300",
    )
    assert (compiled.beside, compiled.ratio) == ("nanoGPT's recipe, compile: failed: no compiler", "")


def test_a_target_that_one_round_missed_has_no_ratio() -> None:
    results = measured() | {"time": [timed(20.0), timed(30.0, reached=False)]}
    row = line(rows(results, {"time compile": "-"}), "nanoGPT's recipe, eager")
    assert row.picogpt == "NOT REACHED in every round: 25.0 s, worst loss 1.9000" and row.ratio == ""


def test_what_failed_is_in_the_table() -> None:
    results = measured()
    del results["compile 8"], results["pico"], results["low-memory"]
    absent = {"compile 8": "failed: no compiler", "pico": "failed: out of memory", "low-memory": "failed: too old"}
    table = rows(results, {**absent, "time compile": "-"})
    assert line(table, "PyTorch compile, batch 8").beside == "PyTorch compile, batch 8: failed: no compiler"
    assert table[0].picogpt == "failed: out of memory" and table[0].ratio == ""
    assert line(table, "pico --low-memory").picogpt == "failed: too old"


def test_without_peers_and_text_the_rows_say_so() -> None:
    args = Compare(quick=True)
    absent = left_out(args)
    results = {name: [pico(1000.0)] for name in contestants(args, 1) if name not in absent}
    assert set(results) == {"pico", "exercise-base", "race", "rolling", "pico muon", "rolling muon", "low-memory"}
    table = rows(results, absent)
    assert "needs --peer-python" in line(table, "PyTorch").beside
    assert "needs --data" in line(table, "time to loss").picogpt
    assert line(table, "gpt2").picogpt == "left out by --quick"


def test_both_forms_hold_every_row() -> None:
    table = rows(measured(), {"time compile": "failed: a | b"})
    text = as_markdown(table, "A machine")
    lines = text.splitlines()
    assert lines[0] == "A machine:" and lines[2] == f"| {' | '.join(COLUMNS)} |"
    assert len(lines) == 4 + len(table) and "a \\| b" in text
    console = Console(file=io.StringIO(), width=200)
    console.print(as_rich(table, "A machine"))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert all(row.beside in shown and row.picogpt in shown for row in table)


def test_a_round_measures_picogpt_first() -> None:
    commands = contestants(Compare(peer_python=sys.executable, data=__file__), seed=2)
    names = list(commands)
    assert names[0] == "pico" and names[1:9] == list(PEERS) and names.index("time") < names.index("time eager")
    assert left_out(Compare(peer_python=sys.executable, data=__file__)) == {}
    command = commands["compile 32"]
    assert command[:3] == [sys.executable, str(compare.PEER), "train"]
    assert command[-5:] == ["--compile", "--batch", "32", "--seconds", "30.0"]
    assert commands["time"][-2:] == ["--seeds", "2"] and commands["time eager"][-2:] == ["--seed", "2"]


def test_a_failure_is_noted_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = f"import json; print(json.dumps({pico(1000.0)!r}))"
    bad = "import sys; sys.exit('ValueError: broken')"
    programs = {"pico": good, "exercise-base": bad, "race": good}
    commands = {name: [sys.executable, "-c", program] for name, program in programs.items()}
    monkeypatch.setattr(compare, "contestants", lambda args, seed: commands)
    results, absent = compare.measure(Compare(rounds=2))
    assert {name: len(answers) for name, answers in results.items()} == {"pico": 2, "race": 2}
    assert absent["exercise-base"] == "failed: ValueError: broken"
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "round 1/2: pico ... 1,000 tokens/s, 400.0 MB" and len(said) == 5  # the bad one was tried once


@pytest.mark.parametrize(("failed", "status"), [("pico", 1), ("race", 1), ("compile 4", 0), ("time eager", 0)])
def test_only_failures_of_its_own_are_its_exit_status(
    failed: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = dict.fromkeys(contestants(Compare(), 1), "left out") | {failed: "failed: broken"}
    monkeypatch.setattr(compare, "measure", lambda args: ({}, absent))
    assert compare.main(["--json"]) == status


def test_the_line_that_says_most() -> None:
    trace = "Traceback:\n  File\ntorch.exc.InductorError: InvalidCxxCompiler: none\n\nSet VERBOSE=1 for more\n"
    assert reason(trace) == "torch.exc.InductorError: InvalidCxxCompiler: none"
    assert reason("picogpt: no such option\n") == "picogpt: no such option"
    assert reason("") == "it printed nothing"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--peer-python", "/nowhere/python"], "cannot be started"),
        (["--data", "/nowhere.txt"], "there is no file /nowhere.txt"),
        (["--rounds", "-1"], "must not be negative"),
        (["--swift"], "(see python -m benchmarks.compare --help)"),
    ],
)
def test_wrong_options_are_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("compare: ") and printed.err.count("\n") == 1 and message in printed.err


def test_the_peer_is_where_compare_looks() -> None:
    assert compare.PEER.is_file() and Path(compare.PEER).name == "torch_gpt.py"
