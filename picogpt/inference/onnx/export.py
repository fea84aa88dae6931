"""Write a trained model as one ONNX file with all that generating needs: graph, weights, configuration, tokenizer."""

import json
import secrets
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, helper

from picogpt.config import ModelConfig, Precision
from picogpt.inference.onnx.checksums import append_checksum
from picogpt.inference.onnx.fused import FusedGraph
from picogpt.inference.onnx.initializers import Arrays, ExternalStore, Store, store_inside
from picogpt.inference.onnx.metadata import TOKENIZER_JSON, tokenizer_fields
from picogpt.inference.onnx.portable import PortableGraph
from picogpt.inference.onnx.ports import cached_head_size
from picogpt.inference.onnx.quantize import weight_bytes
from picogpt.system.files import replace, write_error
from picogpt.tokenizers.base import Tokenizer

IR_VERSION = 10  # that of opset 21

BITS: dict[Precision, int] = {"fp32": 32, "int8": 8, "int4": 4}

_ABANDONED = 3600  # seconds without a change after which an unfinished file is not being written any more

# At most so many bytes of weights go into the file itself: its format ends at 2 GB, and it is read as a whole.
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
    """Write the model. An older file is replaced when the new one is complete.

    Weights of more than half a gigabyte go into a file of their own beside it, each as soon as it is computed. Both
    files end with a checksum, which runtimes skip. portable: use only standard operators. Into the metadata go source,
    which identifies the weights, and rolls, whether they were trained to continue from the mean of the window before.
    Raises UserError where the disk refuses.
    """
    weights = f"{path.name}.{secrets.token_hex(4)}.weights" if _size(config, precision, portable) > _INSIDE else ""
    beside = [path.with_name(weights)] if weights else []
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as files:
            store = ExternalStore(files.enter_context(beside[0].open("wb")), weights) if beside else store_inside
            model = _model(config, arrays, precision, portable, store)
        metadata: dict[str, object] = {"config": asdict(config), "tokenizer": tokenizer_fields(tokenizer)}
        metadata |= {"precision": precision, "portable": portable, "source": source, "rolls": rolls}
        metadata["tokens"] = tokenizer.vocab_size  # the table may have more rows
        properties = {name: json.dumps(value) for name, value in metadata.items()}
        helper.set_model_props(model, {**properties, TOKENIZER_JSON: tokenizer.tokenizer_json() or "null"})
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
    _remove_old_files(path, weights)


def _size(config: ModelConfig, precision: Precision, portable: bool) -> float:
    """Estimate the bytes of the weights, a little high: all count as if they were filled up as attention's are."""
    return weight_bytes(config, BITS[precision]) * cached_head_size(config, portable) / config.head_size


def _model(config: ModelConfig, arrays: Arrays, precision: Precision, portable: bool, store: Store) -> ModelProto:
    dialect = PortableGraph if portable else FusedGraph
    opsets = [helper.make_opsetid(domain, version) for domain, version in dialect.opset.items()]
    model = helper.make_model(
        GraphProto(name="picogpt"), opset_imports=opsets, ir_version=IR_VERSION, producer_name="picogpt"
    )
    dialect(model.graph, config, arrays, BITS[precision], store)
    return model


def _remove_old_files(path: Path, weights: str) -> None:
    """Remove the weights of replaced files, and what a killed export left, but not what another is writing now."""
    for old in [*path.parent.glob(f"{path.name}.*.weights"), *path.parent.glob(f".{path.name}.*.tmp")]:
        with suppress(OSError):  # another program may have it open, or remove it as well
            if old.name != weights and time.time() - old.stat().st_mtime > _ABANDONED:
                old.unlink()
