"""picogpt: train a small GPT on the computer you already have."""

from picogpt.api import LanguageModel, load
from picogpt.config import UserError
from picogpt.engine import Tape, Tensor, no_grad, ops

__all__ = ["LanguageModel", "Tape", "Tensor", "UserError", "load", "no_grad", "ops"]
