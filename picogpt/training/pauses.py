"""Care of the machine: training rests while the processor is too hot, and waits while the battery runs down."""

import time
from collections.abc import Callable

from picogpt.config import MonitoringConfig
from picogpt.system import hardware
from picogpt.system.signals import sleep

_LOOK = 5.0  # seconds between two looks

_BELOW_CRITICAL, _COOLER = 5.0, 3.0  # degrees

_REST = 30.0  # seconds of a rest at most: where something else heats the machine, training creeps on


class Pauses:
    """Looks after each step. Nothing of it changes what is trained, only when."""

    def __init__(self, config: MonitoringConfig, tell: Callable[[str], None], pausing: Callable[[str], None]) -> None:
        """tell: told of the first rest and of every wait.

        pausing: told why training pauses, again and again while it does, and "" when it goes on.
        """
        self._config, self._tell, self._pausing, self._hot_told = config, tell, pausing, False
        self._heat_looked = self._battery_looked = 0.0

    def cool(self, stopped: Callable[[], bool]) -> None:
        """Rest where the processor is too hot, until it is a little cooler."""
        if (now := time.monotonic()) < self._heat_looked:
            return
        self._heat_looked = now + _LOOK
        limit = self._limit()
        if limit is None or not self._is_hotter_than(limit):
            return
        if not self._hot_told:
            self._hot_told = True
            self._tell(f"the processor is hotter than {limit:.0f} degrees: training rests now and then to let it cool")
        until = time.monotonic() + _REST
        while time.monotonic() < until and not stopped() and (degrees := self._is_hotter_than(limit - _COOLER)):
            self._pausing(f"resting: the processor has {degrees:.0f} degrees, and may have {limit:.0f}")
            sleep(1.0, stopped)
        self._pausing("")

    def is_battery_low(self) -> bool:
        """Whether to wait for the mains; looks every few seconds."""
        if (now := time.monotonic()) < self._battery_looked:
            return False
        self._battery_looked = now + _LOOK
        return bool(self._low_battery())

    def wait_for_mains(self, stopped: Callable[[], bool]) -> None:
        """Wait until the machine is plugged in or charged."""
        self._tell(
            f"the battery is under {self._config.min_battery} %: all is saved, and training waits for the mains; "
            "--min-battery 0 would not"
        )
        while not stopped() and (percent := self._low_battery()):
            self._pausing(f"waiting for the mains: the battery is at {percent} %")
            sleep(_LOOK, stopped)
        self._pausing("")

    def _limit(self) -> float | None:
        if self._config.max_temperature:
            return self._config.max_temperature
        reading = hardware.temperature()
        return reading.critical - _BELOW_CRITICAL if reading and reading.critical else None

    @staticmethod
    def _is_hotter_than(limit: float) -> float:
        """The temperature where it is; else 0."""
        reading = hardware.temperature()
        return reading.degrees if reading and reading.degrees >= limit else 0.0

    def _low_battery(self) -> int:
        """The percent that are left, at least 1, where they are too few; else 0."""
        found = hardware.battery() if self._config.min_battery else None
        low = found is not None and not found.plugged and found.percent < self._config.min_battery
        return max(1, found.percent) if found and low else 0
