"""PyTorch's files of weights, read without PyTorch.

A `pytorch_model.bin` is a ZIP file: `<name>/data.pkl` says which tensors there are, and each storage is a member of its
own, `<name>/data/<key>`. A tensor is a view of a storage, with an offset and strides: GPT-Neo's matrices are stored
transposed, and several tensors may share one storage. Files in PyTorch's legacy format, and tensors in the middle of
another pickle, are five pickles in a row (a magic number, a version, facts about the machine, the object, the keys of
its storages), and then the storages, each after its count. Nothing of PyTorch is called: the names that a pickle may
use are those of the functions below.
"""

import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from struct import Struct
from typing import BinaryIO, TypeGuard

import numpy as np

from picogpt.errors import UserError, one_line
from picogpt.tensorfiles.lazy_tensor import SIZES, ZIP_ERRORS, Dtype, LazyTensor, Storage
from picogpt.tensorfiles.pickle_reader import ClassNamedError, Names, loads, loads_first

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
"""The numbers that a file in the legacy format begins with."""

_FILE_LIMIT = 4 << 30  # bytes of a file that is not a ZIP file, and so is read whole
_PICKLE_LIMIT = 64 << 20  # bytes; that of GPT-Neo 2.7B is some 100 KB

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

_MAGIC_BYTES = 64  # that hold the first pickle of a file in the legacy format
_ENCRYPTED = 1  # a flag of a member
_LOCAL_HEADER = Struct("<4s22xHH")  # a member's own header: its signature, and the lengths of its name and extra field


def read_torch(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a file that PyTorch saved, by name, without reading them.

    Raises UserError for a file that is damaged, is not from PyTorch, or names something it may not.
    """
    match read_object(path):
        case dict(found) if tensors := {name: value for name, value in found.items() if _is_tensor(name, value)}:
            return tensors
    raise UserError(f"{path} holds no named tensors: name a file of weights")


def _is_tensor(name: object, value: object) -> bool:
    return type(name) is str and isinstance(value, LazyTensor)


def read_object(path: Path) -> object:
    """Return the object in a file that PyTorch saved in either format, or that was pickled with tensors inside.

    Its tensors are LazyTensors. Raises UserError as `read_torch` does.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                return _read_zip(path, file)
        with path.open("rb") as raw:
            if _is_legacy(raw.read(_MAGIC_BYTES)):
                return _read_legacy(raw, lambda dtype, offset, count: Storage(path, offset, count, dtype))
        if path.stat().st_size > _FILE_LIMIT:
            raise ValueError(f"it has more than {_FILE_LIMIT >> 30} GB")
        return loads(path.read_bytes(), _PLAIN_PICKLE)
    except ClassNamedError as error:
        raise UserError(f"{path} names {one_line(error, 80)}, which could run code: it is not loaded") from None
    except (ValueError, *ZIP_ERRORS) as error:
        raise UserError(f"{path} is damaged or no file of PyTorch's ({one_line(error)}): get it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_zip(path: Path, file: zipfile.ZipFile) -> object:
    (main,) = [name for name in file.namelist() if name.endswith("/data.pkl")][:1] or [""]
    if not main:
        raise ValueError("there is no data.pkl in it")
    root = main.removesuffix("data.pkl")
    if file.getinfo(main).file_size > _PICKLE_LIMIT:
        raise ValueError("its data.pkl is too large")
    order = b"little"
    if f"{root}byteorder" in file.namelist():
        with file.open(f"{root}byteorder") as member:
            order = member.read(8)
    if order not in (b"little", b"big"):
        raise ValueError("its byte order is neither little nor big")

    def storage(about: object) -> Storage:
        match about:
            case ("storage", str(dtype), str(key), str(), int(count)) if dtype in SIZES and count >= 0:
                return _member_storage(path, file, f"{root}data/{key}", count, dtype, order == b"big")
        raise ValueError("it refers to something else than a storage")

    return loads(file.read(main), Names(_NAMES_IN_FILE, storage, _KEYS))


def _member_storage(
    path: Path, file: zipfile.ZipFile, member: str, count: int, dtype: Dtype, big_endian: bool
) -> Storage:
    """Return the storage in a member of a ZIP file. Raises ValueError for a member that is missing or too short."""
    try:
        entry = file.getinfo(member)
    except KeyError:
        raise ValueError(f"{member} is missing") from None
    size = count * SIZES[dtype]
    if entry.file_size < size:
        raise ValueError(f"{member} has {entry.file_size:,} bytes, not {size:,}")
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
        return Storage(path, 0, count, dtype, big_endian, compressed_member=member)
    with path.open("rb") as raw:
        raw.seek(entry.header_offset)
        header = raw.read(_LOCAL_HEADER.size).ljust(_LOCAL_HEADER.size)
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        end = raw.seek(0, 2)
    offset = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if signature != b"PK\x03\x04" or offset + size > end:
        raise ValueError(f"{member} is not where the file says")
    return Storage(path, offset, count, dtype, big_endian)


def _is_legacy(start: bytes) -> bool:
    """Return whether a file that begins so is in the legacy format."""
    try:
        return loads_first(start, _PLAIN_PICKLE)[0] == MAGIC
    except (ValueError, ClassNamedError):
        return False


def _read_legacy(file: BinaryIO, storage_at: Callable[[Dtype, int, int], Storage]) -> object:
    """Return the object of a file in the legacy format. Raises ValueError.

    storage_at: makes a storage of a type, the byte where it begins, and its count of numbers.
    """
    file.seek(0)
    start, size = file.read(_PICKLE_LIMIT), file.seek(0, 2)
    storages: dict[str, Storage] = {}  # at first with offset 0: where they begin is known only after the object

    def storage(about: object) -> Storage:
        match about:
            case ("storage", str(dtype), str(key), str(), int(count), None) if dtype in SIZES and count >= 0:
                found = storages.setdefault(key, storage_at(dtype, 0, count))
                if (found.count, found.dtype) == (count, dtype):
                    return found
        raise ValueError("it refers to something else than a storage")

    names, end, values, begins = Names(_NAMES_IN_FILE, storage, _KEYS), 0, list[object](), list[int]()
    for _ in range(5):
        value, length = loads_first(start[end:], names)
        values.append(value)
        begins.append(end)
        end += length
    magic, version, _, _, keys = values
    if magic != MAGIC or version != VERSION or not _are_keys(keys, storages):
        raise ValueError("it does not begin as PyTorch's files do")
    for key in keys:
        about = storages[key]
        file.seek(end)
        if int.from_bytes(file.read(8), "little") != about.count:
            raise ValueError("a storage has another count than its tensors say")
        storages[key] = storage_at(about.dtype, end + 8, about.count)
        end += 8 + about.count * SIZES[about.dtype]
    if end != size:
        raise ValueError("its storages end somewhere else than the file")
    return loads_first(start[begins[3] :], names)[0]


def _are_keys(keys: object, storages: Mapping[str, Storage]) -> TypeGuard[list[str]]:
    return isinstance(keys, list) and all(isinstance(key, str) for key in keys) and set(keys) == set(storages)


def _rebuild_tensor(storage: object, start: object, shape: object, strides: object, *_: object) -> LazyTensor:
    """Stand for `torch._utils._rebuild_tensor_v2`; whether the tensor requires a gradient is not needed."""
    if not (isinstance(storage, Storage) and type(start) is int and _are_lengths(shape) and _are_lengths(strides)):
        raise ValueError("it has an invalid tensor")
    if len(shape) != len(strides) or len(shape) > 8:
        raise ValueError("it has an invalid tensor")
    return LazyTensor(storage, shape, start, strides)


def _are_lengths(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(type(length) is int for length in value)


def _rebuild_parameter(data: object, *_: object) -> object:
    """Stand for `torch._utils._rebuild_parameter`: the tensor itself is enough."""
    return data


def _empty_dict(*_: object) -> dict[object, object]:
    """Stand for a mapping, or for an optimizer, whose state is set on it later and not needed."""
    return {}


def _numpy_dtype(code: object, *_: object) -> str:
    """Stand for `numpy.dtype`; the state that is set on it later says no more about these types."""
    if not isinstance(code, str) or code not in ("f8", "f4", "i8", "i4"):
        raise ValueError("it has numbers of NumPy's that are not expected")
    return code


def _numpy_scalar(code: object, content: object) -> float | int:
    """Stand for `numpy.core.multiarray.scalar`: a loss may be such a number."""
    if not isinstance(code, str) or not isinstance(content, bytes) or len(content) != int(code[1]):
        raise ValueError("it has an invalid number of NumPy's")
    number: float | int = np.frombuffer(content, f"<{code}").item()
    return number


def _load_from_bytes(content: object) -> Storage:
    """Stand for `torch.storage._load_from_bytes`, which is given a file in the legacy format that is one storage."""
    if not isinstance(content, bytes):
        raise ValueError("it has an invalid storage")
    found = _read_legacy(
        BytesIO(content), lambda dtype, offset, count: Storage(Path("a storage"), offset, count, dtype, content=content)
    )
    if not isinstance(found, Storage):
        raise ValueError("it has an invalid storage")
    return found


_NAMES: Mapping[str, object] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.storage._load_from_bytes": _load_from_bytes,
    "torch.optim.adamw.AdamW": _empty_dict,
    "collections.OrderedDict": _empty_dict,
    "collections.defaultdict": _empty_dict,
    "builtins.dict": _empty_dict,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "__builtin__.dict": _empty_dict,
    **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
}

# The names in a file that holds its storages itself: a file inside another would be read twice at each level.
_NAMES_IN_FILE = {name: known for name, known in _NAMES.items() if known is not _load_from_bytes}

_KEYS = (LazyTensor,)  # the keys of an optimizer's state are its parameters


def _refuse_reference(_: object) -> object:
    raise ValueError("it refers to something outside")


_PLAIN_PICKLE = Names(_NAMES, _refuse_reference, _KEYS)
"""The names in a pickle without storages beside it."""
