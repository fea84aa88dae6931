"""What a run's Status is made of: what jumps is smoothed, and the machine is asked only every few seconds."""

import math
import time
from collections.abc import Callable

from picogpt.config import RunConfig
from picogpt.monitoring.status import Status
from picogpt.system import hardware

_SMOOTH = 10.0  # seconds after which a step counts for a third of what it did

_LOOK = 5.0  # seconds between two looks at the machine

# As the fields of Status from process_memory to plugged.
Machine = tuple[int, int, int, float, float | None, int | None, bool]


class Gauges:
    """Reads a run that goes on after `first_step`."""

    def __init__(self, config: RunConfig, work: Callable[[int], float], step_flops: Callable[[int], float | None]):
        """work: what so many first steps cost, in any unit, for the time that is left.

        step_flops: arithmetic a token where so many blocks train, over the roof in operations a second; None where
        that is not known.
        """
        self._train, self._work, self._step_flops = config.train, work, step_flops
        self._began: tuple[float, float] | None = None  # the work of the first step seen, its seconds: rates count so
        self._tokens = self._seconds = self._losses = self._count = 0.0
        self._looked = -math.inf
        self._machine: Machine = 0, 0, 0, 0.0, None, None, True
        hardware.processor_load()  # what follows is since now

    def step(self, step: int, loss: float, tokens: int, took: float, seconds: float) -> None:
        """A step is done, in `took` seconds, and the run is `seconds` old. Costs next to nothing."""
        if self._began is None:
            self._began = self._work(step), seconds
        keep = math.exp(-took / _SMOOTH)
        self._tokens, self._seconds = keep * self._tokens + tokens, keep * self._seconds + took
        if math.isfinite(loss):
            self._losses, self._count = keep * self._losses + loss, keep * self._count + 1

    def eta(self, step: int, seconds: float) -> float | None:
        """Seconds to the end, of the steps or of the minutes; None until two steps have shown a rate."""
        ends = [60 * self._train.minutes - seconds] if self._train.minutes else []
        done = self._work(step)
        if self._began and done > self._began[0]:
            rate = (seconds - self._began[1]) / (done - self._began[0])
            ends.append((self._work(self._train.steps) - done) * rate)
        return max(0.0, min(ends)) if ends else None

    def status(self, step: int, seconds: float, progress: float, rate: float, depth: int, data: str) -> Status:
        """As things stand. rate: the learning rate. depth: blocks that train."""
        speed = self._tokens / self._seconds if self._seconds else 0.0
        cost = self._step_flops(depth)
        held, used, total, load, temperature, battery, plugged = self._of_the_machine()
        return Status(
            step=step,
            steps=self._train.steps,
            progress=min(1.0, progress),
            seconds=seconds,
            eta_seconds=self.eta(step, seconds),
            train_loss=self._losses / self._count if self._count else None,
            learning_rate=rate,
            tokens_per_second=speed,
            roof_share=speed * cost if cost else None,
            process_memory=held,
            machine_memory=used,
            total_memory=total,
            load=load,
            temperature=temperature,
            battery=battery,
            plugged=plugged,
            data=data,
            pausing="",
        )

    def _of_the_machine(self) -> Machine:
        if (now := time.monotonic()) - self._looked >= _LOOK:
            self._looked = now
            total, battery, heat = hardware.total_memory(), hardware.battery(), hardware.temperature()
            self._machine = (
                hardware.held_memory(),
                total - hardware.available_memory(),
                total,
                hardware.processor_load(),
                heat[0] if heat else None,
                battery[0] if battery else None,
                battery[1] if battery else True,
            )
        return self._machine
