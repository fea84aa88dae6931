"""Whole runs by name."""

from dataclasses import replace
from typing import Any

from picogpt.config.data import DataConfig
from picogpt.config.model import ModelConfig
from picogpt.config.run import RunConfig
from picogpt.config.training import TrainConfig
from picogpt.errors import UserError

# The seeds' common ancestor: a lecture's GPT without q/k/v biases, with an untied, biased head and no context slot.
_LECTURE = ModelConfig(
    context_len=32,
    vocab_size=65,
    n_layer=4,
    n_head=4,
    n_embd=64,
    qkv_bias=False,
    activation="relu",
    attention_scale="width",
    tied_head=False,
    head_bias=True,
    init="torch",
    context_slot=False,
)

_CHARS = DataConfig(data="shakespeare", tokenizer="chars")


def _lecture_train(batch_size: int, steps: int, learning_rate: float, eval_interval: int) -> TrainConfig:
    """PyTorch's AdamW as it comes: a constant rate, no warm-up, no clipping."""
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        optimizer="adamw",
        learning_rate=learning_rate,
        beta2=0.999,
        weight_decay=0.01,
        grad_clip=0.0,
        warmup_steps=0,
        decay_fraction=0.0,
        depth_warmup=0.0,
        eval_interval=eval_interval,
    )


def _lecture_run(train: TrainConfig, **shape: Any) -> RunConfig:
    return RunConfig(replace(_LECTURE, **shape), _CHARS, train)


def _gpt2_run(n_layer: int, n_head: int, n_embd: int, **shape: Any) -> RunConfig:
    model = ModelConfig(1024, 50257, n_layer, n_head, n_embd, activation="gelu_tanh", init="gpt2", context_slot=False)
    return RunConfig(replace(model, **shape), _CHARS, TrainConfig(batch_size=4, learning_rate=6e-4))


def _neo_run(n_layer: int, n_head: int, n_embd: int) -> RunConfig:
    """GPT-Neo: every second block sees 256 tokens only, and scores are not scaled."""
    local: dict[str, Any] = {"layer_pattern": ("global", "local"), "local_window": 256}
    neo = {"context_len": 2048, "qkv_bias": False, "attention_scale": "none", **local}
    return _gpt2_run(n_layer, n_head, n_embd, **neo)


_EXERCISE = _lecture_train(16, 5_000, 1e-3, 100)

PRESETS: dict[str, RunConfig] = {
    "pico": RunConfig(),
    "gpt-neo-efficiency": _lecture_run(_lecture_train(512, 10_000, 1e-3, 100), context_len=50, n_layer=5),
    "gpt-neo-speed": _lecture_run(_lecture_train(16, 5_000, 1e-3, 100), context_len=16, n_layer=5),
    "lecture": _lecture_run(
        _lecture_train(64, 5_000, 3e-4, 500),
        context_len=256,
        n_layer=6,
        n_head=6,
        n_embd=384,
        attention_scale="head",
        dropout=0.2,
        init="normal",
    ),
    "bigram": _lecture_run(_lecture_train(32, 3_000, 1e-2, 300), context_len=8, n_layer=0, n_head=1, n_embd=65),
    "exercise-base": _lecture_run(_EXERCISE),
    "exercise-iterations": _lecture_run(replace(_EXERCISE, steps=10_000)),
    "exercise-block": _lecture_run(_EXERCISE, context_len=64),
    "exercise-heads": _lecture_run(_EXERCISE, n_head=8),
    # The fewest seconds to the loss of nanoGPT's run on a CPU: what `picogpt bench time-to-loss` measures.
    "race": RunConfig(
        ModelConfig(context_len=64, vocab_size=65, n_layer=2, n_head=2, n_embd=128, context_slot=False),
        _CHARS,
        TrainConfig(
            batch_size=24,
            steps=260,
            learning_rate=0.02,
            muon_learning_rate=0.05,
            muon_momentum=0.75,
            warmup_steps=4,
            depth_warmup=0.0,
            eval_interval=20,
        ),
    ),
    "gpt2": _gpt2_run(12, 12, 768),
    "gpt2-medium": _gpt2_run(24, 16, 1024),
    "gpt2-large": _gpt2_run(36, 20, 1280),
    "gpt2-xl": _gpt2_run(48, 25, 1600),
    "gpt-neo-125m": _neo_run(12, 12, 768),
    "gpt-neo-350m": _neo_run(24, 16, 1024),
    "gpt-neo-1.3b": _neo_run(24, 16, 2048),
    "gpt-neo-2.7b": _neo_run(32, 20, 2560),
}

# For a model that knows a language already: small steps that keep what it knows, and soon a look at how it gets on.
_FINE_TUNING = TrainConfig(
    steps=200,
    batch_size=8,
    optimizer="adamw",
    learning_rate=5e-5,
    beta2=0.999,
    weight_decay=0.01,
    depth_warmup=0.0,
    eval_interval=20,
)

_FINE_TUNING_CONTEXT = 256

_CHARACTERS = ("picogpt", "chars")  # tokenizers of which every token is one

_FEW = 10  # times the learning rate, where little is trained beside frozen matrices


def fine_tuning(origin: RunConfig, start: RunConfig, train: str) -> RunConfig:
    """What the defaults of a run are that begins from `origin`: its shape, and the settings of `start`.

    Those are for training from scratch. Where tokens are not characters the model knows a language from a large text,
    and they would wreck it: then the settings are of another kind. train: what is trained.
    """
    model, settings = replace(origin.model, lora_rank=0), start.train
    if origin.data.tokenizer not in _CHARACTERS:
        rate = _FINE_TUNING.learning_rate * (_FEW if train in ("biases", "lora") else 1)
        context = _FINE_TUNING_CONTEXT if model.context_len > _FINE_TUNING_CONTEXT else 0
        settings = replace(_FINE_TUNING, learning_rate=rate, context=context)
    return RunConfig(model, start.data, settings)


def preset(name: str) -> RunConfig:
    """The named run. Raises UserError with the known names."""
    if name not in PRESETS:
        raise UserError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
