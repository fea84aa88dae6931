"""The picture that is drawn beside a run: what the user reads where it could not be drawn."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from picogpt.monitoring import plotter as plotter_module
from picogpt.monitoring.plotter import Plotter
from tests.reports.test_picture import png_size
from tests.support.logfiles import written


def test_the_advice_for_a_picture_that_failed_shows_why(tmp_path: Path) -> None:
    plotter = Plotter(tmp_path / "log.pkl", tmp_path / "log.png")
    plotter.redraw()
    plotter.close()
    found = re.search(r'run "python (.*)" to see why', plotter.problem or "")
    assert found is not None
    done = subprocess.run([sys.executable, *shlex.split(found[1])], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("cannot read the log")


def test_plotter_draws_in_the_background_and_reports_failure(tmp_path: Path) -> None:
    log_path, png_path = tmp_path / "log.pkl", tmp_path / "log.png"
    plotter = Plotter(log_path, png_path)
    plotter.close()
    assert plotter.problem is None
    plotter.redraw()  # there is no log yet
    plotter.close()
    assert plotter.problem is not None and "could not be drawn (exit status 1)" in plotter.problem
    written(log_path)
    plotter.redraw()
    plotter.close()
    assert plotter.problem is None and png_size(png_path) == (900, 540)


class FakeProcess:
    """Takes the place of Popen: ends when a test sets its status, or never."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.killed = False

    def poll(self) -> int | None:
        return self.status

    def wait(self, timeout: float | None = None) -> int:
        if self.status is None:
            raise subprocess.TimeoutExpired("plot", timeout or 0.0)
        return self.status

    def kill(self) -> None:
        self.killed, self.status = True, -9


def test_plotter_runs_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[FakeProcess] = []

    def start(*_: Path) -> FakeProcess:
        started.append(FakeProcess())
        return started[-1]

    monkeypatch.setattr(plotter_module, "start_plot", start)
    plotter = Plotter(tmp_path / "log.pkl", tmp_path / "log.png")
    for _ in range(3):
        plotter.redraw()
    assert len(started) == 1
    started[0].status = 0
    plotter.close(seconds=0.0)  # the redraw that was skipped is made now, and this one never ends
    assert len(started) == 2 and started[1].killed
    assert plotter.problem is not None and "within 0 seconds" in plotter.problem
