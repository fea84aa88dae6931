"""A trained model as one ONNX file with all it takes to generate: graph, weights, configuration and tokenizer."""

import json
import secrets
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, helper

from picogpt.config import ModelConfig, Precision
from picogpt.inference.onnx.fused import FusedGraph
from picogpt.inference.onnx.initializers import Arrays, Beside, Store, inside
from picogpt.inference.onnx.portable import PortableGraph
from picogpt.inference.onnx.quantize import block_of
from picogpt.system.checksums import append_checksum
from picogpt.system.files import replace, write_error
from picogpt.tokenizers.base import Tokenizer

IR_VERSION = 10  # that of opset 21

BITS: dict[Precision, int] = {"fp32": 32, "int8": 8, "int4": 4}

_ABANDONED = 3600  # seconds after which nobody is writing a file any more

# Bytes of weights that go into the file itself. Its format ends at 2 GB, and it is made and read as a whole.
_INSIDE = 1 << 29


def export(
    path: Path,
    config: ModelConfig,
    arrays: Arrays,
    tokenizer: Tokenizer,
    precision: Precision = "fp32",
    portable: bool = False,
    source: str = "",
    rolls: bool = False,
) -> None:
    """Write the model, replacing the file at once when all of it is there.

    Weights of more than half a gigabyte go into a file of their own beside it, each as soon as it is made, and both
    end with a seal, which runtimes skip. portable: standard operators alone. source: what the weights are, and rolls:
    whether they were trained to go from window to window with the mean, are kept in the metadata. Raises UserError when
    the disk refuses.
    """
    weights = f"{path.name}.{secrets.token_hex(4)}.weights" if _size(config, arrays, precision) > _INSIDE else ""
    beside = [path.with_name(weights)] if weights else []
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:
            store = Beside(files.enter_context(beside[0].open("wb")), weights) if beside else inside
            model = _model(config, arrays, precision, portable, store)
        metadata: dict[str, Any] = {"config": asdict(config), "tokenizer": tokenizer.to_dict()}
        metadata |= {"precision": precision, "portable": portable, "source": source, "rolls": rolls}
        helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
        onnx.save_model(model, temporary)
        for written in (temporary, *beside):
            append_checksum(written)
        replace(temporary, path)
    except BaseException as error:
        for left in (temporary, *beside):
            with suppress(OSError):
                left.unlink(missing_ok=True)  # a full disk needs the space back
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise
    _tidy(path, weights)


def _size(config: ModelConfig, arrays: Arrays, precision: Precision) -> float:
    """Bytes that the weights will take, or a little less than this."""
    bits, D = BITS[precision], config.head_size
    rounded = bits / 8 + (4 / block_of(config.n_embd) if bits < 32 else 0)
    matrices = sum(prod(array.shape) for name, array in arrays.items() if name.startswith("h.") and array.ndim == 2)
    others = sum(prod(array.shape) for array in arrays.values()) - matrices
    head = config.vocab_size * config.n_embd if bits < 32 else 0
    filled = -(-D // 8) * 8 / D  # heads, in one dialect
    size: float = matrices * rounded * filled + 4 * others + rounded * head
    return size


def _model(config: ModelConfig, arrays: Arrays, precision: Precision, portable: bool, store: Store) -> ModelProto:
    dialect = PortableGraph if portable else FusedGraph
    opsets = [helper.make_opsetid(domain, version) for domain, version in dialect.opset.items()]
    model = helper.make_model(
        GraphProto(name="picogpt"), opset_imports=opsets, ir_version=IR_VERSION, producer_name="picogpt"
    )
    dialect(model.graph, config, arrays, BITS[precision], store)
    return model


def _tidy(path: Path, weights: str) -> None:
    """Remove weights of files that were replaced, and what a killed export left; not what another is writing now."""
    for old in [*path.parent.glob(f"{path.name}.*.weights"), *path.parent.glob(f".{path.name}.*.tmp")]:
        with suppress(OSError):  # another program may have it open, or remove it as well
            if old.name != weights and time.time() - old.stat().st_mtime > _ABANDONED:
                old.unlink()
