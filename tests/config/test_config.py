"""Presets to the last parameter, and a UserError that names the field for every bad value."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.config import DataConfig, GenerateConfig, ModelConfig, RunConfig, TrainConfig
from picogpt.config.presets import PRESETS, preset
from picogpt.errors import UserError
from picogpt.model.parameters import parameter_count

COUNTS = {
    "pico": 6_374_144,
    "swift": 4_772_096,  # without the rows of its tokens
    "gpt-neo-efficiency": 260_673,
    "gpt-neo-speed": 258_497,
    "lecture": 10_788_929,
    "bigram": 4_225,
    "exercise-base": 209_729,
    "exercise-iterations": 209_729,
    "exercise-block": 211_777,
    "exercise-heads": 209_729,
    "race": 413_312,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt-neo-125m": 125_198_592,
    "gpt-neo-350m": 355_798_016,
    "gpt-neo-1.3b": 1_315_575_808,
    "gpt-neo-2.7b": 2_651_307_520,
}

# block, width, heads, layers, batch, steps, learning rate
SHAPES = {
    "gpt-neo-efficiency": (50, 64, 4, 5, 512, 10_000, 1e-3),
    "gpt-neo-speed": (16, 64, 4, 5, 16, 5_000, 1e-3),
    "lecture": (256, 384, 6, 6, 64, 5_000, 3e-4),
    "exercise-base": (32, 64, 4, 4, 16, 5_000, 1e-3),
    "exercise-iterations": (32, 64, 4, 4, 16, 10_000, 1e-3),
    "exercise-block": (64, 64, 4, 4, 16, 5_000, 1e-3),
    "exercise-heads": (32, 64, 8, 4, 16, 5_000, 1e-3),
}


def test_every_preset_has_a_count() -> None:
    assert set(COUNTS) == set(PRESETS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    model = preset(name).model
    table = (model.context_len + model.context_slot) * model.n_embd if model.n_layer else 0
    assert parameter_count(model) == (COUNTS[name], COUNTS[name] - table)


def test_the_counts_every_issue_speaks_of() -> None:
    assert parameter_count(preset("pico").model) == (6_374_144, 6_341_120)
    assert parameter_count(preset("gpt2").model) == (124_439_808, 124_439_808 - 1024 * 768)


@pytest.mark.parametrize("name", SHAPES)
def test_preset_shapes(name: str) -> None:
    model, train = preset(name).model, preset(name).train
    shape = (model.context_len, model.n_embd, model.n_head, model.n_layer)
    assert (*shape, train.batch_size, train.steps, train.learning_rate) == SHAPES[name]
    assert (train.optimizer, train.context) == ("adamw", 0)
    assert (model.activation, model.tied_head, model.head_bias, model.qkv_bias) == ("relu", False, True, False)
    assert not model.context_slot and model.vocab_size == 65
    assert preset(name).data == DataConfig(data="shakespeare", tokenizer="chars")


def test_what_sets_a_preset_apart() -> None:
    for name in ("gpt-neo-efficiency", "gpt-neo-speed"):
        assert preset(name).model.attention_scale == "width" and preset(name).model.dropout == 0
    lecture = preset("lecture").model
    assert (lecture.dropout, lecture.init, lecture.attention_scale) == (0.2, "normal", "head")
    bigram, train = preset("bigram").model, preset("bigram").train
    assert (bigram.n_layer, bigram.context_len) == (0, 8)
    assert (train.batch_size, train.steps, train.learning_rate) == (32, 3_000, 1e-2)
    pico = preset("pico").model
    assert (pico.context_len, pico.vocab_size, pico.n_layer, pico.n_head, pico.n_embd) == (128, 88, 8, 8, 256)
    assert pico.bias and pico.tied_head and pico.context_slot and pico.dropout == 0
    assert preset("gpt2").model.activation == "gelu_tanh"


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="no preset is called 'GPT'; there are pico, swift, gpt-neo-efficiency"):
        preset("GPT")


BAD = [
    *[(ModelConfig, name, 0) for name in ("context_len", "vocab_size", "n_head", "n_embd", "local_window")],
    *[(ModelConfig, name, -3) for name in ("context_len", "vocab_size", "n_head", "n_embd", "n_layer")],
    (ModelConfig, "n_embd", 255),
    (ModelConfig, "n_head", 3),
    (ModelConfig, "dropout", 1.0),
    (ModelConfig, "dropout", -0.1),
    (ModelConfig, "dropout", float("nan")),
    (ModelConfig, "activation", "swish"),
    (ModelConfig, "attention_scale", 8),
    (ModelConfig, "init", ["gpt2"]),
    (ModelConfig, "layer_pattern", ()),
    (ModelConfig, "layer_pattern", ("global", "sliding")),
    (DataConfig, "tokenizer", "gpt2"),
    (DataConfig, "val_fraction", -0.1),
    (DataConfig, "data", ()),
    (DataConfig, "qa", "question"),
    (DataConfig, "data_limit", "much"),
    (DataConfig, "val_fraction", 1.0),
    (DataConfig, "val_fraction", float("nan")),
    *[(TrainConfig, name, 0) for name in ("steps", "batch_size", "eval_interval", "learning_rate")],
    *[(TrainConfig, name, -1) for name in ("minutes", "context", "micro_batch", "lanes", "warmup_steps", "seed")],
    *[(TrainConfig, name, -0.5) for name in ("weight_decay", "grad_clip", "learning_rate", "muon_learning_rate")],
    *[(TrainConfig, name, float("nan")) for name in ("minutes", "learning_rate", "grad_clip", "beta1")],
    *[(TrainConfig, name, 1.0) for name in ("beta1", "beta2")],
    *[(TrainConfig, name, 1.5) for name in ("decay_fraction", "min_lr_fraction")],
    (TrainConfig, "optimizer", "sgd"),
    (TrainConfig, "schedule", "linear"),
    *[(GenerateConfig, name, -1) for name in ("tokens", "temperature", "top_k", "seed", "top_p")],
    (GenerateConfig, "temperature", float("nan")),
    (GenerateConfig, "top_p", 0.0),
    (GenerateConfig, "top_p", 1.01),
    *[(ModelConfig, name, 10**7) for name in ("context_len", "vocab_size", "n_layer", "n_head", "n_embd")],
    (ModelConfig, "layer_pattern", ("global",) * 1025),
    *[(TrainConfig, name, 10**13) for name in ("steps", "context", "batch_size", "micro_batch", "lanes")],
    *[(TrainConfig, name, 10**20) for name in ("seed", "warmup_steps", "eval_interval")],
    *[(GenerateConfig, name, 10**10) for name in ("tokens", "samples", "top_k", "overlap")],
    (GenerateConfig, "seed", 10**20),
    (GenerateConfig, "stop", "x" * 10_001),
    (DataConfig, "data", "x" * 40_000),
    (DataConfig, "data", ("x",) * 100_001),
    (DataConfig, "data_limit", "9" * 400),
    *[(DataConfig, name, "x," * 1000) for name in ("text_field", "qa")],
]


@pytest.mark.parametrize(("kind", "name", "value"), BAD)
def test_a_bad_value_is_refused_by_name(kind: type, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"\b{name}\b") as error:
        kind(**{name: value})
    assert "\n" not in str(error.value)


def test_the_sequence_is_within_the_window_or_a_multiple_of_it() -> None:
    assert RunConfig(train=TrainConfig(context=1280)).context == 1280
    assert RunConfig().context == 128
    with pytest.raises(
        UserError, match=r"context \(300\) must be at most the window \(128\) or a multiple of it: try --context 256"
    ):
        RunConfig(train=TrainConfig(context=300))
    assert (RunConfig(train=TrainConfig(context=100)).window, RunConfig(train=TrainConfig(context=256)).window) == (
        100,
        128,
    )
    with pytest.raises(UserError, match="needs a model with a context slot"):
        RunConfig(ModelConfig(context_slot=False), train=TrainConfig(context=256))


def test_edges_that_are_allowed() -> None:
    ModelConfig(n_layer=0, dropout=0.999, n_head=1, n_embd=1, vocab_size=1, context_len=1, local_window=1)
    TrainConfig(minutes=0.1, warmup_steps=0, grad_clip=0, weight_decay=0, decay_fraction=1.0, min_lr_fraction=1.0)
    GenerateConfig(tokens=0, temperature=0, top_k=0, top_p=1e-9, seed=0)


def test_large_models_that_exist() -> None:
    ModelConfig(1024, 50_257, 48, 25, 1600)  # GPT-2 XL
    ModelConfig(2048, 50_257, 32, 20, 2560, attention_scale="none", layer_pattern=("global", "local"))  # GPT-Neo 2.7B
    ModelConfig(2048, 50_257, 96, 96, 12_288, layer_pattern=("global", "local") * 48)
    DataConfig(("x" * 200,) * 5000, data_limit="20.5 TB")


def test_layer_pattern_repeats() -> None:
    model = ModelConfig(n_layer=5, layer_pattern=("local", "local", "global"), local_window=7)
    assert [model.window_of(layer) for layer in range(5)] == [7, 7, 0, 7, 7]


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_through_json(name: str) -> None:
    model = replace(preset(name).model, layer_pattern=("local", "global"))
    config = replace(preset(name), model=model)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert RunConfig.from_dict(config.to_dict()) == config


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [(section, name) for section, values in RunConfig().to_dict().items() for name in values]


def read(content: Any) -> RunConfig | None:
    """The config, or None for a UserError of one line; anything else is raised."""
    try:
        return RunConfig.from_dict(content)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 300
        return None


@settings(max_examples=150, deadline=None)
@given(place=st.sampled_from(FIELDS), value=JSON)
def test_one_hostile_field(place: tuple[str, str], value: Any) -> None:
    content = RunConfig().to_dict()
    content[place[0]][place[1]] = value
    config = read(content)
    if config is not None:  # what is accepted is of the field's own type, a whole number for a float aside
        accepted = getattr(getattr(config, place[0]), place[1])
        default = getattr(getattr(RunConfig(), place[0]), place[1])
        allowed = (int, float) if isinstance(default, float) else (str, tuple) if place[1] == "data" else type(default)
        assert isinstance(accepted, allowed)


@pytest.mark.parametrize("place", FIELDS)
def test_a_field_of_the_wrong_type(place: tuple[str, str]) -> None:
    section, name = place
    texts = ("data", "text_field", "data_limit")  # "7" is one
    for value in [[7], None, {"a": 1}, 1j, *([] if name in texts else ["7", "x"])]:
        content = RunConfig().to_dict()
        content[section][name] = value
        with pytest.raises(UserError):
            RunConfig.from_dict(content)


@pytest.mark.parametrize(
    ("section", "name", "value"), [("model", "context_len", 16.5), ("model", "n_layer", 2.0), ("train", "steps", 9.5)]
)
def test_a_float_is_no_count(section: str, name: str, value: float) -> None:
    content = RunConfig().to_dict()
    content[section][name] = value
    with pytest.raises(UserError, match=name):
        RunConfig.from_dict(content)


@pytest.mark.parametrize("place", FIELDS)
def test_a_number_beyond_all_bounds(place: tuple[str, str]) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for value in (10**400, -(10**400), 10**5000, -(10**5000), 1e308, float("inf"), float("nan"), deep, ["x" * 10**6]):
        content = RunConfig().to_dict()
        content[place[0]][place[1]] = value
        read(content)


@settings(max_examples=100, deadline=None)
@given(content=JSON, sections=st.dictionaries(st.sampled_from(["model", "data", "train", "other"]), JSON))
def test_hostile_dicts(content: Any, sections: dict[str, Any]) -> None:
    read(content)
    read(sections)
    read({**RunConfig().to_dict(), **sections})


@pytest.mark.parametrize("section", ["model", "data", "train"])
@pytest.mark.parametrize(
    "value", ["ab", "abc", ["ab"], [1], None, 5, {}, {"nope": 1}, {"a\nb": 1}, {"\ud800\x1b": 1}, [["n_layer", 2]]]
)
def test_a_hostile_section(section: str, value: Any) -> None:
    read({**RunConfig().to_dict(), section: value})


def test_extra_and_missing_keys_are_refused() -> None:
    content = RunConfig().to_dict()
    content["model"]["n_expert"] = 8
    with pytest.raises(UserError, match="n_expert"):
        RunConfig.from_dict(content)
    with pytest.raises(UserError, match="train"):
        RunConfig.from_dict({"model": RunConfig().to_dict()["model"], "data": {}})
    with pytest.raises(UserError):
        RunConfig.from_dict({})


def test_a_run_from_before_there_was_a_choice_keeps_what_it_had() -> None:
    fields = RunConfig().to_dict()
    del fields["train"]["muon_momentum"], fields["train"]["depth_warmup"]
    train = RunConfig.from_dict(fields).train
    assert (train.muon_momentum, train.depth_warmup) == (0.95, 0.0)
