"""A machine that is too hot or runs out of power: training pauses visibly, and not a bit of its results changes."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from picogpt.config import MonitoringConfig
from picogpt.errors import UserError
from picogpt.runs import checkpoints
from picogpt.system import hardware
from picogpt.system.hardware import Battery, Temperature
from picogpt.training import pauses as pauses_module
from picogpt.training.pauses import Pauses
from tests.support.running import config_for, log_of, open_run, result_of

pytestmark = pytest.mark.usefixtures("short_samples", "no_plots")


class Machine:
    """A machine with a temperature and a battery that tests set; time passes only in sleep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.degrees, self.critical, self.cooling = 1000.0, 50.0, None, 2.0
        self.battery: Battery | None = None
        self.told, self.pauses = list[str](), list[str]()
        monkeypatch.setattr(pauses_module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(pauses_module, "sleep", self._sleep)
        monkeypatch.setattr(hardware, "temperature", lambda: Temperature(self.degrees, self.critical))
        monkeypatch.setattr(hardware, "battery", lambda: self.battery)

    def _sleep(self, seconds: float, stopped: Any) -> None:
        self.now += seconds
        self.degrees -= self.cooling * seconds
        if self.battery and seconds >= 5:  # which a wait for mains power takes
            self.battery = replace(self.battery, percent=self.battery.percent + 1)

    def care(self, **config: Any) -> Pauses:
        return Pauses(MonitoringConfig(**config), self.told.append, self.pauses.append)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def never() -> bool:
    return False


def test_it_rests_until_it_is_cooler(machine: Machine) -> None:
    machine.degrees = 92.0
    care = machine.care(max_temperature=90.0)
    care.cool(never)
    assert machine.degrees == 86.0 and machine.now == 1003.0
    assert machine.told == ["the processor is hotter than 90 degrees: training rests now and then to let it cool"]
    assert machine.pauses[0] == "resting: the processor has 92 degrees, and may have 90" and machine.pauses[-1] == ""
    machine.degrees, machine.now = 95.0, machine.now + 10
    care.cool(never)
    assert machine.degrees < 87 and len(machine.told) == 1  # once is enough for the log


def test_it_creeps_on_where_it_does_not_cool(machine: Machine) -> None:
    machine.degrees, machine.cooling = 99.0, 0.0
    machine.care(max_temperature=90.0).cool(never)
    assert machine.now == 1030.0


def test_who_stops_it_does_not_wait_for_the_rest(machine: Machine) -> None:
    machine.degrees, machine.battery = 99.0, Battery(5, False)
    care = machine.care(max_temperature=90.0)
    care.cool(lambda: True)
    care.wait_for_power(lambda: True)
    assert machine.now == 1000.0


@pytest.mark.parametrize(("critical", "rests"), [(100.0, False), (95.0, True), (None, False)])
def test_by_default_it_keeps_below_what_the_sensor_calls_critical(
    machine: Machine, critical: float | None, rests: bool
) -> None:
    machine.degrees, machine.critical = 91.0, critical
    machine.care().cool(never)
    assert bool(machine.pauses) == rests


def test_it_looks_every_few_seconds_only(machine: Machine) -> None:
    care = machine.care(max_temperature=90.0)
    care.cool(never)
    assert not care.is_battery_low()
    machine.degrees, machine.battery = 99.0, Battery(5, False)
    care.cool(never)
    assert not care.is_battery_low() and not machine.pauses
    machine.now += 5
    assert care.is_battery_low()
    care.cool(never)
    assert machine.pauses


@pytest.mark.parametrize(
    ("battery", "least", "low"),
    [
        (Battery(19, False), 20, True),
        (Battery(0, False), 20, True),
        (Battery(20, False), 20, False),
        (Battery(5, True), 20, False),
        (Battery(5, False), 0, False),
        (None, 20, False),
    ],
)
def test_a_battery_is_low_where_it_runs_down(machine: Machine, battery: Battery | None, least: int, low: bool) -> None:
    machine.battery = battery
    assert machine.care(min_battery=least).is_battery_low() == low


def test_a_run_that_rests_and_waits_makes_the_same_bits(
    text: Path, undisturbed: dict[str, Any], machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.degrees, machine.cooling, machine.battery = 99.0, 0.1, Battery(15, False)
    run = open_run(config_for(text), monitoring=MonitoringConfig(max_temperature=90.0))
    run.train()
    assert machine.now >= 1055  # both were waited for
    assert result_of(run) == undisturbed
    out = capsys.readouterr().out
    assert "the battery is under 20 %: all is saved" in out and "hotter than 90 degrees" in out
    assert len([notice for notice in log_of(run)["notices"] if "battery" in notice or "hotter" in notice]) == 2


def test_a_run_at_its_end_waits_for_nothing(text: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(config_for(text))
    monkeypatch.setattr(hardware, "battery", lambda: Battery(15 if run.state.step == 12 else 80, False))
    monkeypatch.setattr(hardware, "temperature", lambda: Temperature(99.0 if run.state.step == 12 else 50.0, 60.0))
    run.train()
    assert machine.now == 1000.0


def test_what_was_trained_is_saved_before_the_wait(
    text: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[Path | None] = []
    run = open_run(config_for(text))
    monkeypatch.setattr(Pauses, "wait_for_power", lambda *_: saved.append(checkpoints.newest(run.dir)))
    machine.battery = Battery(15, False)
    run.train()
    assert [folder.name for folder in saved if folder] == ["00000001"]


@pytest.mark.parametrize("config", [{"max_temperature": -1.0}, {"max_temperature": 300.0}, {"min_battery": 101}])
def test_no_machine_has_such_limits(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be in"):
        MonitoringConfig(**config)


def reading(current: float, critical: float | None = None, high: float | None = None) -> Any:
    return SimpleNamespace(label="", current=current, high=high, critical=critical)


@pytest.mark.parametrize(
    ("sensors", "found"),
    [
        ({}, None),
        ({"nvme": [reading(80.0)]}, None),  # of a disk
        ({"coretemp": [reading(50.0, 100.0), reading(61.0, 100.0)], "nvme": [reading(80.0)]}, Temperature(61.0, 100.0)),
        ({"k10temp": [reading(70.0)]}, Temperature(70.0, None)),
        ({"coretemp": [reading(50.0, 65261.8)]}, Temperature(50.0, None)),  # a broken one
        ({"coretemp": [reading(-273.0, 100.0)]}, None),
        ({"cpu_thermal": [reading(50.0, None, 90.0)]}, Temperature(50.0, 90.0)),
    ],
)
def test_the_processor_has_the_temperature_of_its_own_sensor(
    sensors: dict[str, Any], found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
    assert hardware.temperature() == found


def test_a_system_without_sensors_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil, "sensors_temperatures", raising=False)
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert hardware.temperature() is None and hardware.battery() is None


@pytest.mark.parametrize(("plugged", "on_mains"), [(True, True), (False, False), (None, True)])
def test_the_battery(plugged: bool | None, on_mains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(percent=18.6, power_plugged=plugged)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: found, raising=False)
    assert hardware.battery() == Battery(19, on_mains)
