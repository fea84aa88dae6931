"""PyTorch's files of weights, read without PyTorch.

A `pytorch_model.bin` is a ZIP file: `<name>/data.pkl` says which tensors there are, and each storage is a member of its
own, `<name>/data/<key>`. A tensor is a view of a storage, with an offset and strides: GPT-Neo's matrices are stored
transposed, and several tensors may share one storage. Older files, and tensors in the middle of another pickle, are
five pickles in a row (a magic number, a version, facts about the machine, the object, the keys of its storages), and
then the storages, each behind its count. Nothing of PyTorch is called: a pickle may name what is below.
"""

import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO

import numpy as np

from picogpt.errors import UserError
from picogpt.tensorfiles.lazy_tensor import SIZES, ZIP_ERRORS, Dtype, LazyTensor, Storage
from picogpt.tensorfiles.pickle_reader import ClassNamedError, Names, loads, loads_first

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
"""With which files of the older kind begin."""

_WHOLE_MOST = 4 << 30  # bytes of a file that is no ZIP file, and so read whole

_PICKLE_MOST = 64 << 20  # bytes; that of GPT-Neo 2.7B is some 100 KB

_DTYPES: Mapping[str, Dtype] = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}

_MAGIC_BYTES = 64  # that hold the first pickle of a file of the older kind

_ENCRYPTED = 1  # a flag of a member

_LOCAL = Struct("<4s22xHH")  # a member's own header: its signature, and the lengths of its name and extra field


def read_torch(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a file that PyTorch saved, by name; nothing of them is read yet.

    Raises UserError for a file that is damaged, is none of PyTorch's, or names what it may not.
    """
    match read_object(path):
        case dict(found) if tensors := {name: value for name, value in found.items() if _is_tensor(name, value)}:
            return tensors
    raise UserError(f"{path} holds no named tensors: name a file of weights")


def _is_tensor(name: object, value: object) -> bool:
    return type(name) is str and isinstance(value, LazyTensor)


def read_object(path: Path) -> object:
    """What PyTorch saved, in either way, or what was pickled with tensors of its own in the middle.

    Its tensors are `Stored`. Raises UserError as `read_torch`.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                return _unzipped(path, file)
        with path.open("rb") as raw:
            if _is_in_a_row(raw.read(_MAGIC_BYTES)):
                return _in_a_row(raw, lambda dtype, offset, count: Storage(path, offset, count, dtype))
        if path.stat().st_size > _WHOLE_MOST:
            raise ValueError(f"it has more than {_WHOLE_MOST >> 30} GB")
        return loads(path.read_bytes(), _ALONE)
    except ClassNamedError as error:
        raise UserError(f"{path} names {error.args[0][:80]}, which could run code: it is not loaded") from None
    except (ValueError, *ZIP_ERRORS) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is damaged or no file of PyTorch's ({reason}): get it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _unzipped(path: Path, file: zipfile.ZipFile) -> object:
    (main,) = [name for name in file.namelist() if name.endswith("/data.pkl")][:1] or [""]
    if not main:
        raise ValueError("there is no data.pkl in it")
    root = main.removesuffix("data.pkl")
    if file.getinfo(main).file_size > _PICKLE_MOST:
        raise ValueError("its data.pkl is too large")
    order = b"little"
    if f"{root}byteorder" in file.namelist():
        with file.open(f"{root}byteorder") as member:
            order = member.read(8)
    if order not in (b"little", b"big"):
        raise ValueError("its byte order is neither little nor big")

    def storage(about: Any) -> Storage:
        match about:
            case ("storage", str(dtype), str(key), str(), int(count)) if dtype in _DTYPES.values() and count >= 0:
                return _storage(path, file, f"{root}data/{key}", count, dtype, order == b"big")
        raise ValueError("it refers to something else than a storage")

    return loads(file.read(main), Names(_INSIDE, storage, _KEYS))


def _storage(path: Path, file: zipfile.ZipFile, member: str, count: int, dtype: Any, big_endian: bool) -> Storage:
    """Where a member lies. Raises ValueError for one that is not there or too short."""
    try:
        entry = file.getinfo(member)
    except KeyError:
        raise ValueError(f"{member} is missing") from None
    size = count * SIZES[dtype]
    if entry.file_size < size:
        raise ValueError(f"{member} has {entry.file_size:,} bytes, not {size:,}")
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
        return Storage(path, 0, count, dtype, big_endian, packed=member)
    with path.open("rb") as raw:
        raw.seek(entry.header_offset)
        signature, name, extra = _LOCAL.unpack(raw.read(_LOCAL.size).ljust(_LOCAL.size))
        end = raw.seek(0, 2)
    offset = entry.header_offset + _LOCAL.size + name + extra
    if signature != b"PK\x03\x04" or offset + size > end:
        raise ValueError(f"{member} is not where the file says")
    return Storage(path, offset, count, dtype, big_endian)


def _is_in_a_row(start: bytes) -> bool:
    """Whether a file of the older kind begins so."""
    try:
        return loads_first(start, _ALONE)[0] == MAGIC
    except (ValueError, ClassNamedError):
        return False


def _in_a_row(file: BinaryIO, placed: Callable[[Any, int, int], Storage]) -> object:
    """The object of a file of the older kind. placed: a storage of so many numbers at a byte. Raises ValueError."""
    file.seek(0)
    start, size = file.read(_PICKLE_MOST), file.seek(0, 2)
    places: dict[str, Storage] = {}  # at first at the beginning: where they are is known behind the object

    def storage(about: Any) -> Storage:
        match about:
            case ("storage", str(dtype), str(key), str(), int(count), None) if dtype in _DTYPES.values() and count >= 0:
                found = places.setdefault(key, placed(dtype, 0, count))
                if (found.count, found.dtype) == (count, dtype):
                    return found
        raise ValueError("it refers to something else than a storage")

    names, end, found, begun = Names(_INSIDE, storage, _KEYS), 0, list[object](), list[int]()
    for _ in range(5):
        value, length = loads_first(start[end:], names)
        found.append(value)
        begun.append(end)
        end += length
    magic, version, _, _, keys = found
    if magic != MAGIC or version != VERSION or not isinstance(keys, list) or set(keys) != set(places):
        raise ValueError("it does not begin as PyTorch's files do")
    for key in keys:
        about = places[key]
        file.seek(end)
        if int.from_bytes(file.read(8), "little") != about.count:
            raise ValueError("a storage has another count than was said")
        places[key] = placed(about.dtype, end + 8, about.count)
        end += 8 + about.count * SIZES[about.dtype]
    if end != size:
        raise ValueError("its storages end somewhere else than the file")
    return loads_first(start[begun[3] :], names)[0]


def _rebuild(storage: Any, start: Any, shape: Any, strides: Any, *_: Any) -> LazyTensor:
    """What `torch._utils._rebuild_tensor_v2` is called with; whether it wants a gradient is not needed."""
    sound = isinstance(storage, Storage) and type(start) is int
    for lengths in (shape, strides):
        sound = sound and type(lengths) is tuple and all(type(length) is int for length in lengths)
    if not sound or len(shape) != len(strides) or len(shape) > 8:
        raise ValueError("it has a tensor that is none")
    return LazyTensor(storage, shape, start, strides)


def _parameter(data: Any, *_: Any) -> Any:
    """What `torch._utils._rebuild_parameter` is called with: the tensor itself, and what is not needed."""
    return data


def _empty(*_: Any) -> dict[Any, Any]:
    """What begins empty, and what is not needed: an optimizer, whose state is set on it later."""
    return {}


def _numpy_kind(code: Any, *_: Any) -> str:
    """What `numpy.dtype` is called with; the state that is set on it later says no more of these."""
    if code not in ("f8", "f4", "i8", "i4"):
        raise ValueError("it has numbers of NumPy's that are not expected")
    return str(code)


def _numpy_scalar(kind: Any, content: Any) -> float | int:
    """A number of NumPy's, as a loss may be one."""
    if type(kind) is not str or type(content) is not bytes or len(content) != int(kind[1]):
        raise ValueError("it has a number of NumPy's that is none")
    number: float | int = np.frombuffer(content, f"<{kind}").item()
    return number


def _embedded(content: Any) -> Storage:
    """What `torch.storage._load_from_bytes` is called with: a file of the older kind that is a storage alone."""
    if type(content) is not bytes:
        raise ValueError("a storage in it is none")
    found = _in_a_row(
        BytesIO(content), lambda dtype, offset, count: Storage(Path("a storage"), offset, count, dtype, held=content)
    )
    if not isinstance(found, Storage):
        raise ValueError("a storage in it is none")
    return found


_NAMES: Mapping[str, Any] = {
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.storage._load_from_bytes": _embedded,
    "torch.optim.adamw.AdamW": _empty,
    "collections.OrderedDict": _empty,
    "collections.defaultdict": _empty,
    "builtins.dict": _empty,
    "numpy.dtype": _numpy_kind,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "__builtin__.dict": _empty,
    **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
}

# What a file that holds its storages itself may name: one inside another would be read twice at each level.
_INSIDE = {name: known for name, known in _NAMES.items() if known is not _embedded}

_KEYS = (LazyTensor,)  # an optimizer's state is by its parameters


def _outside(_: Any) -> Any:
    raise ValueError("it refers to something outside")


_ALONE = Names(_NAMES, _outside, _KEYS)
"""For a pickle that has nothing beside it."""
