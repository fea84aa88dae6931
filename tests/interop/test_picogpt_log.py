"""PicoGPT's logs, written: Python's own unpickler finds what PyTorch is to be called with, and we find it all again."""

import errno
import io
import os
import pickle
from collections import OrderedDict
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picogpt.config import ModelConfig
from picogpt.errors import UserError
from picogpt.interop import picogpt_log
from picogpt.interop.picogpt_log import Log, read_picogpt_log, write_picogpt_log
from picogpt.model.parameters import parameter_shapes
from picogpt.tensorfiles import pickle_writer
from tests.support.folders import snapshot
from tests.support.models import lively_arrays
from tests.support.paths import GOLDEN as GOLDEN_FOLDER

GOLDEN = GOLDEN_FOLDER / "picogpt_log.pkl"
MODEL = ModelConfig(6, 88, 2, 2, 8, init="gpt2")


def log_of(model: ModelConfig = MODEL) -> Log:
    return Log(model, lively_arrays(model), [3.0, 2.5], [3.125, 2.75], 2.75, 1000)


def bits(log: Log) -> dict[str, list[int]]:
    return {name: array.view(np.uint32).tolist() for name, array in log.arrays.items()}


class Torch(pickle.Unpickler):
    """PyTorch's functions, as far as such a pickle may need them. It knows no others."""

    def find_class(self, module: str, name: str) -> Any:
        return {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch.storage._load_from_bytes": self.storage,
            "torch.FloatStorage": np.float32,
        }[f"{module}.{name}"]

    def tensor(
        self, storage: np.ndarray, start: int, shape: Any, strides: Any, gradient: bool, hooks: Any
    ) -> np.ndarray:
        assert gradient is False and hooks == OrderedDict() and type(hooks) is OrderedDict
        bytes_apart = [4 * step for step in strides]
        return np.lib.stride_tricks.as_strided(storage[start:], shape, bytes_apart)

    def storage(self, content: bytes) -> np.ndarray:
        file = io.BytesIO(content)
        magic, version, machine, about, keys = (Torch(file).load() for _ in range(5))
        assert (magic, version) == (0x1950A86A20F9469CFC6C, 1001)
        assert machine["protocol_version"] == 1001 and machine["little_endian"] is True
        kind, dtype, key, device, count, view = about
        assert (kind, dtype, device, view, keys) == ("storage", np.float32, "cpu", None, [key])
        assert int.from_bytes(file.read(8), "little", signed=True) == count
        numbers = np.frombuffer(file.read(), "<f4")
        assert numbers.size == count
        return numbers

    def persistent_load(self, about: Any) -> Any:
        return about


@pytest.mark.parametrize("model", [MODEL, replace(MODEL, bias=False, qkv_bias=False)], ids=["biases", "none"])
def test_pythons_own_unpickler_finds_tensors(tmp_path: Path, model: ModelConfig) -> None:
    written = log_of(model)
    write_picogpt_log(tmp_path / "log.pkl", written)
    with (tmp_path / "log.pkl").open("rb") as file:
        found = Torch(file).load()
        assert file.read() == b""
    weights = found.pop("best_weight")
    assert found == {
        "best_loss": 2.75,
        "losses": {"train": [3.0, 2.5], "val": [3.125, 2.75]},
        "optimizer": None,
        "iter_num": 1000,
    }
    assert type(weights) is OrderedDict
    assert list(weights) == [*(f"transformer.{name}" for name in parameter_shapes(model)), "lm_head.weight"]
    assert weights["lm_head.weight"] is weights["transformer.wte.weight"]
    for name, array in written.arrays.items():
        assert np.array_equal(weights[f"transformer.{name}"].view(np.uint32), array.view(np.uint32)), name


def test_the_log_of_picogpt_comes_back(tmp_path: Path) -> None:
    golden = read_picogpt_log(GOLDEN, 2)
    write_picogpt_log(tmp_path / "new" / "log.pkl", golden)
    again = read_picogpt_log(tmp_path / "new" / "log.pkl", 2)
    assert bits(again) == bits(golden)
    assert replace(again, arrays={}) == replace(golden, arrays={})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_all_numbers_come_back(tmp_path: Path, data: st.DataObject) -> None:
    model = ModelConfig(1, 3, 1, 1, 2, init="gpt2")
    drawn = {
        name: data.draw(
            st.lists(st.integers(0, (1 << 32) - 1), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))
        )
        for name, shape in parameter_shapes(model).items()
    }
    arrays = {
        name: np.array(drawn[name], np.uint32).view(np.float32).reshape(shape)
        for name, shape in parameter_shapes(model).items()
    }
    pairs = data.draw(st.lists(st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)), max_size=4))
    best = data.draw(st.none() | st.floats(allow_nan=False, allow_infinity=False))
    iterations = data.draw(st.integers(0, (1 << 40) - 1))
    written = Log(model, arrays, [one for one, _ in pairs], [two for _, two in pairs], best, iterations)
    path = tmp_path / "log.pkl"
    path.unlink(missing_ok=True)
    write_picogpt_log(path, written)
    again = read_picogpt_log(path, 1)
    assert bits(again) == bits(written)
    assert replace(again, arrays={}) == replace(written, arrays={})


@pytest.mark.parametrize("best", [None, inf, nan])
def test_a_log_without_a_best_loss_has_an_infinite_one(tmp_path: Path, best: float | None) -> None:
    write_picogpt_log(tmp_path / "log.pkl", replace(log_of(), best_loss=best))
    assert read_picogpt_log(tmp_path / "log.pkl", 2).best_loss is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"context_slot": False}, "a model without a context slot"),
        ({"n_layer": 0}, "a model without blocks"),
        ({"tied_head": False}, "a head of its own"),
        ({"head_bias": True}, "a bias in the head"),
        ({"activation": "gelu_tanh"}, "the activation gelu_tanh"),
        ({"attention_scale": "none"}, "the attention scale none"),
        ({"layer_pattern": ("global", "local")}, "local attention"),
        ({"bias": False}, "biases in some of the linear layers alone"),
        ({"qkv_bias": False, "tied_head": False}, "a head of its own or biases in some of the linear layers alone"),
    ],
)
def test_what_picogpt_has_not_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"a log of PicoGPT's cannot hold {reason}: export the model in another format"):
        write_picogpt_log(tmp_path / "new" / "log.pkl", log_of(replace(MODEL, **change)))
    assert snapshot(tmp_path) == {}


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "log.pkl").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"there is .*log.pkl already: name another"):
        write_picogpt_log(tmp_path / "log.pkl", log_of())
    assert snapshot(tmp_path) == {"log.pkl": b"mine"}


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(picogpt_log, "write_durably", full)
    with pytest.raises(UserError, match=r"cannot write .*log.pkl \(No space left on device\): free some") as told:
        write_picogpt_log(tmp_path / "log.pkl", log_of())
    assert "\n" not in str(told.value) and snapshot(tmp_path) == {}


@given(st.integers(-(1 << 70), 1 << 70) | st.sampled_from([-129, -128, 127, 128, 255, 256]))
def test_whole_numbers_are_pickled_as_they_are(value: int) -> None:
    assert pickle.loads(pickle_writer.pickled(pickle_writer.integer(value))) == value


@given(st.dictionaries(st.text(), st.floats(allow_nan=False)), st.binary(max_size=300))
def test_values_are_pickled_as_they_are(items: dict[str, float], content: bytes) -> None:
    made = pickle_writer.dict_of({name: pickle_writer.floating(value) for name, value in items.items()})
    assert pickle.loads(pickle_writer.pickled(pickle_writer.tuple_of(made, pickle_writer.raw(content)))) == (
        items,
        content,
    )
