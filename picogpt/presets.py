"""Whole runs by name."""

from dataclasses import replace
from typing import Any

from picogpt.config import DataConfig, ModelConfig, RunConfig, TrainConfig, UserError

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
    "gpt2": RunConfig(
        ModelConfig(1024, 50257, 12, 12, 768, activation="gelu_tanh", init="gpt2", context_slot=False),
        _CHARS,
        TrainConfig(batch_size=4, learning_rate=6e-4),
    ),
}


def preset(name: str) -> RunConfig:
    """The named run. Raises UserError with the known names."""
    if name not in PRESETS:
        raise UserError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
