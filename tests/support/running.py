"""How tests run what they test: a small run on easy text, and a command, both in this process."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from picogpt import cli
from picogpt.config import DataConfig, ModelConfig, MonitoringConfig, RunConfig, TrainConfig
from picogpt.monitoring.observers import Observers
from picogpt.runs import checkpoints
from picogpt.training.run import Run
from picogpt.training.trainer import Trainer

MODEL = ModelConfig(context_len=16, n_layer=2, n_head=2, n_embd=16)
EASY = "she sells sea shells by the sea shore. " * 60
CLOCKED = ("tokens_per_second", "memory_mb", "seconds")


def config_for(text: Path, model: ModelConfig = MODEL, tokenizer: Any = "picogpt", **train: Any) -> RunConfig:
    settings = {"steps": 12, "batch_size": 4, "lanes": 2, "eval_interval": 4, "warmup_steps": 2, **train}
    return RunConfig(model, DataConfig(str(text), tokenizer), TrainConfig(**settings))


def open_run(config: RunConfig, name: str = "run", **options: Any) -> Run:
    folder = Path(config.data.data).parent
    run_dir, monitoring = folder / "logs" / name, options.pop("monitoring", MonitoringConfig())
    observers = options.pop("observers", None) or Observers(monitoring, run_dir)
    return Run(config, run_dir, folder / "dataset", observers, monitoring=monitoring, **options)


def log_of(run: Run) -> dict[str, Any]:
    with (run.dir / "log.pkl").open("rb") as file:
        return pickle.load(file)


def result_of(run: Run) -> dict[str, Any]:
    """Return what must not depend on how often a run was stopped: weights, optimizer, log without clock and memory."""
    folder = checkpoints.newest(run.dir)
    assert folder is not None
    last = checkpoints.load(folder)
    log = log_of(run)
    evaluations = [{key: value for key, value in entry.items() if key not in CLOCKED} for entry in log["evaluations"]]
    arrays = {
        f"{part}.{name}": array.tobytes()
        for part in ("model", "optimizer")
        for name, array in getattr(last, part).items()
    }
    totals = {key: log[key] for key in ("losses", "best_loss", "iter_num")}
    return {"step": last.step, "val": last.meta.val_loss, **arrays, **totals, "evaluations": evaluations}


def before_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Do something when the optimizer has done `step` steps, once."""
    original, waiting = Trainer.step, [action]

    def wrapped(self: Trainer, x: Any, y: Any, done: int, *how: Any) -> float:
        if done == step and waiting:
            waiting.pop()()
        return original(self, x, y, done, *how)

    monkeypatch.setattr(Trainer, "step", wrapped)


def status_of(*argv: str) -> int:
    """Run the command in this process and return its exit status."""
    try:
        return cli.main(argv)
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Stand for a terminal at which these lines are typed, and then Ctrl-D."""
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    waiting = list(lines)

    def answer(asked: str) -> str:
        assert asked == "> "
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    monkeypatch.setattr("builtins.input", answer)
