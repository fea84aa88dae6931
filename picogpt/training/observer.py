"""What training tells whoever looks at it. Training knows that somebody looks, not who."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from picogpt.config import RunConfig
from picogpt.runs.log import Evaluation, RunLog


@dataclass(frozen=True)
class RunInfo:
    """A run that is about to train."""

    config: RunConfig
    source: str
    """What the text is, for people."""
    log: RunLog
    """What the run has to tell so far; it grows as the run does."""
    step: int
    """Steps that are done already."""
    work: Callable[[int], float]
    """What so many first steps cost, in any unit, for the time that is left."""
    peak_gflops: float | None
    """What the machine's matrix products reach, in billions of operations a second; None where it was not measured."""


@dataclass(frozen=True)
class StepInfo:
    """One optimizer step that is done."""

    step: int
    """Steps done with it."""
    loss: float
    """Of its batch, in nats a token; not a number where the step was left out."""
    took: float
    """Seconds that it took."""
    seconds: float
    """Seconds that the run has trained so far."""
    progress: float
    """Share of the run that is done, by steps or by minutes, whichever is further."""
    learning_rate: float
    depth: int
    """Blocks that train."""
    data: str
    """What the text is doing: arriving, complete, standing in; or ""."""


class Observer(Protocol):
    """Somebody who looks at a run, and may be at its terminal. Unless they say so, methods neither wait nor raise."""

    @property
    def wants_peak_flops(self) -> bool:
        """Whether to measure what the machine's matrix products reach, which takes a fraction of a second."""
        ...

    @property
    def is_attended(self) -> bool:
        """Whether a person at a terminal could do something about a problem."""
        ...

    def notice(self, text: str, loud: bool = False) -> None:
        """Show a line now. loud: so that nobody misses it."""
        ...

    def interrupted(self, text: str) -> None:
        """`notice` from the handler of a signal; "" where there is nothing to say again."""
        ...

    def open(self) -> None:
        """Get ready before anything of the run is changed. Raises UserError where that cannot be."""
        ...

    def begin(self, info: RunInfo) -> None:
        """Training begins."""
        ...

    def step(self, info: StepInfo) -> None:
        """A step is done."""
        ...

    def pausing(self, why: str) -> None:
        """Training pauses just now; or it goes on: ""."""
        ...

    def evaluation(self, evaluation: Evaluation) -> bool:
        """An evaluation is done, and is being saved. Returns whether training is to go on."""
        ...

    def went_back(self, step: int) -> None:
        """The run goes on after this step again, and makes what came after anew."""
        ...

    def saved(self) -> None:
        """The log is on the disk, with a new evaluation in it."""
        ...

    def close(self, at_once: bool) -> None:
        """The run has ended. at_once: somebody interrupts, and does not want to wait."""
        ...
