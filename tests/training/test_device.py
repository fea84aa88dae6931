"""`--device cuda` on a machine whose CuPy is the strict stand-in, and on machines without one."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from picogpt.config import ModelConfig, RunConfig, TrainConfig
from picogpt.engine import backend
from picogpt.engine.lanes import Lanes
from picogpt.errors import UserError
from picogpt.model.memory import estimate_memory, sequence_bytes
from picogpt.runs import checkpoints
from picogpt.training.device import GPU_MEMORY_SHARE, fitted_here, gpu_micro_batch, open_lanes
from picogpt.training.trainer import Trainer
from tests.support import standin
from tests.support.models import lively_arrays
from tests.support.running import MODEL as RUN_MODEL
from tests.support.running import config_for, log_of, open_run, result_of, status_of
from tests.support.standin import DeviceArray, asnumpy

MODEL = ModelConfig(
    context_len=6, vocab_size=11, n_layer=2, n_head=2, n_embd=8, layer_pattern=("global", "local"), local_window=3
)
# Small rates: AdamW makes whole steps of what rounding leaves of a gradient that is zero.
TRAIN = TrainConfig(batch_size=5, context=12, micro_batch=2, grad_clip=0.1, learning_rate=4e-3, muon_learning_rate=0.03)
IDS = np.random.default_rng(5).integers(0, 11, (5, 13)).astype(np.int32)
X, Y = IDS[:, :-1], IDS[:, 1:]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy is there, with one GPU."""
    monkeypatch.setitem(sys.modules, "cupy", standin)


def no_cupy(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "cupy", None)


def failing(error: Exception) -> Any:
    def fail(*args: Any) -> Any:
        raise error

    return fail


def no_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "cupy", standin)
    patch.setattr(standin, "ones", failing(standin.CUDARuntimeError("cudaErrorNoDevice: no\nCUDA-capable device")))


def no_driver(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "cupy", standin)
    insufficient = failing(standin.CUDARuntimeError("cudaErrorInsufficientDriver"))
    patch.setattr(standin.cuda, "Device", insufficient)
    patch.setattr(standin, "ones", insufficient)


def no_libraries(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "cupy", standin)
    patch.setattr(DeviceArray, "__matmul__", failing(ImportError("libcublas.so.12: cannot open shared object file")))


def no_compiler(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "cupy", standin)
    patch.setattr(DeviceArray, "__add__", failing(standin.CompileException("nvrtc: error")))


MISSING = {
    no_cupy: r"CuPy.*pip install --editable '\.\[cuda\]'",
    no_gpu: "no usable GPU .*cudaErrorNoDevice: no CUDA-capable device",
    no_driver: "no usable GPU .*cudaErrorInsufficientDriver",
    no_libraries: "no usable GPU .*libcublas",
    no_compiler: "no usable GPU .*nvrtc",
}


def on(device: Any, model: ModelConfig = MODEL, **train: Any) -> RunConfig:
    return RunConfig(model, train=replace(TRAIN, device=device, **train))


def close(device: Any, host: np.ndarray, what: str = "") -> None:
    assert type(device) is DeviceArray, what
    np.testing.assert_allclose(asnumpy(device), host, rtol=2e-5, atol=2e-5, err_msg=what)


# -- whether there is a GPU --------------------------------------------------------------------------------------------


def test_cuda_is_cupy_where_a_gpu_works(gpu: None) -> None:
    assert backend.cuda() is standin and backend.array_module(standin.zeros(1, np.float32)) is standin
    assert backend.gpu() == backend.Gpu("NVIDIA Stand-in", 1 << 30, 2 << 30, has_tf32=True)


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("tf32", [False, True])
def test_what_is_missing_is_told_in_one_line(missing: Any, tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch)
    with pytest.raises(UserError, match=MISSING[missing]) as error:
        backend.cuda(tf32)
    assert "\n" not in str(error.value)


def test_a_broken_cupy_is_not_called_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("raise ImportError('libnvrtc.so.12 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    with pytest.raises(UserError, match=r"cannot be loaded .*libnvrtc"):
        backend.cuda()


@pytest.mark.parametrize(("asked", "capability", "chosen"), [(True, "80", 7), (True, "75", 0), (False, "90", 0)])
def test_tf32_where_it_is_asked_for_and_there(
    gpu: None, asked: bool, capability: str, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was chosen before in this process; 0 leaves the choice to the variable CUPY_TF32."""
    monkeypatch.setattr(standin.Device, "compute_capability", capability)
    standin.compute_types[np.float32] = 7 - chosen
    backend.cuda(asked)
    assert standin.compute_types == {np.float32: chosen}


# -- how much of a batch it takes at once ------------------------------------------------------------------------------


def give(free: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(standin.memory, "free", int(free))


def test_the_micro_batch_follows_the_free_memory(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = on("cuda", batch_size=12, micro_batch=0)
    one = estimate_memory(replace(config, train=replace(config.train, lanes=1, micro_batch=1)))
    lasting = one.total - one.program - one.activations
    found = {}
    for sequences in (12, 11, 7, 4, 1):
        give((lasting + (sequences + 0.5) * sequence_bytes(config)) / GPU_MEMORY_SHARE, monkeypatch)
        found[sequences] = gpu_micro_batch(config)
    assert found == {12: 12, 11: 6, 7: 6, 4: 4, 1: 1}  # as few parts as possible, of one size
    assert gpu_micro_batch(on("cuda", batch_size=12, micro_batch=5)) == 5
    give(lasting, monkeypatch)
    with pytest.raises(UserError, match="of the GPU's memory"):
        gpu_micro_batch(config)


def test_a_gpu_is_fed_by_one_lane(gpu: None) -> None:
    with open_lanes(fitted_here(on("cuda", micro_batch=0), print)) as lanes:
        trainer = Trainer(fitted_here(on("cuda", micro_batch=0), print), lively_arrays(MODEL), lanes)
        assert (trainer.micro_batch, lanes.count, len(trainer.replicas)) == (5, 1, 1)
    with Lanes(2) as lanes, pytest.raises(ValueError, match="one lane"):
        Trainer(on("cuda"), lively_arrays(MODEL), lanes)


# -- the numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "recompute"),
    [
        ({}, False),
        ({}, True),
        ({"dropout": 0.2}, False),
        ({"dropout": 0.2, "activation": "relu"}, True),
        ({"tied_head": False, "head_bias": True, "qkv_bias": False, "activation": "gelu_tanh"}, False),
        ({"layer_pattern": ("local",), "local_window": 2, "n_layer": 3}, False),
    ],
)
def test_gradients_are_the_cpus(gpu: None, changes: dict[str, Any], recompute: bool) -> None:
    model = replace(MODEL, **changes)
    with Lanes(1) as lanes:
        host = Trainer(on("cpu", model, recompute=recompute), lively_arrays(model), lanes)
        device = Trainer(on("cuda", model, recompute=recompute), lively_arrays(model), lanes)
        loss, norm = host.accumulate(X, Y, 3)
        assert device.accumulate(X, Y, 3) == pytest.approx((loss, norm), rel=1e-5)
    gradients, expected = device.gradients, host.gradients
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        close(gradient, expected[name], name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_are_the_cpus(gpu: None, optimizer: Any) -> None:
    model, arrays = replace(MODEL, dropout=0.1), lively_arrays(MODEL)
    before = {name: array.copy() for name, array in arrays.items()}
    with Lanes(1) as lanes, Lanes(2) as host_lanes:
        device = Trainer(on("cuda", model, optimizer=optimizer), arrays, lanes)
        device_losses = [device.step(X, Y, step, 0.1) for step in range(4)]
        host = Trainer(on("cpu", model, optimizer=optimizer), arrays, host_lanes)
        losses = [host.step(X, Y, step, 0.1) for step in range(4)]
        assert all(np.array_equal(array, before[name]) for name, array in arrays.items()), (
            "the caller's are not touched"
        )
        assert device_losses == pytest.approx(losses, rel=1e-4) and losses[3] != losses[0]
        assert device.evaluate(X, Y) == pytest.approx(host.evaluate(X, Y), rel=1e-4)
    for name, array in device.arrays.items():
        np.testing.assert_allclose(asnumpy(array), host.arrays[name], atol=1e-4, err_msg=name)
        assert not np.array_equal(host.arrays[name], before[name])
    for name, array in device.optimizer.state.items():
        np.testing.assert_allclose(asnumpy(array), host.optimizer.state[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("micro_batch", "layers"), [(5, 1), (1, 1), (1, 4)])
def test_a_step_waits_for_the_device_once(gpu: None, optimizer: Any, micro_batch: int, layers: int) -> None:
    """However many micro-batches and parameters there are."""
    model = replace(MODEL, n_layer=layers, dropout=0.1)
    with Lanes(1) as lanes:
        trainer = Trainer(on("cuda", model, optimizer=optimizer, micro_batch=micro_batch), lively_arrays(model), lanes)
        for action in (lambda: trainer.step(X, Y, 0, 0.1), lambda: trainer.evaluate(X, Y)):
            before = standin.arrivals
            action()
            assert standin.arrivals - before == 1


def test_divergence_is_told_and_changes_nothing(gpu: None) -> None:
    arrays = lively_arrays(MODEL)
    arrays["h.0.mlp.c_fc.bias"][0] = np.nan
    with Lanes(1) as lanes:
        trainer = Trainer(on("cuda"), arrays, lanes)
        with pytest.raises(UserError, match="diverged"):
            trainer.step(X, Y, 0, 1.0)
    assert all(np.array_equal(asnumpy(a), arrays[name], equal_nan=True) for name, a in trainer.arrays.items())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ids_outside_the_vocabulary_are_refused(gpu: None, device: Any) -> None:
    """Where CuPy itself would take the table as a ring."""
    with Lanes(1) as lanes:
        trainer = Trainer(on(device), lively_arrays(MODEL), lanes)
        with pytest.raises(IndexError, match="table of 11 rows"):
            trainer.step(X + 1, Y, 0, 1.0)
        with pytest.raises(IndexError, match="table of 11 rows"):
            trainer.evaluate(X, Y + 1)


# -- runs --------------------------------------------------------------------------------------------------------------

FRUGAL = pytest.mark.usefixtures("no_plots", "short_samples")
# Nothing that follows the length of the run, which differs.
ROLLING: dict[str, Any] = {"context": 32, "batch_size": 5, "micro_batch": 2, "decay_fraction": 0.0, "depth_warmup": 0.0}


@FRUGAL
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_a_run_goes_on_on_another_device(gpu: None, text: Path, devices: tuple[Any, Any], optimizer: Any) -> None:
    """Stopped half way: the checkpoint is the host's, and the run ends where the CPU alone would have brought it."""
    settings = {**ROLLING, "optimizer": optimizer, "learning_rate": 1e-3, "muon_learning_rate": 1e-3}
    model = replace(RUN_MODEL, dropout=0.1)
    expected = open_run(config_for(text, model, steps=8, **settings), "cpu")
    expected.train()
    open_run(config_for(text, model, steps=4, device=devices[0], tf32=True, **settings)).train()
    run = open_run(config_for(text, model, steps=8, device=devices[1], **settings))
    assert run.state.step == 4
    run.train()
    ends = [checkpoints.load(checkpoints.newest(r.dir) or Path()) for r in (run, expected)]
    for part in ("model", "optimizer"):
        ours, theirs = (getattr(end, part) for end in ends)
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            assert type(array) is np.ndarray
            np.testing.assert_allclose(array, theirs[name], atol=2e-4, err_msg=name)
    for ours, theirs in zip(log_of(run)["evaluations"], log_of(expected)["evaluations"], strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], abs=1e-4)
        assert ours["sample"].startswith("he is a")


@FRUGAL
@pytest.mark.parametrize("tf32", [False, True])
def test_a_run_names_its_gpu(gpu: None, text: Path, tf32: bool, capsys: pytest.CaptureFixture[str]) -> None:
    open_run(config_for(text, steps=1, device="cuda", tf32=tf32)).train()
    assert f"4 at a time, on GPU NVIDIA Stand-in, 2 GB{', TF32' if tf32 else ''}\n" in capsys.readouterr().out


@FRUGAL
@pytest.mark.parametrize("missing", MISSING)
def test_without_a_gpu_the_cpu_trains_and_it_is_said(
    missing: Any, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = open_run(config_for(text, steps=4), "expected")
    expected.train()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        missing(patch)
        run = open_run(config_for(text, steps=4, device="cuda"))
        run.train()
    told = [line for line in capsys.readouterr().out.splitlines() if "training on the CPU" in line]
    assert len(told) == 1
    assert re.search(MISSING[missing], told[0])
    assert result_of(run) == result_of(expected)


@FRUGAL
def test_a_gpu_that_is_too_small_is_found_before_anything_is_deleted(
    gpu: None, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(config_for(text, steps=4))
    run.train()
    give(1 << 10, monkeypatch)
    with pytest.raises(UserError, match="of the GPU's memory"):
        open_run(config_for(text, device="cuda"), fresh=True)
    assert checkpoints.newest(run.dir) is not None


# -- the command -------------------------------------------------------------------------------------------------------

SHAPE = ["--n-layer", "1", "--n-head", "2", "--n-embd", "8", "--context-len", "8", "--batch-size", "4"]


@FRUGAL
def test_train_takes_the_option(
    gpu: None, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(text.parent)
    argv = ["train", *SHAPE, "--data", str(text), "--steps", "2", "--run", "one", "--device", "cuda", "--tf32"]
    assert status_of(*argv) == 0
    assert "GPU NVIDIA Stand-in" in capsys.readouterr().out
    assert status_of("generate", "--run", "one", "--prompt", "she", "--tokens", "4") == 0
    assert status_of(*argv[:-2], "gpu") == 2


@pytest.mark.parametrize("there", [True, False])
def test_bench_trains_on_the_gpu(there: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "cupy", standin if there else None)
    monkeypatch.setattr("picogpt.bench.matmul_bound.SGEMM_SIZE", 64)
    argv = ["bench", "train", *SHAPE, "--lanes", "2", "--seconds", "0.05", "--json", "--device", "cuda"]
    before = standin.arrivals
    assert status_of(*argv) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["micro_batch"] == (4 if there else 2)
    assert (standin.arrivals > before) is there
    assert ("CuPy" in captured.err and "training on the CPU" in captured.err) is not there
