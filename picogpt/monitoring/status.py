"""How a run stands at a moment: what the screen and the live page show between two evaluations."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Status:
    """None is what is not known, or not known yet."""

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
    roof_share: float | None
    """Of what the machine's matrix products would allow."""
    process_memory: int
    """Bytes, over all lanes."""
    machine_memory: int
    """Bytes in use in the machine, of total_memory."""
    total_memory: int
    load: float
    """Share of all processors that is busy, with whatever else runs."""
    temperature: float | None
    """Of the processor, in degrees Celsius."""
    battery: int | None
    """Percent; None where there is none."""
    plugged: bool
    """Whether it is on the mains."""
    data: str
    """What the text is doing: streaming, complete, standing in."""
    pausing: str
    """Why training pauses just now, or nothing."""
