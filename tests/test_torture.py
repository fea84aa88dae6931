"""`tests.torture` runs in a short form; and it plans by the pace, finds what is wrong, and says what it did."""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from picogpt.engine.lanes import FORK
from picogpt.errors import UserError
from tests.torture import __main__ as torture
from tests.torture import corrupt, faults
from tests.torture.child import Plan
from tests.torture.corrupt import ACCEPTED, CRASHED, REFUSED, Corrupter, Corruption
from tests.torture.load import Load, Sample, judge, load
from tests.torture.pace import FAULTS_SHARE, FEWEST_STEPS, Pace, Sizes, measure_pace, sizes
from tests.torture.process import Ended
from tests.torture.report import Report
from tests.torture.runs import NOT_FINITE, SHORT_MEMORY, Torture
from tests.torture.tally import Part, Tally
from tests.torture.variants import VARIANTS, text

pytestmark = [
    pytest.mark.skipif(not FORK, reason="signals and processes as Linux has them"),
    pytest.mark.timeout(600),
]
FAULTS = {fault.kind: fault for fault in faults.FAULTS}
FAST = Pace(first_start=0.4, start=0.3, step=0.003, save=0.1)
SLOW = Pace(first_start=8.0, start=0.9, step=0.03, save=4.0)


def test_a_short_torture(tmp_path: Path) -> None:
    runs = Torture(tmp_path, 200, 12, Random(1))
    for variant in VARIANTS:
        runs.run(variant, lambda done: 3 - done)
    runs.short_memory()
    tally = runs.tally
    assert tally.problems == [] and tally.bits_different == 0
    assert tally.bits_compared > 1_000_000 and len(tally.names) == 4
    assert tally.kills.total() >= 2 and tally.faults["loss that is not finite"] >= 4
    assert 4 <= tally.disturbed <= 12 == sum(tally.wanted[kind] for kind in FAULTS)
    assert tally.wanted[NOT_FINITE] >= 4 and tally.wanted[SHORT_MEMORY] == tally.faults[SHORT_MEMORY] == 1
    assert set(tally.seconds) >= {Part.UNDISTURBED, Part.FAULTS, Part.LAST_STARTS, Part.COMPARISONS}
    corrupter = Corrupter(runs.finished(), Random(1))
    for _ in range(20):
        corrupter.round()
    files = corrupter.result
    assert files.problems == [] and files.of(ACCEPTED) == files.of(CRASHED) == 0
    assert files.tried == 20 * len(files.outcomes) and files.of(REFUSED) > 100


def test_a_difference_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disturbed run leaves out a step that the other trained."""
    plan = Torture._plan

    def other(self: Torture, home: Path, *args: Any, **options: Any) -> Plan:
        found = plan(self, home, *args, **options)
        return replace(found, poison=20) if "-disturbed" in home.name else found

    monkeypatch.setattr(Torture, "_plan", other)
    runs = Torture(tmp_path, 60, 0, Random(0))
    runs.run(VARIANTS[0], lambda done: 0)
    assert runs.tally.bits_different > 1000
    assert any("newest model wte.weight differs in" in problem for problem in runs.tally.problems)


def test_the_pace_is_measured(tmp_path: Path) -> None:
    pace = measure_pace(tmp_path, text(Random(0)))
    assert min(pace.first_start, pace.start, pace.step, pace.save) > 0 and pace.step < pace.start


def test_no_pace_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the run that measures the pace ended with status 2"):
        measure_pace(tmp_path, "")


@pytest.mark.parametrize("minutes", [3, 9, 60])
@pytest.mark.parametrize("pace", [FAST, SLOW])
def test_faults_have_two_thirds_of_the_time(pace: Pace, minutes: float) -> None:
    chosen = sizes(pace, minutes)
    assert chosen.without_faults(pace) <= (1 - FAULTS_SHARE) * 60 * minutes
    assert chosen.steps >= FEWEST_STEPS and chosen.faults * pace.fault < 60 * minutes


def test_a_slow_disk_means_shorter_runs() -> None:
    fast, slow = (sizes(pace, 9) for pace in (FAST, SLOW))
    assert slow.steps < fast.steps / 5 and slow.variants == fast.variants == len(VARIANTS)
    assert len(FAULTS) <= slow.faults < fast.faults
    assert sizes(SLOW, 6).variants < len(VARIANTS)  # sooner fewer variants than not every kind of fault
    assert sizes(SLOW, 6).faults >= len(FAULTS)


def test_too_short_a_time_wants_nothing() -> None:
    assert sizes(SLOW, 0.02) == Sizes(1, FEWEST_STEPS, 0, 0.05 * 1.2)


def test_every_kind_is_wanted(tmp_path: Path) -> None:
    for seed in range(5):
        once = Torture(tmp_path, 100, len(FAULTS), Random(seed)).tally
        assert once.wanted == Counter(FAULTS.keys()) and sorted(once.missing) == sorted(FAULTS)
        assert Torture(tmp_path, 100, 60, Random(seed)).tally.wanted.total() == 60
    assert not Torture(tmp_path, 100, 0, Random(0)).tally.missing


def test_faults_fill_the_time(tmp_path: Path) -> None:
    runs = Torture(tmp_path, 100, 0, Random(0))
    enough, over = torture.until(time.monotonic() + 10_000, runs, SLOW), torture.until(0.0, runs, SLOW)
    by_plan = enough(0)
    assert 0.9 * 10_000 / SLOW.fault < by_plan < 10_000 / SLOW.fault
    assert over(0) == 1 and over(1) == 0
    runs.tally.disturbed, runs.tally.seconds = 4, {Part.FAULTS: 5.0, Part.NO_EFFECT: 1.0}
    assert enough(1) > 3 * by_plan  # a fault took 1.5 seconds


@pytest.mark.parametrize(
    ("kind", "took", "ended", "problem"),
    [
        ("SIGTERM", True, Ended(0, "stopped and saved after step 3", ""), ""),
        ("SIGTERM", True, Ended(2, "stopped and saved after step 3", "picogpt: no"), "status 2, not 0: picogpt: no"),
        ("SIGTERM", False, Ended(-15, "", ""), "status -15, without the fault: "),
        ("SIGTERM", False, Ended(0, "done: best validation loss 1.0", ""), ""),
        ("a lane killed", True, Ended(2, "", "picogpt: oh"), "it did not say 'was ended from outside': picogpt: oh"),
        ("disk full for a while", False, Ended(2, "", "picogpt: full"), ""),
        ("SIGTERM", True, Ended(0, "", "Traceback ...\nOSError"), "2 lines of errors, the last is 'OSError'"),
    ],
)
def test_what_a_process_may_not_do(kind: str, took: bool, ended: Ended, problem: str) -> None:
    assert faults.wrong(FAULTS[kind], took, ended) == problem


@pytest.mark.parametrize("damage", set(corrupt.DAMAGES))
def test_damage_is_done(damage: Any) -> None:
    before = bytes(range(1, 256)) * 4
    for seed in range(50):
        data = bytearray(before)
        damage(data, Random(seed))
        if data != before:
            return
    pytest.fail("it changes nothing")


def test_a_short_load(tmp_path: Path) -> None:
    result = load(tmp_path, text(Random(0)), 300)
    assert all("give it more steps" in problem for problem in result.problems)
    assert (tmp_path / "logs" / "load" / "log.pkl").is_file()


def test_a_leak_is_found() -> None:
    flat = [Sample(40.0, 2 + look % 2, 14, 1000 + 240 * look, look) for look in range(40)]
    sound, leaky = Load(10), Load(10)
    judge(sound, flat, 10_600)
    assert sound.problems == [] and sound.log_bytes == 10_600 and round(sound.log_bytes_an_evaluation) == 240
    judge(leaky, [replace(s, memory_mb=40 + s.evaluations, files=14 + s.evaluations) for s in flat], 10_600)
    assert [problem.split()[1] for problem in leaky.problems] == ["memory", "open"]


def report(problems: list[str], happened: int = 2) -> Report:
    runs = Tally(["plain-adamw"], bits_compared=1000, problems=problems)
    runs.kills["plain-adamw"], runs.faults["SIGTERM"] = 30, happened
    runs.wanted, runs.no_effect = Counter({"SIGTERM": 5, NOT_FINITE: 0}), Counter({"SIGTERM": 7})
    runs.seconds = {Part.FAULTS: 42.0, Part.UNDISTURBED: 12.0}
    files = Corruption({"log.pkl": Counter({REFUSED: 5})})
    loaded = Load(1000, 9.0, (40.0, 41.0), (2, 2), (14, 14), 5000, 240.0)
    return Report(60.0, FAST, sizes(FAST, 1), runs, files, loaded)


def printed(found: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """The exit status and what is printed."""
    monkeypatch.setattr(torture, "torture", lambda args: found)
    return torture.main([]), capsys.readouterr().out


def test_the_report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, out = printed(report([]), capsys, monkeypatch)
    assert status == 0
    for words in ("kills survived: 30", "faults: 2", "files damaged and opened: 5", "1,000, different: 0", "240 bytes"):
        assert words in out
    assert torture.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"]["faults"] == {"SIGTERM": 2} and found["files"]["outcomes"] == {"log.pkl": {"refused": 5}}
    assert found["pace"]["step"] == 0.003 and found["runs"]["seconds"]["faults"] == 42 and found["missing"] == []
    status, out = printed(report(["[plain] it hung"] * 30, happened=0), capsys, monkeypatch)
    assert status == 1
    assert "problems: 30" in out and out.count("[plain] it hung") == 20


def test_the_report_says_what_was_wanted_and_what_happened(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out = printed(report([]), capsys, monkeypatch)
    assert status == 0 and "every kind of fault that was wanted happened" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["kind", "wanted", "happened", "no", "effect"] in rows and ["SIGTERM", "5", "2", "7"] in rows
    assert ["undisturbed", "runs", "12.0", "20.0%"] in rows and ["the", "rest", "6.0", "10.0%"] in rows
    assert "faults had 70% of the time\n" in out
    status, out = printed(report([], happened=0), capsys, monkeypatch)
    assert status == 3 and "wanted, but never happened: SIGTERM\n" in out
    late = report([])
    late.runs.seconds[Part.FAULTS] = 30.0
    assert "faults had 50% of the time, less than two thirds" in printed(late, capsys, monkeypatch)[1]


@pytest.mark.parametrize("options", [["--minutes", "0"], ["--load", "-1"], ["--nothing"]])
def test_wrong_options(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert torture.main(options) == 2
    assert capsys.readouterr().err.startswith("torture: ")
