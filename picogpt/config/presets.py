"""Whole runs by name, and the settings of fine-tuning."""

from collections.abc import Sequence
from dataclasses import replace

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

_GPT2 = ModelConfig(1024, 50257, 12, 12, 768, activation="gelu_tanh", init="gpt2", context_slot=False)

# Every second block sees 256 tokens only, and scores are not scaled.
_NEO = replace(
    _GPT2,
    context_len=2048,
    qkv_bias=False,
    attention_scale="none",
    layer_pattern=("global", "local"),
    local_window=256,
)

_CHARS = DataConfig(data="shakespeare", tokenizer="chars")

# A small model of any text that writes well soon.
_SWIFT = RunConfig(
    ModelConfig(vocab_size=1, n_layer=6, context_slot=False),  # the vocabulary grows to the tokenizer's
    DataConfig(tokenizer="bpe"),
    TrainConfig(steps=4000, muon_learning_rate=0.02, eval_interval=100),
)
_LEARNABLE = 50_000  # bytes of text below which a run takes characters: a choice, not measured yet
# Texts that PicoGPT's table is for.
_ENGLISH = "sample", "shakespeare", "wiki", "wiki-simple", "wiki:en", "wiki:simple"


def _lecture_train(batch_size: int, steps: int, learning_rate: float, eval_interval: int) -> TrainConfig:
    """Return the defaults of PyTorch's AdamW: a constant rate, no warm-up, no clipping."""
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


def _large_run(model: ModelConfig, n_layer: int, n_head: int, n_embd: int) -> RunConfig:
    shape = replace(model, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    return RunConfig(shape, _CHARS, TrainConfig(batch_size=4, learning_rate=6e-4))


_EXERCISE = _lecture_train(16, 5_000, 1e-3, 100)

PRESETS: dict[str, RunConfig] = {
    "pico": RunConfig(),
    "swift": _SWIFT,
    "gpt-neo-efficiency": RunConfig(
        replace(_LECTURE, context_len=50, n_layer=5), _CHARS, _lecture_train(512, 10_000, 1e-3, 100)
    ),
    "gpt-neo-speed": RunConfig(replace(_LECTURE, context_len=16, n_layer=5), _CHARS, _EXERCISE),
    "lecture": RunConfig(
        replace(
            _LECTURE,
            context_len=256,
            n_layer=6,
            n_head=6,
            n_embd=384,
            attention_scale="head",
            dropout=0.2,
            init="normal",
        ),
        _CHARS,
        _lecture_train(64, 5_000, 3e-4, 500),
    ),
    "bigram": RunConfig(
        replace(_LECTURE, context_len=8, n_layer=0, n_head=1, n_embd=65),
        _CHARS,
        _lecture_train(32, 3_000, 1e-2, 300),
    ),
    "exercise-base": RunConfig(_LECTURE, _CHARS, _EXERCISE),
    "exercise-iterations": RunConfig(_LECTURE, _CHARS, replace(_EXERCISE, steps=10_000)),
    "exercise-block": RunConfig(replace(_LECTURE, context_len=64), _CHARS, _EXERCISE),
    "exercise-heads": RunConfig(replace(_LECTURE, n_head=8), _CHARS, _EXERCISE),
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
    "gpt2": _large_run(_GPT2, 12, 12, 768),
    "gpt2-medium": _large_run(_GPT2, 24, 16, 1024),
    "gpt2-large": _large_run(_GPT2, 36, 20, 1280),
    "gpt2-xl": _large_run(_GPT2, 48, 25, 1600),
    "gpt-neo-125m": _large_run(_NEO, 12, 12, 768),
    "gpt-neo-350m": _large_run(_NEO, 24, 16, 1024),
    "gpt-neo-1.3b": _large_run(_NEO, 24, 16, 2048),
    "gpt-neo-2.7b": _large_run(_NEO, 32, 20, 2560),
}

# For a model that knows a language already: small steps, so that it does not forget, and frequent evaluations.
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
_FEW_TRAINED = 10  # times the learning rate, where little is trained beside frozen matrices
_TUNED = tuple(_FINE_TUNING.learning_rate * factor for factor in (1, _FEW_TRAINED))


def fine_tuning(origin: RunConfig, start: RunConfig, train: str, is_foreign: bool) -> RunConfig:
    """Return the default settings of a run that begins from the model of `origin`, with the data of `start`.

    The settings of `start` are for training from scratch. They would ruin a model of another program that has learned a
    language from a large text, and one that was tuned from it: these get settings for fine-tuning. train: what is
    trained. is_foreign: the model is such a one, as it was imported.
    """
    model, settings = replace(origin.model, lora_rank=0), start.train
    if is_foreign or origin.train.learning_rate in _TUNED:
        rate = _FINE_TUNING.learning_rate * (_FEW_TRAINED if train in ("biases", "lora") else 1)
        context = _FINE_TUNING_CONTEXT if model.context_len > _FINE_TUNING_CONTEXT else 0
        settings = replace(_FINE_TUNING, learning_rate=rate, context=context)
    return RunConfig(model, start.data, settings)


def preset_for(names: Sequence[str], tokenizer: str) -> str:
    """Return the preset of a text where the user names none: PicoGPT's model for the texts it was made for.

    names: of the text. tokenizer: the one that is asked for, or "".
    """
    return "pico" if tokenizer == "picogpt" or set(names) <= set(_ENGLISH) else "swift"


def tokenizer_for(start: DataConfig, size: int | None) -> str:
    """Return the tokenizer of a preset's data for a text of so many bytes: one that is learnt needs enough of them."""
    return "chars" if start.tokenizer == "bpe" and size is not None and size < _LEARNABLE else start.tokenizer


def preset(name: str) -> RunConfig:
    """Return the run of this name. Raises UserError with the known names."""
    if name not in PRESETS:
        raise UserError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
