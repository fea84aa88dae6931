"""The settings of training."""

import re
from dataclasses import dataclass
from typing import Literal

from picogpt.config.validation import check_limits, check_types
from picogpt.errors import require, shown

_LIMITS = {"steps": 10**12, "context": 1 << 30, "batch_size": 1 << 20, "micro_batch": 1 << 20, "lanes": 4096}
_LIMITS |= {"warmup_steps": 10**12, "eval_interval": 10**12, "seed": (1 << 64) - 1}


NO_LIMIT = 10**9  # steps of a run that its minutes end


@dataclass(frozen=True)
class TrainConfig:
    """How a run trains."""

    train: str = "all"
    """What is trained: all; last-N, that many blocks and the last norm; biases alone; lora, low-rank matrices beside
    those of the blocks. The rest takes no memory for gradients."""
    steps: int = 2000
    """Optimizer steps. With --minutes and without --steps: as many as there is time for."""
    minutes: float = 0.0
    """Stop after so many minutes of training if that comes before the last step; the schedule follows. 0: no limit."""
    context: int = 0
    """Tokens of a training sequence: up to the window, or a multiple of it for rolling mean context. 0: one window."""
    batch_size: int = 16
    """Sequences an optimizer step."""
    micro_batch: int = 0
    """Sequences that go through the model at once in a lane. 0: choose."""
    lanes: int = 0
    """Workers that each train on micro-batches of their own. 0: one a physical core. A GPU is fed by one."""
    low_memory: bool = False
    """Train in as little memory as possible: one lane, one sequence at a time, recomputed."""
    device: Literal["cpu", "cuda"] = "cpu"
    """cuda: train on a GPU through CuPy, or on the CPU where there is none."""
    tf32: bool = False
    """Let a GPU that can (Ampere or newer) round the inputs of matrix products to TF32: faster, less exact."""
    recompute: bool = False
    """Recompute each block's activations in the backward pass: far less memory, about a fifth more arithmetic."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: orthogonalised momentum for the hidden matrices and AdamW for the rest; adamw: AdamW for all."""
    learning_rate: float = 0.01
    """Peak learning rate of AdamW. With --optimizer adamw, for the hidden matrices too, about 0.001 is right."""
    muon_learning_rate: float = 0.04
    """Peak learning rate of Muon's matrices."""
    muon_momentum: float = 0.85
    """Muon's decay of the mean gradient."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices only."""
    grad_clip: float = 1.0
    """Largest global norm of the gradient. 0: no clipping."""
    schedule: Literal["wsd", "cosine"] = "wsd"
    """wsd: warm-up, stable, linear decay at the end; cosine: warm-up, then half a cosine."""
    warmup_steps: int = 10
    """Steps of linear warm-up."""
    decay_fraction: float = 0.5
    """Share of the run, at its end, over which wsd decays."""
    depth_warmup: float = 0.6
    """Share of the run over which blocks come in: a quarter of them for its first half, then half, then all. Only
    blocks that do nothing yet wait, as those of init zero, and none where not all is trained; each step without them is
    so much quicker."""
    min_lr_fraction: float = 0.0
    """Learning rate at the end of the run, as a share of the peak."""
    eval_interval: int = 50
    """Steps between evaluations; each also saves a checkpoint, draws the curve and writes a sample."""
    save_minutes: float = 5.0
    """Minutes between checkpoints where evaluations are further apart. 0: evaluations alone save."""
    seed: int = 1337
    """Seed of the weights, the batch order, dropout and the samples."""

    def __post_init__(self) -> None:
        check_types(self)
        check_limits(self, _LIMITS)
        known = re.fullmatch(r"all|last-[1-9]\d{0,3}|biases|lora", self.train)
        require(known is not None, f"train must be all, last-N (as last-2), biases or lora, not {shown(self.train)}")
        for name in ("steps", "batch_size", "eval_interval"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {shown(getattr(self, name))}")
        for name in ("minutes", "context", "micro_batch", "lanes", "warmup_steps", "weight_decay", "grad_clip", "seed"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, not {shown(getattr(self, name))}")
        require(self.save_minutes >= 0, f"save_minutes must not be negative, not {shown(self.save_minutes)}")
        for name in ("learning_rate", "muon_learning_rate"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {shown(getattr(self, name))}")
        for name in ("muon_momentum", "beta1", "beta2"):
            require(0.0 <= getattr(self, name) < 1.0, f"{name} must be in [0, 1), not {shown(getattr(self, name))}")
        for name in ("decay_fraction", "depth_warmup", "min_lr_fraction"):
            require(0.0 <= getattr(self, name) <= 1.0, f"{name} must be in [0, 1], not {shown(getattr(self, name))}")
