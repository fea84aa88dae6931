"""The options of the command line: the help that lists them, and the run that they ask for."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from picogpt import cli
from picogpt.config import DataConfig, ModelConfig, MonitoringConfig, RunConfig, TrainConfig
from picogpt.config.presets import PRESETS, preset
from picogpt.config.training import NO_LIMIT
from picogpt.monitoring.observers import Observers
from picogpt.runs.checkpoint import Record
from picogpt.runs.checkpoint_meta import CheckpointMeta
from tests.support.commands import shell
from tests.support.paths import ROOT
from tests.support.running import status_of

# The table of commands

SHARED = {"__init__", "options"}  # the files in commands/ that are no command


def test_every_file_is_a_command_in_the_table() -> None:
    files = {path.stem for path in (ROOT / "picogpt" / "commands").glob("*.py")}
    assert {f"picogpt.commands.{name}" for name in files - SHARED} == set(cli.COMMANDS.values())
    assert all(
        module == f"picogpt.commands.{command}{'_' * (command == 'import')}" for command, module in cli.COMMANDS.items()
    )


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_has_what_its_help_needs(command: str) -> None:
    module = import_module(cli.COMMANDS[command])
    line = module.__doc__
    assert line and "\n" not in line and line.endswith(".")
    assert list(inspect.signature(module.run).parameters) == ["argv"] and module.run.__doc__
    options = [kind for kind in vars(module).values() if is_dataclass(kind) and kind.__module__ == module.__name__]
    assert options and all(kind.__doc__ and not kind.__doc__.startswith(f"{kind.__name__}(") for kind in options)


# Help


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["-h"], ["--help"]):
        assert status_of(*argv) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {command} " in out for command in cli.COMMANDS)


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        (["train"], ["--steps", "--data", "--n-layer", "--fresh", "--init-from", "-e", "-s", "Optimizer steps"]),
        (["generate"], ["--prompt", "--temperature", "--top-k", "--top-p", "--seed", "--run"]),
        (["info"], ["--preset", "--n-embd"]),
        (["bench"], ["train", "time-to-loss", "data", "generate"]),
        (["bench", "train"], ["--seconds", "--json", "--micro-batch"]),
        (["bench", "time-to-loss"], ["--seeds", "--target", "--data", "--steps", "--json", "(default: race)"]),
        (["bench", "data"], ["--megabytes", "--tokenizer", "--batch-size", "--json"]),
        (["bench", "generate"], ["--tokens", "--preset", "--run", "--json"]),
        (["logs"], ["A run in logs/", "--out"]),
        (["report"], ["A run in logs/", "--out"]),
    ],
)
def test_help(argv: list[str], options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*argv, "--help") == 0
    out = capsys.readouterr().out
    assert all(option in out for option in options)


# What train is asked for


class Recorder:
    """In place of Run: notes what it was asked for."""

    asked: tuple[RunConfig, str, bool]
    watch: MonitoringConfig

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        dataset_dir: Path,
        observers: Observers,
        fresh: bool,
        init_from: Path | None,
        watch: MonitoringConfig,
    ) -> None:
        Recorder.asked, Recorder.watch = (config, run_dir.as_posix(), fresh), watch

    def train(self) -> None:
        pass


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Recorder]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("picogpt.commands.train.Run", Recorder)
    return Recorder


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([], "pico"),
        (["-e"], "gpt-neo-efficiency"),
        (["--efficiency"], "gpt-neo-efficiency"),
        (["-s"], "gpt-neo-speed"),
        (["--speed"], "gpt-neo-speed"),
        *[(["--preset", name], name) for name in PRESETS],
        (["--preset=lecture"], "lecture"),
    ],
)
def test_presets(argv: list[str], name: str, recorder: type[Recorder]) -> None:
    assert status_of("train", *argv) == 0
    config = preset(name)
    assert recorder.asked == (config, f"logs/{name}-{config.data.data}", False)


def test_options_change_the_preset(recorder: type[Recorder]) -> None:
    argv = ["-s", "--steps", "7", "--n-layer", "2", "--layer-pattern", "local", "global", "--data", "sample"]
    assert status_of("train", *argv, "--run", "Mine.2_b-c", "--fresh") == 0
    config, folder, fresh = recorder.asked
    assert (config.train.steps, config.model.n_layer, config.model.layer_pattern) == (7, 2, ("local", "global"))
    assert (config.train.batch_size, config.model.context_len) == (16, 16)  # the preset's
    assert (folder, fresh) == ("logs/Mine.2_b-c", True)


def test_an_empty_run_name_is_the_default(recorder: type[Recorder]) -> None:
    assert status_of("train", "--run", "", "--data", "books/War.txt") == 0
    assert recorder.asked[1] == "logs/swift-War"


@pytest.mark.parametrize(
    "argv",
    [
        ("train", "--steps", "abc"),
        ("train", "--bogus", "1"),
        ("train", "--preset"),
        ("train", "--layer-pattern", "sideways"),
        ("generate", "--tokens", "1.5"),
        ("info", "--n-layr", "4"),
        ("bench", "train", "--seconds", "long"),
        ("bench", "time-to-loss", "--seeds", "one"),
        ("bench", "data", "--terabytes", "1"),
        ("bench", "generate", "--n-layer", "1"),
        ("logs",),
        ("report",),
    ],
)
def test_a_wrong_option_is_one_line(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*argv) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("picogpt: ") and line.endswith("--help)")


@pytest.mark.parametrize(
    ("argv", "dashboard", "steps"),
    [
        ([], "", 2000),
        (["--dashboard"], "8050", 2000),
        (["--dashboard", "9000"], "9000", 2000),
        (["--dashboard=9000"], "9000", 2000),
        (["--dashboard", "--steps", "5"], "8050", 5),
        (["--dashboard", "-s", "--steps", "5"], "8050", 5),
        (["--steps", "5", "--dashboard"], "8050", 5),
        (["--dashboard", "0.0.0.0:9000", "--steps", "5"], "0.0.0.0:9000", 5),
        (["--dashboard=[::1]:0"], "[::1]:0", 2000),
        (["--dashboard", "--dashboard", "7"], "7", 2000),
        (["--run", "dashboard", "--data", "dashboard"], "", 4000),
    ],
)
def test_dashboard_with_and_without_a_port(
    argv: list[str], dashboard: str, steps: int, recorder: type[Recorder]
) -> None:
    assert status_of("train", *argv) == 0
    assert (recorder.watch.dashboard, recorder.asked[0].train.steps) == (dashboard, steps)


# Fine-tuning


@pytest.fixture
def tuning(recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """What --init-from asks for: `tuning(origin, *options)`."""

    def asked(origin: RunConfig, *options: str) -> RunConfig:
        is_foreign = origin.data.tokenizer == "bpe"
        record = Record(1, {}, CheckpointMeta(origin, {}, "" if is_foreign else "some text"))
        monkeypatch.setattr("picogpt.commands.train.use_checkpoint", lambda name, *_: Path(name))
        monkeypatch.setattr("picogpt.commands.train.read_record", lambda place: record)
        assert status_of("train", "--init-from", "origin", "--run", "tuned", *options) == 0
        return recorder.asked[0]

    return asked


def of_another_program(**shape: Any) -> RunConfig:
    return RunConfig(replace(preset("gpt-neo-125m").model, **shape), DataConfig(tokenizer="bpe"))


def test_a_model_of_characters_is_trained_on_as_from_scratch(tuning: Callable[..., RunConfig]) -> None:
    origin = RunConfig(ModelConfig(n_layer=2), DataConfig(tokenizer="chars"), TrainConfig(steps=7))
    assert tuning(origin) == RunConfig(origin.model, DataConfig(tokenizer="chars"), TrainConfig())
    assert tuning(origin, "-s").train == preset("gpt-neo-speed").train


def test_a_model_that_knows_a_language_is_tuned_gently(
    tuning: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = of_another_program()
    config = tuning(origin, "--data", "sample", "--preset", "gpt-neo-125m")
    assert config.model == origin.model and config.data == DataConfig("sample", "bpe")
    train = config.train
    assert (train.optimizer, train.learning_rate, train.beta2, train.weight_decay) == ("adamw", 5e-5, 0.999, 0.01)
    assert (train.steps, train.batch_size, train.eval_interval, train.depth_warmup) == (200, 8, 20, 0.0)
    assert config.context == 256
    assert tuning(of_another_program(context_len=200)).context == 200
    few = tuning(origin, "--train", "lora")
    assert (few.train.learning_rate, few.model) == (5e-4, replace(origin.model, lora_rank=8))
    assert tuning(origin, "--train", "biases").train.learning_rate == 5e-4
    assert tuning(origin, "--train", "last-12").train.learning_rate == 5e-5  # more blocks than pico has


def test_every_setting_of_tuning_can_be_another(
    tuning: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = of_another_program()
    options = ["--learning-rate", "0.001", "--context", "1000", "--optimizer", "muon", "--steps", "3"]
    config = tuning(origin, *options, "--train", "lora", "--lora-rank", "4")
    train = config.train
    assert (train.learning_rate, train.context, train.optimizer, train.steps) == (0.001, 1000, "muon", 3)
    assert config.model.lora_rank == 4
    again = tuning(config, *options, "--train", "lora", "--lora-rank", "4")  # of a run with low-rank matrices
    assert again == config
    assert tuning(config).model == origin.model


def test_help_shows_the_settings_of_tuning(
    tuning: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuning(of_another_program())
    assert status_of("train", "--init-from", "origin", "--run", "tuned", "--help") == 0
    assert "5e-05" in capsys.readouterr().out


def test_what_a_command_does_not_need_is_not_loaded() -> None:
    """The lists of commands and options come at once, and text is generated where onnx is not to be had."""
    for program, unwanted in (
        ("from picogpt import cli; cli.main(['--help'])", {"tyro", "rich", "onnx", "onnxruntime", "pyarrow"}),
        (
            "import picogpt.commands.generate",
            {"onnx", "matplotlib", "pyarrow", "httpx2", "huggingface_hub", "tokenizers", "optuna"},
        ),
        (
            "import picogpt.commands.train",
            {"onnx", "onnxruntime", "matplotlib", "pyarrow", "httpx2", "huggingface_hub", "optuna"},
        ),
    ):
        code = f"import sys; {program}; print(*({unwanted} & sys.modules.keys()), file=sys.stderr)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "", program


def test_numpy_generates_where_onnx_cannot_be_loaded(home: Path, tmp_path: Path) -> None:
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "onnx.py").write_text("raise ImportError('no onnx here')", encoding="utf-8")
    words = ["inference.py", "--prompt", "she", "--tokens", "3", "--temperature", "0"]
    for engine, notice in (("numpy", ""), ("onnx", "no onnx here; generating with NumPy")):
        status, out, error = shell(home, *words, "--engine", engine, PYTHONPATH=str(tmp_path / "stub"))
        assert status == 0 and out.startswith("she") and (notice in error if notice else error == "")


# Presets and steps that nobody named


@pytest.mark.parametrize(
    ("argv", "name", "tokenizer"),
    [
        (("--data", "wiki"), "pico", "picogpt"),
        (("--data", "wiki:en"), "pico", "picogpt"),
        (("--data", "wiki:ja"), "swift", "bpe"),
        (("--data", "hf:owner/name"), "swift", "bpe"),
        (("--data", "small.txt"), "swift", "chars"),
        (("--data", "large.txt"), "swift", "bpe"),
        (("--data", "large.txt", "small.txt"), "swift", "bpe"),
        (("--data", "small.txt", "--tokenizer", "bpe:400"), "swift", "bpe:400"),
        (("--data", "large.txt", "--tokenizer", "picogpt"), "pico", "picogpt"),
        (("--data", "large.txt", "--preset", "pico"), "pico", "picogpt"),
        (("--data", "sample", "--preset", "swift"), "swift", "bpe"),
    ],
)
def test_the_preset_follows_the_text(
    argv: tuple[str, ...],
    name: str,
    tokenizer: str,
    recorder: type[Recorder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.txt").write_text("a few words\n" * 20, encoding="utf-8")
    (tmp_path / "large.txt").write_text("a few words\n" * 20_000, encoding="utf-8")
    assert status_of("train", *argv) == 0
    config, folder, _ = recorder.asked
    expected = replace(preset(name), data=config.data)
    assert config == expected and config.data.tokenizer == tokenizer and folder.startswith(f"logs/{name}-")


def test_a_run_from_before_there_was_another_preset_continues(
    recorder: type[Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("a few words\n" * 20_000, encoding="utf-8")
    before = Record(1, {}, CheckpointMeta(RunConfig(data=DataConfig("mine.txt", "bytes")), {}, "some text"))
    newest = lambda place: place if place.name == "pico-mine" else None  # noqa: E731
    monkeypatch.setattr("picogpt.commands.train.checkpoints.newest_recorded", newest)
    monkeypatch.setattr("picogpt.commands.train.read_record", lambda place: before)
    assert status_of("train", "--data", "mine.txt", "--tokenizer", "bytes") == 0
    assert recorder.asked == (before.meta.config, "logs/pico-mine", False)
    assert status_of("train", "--data", "mine.txt", "--fresh") == 0
    assert recorder.asked[1] == "logs/swift-mine"


def test_one_line_says_what_the_other_preset_would_bring(
    recorder: type[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("train", "--data", "wiki") == 0
    told = capsys.readouterr().out
    assert told.startswith("note: pico reads") and told.count("\n") == 1 and "--preset swift" in told
    for argv in (["--preset", "pico"], ["--tokenizer", "picogpt"], ["-s"], ["--data", "hf:owner/name"]):
        assert status_of("train", *argv) == 0
        assert capsys.readouterr().out == ""


def test_minutes_without_steps_end_a_run_by_themselves(recorder: type[Recorder]) -> None:
    for argv, steps in (
        (["--minutes", "5"], NO_LIMIT),
        (["--minutes", "5", "--steps", "70"], 70),
        ([], preset("pico").train.steps),
    ):
        assert status_of("train", *argv) == 0
        assert recorder.asked[0].train.steps == steps
