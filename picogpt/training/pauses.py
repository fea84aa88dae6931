"""Pauses that protect the machine: while the processor is too hot, and while the battery is low."""

import time
from collections.abc import Callable

from picogpt.config import MonitoringConfig
from picogpt.system import hardware
from picogpt.system.signals import sleep

_LOOK = 5.0  # seconds between two checks
_BELOW_CRITICAL, _COOLER = 5.0, 3.0  # degrees
_REST = 30.0  # seconds of a rest at most: where something else heats the machine, training goes on slowly


class Pauses:
    """Checks the machine after each step. A pause changes when training happens, and nothing of its results."""

    def __init__(self, config: MonitoringConfig, notify: Callable[[str], None], report: Callable[[str], None]) -> None:
        """Make no check yet. notify: gets a line about the first rest and about every wait.

        report: gets the reason again and again while training pauses, and "" when it continues.
        """
        self._config, self._notify, self._report, self._has_notified = config, notify, report, False
        self._heat_looked = self._battery_looked = 0.0

    def cool(self, stopped: Callable[[], bool]) -> None:
        """Rest where the processor is too hot, until it is a little cooler."""
        if (now := time.monotonic()) < self._heat_looked:
            return
        self._heat_looked = now + _LOOK
        limit = self._limit()
        if limit is None or not self._is_hotter_than(limit):
            return
        if not self._has_notified:
            self._has_notified = True
            self._notify(
                f"the processor is hotter than {limit:.0f} degrees: training rests now and then to let it cool"
            )
        until = time.monotonic() + _REST
        while time.monotonic() < until and not stopped() and (degrees := self._is_hotter_than(limit - _COOLER)):
            self._report(f"resting: the processor has {degrees:.0f} degrees, and may have {limit:.0f}")
            sleep(1.0, stopped)
        self._report("")

    def is_battery_low(self) -> bool:
        """Return whether to wait for mains power; checks every few seconds."""
        if (now := time.monotonic()) < self._battery_looked:
            return False
        self._battery_looked = now + _LOOK
        return bool(self._low_battery())

    def wait_for_power(self, stopped: Callable[[], bool]) -> None:
        """Wait until the machine is plugged in or charged."""
        self._notify(
            f"the battery is under {self._config.min_battery} %: all is saved, and training waits for mains power; "
            "--min-battery 0 would not"
        )
        while not stopped() and (percent := self._low_battery()):
            self._report(f"waiting for mains power: the battery is at {percent} %")
            sleep(_LOOK, stopped)
        self._report("")

    def _limit(self) -> float | None:
        """Return the temperature above which to rest, in degrees; None where there is no limit."""
        if self._config.max_temperature:
            return self._config.max_temperature
        reading = hardware.temperature()
        return reading.critical - _BELOW_CRITICAL if reading and reading.critical else None

    @staticmethod
    def _is_hotter_than(limit: float) -> float:
        """Return the temperature where it is at least `limit`; else 0."""
        reading = hardware.temperature()
        return reading.degrees if reading and reading.degrees >= limit else 0.0

    def _low_battery(self) -> int:
        """Return the percent of the battery that are left, at least 1, where they are too few; else 0."""
        found = hardware.battery() if self._config.min_battery else None
        low = found is not None and not found.plugged and found.percent < self._config.min_battery
        return max(1, found.percent) if found and low else 0
