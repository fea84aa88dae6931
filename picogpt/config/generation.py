"""The settings of sampling text."""

from dataclasses import dataclass
from typing import Literal, Optional

from picogpt.config.validation import check_limits, check_types
from picogpt.errors import require, shown

Precision = Literal["fp32", "int8", "int4"]
Context = Literal["auto", "rolling", "window", "original"]

_LIMITS = {"tokens": 10**9, "samples": 1 << 16, "top_k": 10**9, "overlap": 1 << 20, "stop": 10_000}
_LIMITS |= {"seed": (1 << 64) - 1}


@dataclass(frozen=True)
class GenerateConfig:
    """How text is sampled."""

    tokens: int = 256
    """Tokens to generate."""
    temperature: float = 0.5
    """Sharpness of the choice; 0 is greedy."""
    # Optional, because the command line's parser takes 50 ms more to start for a union written with a bar.
    top_k: Optional[int] = None  # noqa: UP045
    """Keep only the k likeliest tokens, ties included. 0: all. Default: 40 of a byte-level BPE vocabulary, else all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability."""
    seed: Optional[int] = None  # noqa: UP045
    """Seed of the choice. Default: a new one each time."""
    samples: int = 1
    """Number of texts, written side by side, each with random choices of its own."""
    stop: str = ""
    """End before this text, which is not printed."""
    context: Context = "auto"
    """When a window is full: rolling continues with its mean in the slot of the next; window with its last tokens
    alone; original cuts and reads everything again after every token, as PicoGPT did. auto: rolling where the model was
    trained so, on sequences longer than a window, else window."""
    overlap: Optional[int] = None  # noqa: UP045
    """Tokens that a window reads again of the one before. Default: an eighth of a window."""

    def __post_init__(self) -> None:
        check_types(self)
        check_limits(self, _LIMITS)
        require(self.tokens >= 0, f"tokens must not be negative, not {shown(self.tokens)}")
        require(self.samples >= 1, f"samples must be at least 1, not {shown(self.samples)}")
        require(self.overlap is None or self.overlap >= 0, f"overlap must not be negative, not {shown(self.overlap)}")
        require(self.temperature >= 0, f"temperature must not be negative, not {shown(self.temperature)}")
        require(self.top_k is None or self.top_k >= 0, f"top_k must not be negative, not {shown(self.top_k)}")
        require(0.0 < self.top_p <= 1.0, f"top_p must be in (0, 1], not {shown(self.top_p)}")
        require(self.seed is None or self.seed >= 0, f"seed must not be negative, not {shown(self.seed)}")
