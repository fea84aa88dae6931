"""A whole run: its model, data and training."""

from dataclasses import asdict, dataclass, field, replace

from picogpt.config.data import DataConfig
from picogpt.config.model import ModelConfig
from picogpt.config.training import TrainConfig
from picogpt.config.validation import check_types, from_fields, not_a_configuration
from picogpt.errors import require


@dataclass(frozen=True)
class RunConfig:
    """A whole run: what a preset names and a checkpoint records."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def context(self) -> int:
        """Tokens of a training sequence."""
        return self.train.context or self.model.context_len

    @property
    def rolls(self) -> bool:
        """Whether a sequence has several windows, so that slot 0 learns to hold the mean of the one before."""
        return self.context > self.model.context_len

    @property
    def window(self) -> int:
        """Tokens of a window in training: a sequence may be shorter than the model's."""
        return min(self.context, self.model.context_len)

    def __post_init__(self) -> None:
        check_types(self)
        window, train = self.model.context_len, self.train.train
        require(
            self.context <= window or self.context % window == 0,
            f"context ({self.context}) must be at most the window ({window}) or a multiple of it: "
            f"try --context {self.context // window * window}",
        )
        require(
            self.context <= window or self.model.context_slot,
            f"context {self.context} is longer than the window ({window}), which needs a model with a context slot",
        )
        require(train == "lora" or not self.model.lora_rank, f"lora_rank is for --train lora, not --train {train}")
        if train == "lora" and not self.model.lora_rank:
            object.__setattr__(self, "model", replace(self.model, lora_rank=8))

    def to_dict(self) -> dict[str, object]:
        """Return the settings as plain builtins, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: object) -> "RunConfig":
        """Return the run that `to_dict` gave, also after a trip through JSON.

        Raises UserError on a foreign or ill-typed field.
        """
        try:
            if not isinstance(fields, dict):
                raise TypeError("its parts have no names")
            model, data = fields["model"], fields["data"]
            # A file from before these could be chosen does not have them.
            train = {"muon_momentum": 0.95, "depth_warmup": 0.0, **fields["train"]}
        except (KeyError, TypeError) as error:
            raise not_a_configuration(error) from None
        return cls(ModelConfig.from_dict(model), from_fields(DataConfig, data, "data"), from_fields(TrainConfig, train))
