"""Hugging Face's GPT-2 and GPT-Neo: what transformers' logits are, strictly read, and written again to the bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from picogpt.config import ModelConfig
from picogpt.engine.bfloat16 import widened
from picogpt.engine.mapped_matrix import MappedMatrix
from picogpt.errors import UserError
from picogpt.interop.foreign_model import array_of
from picogpt.interop.huggingface.reader import read_huggingface
from picogpt.interop.huggingface.writer import write_huggingface
from picogpt.model.gpt import GPT
from picogpt.model.initialization import initial_arrays
from picogpt.model.parameters import as_tensors
from picogpt.model.rolling_context import sequence_logits
from picogpt.tensorfiles.safetensors import read_safetensors
from tests.support.hf import CONFIGS, FAMILIES, GOLDEN, LOGITS, container, rounded, weights_of, write_folder
from tests.support.torchfiles import save, tensor


def arrays_of(folder: Path, as_bfloat16: bool = False) -> dict[str, Any]:
    return {name: array_of(pieces, as_bfloat16) for name, pieces in read_huggingface(folder).weights.items()}


def logits_of(folder: Path) -> np.ndarray:
    model = GPT(read_huggingface(folder).model, as_tensors(arrays_of(folder)))
    return np.asarray(sequence_logits(model, np.array([LOGITS["ids"]])).data[0, LOGITS["positions"]])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_that_transformers_wrote(family: str) -> None:
    found = read_huggingface(GOLDEN / family)
    assert found.family == family and found.end_of_text == 60
    assert (found.model.context_len, found.model.n_layer, found.model.n_head, found.model.n_embd) == (640, 4, 4, 16)
    assert np.abs(logits_of(GOLDEN / family) - LOGITS[family]["float32"]).max() < 1e-4


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_number_and_file(tmp_path: Path, family: str, kind: str, name: str, shards: int) -> None:
    folder = write_folder(tmp_path / "model", CONFIGS[family], weights_of(family), kind, name, shards)
    assert np.abs(logits_of(folder) - LOGITS[family][kind]).max() < 1e-4
    forms = {type(array) for array in arrays_of(folder).values() if array.ndim == 2}
    assert forms == ({np.ndarray} if kind == "float32" else {MappedMatrix})


@pytest.mark.parametrize("family", FAMILIES)
def test_names_without_a_prefix_and_no_model_type(tmp_path: Path, family: str) -> None:
    weights = {name.removeprefix("transformer."): array for name, array in weights_of(family).items()}
    config = {name: value for name, value in CONFIGS[family].items() if name != "model_type"}
    folder = write_folder(tmp_path / "model", config, weights)
    assert np.abs(logits_of(folder / "model.safetensors") - LOGITS[family]["float32"]).max() < 1e-4


@pytest.mark.parametrize("window", [255, 257])
def test_a_window_off_by_one_would_be_seen(tmp_path: Path, window: int) -> None:
    folder = write_folder(tmp_path / "model", {**CONFIGS["gpt_neo"], "window_size": window}, weights_of("gpt_neo"))
    wrong = np.abs(logits_of(folder) - LOGITS["gpt_neo"]["float32"]).max(axis=1)
    first = LOGITS["positions"].index(min(window, 256))
    assert wrong[:first].max() < 1e-4 and wrong[first:].min() > 5e-4


def test_float32_whose_lower_halves_are_zero_takes_two_bytes(tmp_path: Path) -> None:
    weights = {name: widened(rounded(array, "bfloat16")) for name, array in weights_of("gpt_neo").items()}
    folder = write_folder(tmp_path / "model", CONFIGS["gpt_neo"], weights)
    arrays = arrays_of(folder)
    assert all(array.raw.dtype == np.uint16 for array in arrays.values() if array.ndim == 2)
    assert np.abs(logits_of(folder) - LOGITS["gpt_neo"]["bfloat16"]).max() < 1e-4
    weights["transformer.h.0.mlp.c_fc.weight"][3, 5] += np.float32(1e-6)
    folder = write_folder(tmp_path / "other", CONFIGS["gpt_neo"], weights)
    forms = {name: type(array) for name, array in arrays_of(folder).items() if array.ndim == 2}
    assert [name for name, form in forms.items() if form is np.ndarray] == ["h.0.mlp.c_fc.weight"]


def test_rounding_is_to_the_nearest_and_only_when_asked(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", CONFIGS["gpt2"], weights_of("gpt2"))
    asked, exact = arrays_of(folder, as_bfloat16=True), arrays_of(folder)
    for name, array in exact.items():
        assert isinstance(array, np.ndarray)
        expected = widened(rounded(array, "bfloat16")) if array.ndim == 2 else array
        assert np.array_equal(np.asarray(asked[name]), expected), name


def broken(weights: dict[str, np.ndarray], how: str) -> dict[str, np.ndarray]:
    weights = dict(weights)
    match how:
        case "missing":
            del weights["transformer.h.1.ln_1.weight"]
        case "unexpected":
            weights["score.weight"] = np.zeros((2, 16), np.float32)
        case "misshapen":
            weights["transformer.wpe.weight"] = weights["transformer.wpe.weight"][:-1]
        case "twice":
            weights["wte.weight"] = weights["transformer.wte.weight"]
        case "another head":
            weights["lm_head.weight"] = weights["transformer.wte.weight"] + 1
    return weights


FAULTS = {
    "missing": "missing: h.1.ln_1.weight",
    "unexpected": "unexpected: score.weight",
    "misshapen": r"misshapen: wpe.weight \(639, 16\), not \(640, 16\)",
    "twice": "wte.weight twice, with and without a prefix",
    "another head": "lm_head.weight differs from the token table",
}


@pytest.mark.parametrize("how", FAULTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_does_not_fit_is_named(tmp_path: Path, family: str, how: str) -> None:
    folder = write_folder(tmp_path / "model", CONFIGS[family], broken(weights_of(family), how))
    with pytest.raises(UserError, match=FAULTS[how]) as told:
        read_huggingface(folder)
    assert "\n" not in str(told.value)


def test_a_third_of_q_k_and_v_is_not_enough(tmp_path: Path) -> None:
    weights = weights_of("gpt_neo")
    del weights["transformer.h.2.attn.attention.k_proj.weight"]
    with pytest.raises(UserError, match=r"lacks h\.2\.attn\.attention\.k_proj\.weight, which belongs to what it has"):
        read_huggingface(write_folder(tmp_path / "model", CONFIGS["gpt_neo"], weights))


SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"model_type": "llama"}, "family 'llama'; gpt2 and gpt_neo"),
    ("gpt2", {"model_type": ["gpt2"]}, "family"),
    ("gpt2", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ("gpt2", {"n_inner": 63}, "n_inner is 63"),
    ("gpt2", {"n_layer": -1}, "n_layer is -1"),
    ("gpt2", {"n_embd": "16"}, "n_embd is '16'"),
    ("gpt2", {"vocab_size": True}, "vocab_size is True"),
    ("gpt2", {"n_head": 5}, "must be a multiple"),
    ("gpt2", {"activation_function": "swish"}, "activation 'swish' is none of"),
    ("gpt2", {"tie_word_embeddings": "yes"}, "tied_head"),
    ("gpt2", {"tie_word_embeddings": False}, "missing: lm_head.weight"),
    ("gpt_neo", {"attention_types": [[["global", "local"], 3]]}, "attention_types does not say"),
    ("gpt_neo", {"attention_types": [[["global", "sparse"], 2]]}, "attention_types does not say"),
    ("gpt_neo", {"attention_types": [[["global"], 10**9]]}, "attention_types does not say"),
    ("gpt_neo", {"window_size": 0}, "window_size is 0"),
    ("gpt_neo", {"intermediate_size": 65}, "intermediate_size is 65"),
]


@pytest.mark.parametrize(("family", "change", "said"), SETTINGS)
def test_another_architecture_is_refused_by_name(
    tmp_path: Path, family: str, change: dict[str, Any], said: str
) -> None:
    folder = write_folder(tmp_path / "model", {**CONFIGS[family], **change}, weights_of(family))
    with pytest.raises(UserError, match=said) as told:
        read_huggingface(folder)
    assert "\n" not in str(told.value)


def test_layers_may_be_listed_one_by_one(tmp_path: Path) -> None:
    config = {**CONFIGS["gpt_neo"], "attention_layers": ["local", "global", "local", "local"]}
    del config["attention_types"]
    config["model_type"] = "gpt_neo"
    model = read_huggingface(write_folder(tmp_path / "model", config, weights_of("gpt_neo"))).model
    assert [model.window_of(layer) for layer in range(4)] == [256, 0, 256, 256]


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({"a": "../model.safetensors"}, "names files in other folders"),
        ({"a": "/etc/passwd"}, "names files in other folders"),
        ({"a": ""}, "names files in other folders"),
        ({"a": "x.index.json"}, "names an index where weights are expected"),
        ({"a": 1}, "does not say which file"),
        ([], "does not say which file"),
        ({"w": "one.safetensors", "v": "one.safetensors"}, "lack v"),
        ({"v": "one.safetensors"}, "does not expect there"),
        ({"w": "two.safetensors"}, "cannot be read"),
    ],
)
def test_an_index_is_not_trusted(tmp_path: Path, places: Any, said: str) -> None:
    (tmp_path / "one.safetensors").write_bytes(container({"w": np.ones(2, np.float32)}, "float32"))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["gpt2"]), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_huggingface(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_a_config_that_is_none(tmp_path: Path, content: bytes) -> None:
    folder = write_folder(tmp_path / "model", CONFIGS["gpt2"], weights_of("gpt2"))
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        read_huggingface(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json cannot be read .*: it belongs beside the weights"):
        read_huggingface(folder)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no weights: one of"):
        read_huggingface(tmp_path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", CONFIGS["gpt2"], {"w": np.ones(2, np.float32)}, name="pytorch_model.bin")

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.unlink, (Path(folder / "config.json"),)

    save(folder / "pytorch_model.bin", {"w": tensor(np.ones(2, np.float32)), "v": Evil()})
    with pytest.raises(UserError, match="could run code: it is not loaded"):
        read_huggingface(folder)
    assert (folder / "config.json").exists()


# Writing


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_written_again_it_is_the_same_to_the_bit(tmp_path: Path, family: str, kind: str) -> None:
    folder = write_folder(tmp_path / "model", CONFIGS[family], weights_of(family), kind)
    found = read_huggingface(folder)
    again = tmp_path / "again"
    write_huggingface(again, found.model, arrays_of(folder), found.end_of_text)
    assert read_huggingface(again).model == found.model and read_huggingface(again).end_of_text == 60
    first, second = (read_safetensors(place / "model.safetensors") for place in (folder, again))
    assert first.keys() == second.keys()
    for name, before in first.items():
        assert (before.dtype, before.shape) == (second[name].dtype, second[name].shape), name
        assert before.raw().tobytes() == second[name].raw().tobytes(), name


def test_the_formats_own_library_reads_it(tmp_path: Path) -> None:
    found = read_huggingface(GOLDEN / "gpt2")
    folder = tmp_path / "again"
    write_huggingface(folder, found.model, arrays_of(GOLDEN / "gpt2"), None)
    theirs = safetensors.numpy.load_file(folder / "model.safetensors")
    for name, array in weights_of("gpt2").items():
        assert np.array_equal(theirs[name], array), name
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["n_positions"], config["eos_token_id"]) == ("gpt2", 640, None)


def test_an_untied_head_goes_along(tmp_path: Path) -> None:
    config = ModelConfig(8, 11, 1, 2, 4, tied_head=False, context_slot=False, activation="relu", init="gpt2")
    arrays = initial_arrays(config, 1)
    folder = tmp_path / "model"
    write_huggingface(folder, config, arrays, None)
    assert read_huggingface(folder).model == config
    assert all(np.array_equal(np.asarray(array), arrays[name]) for name, array in arrays_of(folder).items())


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ({}, "a context slot"),
        ({"context_slot": False, "n_layer": 0}, "a model without blocks"),
        ({"context_slot": False, "head_bias": True}, "a bias in the head"),
        ({"context_slot": False, "bias": False}, "linear layers without biases"),
        ({"context_slot": False, "attention_scale": "width"}, "is neither"),
        ({"context_slot": False, "qkv_bias": False}, "is neither"),
        ({"context_slot": False, "layer_pattern": ("local",)}, "is neither"),
    ],
)
def test_what_neither_can_be_is_refused_before_anything_is_written(
    tmp_path: Path, shape: dict[str, Any], said: str
) -> None:
    config = ModelConfig(**{"context_len": 8, "vocab_size": 11, "n_layer": 1, "n_head": 2, "n_embd": 4, **shape})
    with pytest.raises(UserError, match=said):
        write_huggingface(tmp_path / "model", config, initial_arrays(config, 1), None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_stays(tmp_path: Path) -> None:
    found = read_huggingface(GOLDEN / "gpt2")
    with pytest.raises(UserError, match="already: name another"):
        write_huggingface(tmp_path, found.model, arrays_of(GOLDEN / "gpt2"), None)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_huggingface(GOLDEN / "gpt2")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("picogpt.interop.huggingface.writer.write_safetensors", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_huggingface(tmp_path / "model", found.model, arrays_of(GOLDEN / "gpt2"), None)
    assert list(tmp_path.iterdir()) == []


# Odd files


def test_q_k_and_v_of_different_numbers(tmp_path: Path) -> None:
    weights = weights_of("gpt_neo")
    state = {name: tensor(array) for name, array in weights.items()}
    name = "transformer.h.0.attn.attention.q_proj.weight"
    state[name] = tensor(rounded(weights[name], "bfloat16"), bfloat16=True)
    folder = write_folder(tmp_path / "model", CONFIGS["gpt_neo"], {})
    save(folder / "pytorch_model.bin", state)
    (folder / "model.safetensors").unlink()
    expected = np.concatenate(
        [widened(rounded(weights[name], "bfloat16")), *(weights[name.replace("q_", f"{part}_")] for part in "kv")]
    )
    assert np.array_equal(arrays_of(folder)["h.0.attn.c_attn.weight"], expected)
    again = np.asarray(arrays_of(folder, as_bfloat16=True)["h.0.attn.c_attn.weight"])
    assert np.array_equal(again, widened(rounded(expected, "bfloat16")))


@pytest.mark.parametrize("name", ["transformer.h.1.mlp.c_fc.weight", "transformer.h.1.ln_1.bias"])
def test_numbers_that_are_no_weights_are_refused(tmp_path: Path, name: str) -> None:
    weights = weights_of("gpt2")
    state = {key: tensor(array) for key, array in weights.items()}
    state[name] = tensor(np.ones(weights[name].shape, np.int64))
    folder = write_folder(tmp_path / "model", CONFIGS["gpt2"], {})
    save(folder / "pytorch_model.bin", state)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=rf"of other numbers: {name.removeprefix('transformer.')} \(I64\)"):
        read_huggingface(folder)


def test_a_config_stands_for_its_folder_and_prefixes_may_pile_up(tmp_path: Path) -> None:
    weights = {f"module.{name}": array for name, array in weights_of("gpt2").items()}
    folder = write_folder(tmp_path / "model", {**CONFIGS["gpt2"], "activation_function": "gelu_python"}, weights)
    assert read_huggingface(folder / "config.json").model.activation == "gelu"
