"""An exported model on ONNX Runtime.

All that a step reads and writes is NumPy memory, bound once: ids, positions, caches, logits. The graph works in it, so
a decoding step makes no array, and one of the fused dialect copies no cache (graph.py has the names).

B batch   T tokens   S slots   P positions   C width   V vocabulary
"""

import json
import mmap
import platform
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from picogpt.config import ModelConfig, Precision
from picogpt.errors import UserError
from picogpt.inference.onnx.graph import LOCAL, spans
from picogpt.inference.onnx.metadata import metadata
from picogpt.model.kv_cache import SlidingWindow
from picogpt.tokenizers.base import LibraryMissingError, Tokenizer
from picogpt.tokenizers.registry import from_dict

Array = npt.NDArray[Any]

Ports = dict[str, tuple[str, list[str | int]]]
"""What goes in or out of a graph: type and shape by name, as the runtime tells them."""

_INT64, _INT32, _FLOAT = "tensor(int64)", "tensor(int32)", "tensor(float)"

_DTYPES = {_INT64: np.int64, _INT32: np.int32, _FLOAT: np.float32}

_LARGE = 4 << 20  # bytes

_PLACES = {"positions": 1, "seqlens_k": 1, "total_sequence_length": 0}  # in a cache; how far behind its filled part


def why_unavailable() -> str:
    """Why ONNX Runtime cannot be used on this machine; empty where it can."""
    from numpy._core._multiarray_umath import __cpu_features__  # type: ignore[import-not-found]

    if platform.machine() in ("x86_64", "AMD64") and not __cpu_features__.get("AVX", True):
        return "this processor has no AVX, which onnxruntime needs"
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return f"onnxruntime cannot be loaded ({' '.join(str(error).split())[:120]})"
    return ""


class OnnxModel:
    """A file that `export` wrote: the graph, loaded, and what is written beside it."""

    def __init__(self, path: Path, threads: int, spin: bool = True) -> None:
        """threads: that compute. spin: they wait for work without sleeping, which only an idle machine affords.

        Raises UserError for a file that is missing or none of ours.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # what is wrong comes as an exception too
        # Denormals stay what they are: the switch that flushes them would change the caller's arithmetic as well.
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        try:
            self._describe(metadata(path))
        except LibraryMissingError:
            raise
        except (OSError, KeyError, ValueError, RecursionError, UserError) as error:
            raise _foreign(path, error) from None
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions have no other class in common
            raise _foreign(path, error) from None
        sides = self.session.get_inputs(), self.session.get_outputs()
        for side, expected in zip(sides, _ports(self.config, self.portable), strict=True):
            found = {port.name: (port.type, port.shape) for port in side}
            for name in sorted(found.keys() | expected.keys()):
                if found.get(name) != expected.get(name):
                    raise _foreign(path, ValueError(f"{name[:80]} is {found.get(name)}, not {expected.get(name)}"))

    def _describe(self, written: dict[str, str]) -> None:
        """Take what is written beside the graph. Raises KeyError, ValueError, RecursionError or UserError."""
        about: dict[str, Any] = {name: json.loads(value) for name, value in written.items()}
        self.config = ModelConfig.from_dict(about["config"])
        self.tokenizer: Tokenizer = from_dict(about["tokenizer"])
        self.precision: Precision = about["precision"]
        self.portable, self.source = about["portable"], about["source"]
        self.rolls: bool | None = about.get("rolls")  # files of before do not say
        if self.precision not in get_args(Precision) or type(self.portable) is not bool or type(self.source) is not str:
            raise ValueError("its precision, portable or source is none")
        if self.rolls not in (True, False, None):
            raise ValueError("its rolls is none")


def _ports(config: ModelConfig, portable: bool) -> tuple[Ports, Ports]:
    """What goes in and what comes out of the graph of a model (graph.py has the letters)."""
    inputs: Ports = {"ids": (_INT64, ["B", "T"])}
    outputs: Ports = {"logits": (_FLOAT, ["B", config.vocab_size])}
    if not config.n_layer:
        return inputs, outputs
    inputs["positions"] = _INT64, ["P"]
    if config.context_slot:
        inputs["context"] = _FLOAT, ["B", "S", config.n_embd]
        inputs["running_sum"] = outputs["new_running_sum"] = _FLOAT, ["B", config.n_embd]
    for span in spans(config):
        if portable:
            inputs[f"{span}positions"] = _INT64, ["P"]
        else:
            inputs |= {f"{span}seqlens_k": (_INT32, ["B"]), f"{span}total_sequence_length": (_INT32, [1])}
    head = config.head_size if portable else -(-config.head_size // 8) * 8
    for kind, layer in product(("key", "value"), range(config.n_layer)):
        shape: list[str | int] = ["B", config.n_head, config.cache_of(layer), head]
        inputs[f"past_{kind}.{layer}"] = outputs[f"present_{kind}.{layer}"] = _FLOAT, shape
    return inputs, outputs


def _foreign(path: Path, error: Exception) -> UserError:
    said = str(error.strerror or error) if isinstance(error, OSError) else str(error)
    reason = repr(" ".join(said.split())[:160])[1:-1]  # a forged file may have its own words in it
    return UserError(f"{path} is not a model that picogpt exported ({reason}): picogpt export makes one")


class OnnxReader:
    """A `WindowReader` (decoding.py) over an exported model."""

    def __init__(self, model: OnnxModel, batch: int = 1) -> None:
        """Raises UserError where so many streams do not fit into memory."""
        self.config, self.batch, self._session = model.config, batch, model.session
        one = {"B": batch, "T": 1, "S": 0, "P": 1}  # a token in the middle of a window
        ports = self._session.get_inputs()
        try:
            inputs = {i.name: _zeros([one.get(d, d) for d in i.shape], _DTYPES[i.type]) for i in ports}
            self._logits = _zeros([batch, self.config.vocab_size], np.float32)
        except (MemoryError, OSError, ValueError, OverflowError):  # the last two for more than an address can say
            raise UserError(f"{batch} streams of this model do not fit into memory: take fewer --samples") from None
        self._ids, self._sum = inputs["ids"], inputs.get("running_sum")
        self._places = [
            [(inputs[f"{span}{name}"], behind) for name, behind in _PLACES.items() if f"{span}{name}" in inputs]
            for span in ("", LOCAL)
        ]
        local = [layer for layer in range(self.config.n_layer) if self.config.window_of(layer)]
        caches = [inputs[f"past_{kind}.{layer}"] for kind, layer in product(("key", "value"), local)]
        self._local = SlidingWindow(self.config.local_window, caches)
        outputs = [o.name for o in self._session.get_outputs()]
        self._old = {name: name.replace("present", "past").removeprefix("new_") for name in outputs}
        self._of_streams = {i.name: inputs[i.name] for i in ports if i.shape[0] == "B"}
        self._inputs = {name: _wrapped(array) for name, array in inputs.items()}
        self._step = self._bound(self._inputs, self._logits)
        self.begin(None)

    def begin(self, context: Array | None) -> None:  # (B, C)
        self._context, self._length, self._local.length = context, 0, 0
        if self._sum is not None:
            self._sum[...] = 0

    def read(self, ids: Array) -> Array:  # (B, T) -> (B, V)
        """As every WindowReader; the logits are overwritten by the next call."""
        while ids.shape[1]:
            slot = bool(self._length == 0 and self._sum is not None)
            count = self._local.make_room(ids.shape[1] + slot) - slot
            self._read(ids[:, :count], slot)
            ids = ids[:, count:]
        return self._logits

    def _read(self, ids: Array, slot: bool) -> None:  # (B, T)
        """The next tokens, for which there is room everywhere."""
        starts, new = (self._length, self._local.length), ids.shape[1] + slot
        self._length, self._local.length = starts[0] + new, starts[1] + new
        for places, start in zip(self._places, starts, strict=True):
            for array, behind in places:
                array[...] = start + new - behind
        if new == 1:
            self._ids[...] = ids
            self._run(self._step)
        elif starts[0] == 0 or self.batch == 1:
            self._prefill(ids, starts, slot, slice(None))
        else:  # the attention operator goes on with several streams by one token only
            for stream in range(self.batch):
                self._prefill(ids, starts, slot, slice(stream, stream + 1))

    def mean(self) -> Array:  # -> (B, C)
        assert self._sum is not None, "mean: a model without a context slot"
        return self._sum / self._length

    def _prefill(self, ids: Array, starts: tuple[int, int], slot: bool, streams: slice) -> None:
        arrays: dict[str, Array] = {"ids": ids[streams].astype(np.int64)}
        for span, start in zip(("", LOCAL), starts, strict=True):
            arrays[f"{span}positions"] = np.arange(start, start + ids.shape[1] + slot)
        if self._sum is not None:
            arrays["context"] = np.zeros((len(arrays["ids"]), int(slot), self.config.n_embd), np.float32)
            if slot and self._context is not None:
                arrays["context"][:, 0] = self._context
        if streams != slice(None):
            arrays = {name: array[streams] for name, array in self._of_streams.items()} | arrays
        own = {name: _wrapped(array) for name, array in arrays.items() if name in self._inputs}
        self._run(self._bound({**self._inputs, **own}, self._logits[streams]))

    def _run(self, binding: Any) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # as in OnnxModel
            reason = repr(" ".join(str(error).split())[:160])[1:-1]
            raise UserError(f"the ONNX file cannot be run ({reason}): picogpt export makes another") from None

    def _bound(self, inputs: dict[str, Any], logits: Array) -> Any:
        """What is read and written bound to its memory; caches and sums are written where they are read."""
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, old in self._old.items():
            binding.bind_ortvalue_output(name, inputs[old] if old in inputs else _wrapped(logits))
        return binding


def _zeros(shape: list[int], dtype: type) -> Array:
    """Zeros that take memory where something is written, page by page.

    For arrays as large as the caches of a large model NumPy asks for pages of 2 MB. Each head's part of a cache begins
    in others, so that the first token would bring all of them.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    if size < _LARGE:
        return np.zeros(shape, dtype)
    return np.ndarray(shape, dtype, mmap.mmap(-1, size))


def _wrapped(array: Array) -> Any:
    """The array's own memory, as the runtime wants it."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
