"""picogpt: train a small GPT on the computer you already have."""

from picogpt.engine import Tape, Tensor, no_grad, ops
from picogpt.errors import UserError
from picogpt.inference.language_model import LanguageModel, load

__all__ = ["LanguageModel", "Tape", "Tensor", "UserError", "load", "no_grad", "ops"]
