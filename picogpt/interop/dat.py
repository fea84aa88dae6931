"""Folders of huplay's demo-gpt-java, read and written: `model.properties`, and a file of bare numbers for each tensor.

    parameters/   input/wte.dat  input/wpe.dat  output/norm.{w,b}.dat  and of each block, counted from 1:
                  decoderN/att.{norm,query,key,value,proj}.{w,b}.dat  decoderN/mlp.{norm,layer1,layer2}.{w,b}.dat

A property `file.NAME = x` says that the tensor is in another file, such as a storage that was taken out of a
`pytorch_model.bin`, or that there is none: `<null>`. A file may be split into x.part1, x.part2, ... The weights are
(outputs, inputs) row by row, or column by column where `weights.transposed` says so, as it does for GPT-2 and GPT-Neo.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count as count_from
from itertools import takewhile
from math import isclose, prod, sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from picogpt.config import AttentionScale, AttentionSpan, ModelConfig
from picogpt.engine.backend import Array
from picogpt.errors import UserError, one_line, shown
from picogpt.interop.foreign_model import ForeignModel, Pieces, refuse, require_weights, shortest_pattern
from picogpt.model.layers import NORM_EPSILON
from picogpt.model.parameters import is_hidden_matrix, parameter_shapes
from picogpt.system.files import new_folder
from picogpt.tensorfiles.lazy_tensor import SIZES, Dtype, LazyTensor, Storage

DataType = Literal["FLOAT32", "FLOAT16", "BFLOAT16"]
Properties = Mapping[str, str]
Floats = npt.NDArray[np.float32]

PROPERTIES, PARAMETERS, NULL = "model.properties", "parameters", "<null>"

_PROPERTIES_MOST = 4 << 20  # bytes; the file of GPT-Neo 2.7B has 5,000
_PIECE = 1 << 20  # numbers that are written at once

_DTYPES: Mapping[str, Dtype] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}

_OUTER = {
    "wte.weight": "input/wte",
    "wpe.weight": "input/wpe",
    "ln_f.weight": "output/norm.w",
    "ln_f.bias": "output/norm.b",
}

_INNER = {
    "ln_1": ("att.norm",),
    "attn.c_attn": ("att.query", "att.key", "att.value"),
    "attn.c_proj": ("att.proj",),
    "ln_2": ("mlp.norm",),
    "mlp.c_fc": ("mlp.layer1",),
    "mlp.c_proj": ("mlp.layer2",),
}

# Properties by which other models of that program differ, with the value of picogpt's models, which is the default.
_PLAIN = {
    "position.embedding": "learned",
    "position.encoder": "learned",  # its older name
    "pre.normalization": "true",
    "input.normalization": "false",
    "merged.qkv": "false",
}


@dataclass(frozen=True)
class _Layout:
    """How the numbers lie in the files of a folder."""

    dtype: Dtype
    big_endian: bool
    by_column: bool
    """Whether the weights lie column by column."""


def names_of(parameter: str) -> tuple[str, ...]:
    """Return the names of the tensors that one of picogpt's parameters is made of, one under the other."""
    if parameter in _OUTER:
        return (_OUTER[parameter],)
    _, layer, module = parameter.split(".", 2)
    module, _, kind = module.rpartition(".")
    return tuple(f"decoder{int(layer) + 1}/{name}.{kind[0]}" for name in _INNER[module])


def read_dat(folder: Path) -> ForeignModel:
    """Return the model of a folder. Its weights are not read yet, but the sizes of their files are checked.

    Raises UserError for properties of a model that picogpt does not have, and for files that are missing, of another
    size, or outside of the folder.
    """
    path = folder / PROPERTIES
    properties = _read_properties(path)
    try:
        model = _model(properties)
        end_of_text = _end_of_text(properties, model)
        layout = _layout(properties)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    weights: dict[str, Pieces] = {}
    for parameter, (rows, *columns) in parameter_shapes(model).items():
        names = names_of(parameter)
        shape = (rows // len(names), *columns)
        transposed = layout.by_column and is_hidden_matrix(parameter, shape)
        files = [file for name in names if (file := _file_of(properties, name))]
        storages = [_storage(folder, file, prod(shape), layout) for file in files]
        pieces = tuple(_tensor(storage, shape, transposed) for storage in storages if storage)
        if len(pieces) == len(names):
            weights[parameter] = pieces
    known = {name for parameter in parameter_shapes(_with_biases(model)) for name in names_of(parameter)}
    mapped = {key.removeprefix("file.") for key in properties if key.startswith("file.")}
    require_weights(folder, model, weights, {name for name in mapped - known if _file_of(properties, name)})
    family = "gpt_neo" if "local" in model.layer_pattern or model.attention_scale == "none" else "gpt2"
    return ForeignModel(family, model, weights, end_of_text)


def _tensor(storage: Storage, shape: tuple[int, ...], transposed: bool) -> LazyTensor:
    """Return the tensor of a shape whose numbers, or those of its transpose, lie in a storage row by row."""
    return LazyTensor(storage, shape[::-1]).transposed if transposed else LazyTensor(storage, shape)


def _read_properties(path: Path) -> Properties:
    """Read a file of properties. Their names are in lower case, which that program does not tell from upper case.

    Raises UserError where the file cannot be read or has something else in it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_PROPERTIES_MOST + 1)
        if len(content) > _PROPERTIES_MOST:
            raise UserError(f"{path} is too large for a file of properties: get it again")
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text, so it has no properties: get it again") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, equals, value = line.partition("=")
            if not equals:
                raise UserError(f"{path} has no `name = value` in line {number}: {shown(line)}")
            found[name.strip().lower()] = value.strip()
    return found


def _matching(properties: Properties, name: str, pattern: str, what: str) -> str:
    """Return the value of a property. Raises UserError where it is missing or does not match a pattern."""
    value = properties.get(name)
    if value is None:
        raise UserError(f"there is no {name}")
    if not re.fullmatch(pattern, value, re.ASCII):
        raise UserError(f"{name} must be {what}, not {shown(value)}")
    return value


def _integer(properties: Properties, name: str) -> int:
    return int(_matching(properties, name, r"[+-]?\d{1,18}", "a whole number"))


def _number(properties: Properties, name: str) -> float:
    """Return a number as Java writes it, such as 1e-5f. Raises UserError as `_matching` does."""
    pattern = r"[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})([eE][+-]?\d{1,4})?[fFdD]?"
    return float(_matching(properties, name, pattern, "a number").rstrip("fFdD"))


def _one_of(properties: Properties, name: str, *choices: str) -> str:
    """Return the value of a property, by default the first choice. Raises UserError for one that is no choice."""
    value = properties.get(name, choices[0]).lower()
    if value not in choices:
        raise UserError(f"{name} must be {' or '.join(choices)}, not {shown(value)}")
    return value


def _layout(properties: Properties) -> _Layout:
    """Return the layout that the properties describe. Raises UserError for one that is not known."""
    return _Layout(
        dtype=_DTYPES[_one_of(properties, "data.type", *_DTYPES)],
        big_endian=_one_of(properties, "byte.order", "big_endian", "little_endian") == "big_endian",
        by_column=_one_of(properties, "weights.transposed", "false", "true") == "true",
    )


def _model(properties: Properties) -> ModelConfig:
    """Return the model that the properties describe. Raises UserError for one that picogpt does not have."""
    for name, plain in _PLAIN.items():
        if (value := properties.get(name, plain)).lower() != plain:
            raise UserError(f"picogpt reads no model whose {name} is {shown(value)}: only {plain}")
    if not isclose(epsilon := _number(properties, "epsilon"), NORM_EPSILON, rel_tol=1e-3):
        raise UserError(f"picogpt reads no model whose epsilon is {epsilon}: only {NORM_EPSILON}")
    shape = ModelConfig(
        context_len=_integer(properties, "max.length"),
        vocab_size=_integer(properties, "token.count"),
        n_layer=_integer(properties, "decoder.count"),
        n_head=_integer(properties, "attention.head.count"),
        n_embd=_integer(properties, "hidden.size"),
        activation="gelu_tanh",
        init="gpt2",
        context_slot=False,
    )
    if shape.n_layer == 0:
        raise UserError("decoder.count is 0: picogpt reads no model without decoders")
    if (inner := properties.get("feedforward.size", f"{4 * shape.n_embd}")) != f"{4 * shape.n_embd}":
        raise UserError(f"picogpt reads no model whose feedforward.size is {shown(inner)}: only 4 * hidden.size")
    pattern = shortest_pattern([_span(properties, layer) for layer in range(shape.n_layer)])
    return dataclasses.replace(
        shape,
        layer_pattern=pattern,
        local_window=_integer(properties, "attention.local.size") if "local" in pattern else shape.local_window,
        attention_scale=_scale(properties, shape),
        qkv_bias=_have_biases(properties, shape, "attn.c_attn"),
        bias=_have_biases(properties, shape, "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    )


def _span(properties: Properties, layer: int) -> AttentionSpan:
    span = _matching(properties, f"attention.type.{layer + 1}", "(?i:global|local)", "global or local")
    return "local" if span.lower() == "local" else "global"


def _scale(properties: Properties, model: ModelConfig) -> AttentionScale:
    """Return the scale of attention's scores. Raises UserError for one that picogpt does not have."""
    dividend = _number(properties, "attention.dividend")
    scales: Mapping[AttentionScale, float] = {"none": 1.0, "head": sqrt(model.head_size), "width": sqrt(model.n_embd)}
    for scale, expected in scales.items():
        if isclose(dividend, expected, rel_tol=1e-4):
            return scale
    raise UserError(
        f"picogpt reads no model whose attention.dividend is {dividend}: only 1, or the root of the size of a head "
        f"({scales['head']:.6g}) or of the width ({scales['width']:.6g})"
    )


def _have_biases(properties: Properties, model: ModelConfig, *modules: str) -> bool:
    """Return whether modules of the blocks have biases. Raises UserError where only some have."""
    parameters = [f"h.{layer}.{module}.bias" for layer in range(model.n_layer) for module in modules]
    names = [name for parameter in parameters for name in names_of(parameter)]
    without = [name for name in names if _file_of(properties, name) is None]
    if 0 < len(without) < len(names):
        other = next(name for name in names if name not in without)
        raise UserError(f"{without[0]} is {NULL} and {other} is not: picogpt has such biases everywhere or nowhere")
    return not without


def _with_biases(model: ModelConfig) -> ModelConfig:
    return dataclasses.replace(model, bias=True, qkv_bias=True)


def _end_of_text(properties: Properties, model: ModelConfig) -> int | None:
    """Return the token that ends a text; None for -1. Raises UserError for one outside of the vocabulary."""
    token = _integer(properties, "end.of.text.token")
    if not -1 <= token < model.vocab_size:
        raise UserError(f"end.of.text.token must be a token, not {token}")
    return token if token >= 0 else None


def _file_of(properties: Properties, name: str) -> str | None:
    """Return the name of the file that a tensor is in, or None where it is in none."""
    file = properties.get(f"file.{name}", f"{name}.dat")
    return None if file.lower() == NULL else file


def _storage(folder: Path, file: str, count: int, layout: _Layout) -> Storage | None:
    """Return the storage that a file or its parts hold; None where there is no such file.

    Raises UserError for a file of another size, or outside of the folder.
    """
    root = folder / PARAMETERS
    try:
        paths = _parts(folder, root if root.is_dir() else folder, file)
        found = sum(path.stat().st_size for path in paths)
    except (OSError, ValueError, RuntimeError) as error:  # the last two for impossible names, and links in a circle
        raise UserError(f"{folder} has no file {shown(file)} ({one_line(error, 80)})") from None
    if not paths:
        return None
    if found != (size := count * SIZES[layout.dtype]):
        raise UserError(f"{paths[0]} has {found:,} bytes, not the {size:,} of its {count:,} numbers: get it again")
    return Storage(paths[0], 0, count, layout.dtype, layout.big_endian, parts=paths if len(paths) > 1 else ())


def _parts(folder: Path, root: Path, file: str) -> tuple[Path, ...]:
    """Return the file, or the parts that it was split into, or nothing where there is no such file.

    The name is tried in lower case too, as that program does. Raises UserError for a file outside of the folder.
    """
    home = folder.resolve()

    def exists(name: str) -> bool:
        path = (root / name).resolve()
        if not path.is_relative_to(home):
            raise UserError(f"{folder} names a file outside of it: {shown(file)}")
        return path.is_file()

    for name in dict.fromkeys((file, file.lower())):
        if exists(name):
            return (root / name,)
        if parts := tuple(takewhile(exists, (f"{name}.part{number}" for number in count_from(1)))):
            return tuple(root / part for part in parts)
    return ()


def write_dat(
    folder: Path,
    config: ModelConfig,
    arrays: Mapping[str, Array],
    data_type: DataType = "FLOAT32",
    end_of_text: int | None = None,
) -> None:
    """Write a model as such a folder, big-endian and by columns. The folder appears when it is complete.

    arrays: by picogpt's names, linear weights (outputs, inputs); `np.asarray` makes each, one at a time. data_type: of
    all numbers, which it must hold exactly. The tokenizer is given as GPT-2's, since the format has no other.
    Raises UserError, and leaves nothing, for a model that the format cannot hold, for numbers that the type does not
    hold, where the folder exists already, and where the disk refuses.
    """
    refuse(
        "a folder of .dat files",
        {
            "a context slot": config.context_slot,
            "a head of its own": not config.tied_head,
            "a bias in the head": config.head_bias,
            f"the activation {config.activation}": config.activation != "gelu_tanh",
            "a model without blocks": config.n_layer == 0,
        },
    )
    with new_folder(folder) as place:
        (place / PROPERTIES).write_text(_properties_text(config, data_type, end_of_text), encoding="ascii")
        for name in parameter_shapes(config):
            _write_parameter(place / PARAMETERS, name, arrays, data_type)


def _properties_text(config: ModelConfig, data_type: DataType, end_of_text: int | None) -> str:
    """Return the content of a model's file of properties."""
    lines: dict[str, object] = {"tokenizer": "GPT-2", "tokenizer.config": "GPT-2", "token.count": config.vocab_size}
    lines |= {"end.of.text.token": -1 if end_of_text is None else end_of_text, "max.length": config.context_len}
    lines |= {"position.embedding": "LEARNED", "pre.normalization": "true", "hidden.size": config.n_embd}
    lines |= {"feedforward.size": 4 * config.n_embd, "decoder.count": config.n_layer}
    lines |= {"attention.head.count": config.n_head, "attention.dividend": f"{1 / config.score_scale:.9g}"}
    spans = [config.span_of(layer) for layer in range(config.n_layer)]
    lines |= {f"attention.type.{i}": span for i, span in enumerate(spans, 1)}
    lines |= {"epsilon": f"{NORM_EPSILON}f"}
    lines |= {"attention.local.size": config.local_window} if "local" in spans else {}
    lines |= {"data.type": data_type, "byte.order": "BIG_ENDIAN", "weights.transposed": "true"}
    absent = parameter_shapes(_with_biases(config)).keys() - parameter_shapes(config)
    lines |= {f"file.{name}": NULL for parameter in sorted(absent) for name in names_of(parameter)}
    return "".join(f"{name} = {value}\n" for name, value in lines.items())


def _write_parameter(root: Path, parameter: str, arrays: Mapping[str, Array], data_type: DataType) -> None:
    """Write the files of one parameter, so that its array is gone before the next is made."""
    array = np.asarray(arrays[parameter], np.float32)
    names = names_of(parameter)
    for name, piece in zip(names, np.split(array, len(names)), strict=True):
        path = root / f"{name}.dat"
        path.parent.mkdir(parents=True, exist_ok=True)
        matrix = piece.T if is_hidden_matrix(parameter, piece.shape) else np.atleast_2d(piece)
        rows = max(1, _PIECE // matrix.shape[1])
        with path.open("wb") as file:
            for first in range(0, len(matrix), rows):
                file.write(_packed(matrix[first : first + rows], data_type, parameter).tobytes())


def _packed(numbers: Floats, data_type: DataType, parameter: str) -> npt.NDArray[Any]:
    """Return the numbers as they lie in the file. Raises UserError for numbers that the type does not hold."""
    if data_type == "FLOAT32":
        return numbers.astype(">f4")
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    if data_type == "BFLOAT16":
        packed, exact = (bits >> 16).astype(">u2"), not np.any(bits & 0xFFFF)
    else:
        with np.errstate(all="ignore"):  # numbers that are too large are found not to be exact
            packed = numbers.astype(">f2")
        exact = np.array_equal(np.ascontiguousarray(packed.astype(np.float32)).view(np.uint32), bits)
    if not exact:
        raise UserError(f"{data_type} does not hold all numbers of {parameter}: write FLOAT32")
    return packed
