"""bfloat16, which NumPy does not have: the upper 16 bits of a float32, held as unsigned integers."""

from typing import Any

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]

_QUIET = 0x40  # keeps a NaN a NaN when its lower half is cut off


def widened(bits: npt.NDArray[Any], out: Floats | None = None) -> Floats:  # (...) -> (...)
    """Return the same numbers in float32."""
    wide = np.empty(bits.shape, np.uint32) if out is None else out.view(np.uint32)
    wide[...] = bits
    np.left_shift(wide, 16, out=wide)
    return wide.view(np.float32)


def is_exact(floats: Floats) -> bool:
    """Return whether all of them are bfloat16 numbers, with lower halves of zero."""
    return not (np.ascontiguousarray(floats).view(np.uint32) & np.uint32(0xFFFF)).any()


def narrowed(floats: Floats) -> Bits:  # (...) -> (...)
    """Return the nearest bfloat16 numbers, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(floats).view(np.uint32)
    nearest = (bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))) >> np.uint32(16)
    quiet = bits >> np.uint32(16) | np.where(bits & np.uint32(0xFFFF), np.uint32(_QUIET), np.uint32(0))
    return np.where(np.isnan(floats), quiet, nearest).astype(np.uint16)
