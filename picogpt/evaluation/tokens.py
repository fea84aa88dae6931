"""What a tokenizer makes of a text, before any model has learnt from it."""

import numpy as np
import numpy.typing as npt


def frequency_bits(ids: npt.NDArray[np.integer], characters: int) -> float:  # (n,)
    """Return the bits a character of a code that knows nothing but how frequent each token of this text is."""
    counts = np.unique(ids, return_counts=True)[1]
    shares = counts / max(1, len(ids))
    return float(-(shares * np.log2(shares)).sum() * len(ids) / max(1, characters))
