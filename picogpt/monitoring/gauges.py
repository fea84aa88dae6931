"""What a run's Status is made of: what jumps is smoothed, and the machine is asked only every few seconds."""

import math
import time
from collections.abc import Callable

from picogpt.config import RunConfig
from picogpt.monitoring.status import MachineReading, Status
from picogpt.system import hardware
from picogpt.training.observer import StepInfo

_SMOOTH = 10.0  # seconds after which a step counts for a third of what it did

_LOOK = 5.0  # seconds between two looks at the machine


class Gauges:
    """Reads a run that goes on after `first_step`."""

    def __init__(
        self, config: RunConfig, work: Callable[[int], float], least_seconds: Callable[[int], float | None]
    ) -> None:
        """work: what so many first steps cost, in any unit, for the time that is left.

        least_seconds: what a token with so many blocks takes if there are matrix products alone; None where that is
        not known.
        """
        self._train, self._work, self._least_seconds = config.train, work, least_seconds
        self._step_tokens = config.train.batch_size * config.context
        self._began: tuple[float, float] | None = None  # the work of the first step seen, its seconds: rates count so
        self._tokens = self._seconds = self._losses = self._count = 0.0
        self._looked = -math.inf
        self._machine = MachineReading()
        hardware.processor_load()  # what follows is since now

    def step(self, info: StepInfo) -> None:
        """Count a step that is done. Costs next to nothing."""
        if self._began is None:
            self._began = self._work(info.step), info.seconds
        keep = math.exp(-info.took / _SMOOTH)
        self._tokens, self._seconds = keep * self._tokens + self._step_tokens, keep * self._seconds + info.took
        if math.isfinite(info.loss):
            self._losses, self._count = keep * self._losses + info.loss, keep * self._count + 1

    def eta(self, step: int, seconds: float) -> float | None:
        """Return the seconds to the end, of the steps or of the minutes; None until two steps have shown a rate."""
        ends = [60 * self._train.minutes - seconds] if self._train.minutes else []
        done = self._work(step)
        if self._began and done > self._began[0]:
            rate = (seconds - self._began[1]) / (done - self._began[0])
            ends.append((self._work(self._train.steps) - done) * rate)
        return max(0.0, min(ends)) if ends else None

    def status(self, info: StepInfo, data: str) -> Status:
        """Return how things stand after this step. data: the text, and what it is doing."""
        speed = self._tokens / self._seconds if self._seconds else 0.0
        least_seconds = self._least_seconds(info.depth)
        return Status(
            **vars(self._of_the_machine()),
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

    def _of_the_machine(self) -> MachineReading:
        if (now := time.monotonic()) - self._looked >= _LOOK:
            self._looked = now
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
