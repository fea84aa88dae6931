"""What a run does about steps whose loss or gradient is not finite: leave them out, then go back and learn slower."""

from dataclasses import asdict, dataclass
from typing import Any

from picogpt.runs.log import is_event

SKIPS = 2  # steps in a row that are left out; the next one sends the run back

RETURNS = 5  # without an evaluation behind what sent the run back

SLOWER = 0.5  # learning rates after a return, as a share of those before


@dataclass
class Divergence:
    """How far it has come. A checkpoint keeps all of it, so that a run that is killed takes the same way again."""

    rate: float = 1.0
    """Share of the configured learning rates."""
    skipped: int = 0
    """Steps in a row that were left out."""
    returns: int = 0
    """Since an evaluation behind all that diverged."""
    furthest: int = 0
    """The last step that sent the run back; the first is 1."""

    def to_dict(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        """Fit for JSON. events: what the log says of it."""
        return {**asdict(self), "events": events}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> tuple["Divergence", list[dict[str, Any]]]:
        """Inverse of `to_dict`. Raises ValueError for what it does not make."""
        match fields:
            case {
                "rate": float(rate),
                "skipped": int(skipped),
                "returns": int(returns),
                "furthest": int(furthest),
                "events": list(events),
            } if 0 < rate <= 1 and all(map(is_event, events)):
                return cls(rate, skipped, returns, furthest), events
        raise ValueError("this is not how a run deals with divergence")
