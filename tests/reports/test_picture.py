"""The picture of a log."""

import struct
from pathlib import Path

import pytest

from picogpt.reports import picture
from picogpt.runs.log import RunLog
from tests.support.logfiles import record, written

NAN = float("nan")


def png_size(path: Path) -> tuple[int, ...]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_the_picture_of_any_log(tmp_path: Path, count: int) -> None:
    folder = tmp_path / "costs $5 and $6"
    folder.mkdir()
    log = RunLog.open(folder / "log.pkl", {"preset": "pico", "parameters": 10**12})
    for step in range(count):
        record(log, step, NAN if step % 10 == 5 else 2.0 + 1 / (1 + step))
    log.save()
    assert picture.main([str(log.path), str(folder / "log.png")]) == 0
    assert png_size(folder / "log.png") == (900, 540)
    assert sorted(entry.name for entry in folder.iterdir()) == ["log.pkl", "log.png"]


def test_plot_tells_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert picture.main([str(tmp_path / "none.pkl"), str(tmp_path / "x.png")]) == 1
    assert "cannot read the log" in capsys.readouterr().err
    written(tmp_path / "log.pkl")
    assert picture.main([str(tmp_path / "log.pkl"), str(tmp_path / "nowhere" / "x.png")]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert picture.main([]) == 2
