"""Checkpoints in eight bits: each matrix as integers and one float32 factor a row, a quarter of the size.

Nothing trains on in that form. It is for models that are handed on: to write with, and to begin another run from.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from picogpt.engine.backend import Array
from picogpt.errors import shown

_SCALE = ".scale"  # after the name of a matrix: the name of its factors
_LARGEST = 127


def rounded(arrays: Mapping[str, Array]) -> dict[str, npt.NDArray[np.float32 | np.int8]]:
    """Return the arrays with each matrix (M, K) as int8, beside it factors (M,) that give it back; others as they are.

    A factor is a row's largest magnitude over 127, so no number moves by more than half of that.
    """
    found: dict[str, npt.NDArray[np.float32 | np.int8]] = {}
    for name, array in arrays.items():
        floats = np.asarray(array, np.float32)
        if floats.ndim == 2:
            scale = np.abs(floats).max(axis=1) / np.float32(_LARGEST)
            scale[scale < np.finfo(np.float32).tiny] = 0
            found[name] = np.rint(floats / np.where(scale, scale, np.float32(1))[:, None]).astype(np.int8)
            found[name + _SCALE] = scale
        else:
            found[name] = floats
    return found


def restored(name: str, stored: npt.NDArray[np.int8], arrays: Mapping[str, Array]) -> npt.NDArray[np.float32]:
    """Return the matrix (M, K) in float32 that `rounded` made these integers of.

    arrays: the others of the file, by name. Raises ValueError where its factors are missing or have another shape.
    """
    scale = arrays.get(name + _SCALE)
    if scale is None or scale.shape != stored.shape[:1] or scale.dtype != np.float32:
        raise ValueError(f"{shown(name)} is in eight bits without a factor a row")
    floats: npt.NDArray[np.float32] = stored * np.asarray(scale)[:, None]
    return floats


def is_scale(name: str, names: Mapping[str, object]) -> bool:
    """Return whether a name is that of the factors of a matrix that is there too."""
    return name.endswith(_SCALE) and name.removesuffix(_SCALE) in names
