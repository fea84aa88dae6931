"""Every setting of a run, as frozen dataclasses.

A field's docstring is its help text on the command line, which is generated from these classes.
Zero means "choose for me" wherever a docstring says so.
"""

import re
from dataclasses import asdict, dataclass, field, replace
from math import sqrt
from typing import Any, Literal, Optional

from picogpt.fields import UserError, check_most, check_types, foreign, install_extra, require, shown

__all__ = [
    "DataConfig",
    "GenerateConfig",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "UserError",
    "WatchConfig",
    "install_extra",
    "shown",
]

Activation = Literal["relu", "gelu", "gelu_tanh"]
AttentionScale = Literal["head", "width", "none"]
AttentionSpan = Literal["global", "local"]
Init = Literal["zero", "gpt2", "normal", "torch"]
Precision = Literal["fp32", "int8", "int4"]
TokenizerName = Literal["picogpt", "chars", "bpe", "ids"]
Context = Literal["auto", "rolling", "window", "original"]

_MODEL_MOST = {"context_len": 1 << 20, "vocab_size": 1 << 22, "n_layer": 1024, "n_head": 1 << 16, "n_embd": 1 << 16}
_MODEL_MOST |= {"local_window": 1 << 20, "layer_pattern": 1024, "lora_rank": 1 << 16}
_DATA_MOST = {"text_field": 1000, "qa": 1000, "data_limit": 32}
_TRAIN_MOST = {"steps": 10**12, "context": 1 << 30, "batch_size": 1 << 20, "micro_batch": 1 << 20, "lanes": 4096}
_TRAIN_MOST |= {"warmup_steps": 10**12, "eval_interval": 10**12, "seed": (1 << 64) - 1}
_GENERATE_MOST = {"tokens": 10**9, "samples": 1 << 16, "top_k": 10**9, "overlap": 1 << 20, "stop": 10_000}
_GENERATE_MOST |= {"seed": (1 << 64) - 1}
_NAMES_MOST, _NAME_MOST = 100_000, 32_767  # files of a text, and characters of the longest path there is


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT. The defaults are PicoGPT's 6.34 million parameters."""

    context_len: int = 128
    """Tokens in one window."""
    vocab_size: int = 88
    """Rows of the token table; it grows to the corpus when the tokenizer has more characters."""
    n_layer: int = 8
    """Blocks. With no block at all the model is a bigram table."""
    n_head: int = 8
    """Attention heads a block."""
    n_embd: int = 256
    """Width of the residual stream."""
    bias: bool = True
    """Biases in the linear layers (q, k and v follow qkv_bias)."""
    qkv_bias: bool = True
    """Biases in the q, k and v projections."""
    activation: Activation = "gelu"
    """Non-linearity of the MLP; gelu is the exact (erf) form."""
    attention_scale: AttentionScale = "head"
    """Scores are divided by the square root of the head size, of the width, or not at all."""
    layer_pattern: tuple[AttentionSpan, ...] = ("global",)
    """Attention span of each block, repeated over the blocks: "global", or "local" within local_window."""
    local_window: int = 256
    """Tokens a local block sees, the current one included."""
    tied_head: bool = True
    """The head shares the token table."""
    head_bias: bool = False
    """A bias in the head."""
    dropout: float = 0.0
    """Probability of dropping an activation in training."""
    init: Init = "zero"
    """gpt2: N(0, 0.02), residual projections scaled down; zero: with these projections zero, so that a block begins as
    the identity; normal: N(0, 0.02); torch: PyTorch's layer defaults."""
    context_slot: bool = True
    """Slot 0 of every window holds the rolling mean context."""
    lora_rank: int = 0
    """Rank of the low-rank matrices that --train lora puts beside those of the blocks. 0: 8 there, else none."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("context_len", "vocab_size", "n_head", "n_embd", "local_window"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {shown(getattr(self, name))}")
        check_most(self, _MODEL_MOST)
        for name in ("n_layer", "lora_rank"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, not {shown(getattr(self, name))}")
        require(
            self.n_embd % self.n_head == 0,
            f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})",
        )
        require(0.0 <= self.dropout < 1.0, f"dropout must be in [0, 1), not {shown(self.dropout)}")
        require(len(self.layer_pattern) > 0, "layer_pattern needs at least one of global, local")
        for span in self.layer_pattern:
            require(span in ("global", "local"), f"layer_pattern holds global or local, not {shown(span)}")

    @classmethod
    def from_dict(cls, fields: Any) -> "ModelConfig":
        """Of plain builtins, as JSON has them. Raises UserError on a foreign or ill-typed field."""
        try:
            return cls(**{**fields, "layer_pattern": tuple(fields["layer_pattern"])})
        except (KeyError, TypeError) as error:
            raise foreign(error) from None

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def score_scale(self) -> float:
        """What attention's scores are multiplied by."""
        return 1 / sqrt({"head": self.head_size, "width": self.n_embd, "none": 1}[self.attention_scale])

    @property
    def can_roll(self) -> bool:
        """Whether a context vector can go from window to window: a bigram table has none to give."""
        return self.context_slot and self.n_layer > 0

    @property
    def n_position(self) -> int:
        """Rows of the position table: one a token, one more for the context slot."""
        return self.context_len + self.context_slot

    @property
    def has_large_head(self) -> bool:
        """Whether the head is larger than the matrices of a block, and worth few bits as they are."""
        return self.n_layer > 0 and self.vocab_size > 4 * self.n_embd

    def window_of(self, layer: int) -> int:
        """Tokens block `layer` sees; 0 means all of them."""
        span = self.layer_pattern[layer % len(self.layer_pattern)]
        return self.local_window if span == "local" else 0

    def cache_of(self, layer: int) -> int:
        """Positions whose keys and values block `layer` has room for when decoding (inference/sliding.py)."""
        return min(self.n_position, 2 * self.window_of(layer) or self.n_position)


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how text becomes ids."""

    data: str | tuple[str, ...] = "sample"
    """sample (the embedded articles), shakespeare (downloaded once), wiki, wiki-simple, wiki:LANGUAGE or
    hf:OWNER/NAME[:CONFIG] (streamed while training), any files or folders of text (.txt, .md, .jsonl, .parquet, also
    compressed), or - for the standard input."""
    tokenizer: TokenizerName = "picogpt"
    """picogpt: PicoGPT's lower-case table of 88; chars: the characters of the corpus; bpe, ids: those of an imported
    model, which --init-from brings."""
    val_fraction: float = 0.0
    """Share kept for validation. 0: a tenth at the end of one text, one in twenty of many documents."""
    text_field: str = "text"
    """The field of JSON lines, or the column of parquet files, that is the text."""
    qa: str = ""
    """Two fields instead, as "question,response": documents become <Q>..</Q> and <A>..</A>."""
    data_limit: str = ""
    """How much of a streamed data set to keep on the disk, such as 500MB. Default: a quarter of what is free, at most
    20GB; a twentieth of the disk always stays free."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            bool(self.names) and all(type(name) is str for name in self.names),
            f"data must be names, not {shown(self.data)}",
        )
        require(0.0 <= self.val_fraction < 1.0, f"val_fraction must be between 0 and 1, not {shown(self.val_fraction)}")
        require(len(self.names) <= _NAMES_MOST, f"data must not be more than {_NAMES_MOST:,} names")
        require(max(map(len, self.names)) <= _NAME_MOST, f"data must not have names longer than {_NAME_MOST:,}")
        check_most(self, _DATA_MOST)
        require(
            not self.qa or len([name for name in self.qa.split(",") if name.strip()]) == 2,
            f"qa names two fields, such as question,response, not {shown(self.qa)}",
        )
        require(
            not self.data_limit or self.limit_bytes > 0,
            f"data_limit is a size such as 500MB, not {shown(self.data_limit)}",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All that `data` names."""
        return self.data if isinstance(self.data, tuple) else (self.data,)

    @property
    def unit(self) -> str:
        """What a token is."""
        return "char" if self.tokenizer in ("picogpt", "chars") else "token"

    @property
    def limit_bytes(self) -> int:
        """data_limit in bytes; 0 for none, or for one that is no size."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", self.data_limit.strip().upper())
        return int(float(match[1]) * 1000 ** " KMGT".index(match[2] or " ")) if match else 0


@dataclass(frozen=True)
class TrainConfig:
    """How a run trains."""

    train: str = "all"
    """What is trained: all; last-N, that many blocks and the last norm; biases alone; lora, low-rank matrices beside
    those of the blocks. What is not takes no memory for gradients."""
    steps: int = 2000
    """Optimizer steps."""
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
    """Train in as little memory as can be: one lane, one sequence at a time, recomputed."""
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
        check_most(self, _TRAIN_MOST)
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


@dataclass(frozen=True)
class WatchConfig:
    """How a run is watched and its machine spared. A checkpoint holds nothing of it, and no bit depends on it."""

    tensorboard: bool = False
    """Write TensorBoard's event files too, to logs/RUN/tensorboard."""
    dashboard: str = ""
    """Serve a live page: at this port of 127.0.0.1 (8050 where none is given), or at ADDRESS:PORT, then with a token
    in its address."""
    max_temperature: float = 0.0
    """Degrees Celsius from which on training pauses to let the processor cool. 0: five below what its sensor calls
    critical."""
    min_battery: int = 20
    """Percent of the battery under which training saves and waits for the mains. 0: never."""

    def __post_init__(self) -> None:
        check_types(self)
        require(0 <= self.max_temperature <= 200, f"max_temperature must be in [0, 200], not {self.max_temperature}")
        require(0 <= self.min_battery <= 100, f"min_battery must be in [0, 100], not {self.min_battery}")


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
    """Seed of the choice; none draws a new one each time."""
    samples: int = 1
    """So many texts side by side, each with draws of its own."""
    stop: str = ""
    """End where this text comes, and leave it out."""
    context: Context = "auto"
    """When a window is full: rolling goes on with its mean in the slot of the next; window with its last tokens alone;
    original cuts and reads everything again after every token, as PicoGPT did. auto: rolling where the model was
    trained so, on sequences longer than a window, else window."""
    overlap: Optional[int] = None  # noqa: UP045
    """Tokens that a window reads again of the one before. Default: an eighth of a window."""

    def __post_init__(self) -> None:
        check_types(self)
        check_most(self, _GENERATE_MOST)
        require(self.tokens >= 0, f"tokens must not be negative, not {shown(self.tokens)}")
        require(self.samples >= 1, f"samples must be at least 1, not {shown(self.samples)}")
        require(self.overlap is None or self.overlap >= 0, f"overlap must not be negative, not {shown(self.overlap)}")
        require(self.temperature >= 0, f"temperature must not be negative, not {shown(self.temperature)}")
        require(self.top_k is None or self.top_k >= 0, f"top_k must not be negative, not {shown(self.top_k)}")
        require(0.0 < self.top_p <= 1.0, f"top_p must be in (0, 1], not {shown(self.top_p)}")
        require(self.seed is None or self.seed >= 0, f"seed must not be negative, not {shown(self.seed)}")


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
            raise foreign(error) from None
