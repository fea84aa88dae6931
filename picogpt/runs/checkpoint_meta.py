"""What a checkpoint holds beside its arrays, as a record: the one place where a field is added and checked."""

from dataclasses import asdict, dataclass

from picogpt.config import RunConfig
from picogpt.data.streaming.part import StreamPart
from picogpt.errors import UserError
from picogpt.runs.log import DivergenceEvent

_LARGEST = 1e300  # a little below the largest float


@dataclass(frozen=True)
class DivergenceState:
    """How far a run has diverged, and what was done about it (training/divergence.py)."""

    rate: float = 1.0
    """The share of the configured learning rates that it trains with."""
    skipped: int = 0
    """Steps in a row that were left out."""
    returns: int = 0
    """How often it went back since the last evaluation that is later than `furthest`."""
    furthest: int = 0
    """The last step that sent the run back; the first is 1."""


@dataclass(frozen=True)
class MachineSettings:
    """How a machine trains: what the last bits depend on, beside the configuration."""

    device: str
    tf32: bool
    lanes: int
    micro_batch: int

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint holds beside its arrays: all that the run needs to continue to the same bits.

    A new field gets a default, so that older checkpoints can still be read.
    """

    config: RunConfig
    tokenizer: dict[str, object]
    """The tokenizer, as `tokenizers.registry.from_dict` reads it."""
    data: str
    """Fingerprint of the training text; "" for a model of another program, as it was imported."""
    feed: StreamPart | None = None
    text: str = ""
    """Which text the losses are measured on, where that may change; else ""."""
    val_loss: float | None = None
    """Validation loss at this step, in nats a token."""
    evaluated: bool = False
    """Whether there was an evaluation at this step: a run that diverges can go back to it."""
    seconds: float = 0.0
    """Time spent training."""
    recent: tuple[float, int] = (0.0, 0)
    """Sum and number of the training losses since the last evaluation."""
    machine: MachineSettings | None = None
    divergence: DivergenceState = DivergenceState()
    events: tuple[DivergenceEvent, ...] = ()
    """What the log has about divergence."""

    @property
    def is_imported(self) -> bool:
        """Whether it is a model of another program, as it was imported."""
        return self.data == ""

    @property
    def rolls(self) -> bool:
        """Whether the model was trained to carry the mean from window to window.

        Of the imported models, those of PicoGPT's logs were, and no other has a slot.
        """
        return self.config.rolls or (self.is_imported and self.config.model.can_roll)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain builtins, fit for JSON."""
        return {
            "config": self.config.to_dict(),
            "tokenizer": self.tokenizer,
            "data": self.data,
            "feed": self.feed and self.feed.to_dict(),
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
        """Read what `to_dict` made, also after a trip through JSON. Raises ValueError for anything else."""
        divergence, events = _divergence(fields.get("divergence"))
        match fields:
            case {
                "config": dict(config),
                "tokenizer": dict(tokenizer),
                "data": str(data),
                "seconds": int() | float() as seconds,
                "recent": [int() | float() as total, int(count)],
                "feed": feed,
            } if all(abs(number) < _LARGEST for number in (seconds, total, count)):
                rest = fields.get("text", ""), fields.get("val_loss"), fields.get("evaluated", False)
                match rest:
                    case str(text), int() | float() | None as val_loss, bool(evaluated) if not _is_too_large(val_loss):
                        return cls(
                            config=_run_config(config),
                            tokenizer=tokenizer,
                            data=data,
                            feed=None if feed is None else StreamPart.from_dict(feed),
                            text=text,
                            val_loss=val_loss,
                            evaluated=evaluated,
                            seconds=float(seconds),
                            recent=(total, count),
                            machine=_machine(fields.get("way")),
                            divergence=divergence,
                            events=events,
                        )
        raise ValueError("its fields are not those of a run")


def _is_too_large(value: object) -> bool:
    """Return whether it is an int that a float cannot hold."""
    return isinstance(value, int) and abs(value) >= _LARGEST


def _run_config(fields: dict[str, dict[str, object]]) -> RunConfig:
    """Read a configuration. Raises ValueError."""
    try:
        return RunConfig.from_dict(fields)
    except UserError as error:
        raise ValueError(str(error)) from None


def _machine(fields: object) -> MachineSettings | None:
    """Read the machine's settings, where there are any. Raises ValueError."""
    match fields:
        case None:
            return None
        case {"device": str(device), "tf32": bool(tf32), "lanes": int(lanes), "micro_batch": int(micro_batch)}:
            return MachineSettings(device, tf32, lanes, micro_batch)
    raise ValueError("its machine settings are damaged")


def _divergence(fields: object) -> tuple[DivergenceState, tuple[DivergenceEvent, ...]]:
    """Read the state of divergence and its events, where there are any. Raises ValueError."""
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
    raise ValueError("its state of divergence is damaged")
