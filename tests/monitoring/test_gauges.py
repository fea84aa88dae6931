"""How a run stands: speeds and losses that are smooth, and the time that is left."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from picogpt.config import RunConfig, TrainConfig
from picogpt.monitoring import gauges as gauges_module
from picogpt.monitoring.gauges import Gauges
from picogpt.system import hardware
from picogpt.system.hardware import Battery, Temperature
from picogpt.training.observer import StepInfo


def info(step: int, loss: float = 2.0, took: float = 1.0, seconds: float = 1.0, **more: Any) -> StepInfo:
    return StepInfo(step, loss, took, seconds, more.pop("progress", 0.1), 0.01, more.pop("depth", 8), "")


def gauges(steps: int = 2000, minutes: float = 0.0, step_tokens: int = 512) -> Gauges:
    train = TrainConfig(steps=steps, minutes=minutes, batch_size=step_tokens // 4, context=4)
    config = RunConfig(train=train)
    return Gauges(config, float, lambda depth: 1e-4 * depth if depth else None)


def test_the_eta_is_the_sooner_of_steps_and_minutes() -> None:
    for minutes, expected in ((0.0, 93.6), (60.0, 93.6), (1.0, 28.8), (0.1, 0.0)):
        read = gauges(200, minutes)
        for step in range(1, 51):
            read.step(info(step, took=0.624, seconds=step * 0.624))
        assert read.eta(50, 31.2) == pytest.approx(expected)


def test_there_is_no_eta_before_there_is_a_rate() -> None:
    read = gauges()
    assert read.eta(0, 0.0) is None
    read.step(info(1))
    assert read.eta(1, 1.0) is None


def test_a_resumed_run_counts_its_own_steps() -> None:
    read = gauges(2000)
    for step in range(1001, 1052):
        read.step(info(step, seconds=9000.0 + step - 1000))  # 9 s a step before, 1 s a step now
    assert read.eta(1051, 9051.0) == pytest.approx(949)


def test_speed_and_loss_are_smooth_and_follow() -> None:
    read = gauges(step_tokens=1000)
    read.step(info(1, 4.0))
    status = read.status(info(1, 4.0), "sample")
    assert (status.tokens_per_second, status.train_loss) == (1000, 4.0)  # the first alone counts wholly
    read.step(info(2, math.nan, seconds=2.0))  # a step that was left out has no loss
    for step in range(3, 60):
        read.step(info(step, took=2.0, seconds=float(2 * step)))
    status = read.status(info(59), "sample")
    assert status.tokens_per_second == pytest.approx(500, rel=0.02) and status.train_loss == pytest.approx(2, rel=0.02)
    assert status.peak_share == pytest.approx(status.tokens_per_second * 8e-4)
    assert read.status(info(59, depth=0), "").peak_share is None


def test_the_machine_is_asked_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = 0.0, list[float]()
    monkeypatch.setattr(gauges_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(hardware, "held_memory", lambda: (asked.append(now), 5 << 20)[1])
    monkeypatch.setattr(hardware, "temperature", lambda: Temperature(61.0, 100.0))
    monkeypatch.setattr(hardware, "battery", lambda: Battery(55, False))
    read = gauges()
    for tick in range(50):
        now = tick / 4
        status = read.status(info(1, progress=2.0), "sample")
    assert asked == [0.0, 5.0, 10.0]
    assert (status.process_memory, status.temperature, status.battery, status.plugged) == (5 << 20, 61.0, 55, False)
    assert status.progress == 1.0 and 0 <= status.load <= 1 and 0 < status.machine_memory < status.total_memory
