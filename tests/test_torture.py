"""The torture in its short form: a few kills and other faults, a few damaged files; and that it finds what is wrong."""

import json
from collections import Counter
from dataclasses import replace
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import pytest

from picogpt.engine.lanes import FORK
from tests.torture import __main__ as torture
from tests.torture import corrupt, faults
from tests.torture.child import Plan
from tests.torture.corrupt import ACCEPTED, CRASHED, REFUSED, Corrupter, Corruption
from tests.torture.load import Load, Sample, judge, load
from tests.torture.process import Ended
from tests.torture.runs import VARIANTS, Tally, Torture, text

pytestmark = [
    pytest.mark.skipif(not FORK, reason="signals and processes as Linux has them"),
    pytest.mark.timeout(600),
]
FAULTS = {fault.kind: fault for fault in faults.FAULTS}


def test_a_short_torture(tmp_path: Path) -> None:
    runs = Torture(tmp_path, 200, Random(1))
    for variant in VARIANTS:
        runs.run(variant, 3, inf)
    runs.short_memory()
    tally = runs.tally
    assert tally.problems == [] and tally.bits_different == 0
    assert tally.bits_compared > 1_000_000 and len(tally.names) == 4
    assert tally.kills.total() >= 2 and tally.faults["loss that is not finite"] >= 4
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
        return replace(found, poison=20) if home.name.endswith("-disturbed") else found

    monkeypatch.setattr(Torture, "_plan", other)
    runs = Torture(tmp_path, 60, Random(0))
    runs.run(VARIANTS[0], 0, inf)
    assert runs.tally.bits_different > 1000
    assert any("newest model wte.weight differs in" in problem for problem in runs.tally.problems)


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


def report(problems: list[str]) -> torture.Report:
    runs = Tally(["plain-adamw"], Counter({"plain-adamw": 30}), Counter({"SIGTERM": 2}), 1000, 0, problems)
    files = Corruption({"log.pkl": Counter({REFUSED: 5})})
    return torture.Report(60.0, runs, files, Load(1000, 9.0, (40.0, 41.0), (2, 2), (14, 14), 5000, 240.0))


def test_the_report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torture, "measure", lambda args: report([]))
    assert torture.main([]) == 0
    out = capsys.readouterr().out
    for words in ("kills survived: 30", "faults: 2", "files damaged and opened: 5", "1,000, different: 0", "240 bytes"):
        assert words in out
    assert torture.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"]["faults"] == {"SIGTERM": 2} and found["files"]["outcomes"] == {"log.pkl": {"refused": 5}}
    monkeypatch.setattr(torture, "measure", lambda args: report(["[plain] it hung"] * 30))
    assert torture.main([]) == 1
    out = capsys.readouterr().out
    assert "problems: 30" in out and out.count("[plain] it hung") == 20


@pytest.mark.parametrize("options", [["--minutes", "0"], ["--load", "-1"], ["--nothing"]])
def test_wrong_options(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert torture.main(options) == 2
    assert capsys.readouterr().err.startswith("torture: ")
