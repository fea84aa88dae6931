"""Every setting, as frozen dataclasses.

A field's docstring is its help text on the command line, which is generated from these classes.
Zero means "choose for me" wherever a docstring says so.
"""

from picogpt.config.data import DataConfig, TokenizerName
from picogpt.config.generation import Context, GenerateConfig, Precision
from picogpt.config.model import Activation, AttentionScale, AttentionSpan, Init, ModelConfig
from picogpt.config.monitoring import MonitoringConfig
from picogpt.config.run import RunConfig
from picogpt.config.training import TrainConfig

__all__ = [
    "Activation",
    "AttentionScale",
    "AttentionSpan",
    "Context",
    "DataConfig",
    "GenerateConfig",
    "Init",
    "ModelConfig",
    "MonitoringConfig",
    "Precision",
    "RunConfig",
    "TokenizerName",
    "TrainConfig",
]
