"""What training reports to its observer: a Protocol, so that training does not depend on any screen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from picogpt.config import RunConfig
from picogpt.runs.log import Evaluation, RunLog


@dataclass(frozen=True)
class RunInfo:
    """A run that begins to train."""

    config: RunConfig
    source: str
    """Name of the training text, for people."""
    log: RunLog
    """The run's log so far, which grows while it trains."""
    notify: Callable[[str], None]
    """Shows a line to the user, and writes it to the log."""
    step: int
    """Steps that are already done."""
    work: Callable[[int], float]
    """Cost of the first so many steps, in any unit: the remaining time is estimated with it."""
    peak_gflops: float | None
    """Peak speed of matrix products on this machine, in billions of operations a second; None where not measured."""


@dataclass(frozen=True)
class StepInfo:
    """A finished optimizer step."""

    step: int
    """Steps that are done, this one included."""
    loss: float
    """Loss of its batch, in nats a token; NaN where the step was left out."""
    took: float
    """Seconds that this step took."""
    seconds: float
    """Seconds that the run has trained so far."""
    progress: float
    """Share of the run that is done, by steps or by minutes, whichever is further."""
    learning_rate: float
    depth: int
    """Blocks that train."""
    data: str
    """State of the training text, such as how much of it has arrived; or ""."""


class Observer(Protocol):
    """Watches a run, perhaps for a person at its terminal. Methods neither wait nor raise unless they say so."""

    @property
    def wants_peak_flops(self) -> bool:
        """Whether to measure the peak speed of matrix products, which takes a fraction of a second."""
        ...

    @property
    def is_attended(self) -> bool:
        """Whether a person at a terminal can react to a problem."""
        ...

    def notice(self, text: str, loud: bool = False) -> None:
        """Show a line now. loud: make it hard to miss."""
        ...

    def interrupted(self, text: str) -> None:
        """Show a line as `notice` does, from a signal handler; "" where there is nothing new to say."""
        ...

    def open(self) -> None:
        """Get ready, before anything of the run is changed. Raises UserError where that fails."""
        ...

    def begin(self, info: RunInfo) -> None:
        """Receive that training begins."""
        ...

    def step(self, info: StepInfo) -> None:
        """Receive that a step is done."""
        ...

    def pausing(self, why: str) -> None:
        """Receive why training pauses at the moment, or "" when it continues."""
        ...

    def evaluation(self, evaluation: Evaluation) -> None:
        """Receive an evaluation, which is saved next."""
        ...

    def should_continue(self, evaluation: Evaluation) -> bool:
        """Return whether training should continue after this evaluation, which is being saved. May wait."""
        ...

    def went_back(self, step: int) -> None:
        """Receive that the run went back to this step, and repeats what came after."""
        ...

    def saved(self) -> None:
        """Receive that the log is on the disk, with a new evaluation in it."""
        ...

    def close(self, at_once: bool) -> None:
        """End with the run; may wait for work to be finished. at_once: do not, as the user interrupted."""
        ...
