"""The ONNX file: valid, complete in itself, in standard operators where asked, and never half written."""

import gc
import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picogpt.config import ModelConfig, Precision
from picogpt.config.presets import PRESETS
from picogpt.errors import UserError
from picogpt.inference.onnx import export as export_module
from picogpt.inference.onnx import fused
from picogpt.inference.onnx.checksums import append_checksum
from picogpt.inference.onnx.export import IR_VERSION, export
from picogpt.inference.onnx.session import OnnxModel, OnnxReader, why_unavailable
from picogpt.inference.windows import Decoder
from picogpt.model.gpt import GPT
from picogpt.model.parameters import as_tensors, parameter_shapes
from picogpt.model.rolling_context import sequence_logits
from picogpt.system.hardware import resident_memory
from picogpt.tokenizers.characters import CharTokenizer, PicoTokenizer
from tests.support.folders import snapshot
from tests.support.models import lively_arrays

CONFIG = ModelConfig(context_len=8, n_layer=2, n_head=2, n_embd=32)
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4")


def write(
    path: Path, config: ModelConfig = CONFIG, precision: Precision = "fp32", portable: bool = False, source: str = ""
) -> Path:
    export(path, config, lively_arrays(config), PicoTokenizer(), precision, portable, source)
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("portable", [False, True])
def test_the_file_is_valid_and_pinned(precision: Precision, portable: bool, tmp_path: Path) -> None:
    model = onnx.load(write(tmp_path / "model.onnx", precision=precision, portable=portable))
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == IR_VERSION
    domains = {entry.domain: entry.version for entry in model.opset_import}
    assert domains == ({"": 21} if portable else {"": 21, "com.microsoft": 1})
    assert {node.domain for node in model.graph.node} == ({""} if portable else {"", "com.microsoft"})
    if not portable:
        assert sum(node.op_type == "GroupQueryAttention" for node in model.graph.node) == CONFIG.n_layer


@pytest.mark.parametrize("preset", ["exercise-base", "bigram", "race"])
@pytest.mark.parametrize("portable", [False, True])
def test_presets_export(preset: str, portable: bool, tmp_path: Path) -> None:
    config = PRESETS[preset].model
    path = write(tmp_path / "model.onnx", config, portable=portable)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    ids = np.arange(7)[None] % config.vocab_size
    found = OnnxReader(OnnxModel(path, 1)).read(ids)
    expected = sequence_logits(GPT(config, as_tensors(lively_arrays(config))), ids).data[:, -1]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_parameters_keep_their_names(tmp_path: Path) -> None:
    for portable in (False, True):
        model = onnx.load(write(tmp_path / "model.onnx", portable=portable))
        assert set(parameter_shapes(CONFIG)) <= {tensor.name for tensor in model.graph.initializer}


@pytest.mark.parametrize("portable", [False, True])
def test_only_the_last_logits_the_sums_and_the_caches_leave_the_graph(portable: bool, tmp_path: Path) -> None:
    model = onnx.load(write(tmp_path / "model.onnx", portable=portable))
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in model.graph.output
    }
    caches = [name for name in shapes if name.startswith("present_")]
    assert shapes["logits"] == ["B", 88] and shapes["new_running_sum"] == ["B", 32]
    assert len(caches) == 2 * CONFIG.n_layer and len(shapes) == 2 + len(caches)


PLAIN_RUN = """
import json, sys
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
config = json.loads(session.get_modelmeta().custom_metadata_map["config"])
inputs = {i.name: i for i in session.get_inputs()}
outputs = [o.name for o in session.get_outputs()]
caches = {n: np.zeros([1, *i.shape[1:]], np.float32) for n, i in inputs.items() if n.startswith("past_")}
total, done, ids, text = np.zeros((1, config["n_embd"]), np.float32), 0, [3, 1, 4], []
for step in range(5):
    slots = int(done == 0)
    positions = np.arange(done, done + slots + len(ids))
    context = np.zeros((1, slots, config["n_embd"]), np.float32)
    feed = {"ids": np.array([ids]), "positions": positions, "context": context, "running_sum": total, **caches}
    answer = dict(zip(outputs, session.run(None, feed)))
    total, done = answer["new_running_sum"], done + slots + len(ids)
    caches = {name: answer[name.replace("past", "present")] for name in caches}
    ids = [int(answer["logits"].argmax())]
    text += ids
print(json.dumps(text), "picogpt" in sys.modules)
"""


def test_a_portable_file_is_enough_for_a_program_without_picogpt(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", portable=True)
    said = subprocess.run(
        [sys.executable, "-c", PLAIN_RUN, str(path)], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    model, ids = GPT(CONFIG, as_tensors(lively_arrays(CONFIG))), [3, 1, 4]
    for _ in range(5):
        ids.append(int(sequence_logits(model, np.array([ids])).data[0, -1].argmax()))
    assert said == f"{json.dumps(ids[3:])} False\n"


def test_what_is_written_beside_the_graph(tmp_path: Path) -> None:
    config = replace(CONFIG, layer_pattern=("local", "global"), local_window=3, vocab_size=5)
    tokenizer = CharTokenizer("aé☀b\n")
    path = tmp_path / "model.onnx"
    export(path, config, lively_arrays(config), tokenizer, "int8", True, "step 7")
    model = OnnxModel(path, 1)
    assert model.config == config and model.tokenizer.to_dict() == tokenizer.to_dict()
    assert (model.precision, model.portable, model.source) == ("int8", True, "step 7")


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("block", [32, 64])
def test_few_bits_are_near(portable: bool, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both dialects hold the same integers; int8 is nearer than int4, and both are no noise."""
    monkeypatch.setattr(fused, "block_of", lambda n_embd: block)
    ids = np.arange(6)[None]
    exact = sequence_logits(GPT(CONFIG, as_tensors(lively_arrays(CONFIG))), ids).data[:, -1]
    errors, sizes = [], []
    for precision in PRECISIONS:
        path = write(tmp_path / "model.onnx", precision=precision, portable=portable)
        errors.append(float(np.abs(OnnxReader(OnnxModel(path, 1)).read(ids) - exact).max() / np.abs(exact).max()))
        sizes.append(path.stat().st_size)
    assert errors[0] < 1e-5 < errors[1] < 0.05 and errors[1] < errors[2] < 0.5
    assert sizes[0] > (2 if block == 32 else 1) * sizes[1] > sizes[2]  # blocks of 64 are mostly filling here


def test_a_large_head_is_rounded_too(tmp_path: Path) -> None:
    for portable in (False, True):
        config = replace(CONFIG, vocab_size=200)
        model = onnx.load(write(tmp_path / "model.onnx", config, "int8", portable))
        assert "wte.weight.integers" in {tensor.name for tensor in model.graph.initializer}
        expected = write(tmp_path / "exact.onnx", config)
        found = [OnnxReader(OnnxModel(path, 1)).read(np.array([[7]])) for path in (tmp_path / "model.onnx", expected)]
        np.testing.assert_allclose(*found, atol=0.1 * float(np.abs(found[1]).max()))


# The file on the disk


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ids = tmp_path / "model.onnx", np.arange(5)[None]
    inside = OnnxReader(OnnxModel(write(path), 1)).read(ids).copy()
    monkeypatch.setattr(export_module, "_INSIDE", 1000)
    for _ in range(2):  # the second replaces the first, and its weights
        write(path)
        assert len(list(tmp_path.glob("model.onnx.*.weights"))) == 1 and len(list(tmp_path.iterdir())) == 2
        for file in (*tmp_path.iterdir(), tmp_path / ".model.onnx.killed.tmp"):  # an hour passes
            file.touch()
            os.utime(file, (1, 1))
    assert path.stat().st_size < 30_000
    np.testing.assert_array_equal(OnnxReader(OnnxModel(path, 1)).read(ids), inside)
    monkeypatch.undo()
    for file in tmp_path.iterdir():
        os.utime(file, (1, 1))
    (tmp_path / "model.onnx.0.weights").write_bytes(b"another export is writing this")
    write(path)
    assert (tmp_path / "model.onnx.0.weights").exists()
    (tmp_path / "model.onnx.0.weights").unlink()
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("inside", [1000, 10**9])
def test_a_full_disk_leaves_what_was_there(inside: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model.onnx")
    before = snapshot(tmp_path)
    monkeypatch.setattr(export_module, "_INSIDE", inside)
    original = onnx.save_model

    stopped: BaseException = OSError(28, "No space left on device")

    def full(model: onnx.ModelProto, path: Path, **options: object) -> None:
        original(model, path, **options)
        raise stopped

    monkeypatch.setattr(onnx, "save_model", full)
    with pytest.raises(UserError, match=r"cannot write .*model.onnx \(No space left on device\)"):
        write(tmp_path / "model.onnx")
    assert snapshot(tmp_path) == before
    stopped = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model.onnx")
    assert snapshot(tmp_path) == before


BYTES = ["missing", "empty", "text", "cut", "unsealed"]
METADATA = ["foreign", "config", "tokenizer", "precision", "portable", "source", "json"]
GRAPH = ["folder", "input", "type"]


@pytest.mark.parametrize("damage", [*BYTES, *METADATA, *GRAPH])
def test_files_that_are_not_ours(damage: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx")
    content, model = path.read_bytes(), onnx.load(path)
    properties = {entry.key: entry for entry in model.metadata_props}
    if damage == "missing":
        path.unlink()
    elif damage in ("empty", "text", "cut", "unsealed"):
        path.write_bytes({"empty": b"", "text": b"hello", "cut": content[:-5000], "unsealed": content[:-9]}[damage])
    else:
        if damage == "foreign":
            del model.metadata_props[:]
        elif damage == "config":
            properties["config"].value = json.dumps({**json.loads(properties["config"].value), "n_head": "many"})
        elif damage in ("precision", "portable", "source"):
            properties[damage].value = {"precision": '"fp64"', "portable": "1", "source": "{}"}[damage]
        elif damage == "tokenizer":
            properties["tokenizer"].value = '{"name": "bpe"}'
        elif damage == "json":
            properties["config"].value = "[" * 100_000
        elif damage == "folder":
            tensor = model.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="../else.bin")
        elif damage == "input":
            model.graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info("more", 1, ["Q"]))
        else:
            model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
        path.write_bytes(model.SerializeToString())
        append_checksum(path)
    with pytest.raises(UserError, match="is not a model that picogpt exported") as error:
        OnnxModel(path, 1)
    assert "\n" not in str(error.value)
    assert damage not in ("folder", "input", "type", "unsealed") or {
        "folder": "in another folder, '../else.bin'",
        "input": "more is",
        "type": "ids is",
        "unsealed": "no checksum at its end",
    }[damage] in str(error.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_byte_anywhere_is_noticed_before_the_runtime_sees_it(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "_INSIDE", data.draw(st.sampled_from([1000, 10**9])))
        write(path)
    [*beside] = tmp_path.glob("*.weights")
    OnnxModel(path, 1)
    file = data.draw(st.sampled_from([path, *beside]))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="checksum") as error:
        patch.setattr(onnxruntime, "InferenceSession", None)
        OnnxModel(path, 1)
    assert "\n" not in str(error.value)
    for file in beside:
        file.unlink()


def test_weights_that_are_missing_or_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "_INSIDE", 1000)
    path = write(tmp_path / "model.onnx")
    [beside] = tmp_path.glob("*.weights")
    beside.write_bytes(beside.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"weights has no checksum at its end"):
        OnnxModel(path, 1)
    beside.unlink()
    with pytest.raises(UserError, match=r"is not a model that picogpt exported \(No such file"):
        OnnxModel(path, 1)


def test_a_graph_that_cannot_run_and_more_streams_than_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx")
    model = onnx.load(path)
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "wpe.weight")
    table.CopyFrom(onnx.numpy_helper.from_array(np.zeros((1, 32), np.float32), "wpe.weight"))
    path.write_bytes(model.SerializeToString())
    append_checksum(path)
    with pytest.raises(UserError, match="the ONNX file cannot be run") as error:
        OnnxReader(OnnxModel(path, 1)).read(np.array([[1, 2, 3]]))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="do not fit into memory: take fewer --samples"):
        OnnxReader(OnnxModel(path, 1), 1 << 50)


# The session


def test_a_step_works_in_memory_that_is_bound_once(tmp_path: Path) -> None:
    reader = OnnxReader(OnnxModel(write(tmp_path / "model.onnx"), 1))
    caches = {name: value for name, value in reader._inputs.items() if name.startswith("past_")}
    places = {name: value.data_ptr() for name, value in caches.items()}
    logits = [reader.read(np.array([[i]])) for i in range(5)]
    assert all(array is logits[0] for array in logits)
    assert {name: reader._inputs[name].data_ptr() for name in caches} == places
    names = [port.name for port in reader._session.get_outputs()]
    for name, value in zip(names, reader._step.get_outputs(), strict=True):
        if name.startswith("present_"):
            assert value.data_ptr() == places[name.replace("present", "past")]
            assert np.abs(value.numpy()[:, :, :6]).min(axis=(0, 1, 3)).all() and not value.numpy()[:, :, 6:].any()


def test_a_step_makes_no_array(tmp_path: Path) -> None:
    reader = OnnxReader(
        OnnxModel(write(tmp_path / "model.onnx", replace(CONFIG, context_len=300, vocab_size=50_000)), 1)
    )
    one = np.array([[1]])
    tracemalloc.start()
    for _ in range(50):
        reader.read(one)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for _ in range(200):
        reader.read(one)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 100_000 and after - before < 100_000  # a row of logits has 200,000 bytes


def test_a_cache_takes_memory_as_it_fills(tmp_path: Path) -> None:
    """Not 268 MB for the first tokens, with huge pages that hold a head's part of it whole."""
    config = ModelConfig(context_len=1 << 15, n_layer=2, n_head=64, n_embd=512, context_slot=False)
    model, ids = OnnxModel(write(tmp_path / "model.onnx", config), 1), np.array([[1, 2, 3, 4]])
    OnnxReader(model).read(ids)
    gc.collect()
    before = resident_memory()
    reader = OnnxReader(model)
    assert sum(np.prod(value.shape()) for name, value in reader._inputs.items() if "past" in name) * 4 > 250e6
    reader.read(ids)
    assert resident_memory() - before < 60e6


def test_a_decoder_at_the_border_of_a_pico_window(tmp_path: Path) -> None:
    """pico's window and slot with fewer blocks: the borders 127..257 and 1,279..1,281."""
    config = replace(PRESETS["pico"].model, n_layer=2, n_embd=64)
    path, ids = write(tmp_path / "model.onnx", config), np.random.default_rng(0).integers(0, 88, (1, 1282))
    expected = sequence_logits(GPT(config, as_tensors(lively_arrays(config))), ids).data
    decoder = Decoder(OnnxReader(OnnxModel(path, 2)), rolling=True, overlap=0)
    for i in range(ids.shape[1]):
        logits = decoder.feed(ids[:, i : i + 1])
        if i + 1 in (1, 127, 128, 129, 255, 256, 257, 1279, 1280, 1281):
            np.testing.assert_allclose(logits, expected[:, i], atol=1e-4)


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_unavailable() == ""
    from numpy._core import _multiarray_umath

    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setitem(_multiarray_umath.__cpu_features__, "AVX", False)
    assert "no AVX" in why_unavailable()
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert why_unavailable() == ""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime cannot be loaded" in why_unavailable()
    assert onnxruntime is not None
