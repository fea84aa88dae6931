"""What several test files share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from picogpt import cli
from picogpt.config import GenerateConfig
from picogpt.data.sources import remote
from picogpt.monitoring.plotter import Plotter
from tests.support.commands import EASY as LINES
from tests.support.commands import TRAIN
from tests.support.hubserver import Hub, serving, wiki_files
from tests.support.running import EASY, config_for, open_run, result_of
from tests.support.streaming import FILES, GROUPS, ROWS


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started to draw the curve."""
    monkeypatch.setattr(Plotter, "redraw", lambda self: None)


@pytest.fixture(scope="module")
def short_samples() -> Iterator[None]:
    """Evaluations write a few characters only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("picogpt.evaluation.samples.SAMPLE_CONFIG", GenerateConfig(tokens=6))
        yield


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "easy.txt"
    path.write_text(EASY, encoding="utf-8")
    return path


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder for thousands of small files: not on a disk, where the system has such a place."""
    place = "/dev/shm"
    with TemporaryDirectory(dir=place if os.access(place, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def undisturbed(text: Path) -> dict[str, Any]:
    """The result of a run on easy text that nothing disturbed."""
    run = open_run(config_for(text), "undisturbed")
    run.train()
    return result_of(run)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
    wiki_files(tmp_path / "hub", files=FILES, groups=GROUPS, rows=ROWS)
    with serving(Hub(tmp_path / "hub")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a finished run, logs/pico-easy."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "easy.txt").write_text(LINES, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Plotter, "redraw", lambda self: None)
        assert cli.main(TRAIN) == 0
    return folder


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None) -> Path:
    """The current folder, a copy of `trained`."""
    folder = tmp_path / "home"
    shutil.copytree(trained, folder)  # with its times, by which a text is known
    monkeypatch.chdir(folder)
    return folder
