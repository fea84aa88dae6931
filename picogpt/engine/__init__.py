"""A small automatic differentiation engine: arrays, a tape, and the ops a GPT needs."""

from picogpt.engine import ops
from picogpt.engine.tape import Tape, no_grad
from picogpt.engine.tensor import Tensor, concatenate, recompute

__all__ = ["Tape", "Tensor", "concatenate", "no_grad", "ops", "recompute"]
