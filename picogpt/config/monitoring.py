"""The settings of watching a run and of sparing its machine."""

from dataclasses import dataclass

from picogpt.config.validation import check_types
from picogpt.errors import require


@dataclass(frozen=True)
class MonitoringConfig:
    """How a run is watched and its machine spared. Checkpoints do not hold it, and results do not depend on it."""

    tensorboard: bool = False
    """Write TensorBoard's event files too, to logs/RUN/tensorboard."""
    dashboard: str = ""
    """Serve a live page: at this port of 127.0.0.1 (8050 where none is given), or at ADDRESS:PORT, then with a token
    in its address."""
    max_temperature: float = 0.0
    """Degrees Celsius at which training pauses to let the processor cool. 0: five below what its sensor calls
    critical."""
    min_battery: int = 20
    """Percent of the battery under which training saves and waits for mains power. 0: never."""

    def __post_init__(self) -> None:
        check_types(self)
        require(0 <= self.max_temperature <= 200, f"max_temperature must be in [0, 200], not {self.max_temperature}")
        require(0 <= self.min_battery <= 100, f"min_battery must be in [0, 100], not {self.min_battery}")
