"""What several test files share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from commands import EASY as LINES
from commands import TRAIN
from hubserver import Hub, serving, wiki_files
from running import EASY, config_for, open_run, result_of
from streaming import FILES, GROUPS, ROWS

from picogpt import cli
from picogpt.config import GenerateConfig, ModelConfig
from picogpt.data import remote
from picogpt.model.parameters import Arrays, parameter_shapes
from picogpt.rng import generator
from picogpt.training.plot import Plotter


def lively_arrays(config: ModelConfig, dtype: type = np.float32) -> Arrays:
    """Parameters so large that each of them shows in the logits; the first values of a run are all but zero."""
    arrays = {}
    for name, shape in parameter_shapes(config).items():
        noise = generator(0, name).standard_normal(shape) * 0.3
        arrays[name] = (noise + (".ln_" in f".{name}" and name.endswith(".weight"))).astype(dtype)
    return arrays


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below the folder, and what is in it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def kept(folder: Path) -> dict[str, bytes | None]:
    """Everything in the folder but tokens, which are a cache that grows."""
    return {path: content for path, content in snapshot(folder).items() if not path.startswith("dataset")}


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started to draw the curve."""
    monkeypatch.setattr(Plotter, "redraw", lambda self: None)


@pytest.fixture(scope="module")
def short_samples() -> Iterator[None]:
    """Evaluations write a few characters only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("picogpt.training.sample.SAMPLE", GenerateConfig(tokens=6))
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
