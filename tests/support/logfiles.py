"""Logs as runs write them, made up for tests."""

import io
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from picogpt.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from picogpt.reports.run_view import run_view
from picogpt.reports.summary import Summary
from picogpt.runs.log import Evaluation, LogContent, RunLog, read_log

SAMPLE = "He is a sea shell."


def write_log(folder: Path, losses: list[float | None], about: dict[str, Any] | None = None, **options: Any) -> Path:
    """Write logs/NAME/log.pkl with an evaluation every 50 steps.

    options: settings of any part, `sample`, `unknown`, and of how many characters of two bytes a token is, `per_token`.
    """
    sample, unknown, per_token = (options.pop(*of) for of in (("sample", SAMPLE), ("unknown", None), ("per_token", 1)))
    parts = {
        kind: {name: value for name, value in options.items() if name in kind.__dataclass_fields__}
        for kind in (ModelConfig, DataConfig, TrainConfig)
    }
    parts[TrainConfig] = {"steps": 50 * len(losses) or 50, **parts[TrainConfig]}
    config = RunConfig(*(kind(**parts[kind]) for kind in (ModelConfig, DataConfig, TrainConfig)))
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**config.to_dict(), "parameters": 17_664, "machine": "Old i3, 2 cores, 8 GB, Linux"}
    log = RunLog(folder / "log.pkl", settings if about is None else about)
    for i, loss in enumerate(losses, start=1):
        log.evaluation(
            Evaluation(
                step=50 * i,
                tokens=50 * i * config.train.batch_size * config.context,
                seconds=30.0 * i,
                lr=0.01,
                train_loss=None if loss is None else loss - 0.1,
                val_loss=loss,
                bits_per_char=loss and loss / math.log(2) / per_token,
                bits_per_byte=loss and loss / math.log(2) / per_token / 2,
                unknown=unknown,
                tokens_per_second=1000.0 * i,
                memory_mb=70.0 + i,
                sample=f"{sample} {i}" if sample else "",
            )
        )
    log.save()
    return log.path


def summary_of(
    folder: Path, losses: list[float | None], about: dict[str, Any] | None = None, **options: Any
) -> Summary:
    return Summary(folder.name, read_log(write_log(folder, losses, about, **options)))


def record(log: RunLog, step: int, val_loss: float | None, sample: str = "text") -> None:
    log.evaluation(
        Evaluation(
            step=step,
            tokens=step * 2048,
            seconds=step * 0.5,
            lr=0.004,
            train_loss=None if val_loss is None else val_loss - 0.1,
            val_loss=val_loss,
            tokens_per_second=3412.0,
            memory_mb=312.0,
            sample=sample,
        )
    )


def written(path: Path, steps: int = 5) -> RunLog:
    log = RunLog.open(path, {"preset": "pico", "parameters": 6_341_120})
    for step in range(0, steps * 50, 50):
        record(log, step, 4.0 - math.log1p(step) / 4)
    log.notice("something to know")
    log.save()
    return log


def shown(log: LogContent, encoding: str, width: int = 100) -> str:
    """Return what `run_view` shows of a log on a terminal of this encoding and width."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    Console(file=file, width=width, color_system=None).print(run_view(Summary("my [run] é", log)))
    file.flush()
    return raw.getvalue().decode(encoding)
