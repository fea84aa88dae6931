"""The measurements of a run's status: rates and losses are smoothed, the machine is read every few seconds."""

import math
import time
from collections.abc import Callable

from picogpt.config import RunConfig
from picogpt.monitoring.status import MachineReading, Status
from picogpt.system import hardware
from picogpt.training.observer import StepInfo

_SMOOTHING_SECONDS = 10.0  # after which a step counts for about a third of what it did
_MACHINE_SECONDS = 5.0  # between two readings of the machine


class Gauges:
    """Measures a run: speed, smoothed loss, time left, and the state of the machine."""

    def __init__(
        self, config: RunConfig, work: Callable[[int], float], least_seconds: Callable[[int], float | None]
    ) -> None:
        """work: the cost of the first N steps, in any unit, from which the time left is estimated.

        least_seconds: seconds for a token of a model with N blocks if only its matrix products took time; None if that
        is not known.
        """
        self._train, self._work, self._least_seconds = config.train, work, least_seconds
        self._step_tokens = config.train.batch_size * config.context
        self._began: tuple[float, float] | None = None  # work and seconds at the first step seen, where rates begin
        self._tokens = self._seconds = self._losses = self._count = 0.0
        self._read_at = -math.inf
        self._machine = MachineReading()
        hardware.processor_load()  # the next call measures from here

    def step(self, info: StepInfo) -> None:
        """Take note of a step that is done. Costs next to nothing."""
        if self._began is None:
            self._began = self._work(info.step), info.seconds
        decay = math.exp(-info.took / _SMOOTHING_SECONDS)
        self._tokens, self._seconds = decay * self._tokens + self._step_tokens, decay * self._seconds + info.took
        if math.isfinite(info.loss):
            self._losses, self._count = decay * self._losses + info.loss, decay * self._count + 1

    def eta(self, step: int, seconds: float) -> float | None:
        """Return the seconds until the last step or the last minute, whichever is sooner; None if not known yet."""
        ends = [60 * self._train.minutes - seconds] if self._train.minutes else []
        done = self._work(step)
        if self._began and done > self._began[0]:
            rate = (seconds - self._began[1]) / (done - self._began[0])
            ends.append((self._work(self._train.steps) - done) * rate)
        return max(0.0, min(ends)) if ends else None

    def status(self, info: StepInfo, data: str) -> Status:
        """Return the status of the run after this step. data: the name of the text, and what it is doing."""
        speed = self._tokens / self._seconds if self._seconds else 0.0
        least_seconds = self._least_seconds(info.depth)
        return Status(
            **vars(self._read_machine()),
            step=info.step,
            steps=self._train.steps,
            progress=min(1.0, info.progress),
            seconds=info.seconds,
            eta_seconds=self.eta(info.step, info.seconds),
            train_loss=self._losses / self._count if self._count else None,
            learning_rate=info.learning_rate,
            tokens_per_second=speed,
            peak_share=speed * least_seconds if least_seconds else None,
            data=data,
            pausing="",
        )

    def _read_machine(self) -> MachineReading:
        """Return the state of the machine, which is read again every few seconds."""
        if (now := time.monotonic()) - self._read_at >= _MACHINE_SECONDS:
            self._read_at = now
            total, battery, heat = hardware.total_memory(), hardware.battery(), hardware.temperature()
            self._machine = MachineReading(
                process_memory=hardware.held_memory(),
                machine_memory=total - hardware.available_memory(),
                total_memory=total,
                load=hardware.processor_load(),
                temperature=heat.degrees if heat else None,
                battery=battery.percent if battery else None,
                plugged=battery.plugged if battery else True,
            )
        return self._machine
