"""Run an exported model on ONNX Runtime.

All that a step reads and writes is NumPy memory that is bound once: ids, positions, caches, logits. The graph works in
it, so a decoding step allocates no array, and with the fused dialect copies no cache (graph.py has the names).

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
from picogpt.errors import UserError, one_line
from picogpt.inference.onnx.metadata import read_metadata, tokenizer_of
from picogpt.inference.onnx.ports import FLOAT, INT32, INT64, LOCAL, ports
from picogpt.model.kv_cache import SlidingWindow
from picogpt.tokenizers.base import LibraryMissingError, Tokenizer

Array = npt.NDArray[Any]

_DTYPES = {INT64: np.int64, INT32: np.int32, FLOAT: np.float32}

_PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_LARGE = 4 << 20  # bytes; larger arrays are mapped
_PLACES = {"positions": 1, "seqlens_k": 1, "total_sequence_length": 0}  # inputs: the end of the cache less this number


def why_unavailable() -> str:
    """Return why ONNX Runtime cannot be used on this machine, or "" where it can."""
    from numpy._core._multiarray_umath import __cpu_features__  # type: ignore[import-not-found]

    if platform.machine() in ("x86_64", "AMD64") and not __cpu_features__.get("AVX", True):
        return "this processor has no AVX, which onnxruntime needs"
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        return f"onnxruntime cannot be loaded ({one_line(error)})"
    return ""


class OnnxModel:
    """A file that `export` wrote: the loaded graph and the metadata."""

    def __init__(self, path: Path, threads: int, spin: bool = True) -> None:
        """Open a file. Raises UserError where it is missing, damaged, or not one that `export` wrote.

        threads: how many compute. spin: they wait for work without sleeping, which is quick if the machine is idle.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4  # errors come as exceptions too
        # Denormals are not flushed to zero: that switch would change the arithmetic of the calling thread as well.
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        try:
            self._take_metadata(read_metadata(path))
        except LibraryMissingError:
            raise
        except (OSError, KeyError, ValueError, RecursionError, UserError) as error:
            raise _not_exported(path, error) from None
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions have no other class in common
            raise _not_exported(path, error) from None
        sides = self.session.get_inputs(), self.session.get_outputs()
        for side, expected in zip(sides, ports(self.config, self.portable), strict=True):
            found = {port.name: (port.type, port.shape) for port in side}
            for name in sorted(found.keys() | expected.keys()):
                if found.get(name) != expected.get(name):
                    problem = ValueError(f"{name[:80]} is {found.get(name)}, not {expected.get(name)}")
                    raise _not_exported(path, problem)

    def _take_metadata(self, metadata: dict[str, str]) -> None:
        """Take the model's description. Raises KeyError, ValueError, RecursionError or UserError where it is wrong."""
        self.tokenizer: Tokenizer = tokenizer_of(metadata)
        names = ("config", "precision", "portable", "source", "rolls")  # older files have no rolls
        fields: dict[str, object] = {name: json.loads(metadata[name]) for name in names if name in metadata}
        self.config = ModelConfig.from_dict(fields["config"])
        self.precision = _precision(fields["precision"])
        portable, source, rolls = fields["portable"], fields["source"], fields.get("rolls")
        if not isinstance(portable, bool) or not isinstance(source, str):
            raise ValueError("its portable or source is of another type")
        if not isinstance(rolls, bool | None):  # older files do not say
            raise ValueError("its rolls is of another type")
        self.portable, self.source, self.rolls = portable, source, rolls


def _precision(value: object) -> Precision:
    """Return a precision from a file. Raises ValueError for one that does not exist."""
    for precision in _PRECISIONS:
        if value == precision:
            return precision
    raise ValueError("its precision does not exist")


def _not_exported(path: Path, error: Exception) -> UserError:
    reason = one_line((error.strerror or error) if isinstance(error, OSError) else error, 160)
    return UserError(f"{path} is not a model that picogpt exported ({reason}): picogpt export makes one")


class OnnxReader:
    """A `WindowReader` (inference/windows.py) over an exported model."""

    def __init__(self, model: OnnxModel, batch: int = 1) -> None:
        """Allocate the memory for `batch` streams. Raises UserError where they do not fit."""
        self.config, self.batch, self._session = model.config, batch, model.session
        one = {"B": batch, "T": 1, "S": 0, "P": 1}  # a token in the middle of a window
        ports = self._session.get_inputs()
        try:
            inputs = {i.name: _zeros([one.get(d, d) for d in i.shape], _DTYPES[i.type]) for i in ports}
            self._logits = _zeros([batch, self.config.vocab_size], np.float32)
        except (MemoryError, OSError, ValueError, OverflowError):  # the last two for sizes beyond any address
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
        """Start an empty window, as every WindowReader does."""
        self._context, self._length, self._local.length = context, 0, 0
        if self._sum is not None:
            self._sum[...] = 0

    def read(self, ids: Array) -> Array:  # (B, T) -> (B, V)
        """Read T more tokens. Returns the logits of the one after them, which the next call overwrites."""
        while ids.shape[1]:
            slot = bool(self._length == 0 and self._sum is not None)
            count = self._local.make_room(ids.shape[1] + slot) - slot
            self._read(ids[:, :count], slot)
            ids = ids[:, count:]
        return self._logits

    def _read(self, ids: Array, slot: bool) -> None:  # (B, T)
        """Read the next tokens, for which all caches have room."""
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
        else:  # within a window, the attention operator takes one token at a time of several streams
            for stream in range(self.batch):
                self._prefill(ids, starts, slot, slice(stream, stream + 1))

    def mean(self) -> Array:  # -> (B, C)
        """Return the mean of the window's output vectors so far."""
        assert self._sum is not None, "mean: a model without a context slot"
        return self._sum / self._length

    def _prefill(self, ids: Array, starts: tuple[int, int], slot: bool, streams: slice) -> None:
        """Read several tokens of some streams in one pass, with inputs of their own size."""
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
            raise UserError(
                f"the ONNX file cannot be run ({one_line(error, 160)}): picogpt export makes another"
            ) from None

    def _bound(self, inputs: dict[str, Any], logits: Array) -> Any:
        """Bind all inputs and outputs to their memory; caches and sums are written where they are read."""
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, old in self._old.items():
            binding.bind_ortvalue_output(name, inputs[old] if old in inputs else _wrapped(logits))
        return binding


def _zeros(shape: list[int], dtype: type) -> Array:
    """Return zeros that take memory page by page, as they are written.

    For large arrays, such as the caches of a large model, NumPy asks for pages of 2 MB. Each head's part of a cache
    begins in another page, so the first token would make all of them take memory.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    if size < _LARGE:
        return np.zeros(shape, dtype)
    return np.ndarray(shape, dtype, mmap.mmap(-1, size))


def _wrapped(array: Array) -> Any:
    """Return the array's own memory as a value of the runtime's."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
