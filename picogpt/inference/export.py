"""A trained model as one ONNX file with all it takes to generate: graph, weights, configuration and tokenizer."""

import json
import secrets
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from picogpt.config import ModelConfig, Precision, UserError
from picogpt.data.tokenizer import Tokenizer
from picogpt.files import replace
from picogpt.inference.dialects import FusedGraph, PortableGraph
from picogpt.inference.graph import Arrays
from picogpt.seal import seal_file

IR_VERSION = 10  # that of opset 21
BITS: dict[Precision, int] = {"fp32": 32, "int8": 8, "int4": 4}
_ABANDONED = 3600  # seconds after which nobody is writing a file any more
_INSIDE = 1_500_000_000  # bytes of weights that go into the file itself, whose format ends at 2 GB


def export(
    path: Path,
    config: ModelConfig,
    arrays: Arrays,
    tokenizer: Tokenizer,
    precision: Precision = "fp32",
    portable: bool = False,
    source: str = "",
) -> None:
    """Write the model, replacing the file at once when all of it is there.

    Weights of more than 1.5 GB go into a file of their own beside it, and both end with a seal, which runtimes skip.
    portable: standard operators alone. source: what the weights are, kept in the metadata. Raises UserError when the
    disk refuses.
    """
    graph = (PortableGraph if portable else FusedGraph)(config, arrays, BITS[precision])
    opsets = [helper.make_opsetid(domain, version) for domain, version in graph.opset.items()]
    model = helper.make_model(graph.proto(), opset_imports=opsets, ir_version=IR_VERSION, producer_name="picogpt")
    metadata: dict[str, Any] = {"config": asdict(config), "tokenizer": tokenizer.to_dict()}
    metadata |= {"precision": precision, "portable": portable, "source": source}
    helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    weights = f"{path.name}.{secrets.token_hex(4)}.weights" if size > _INSIDE else ""
    beside = [path.with_name(weights)] if weights else []
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save_model(model, temporary, save_as_external_data=bool(weights), location=weights or None)
        for written in (temporary, *beside):
            seal_file(written)
        replace(temporary, path)
    except BaseException as error:
        for left in (temporary, *beside):
            with suppress(OSError):
                left.unlink(missing_ok=True)  # a full disk needs the space back
        if isinstance(error, OSError):
            what = "free some disk space or look at the folder's permissions"
            raise UserError(f"cannot write {path} ({error.strerror or error}): {what}") from error
        raise
    _tidy(path, weights)


def _tidy(path: Path, weights: str) -> None:
    """Remove weights of files that were replaced, and what a killed export left; not what another is writing now."""
    for old in [*path.parent.glob(f"{path.name}.*.weights"), *path.parent.glob(f".{path.name}.*.tmp")]:
        with suppress(OSError):  # another program may have it open, or remove it as well
            if old.name != weights and time.time() - old.stat().st_mtime > _ABANDONED:
                old.unlink()
