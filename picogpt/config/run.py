"""A whole run: its model, data and training."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from picogpt.config.data import DataConfig
from picogpt.config.model import ModelConfig
from picogpt.config.training import TrainConfig
from picogpt.config.validation import check_types, not_a_configuration
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
        """Whether training goes on from window to window with the mean, so that slot 0 learns to hold one."""
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

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain builtins, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, dict[str, Any]]) -> "RunConfig":
        """Inverse of `to_dict`, also after a trip through JSON. Raises UserError on a foreign or ill-typed field."""
        try:
            train = {
                "muon_momentum": 0.95,
                "depth_warmup": 0.0,
                **fields["train"],
            }  # as it was before there was a choice
            data = {**fields["data"]}
            if type(data["data"]) is list:  # what JSON makes of a tuple
                data["data"] = tuple(data["data"])
            return cls(ModelConfig.from_dict(fields["model"]), DataConfig(**data), TrainConfig(**train))
        except (KeyError, TypeError) as error:
            raise not_a_configuration(error) from None
