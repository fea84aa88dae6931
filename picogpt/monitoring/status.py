"""The status of a run at one moment: what the screen and the live page show between two evaluations."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MachineReading:
    """The state of the machine; None stands for what it does not tell."""

    process_memory: int = 0
    """Bytes that training holds, with all lanes."""
    machine_memory: int = 0
    """Bytes in use in the machine, out of total_memory."""
    total_memory: int = 0
    load: float = 0.0
    """Share of all processors that is busy, with all other programs."""
    temperature: float | None = None
    """Of the processor, in degrees Celsius."""
    battery: int | None = None
    """Charge in percent; None without a battery."""
    plugged: bool = True
    """Whether the machine runs on mains power."""


@dataclass(frozen=True, kw_only=True)
class Status(MachineReading):
    """A run at one moment; None stands for what is not known, or not yet."""

    step: int
    steps: int
    progress: float
    """Share of the run that is done, by steps or by minutes, whichever is further."""
    seconds: float
    """Spent training."""
    eta_seconds: float | None
    train_loss: float | None
    """Smoothed over the last steps, in nats a token."""
    learning_rate: float
    tokens_per_second: float
    """Also smoothed."""
    peak_share: float | None
    """Speed as a share of what the machine's matrix products would allow."""
    data: str
    """The name of the text, and what it is doing: arriving, complete, standing in."""
    pausing: str
    """Why training is pausing, or nothing."""
