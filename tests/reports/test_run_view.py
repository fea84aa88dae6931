"""One run on a terminal: its table, its curve and its last sample, on whatever terminal."""

import math
from pathlib import Path

import pytest

from picogpt.runs.log import RunLog, read_log
from tests.support.logfiles import record, shown


def test_summary_thins_the_table_and_keeps_first_best_and_last(tmp_path: Path) -> None:
    log = RunLog.open(tmp_path / "log.pkl", {})
    for step in range(0, 5000, 10):
        record(log, step, 1.0 if step == 1230 else 3.0 - step / 5000)
    log.save()
    text = shown(read_log(log.path), "utf-8")
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    steps = [int(row[0].replace(",", "")) for row in rows]
    assert 15 <= len(steps) <= 21 and {0, 1230, 4990} <= set(steps) and steps == sorted(steps)
    best = rows[steps.index(1230)]
    assert best[3].strip() == "1.0000*" and best[4].strip() == f"{1 / math.log(2):.3f}"


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_summary_on_any_terminal(tmp_path: Path, encoding: str, count: int) -> None:
    log = RunLog.open(tmp_path / "log.pkl", {})
    for step in range(count):
        record(log, step * 1000, 2.0 if step % 7 else None, sample="[bold]x[/bold] \x1b[31m ← é\ud800\n")
    log.save()
    text = shown(read_log(log.path), encoding, width=80)
    assert "\x1b" not in text and "my [run]" in text
    if count > 1:
        assert r"[bold]x[/bold] \x1b[31m" in text and r"\ud800\n" in text
        assert f"{(count - 1) * 1000:,}" in text.splitlines()[-4]
        curve = [line for line in text.splitlines() if line[9:10] in tuple("┤│|")]
        assert len(curve) == 14 and all(len(line) <= 80 for line in curve)
        drawn = any("\u2800" < character <= "\u28ff" for line in curve for character in line)
        assert drawn == (encoding == "utf-8") and ("o" in "".join(curve)) == (encoding != "utf-8")


def test_the_curve_falls_when_the_loss_falls(tmp_path: Path) -> None:
    log = RunLog.open(tmp_path / "log.pkl", {})
    for step in range(70):
        record(log, step, 4.0 - step / 20)
    log.save()
    curve = [line[10:] for line in shown(read_log(log.path), "ascii").splitlines() if line[9:10] == "|"]
    places = [line.find("o") for line in curve if "o" in line]
    assert places == sorted(places) and places[0] == 0 and curve[0].startswith("o")
