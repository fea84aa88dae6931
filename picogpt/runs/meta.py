"""What a checkpoint says beside its arrays, as a record: the one place where a field is added, and checked."""

from dataclasses import asdict, dataclass

from picogpt.config import RunConfig
from picogpt.data.streaming.feed import FeedState
from picogpt.errors import UserError
from picogpt.runs.log import DivergenceEvent

_LARGEST = 1e300  # what a float can hold, with some room


@dataclass(frozen=True)
class DivergenceState:
    """How a run deals with steps whose loss or gradient is not finite (training/divergence.py)."""

    rate: float = 1.0
    """Share of the configured learning rates."""
    skipped: int = 0
    """Steps in a row that were left out."""
    returns: int = 0
    """Times it went back since an evaluation behind all that diverged."""
    furthest: int = 0
    """The last step that sent the run back; the first is 1."""


@dataclass(frozen=True)
class MachineSettings:
    """What the last bits of a run depend on beside its configuration."""

    device: str
    tf32: bool
    lanes: int
    micro_batch: int

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint says beside its arrays: where the run stands, and all that going on to the same bits takes.

    A new field gets a default, so that the checkpoints of before can still be read.
    """

    config: RunConfig
    tokenizer: dict[str, object]
    """What `tokenizers.registry.from_dict` makes the tokenizer of."""
    data: str
    """Fingerprint of the text it was trained on; "" for another program's model, as it was imported."""
    feed: FeedState | None = None
    text: str = ""
    """Which text the losses are of, where that may change; else ""."""
    val_loss: float | None = None
    """Of the evaluation at this step, in nats a token."""
    evaluated: bool = False
    """Whether there was one: a run that diverges can go back to it."""
    seconds: float = 0.0
    """Spent training."""
    recent: tuple[float, int] = (0.0, 0)
    """Sum and number of the training losses since the last evaluation."""
    machine: MachineSettings | None = None
    divergence: DivergenceState = DivergenceState()
    events: tuple[DivergenceEvent, ...] = ()
    """What the log says about divergence."""

    @property
    def is_imported(self) -> bool:
        """Whether it is another program's model, as it was imported."""
        return self.data == ""

    @property
    def rolls(self) -> bool:
        """Whether the model was trained to go from window to window with the mean.

        PicoGPT's own logs hold such models alone, and of the imported ones those alone have a slot.
        """
        return self.config.rolls or (self.is_imported and self.config.model.can_roll)

    def to_dict(self) -> dict[str, object]:
        """Return it as plain builtins, fit for JSON."""
        return {
            "config": self.config.to_dict(),
            "tokenizer": self.tokenizer,
            "data": self.data,
            "feed": self.feed,
            "text": self.text,
            "val_loss": self.val_loss,
            "evaluated": self.evaluated,
            "seconds": self.seconds,
            "recent": list(self.recent),
            "way": self.machine and asdict(self.machine),
            "divergence": {**asdict(self.divergence), "events": [event.to_dict() for event in self.events]},
        }

    @classmethod
    def from_dict(cls, fields: dict[str, object]) -> "CheckpointMeta":
        """Inverse of `to_dict`, also after a trip through JSON. Raises ValueError for what it does not make."""
        divergence, events = _divergence(fields.get("divergence"))
        match fields:
            case {
                "config": dict(config),
                "tokenizer": dict(tokenizer),
                "data": str(data),
                "seconds": int() | float() as seconds,
                "recent": [int() | float() as total, int(count)],
                "feed": dict() | None as feed,
            } if all(abs(number) < _LARGEST for number in (seconds, total, count)):
                rest = fields.get("text", ""), fields.get("val_loss"), fields.get("evaluated", False)
                match rest:
                    case str(text), int() | float() | None as val_loss, bool(evaluated):
                        return cls(
                            _run_config(config),
                            tokenizer,
                            data,
                            feed,
                            text,
                            val_loss,
                            evaluated,
                            float(seconds),
                            (total, count),
                            _machine(fields.get("way")),
                            divergence,
                            events,
                        )
        raise ValueError("it is not what a run says of itself")


def _run_config(fields: dict[str, dict[str, object]]) -> RunConfig:
    """Raises ValueError."""
    try:
        return RunConfig.from_dict(fields)
    except UserError as error:
        raise ValueError(str(error)) from None


def _machine(fields: object) -> MachineSettings | None:
    """Raises ValueError."""
    match fields:
        case None:
            return None
        case {"device": str(device), "tf32": bool(tf32), "lanes": int(lanes), "micro_batch": int(micro_batch)}:
            return MachineSettings(device, tf32, lanes, micro_batch)
    raise ValueError("this is not how a machine trained")


def _divergence(fields: object) -> tuple[DivergenceState, tuple[DivergenceEvent, ...]]:
    """Raises ValueError."""
    match fields:
        case None:
            return DivergenceState(), ()
        case {
            "rate": float(rate),
            "skipped": int(skipped),
            "returns": int(returns),
            "furthest": int(furthest),
            "events": list(events),
        } if 0 < rate <= 1:
            return DivergenceState(rate, skipped, returns, furthest), tuple(map(DivergenceEvent.from_dict, events))
    raise ValueError("this is not how a run deals with divergence")
