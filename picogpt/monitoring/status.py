"""How a run stands at a moment: what the screen and the live page show between two evaluations."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MachineReading:
    """What the machine says of itself; None is what it does not tell."""

    process_memory: int = 0
    """Bytes that training holds, over all lanes."""
    machine_memory: int = 0
    """Bytes in use in the machine, of total_memory."""
    total_memory: int = 0
    load: float = 0.0
    """Share of all processors that is busy, with whatever else runs."""
    temperature: float | None = None
    """Of the processor, in degrees Celsius."""
    battery: int | None = None
    """Percent; None where there is none."""
    plugged: bool = True
    """Whether it runs on mains power."""


@dataclass(frozen=True, kw_only=True)
class Status(MachineReading):
    """A run at a moment; None is what is not known, or not known yet."""

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
    """Smoothed, too."""
    peak_share: float | None
    """Of what the machine's matrix products would allow."""
    data: str
    """What the text is doing: arriving, complete, standing in."""
    pausing: str
    """Why training pauses just now, or nothing."""
