"""The state of a run between two steps, to and from its checkpoint; and the parts of a run that trains."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from picogpt.config import RunConfig, TrainConfig
from picogpt.data.feed import Feed
from picogpt.runs.checkpoint import Checkpoint
from picogpt.runs.checkpoint_meta import CheckpointMeta, DivergenceState, MachineSettings
from picogpt.runs.log import RunLog
from picogpt.training.observer import Observer
from picogpt.training.trainer import Trainer


@dataclass
class RunState:
    """What a run needs to continue to the same bits, beside its weights, optimizer and feed."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent training."""
    recent: tuple[float, int] = (0.0, 0)
    """Sum and number of the training losses since the last evaluation."""
    divergence: DivergenceState = field(default_factory=DivergenceState)
    evaluated: int = 0
    """The step of the last evaluation; the beginning counts as one, so that a run can go back to it."""
    val_loss: float | None = None
    """Validation loss of the last evaluation, in nats a token."""

    def restore(self, found: Checkpoint) -> None:
        """Take the state of a checkpoint."""
        meta = found.meta
        self.step, self.seconds, self.recent, self.divergence = found.step, meta.seconds, meta.recent, meta.divergence
        self.evaluated, self.val_loss = (found.step, meta.val_loss) if meta.evaluated else (0, None)

    def progress(self, train: TrainConfig) -> float:
        """Return the share of the run that is done, by steps or by minutes, whichever is further."""
        return max(self.step / train.steps, self.seconds / (60 * train.minutes) if train.minutes else 0.0)

    def add_loss(self, loss: float) -> None:
        """Count the training loss of one step."""
        self.recent = self.recent[0] + loss, self.recent[1] + 1

    @property
    def train_loss(self) -> float | None:
        """The mean training loss since the last evaluation; None where no step was counted."""
        return self.recent[0] / self.recent[1] if self.recent[1] else None


def machine_settings(fitted: RunConfig) -> MachineSettings:
    """Return how this machine trains, on which the last bits depend."""
    train = fitted.train
    return MachineSettings(train.device, train.tf32, train.lanes, train.micro_batch)


@dataclass
class Session:
    """The parts of a run while it trains."""

    config: RunConfig
    """As asked for, with the vocabulary grown to the corpus."""
    fitted: RunConfig
    """The same, fitted to the machine."""
    run_dir: Path
    feed: Feed
    log: RunLog
    state: RunState
    trainer: Trainer
    observer: Observer
    notify: Callable[[str], None]
    """Shows a line to the user, and writes it to the log."""
    stopped: Callable[[], bool]
    """Returns whether the user asked to stop."""

    @property
    def progress(self) -> float:
        """The share of the run that is done."""
        return self.state.progress(self.config.train)

    def meta(self) -> CheckpointMeta:
        """Return what a checkpoint made now holds beside its arrays."""
        state, is_evaluated = self.state, self.state.evaluated == self.state.step
        return CheckpointMeta(
            config=self.config,
            tokenizer=self.feed.tokenizer.to_dict(),
            data=self.feed.fingerprint,
            feed=self.feed.state,
            text=self.feed.text,
            val_loss=state.val_loss if is_evaluated else None,
            evaluated=is_evaluated,
            seconds=state.seconds,
            recent=state.recent,
            machine=machine_settings(self.fitted),
            divergence=state.divergence,
            events=tuple(self.log.divergence),
        )
