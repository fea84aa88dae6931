"""Targets of other programs' models: folders of .dat files, and PicoGPT's logs, which are written again."""

from pathlib import Path

import numpy as np

from picogpt.interop.dat import read_dat
from picogpt.interop.picogpt import read_log, write_log


def dat_folder(folder: Path, data: bytes) -> None:
    """Other properties, with files that are sound."""
    from conftest import lively_arrays
    from datfolders import GPT2, arrays_of, save

    place = folder / "model"
    if not place.exists():
        save(place, GPT2, lively_arrays(GPT2))
        whole = place / "parameters" / "input" / "wte.dat"
        for number, part in enumerate((whole.read_bytes()[:50], whole.read_bytes()[50:]), 1):
            whole.with_name(f"split.part{number}").write_bytes(part)
    (place / "model.properties").write_bytes(data)
    found = read_dat(place)
    assert all(place in piece.storage.path.parents for pieces in found.weights.values() for piece in pieces)
    arrays_of(found)


def dat_properties(folder: Path) -> list[bytes]:
    from datfolders import GPT2, NEO, properties

    mapped = {"file.input/wte": "input/split", "file.input/wpe": "Input/WPE.dat", "position.embedding": None}
    half = {"data.type": "FLOAT16", "byte.order": "LITTLE_ENDIAN", "weights.transposed": "false"}
    texts = [properties(GPT2), properties(NEO), properties(GPT2, **mapped), properties(GPT2, **half)]
    return [text.encode() for text in texts]


def picogpt_log(folder: Path, data: bytes) -> None:
    """What was read is written, and read again as it was."""
    path, again = folder / "log.pkl", folder / "again.pkl"
    path.write_bytes(data)
    found = read_log(path, 2)
    again.unlink(missing_ok=True)
    write_log(again, found)
    other = read_log(again, 2)
    assert repr(other) == repr(found)
    for name, array in found.arrays.items():
        assert np.array_equal(array.view(np.uint32), other.arrays[name].view(np.uint32)), name


def picogpt_logs(folder: Path) -> list[bytes]:
    golden, again = Path(__file__).parents[1] / "golden" / "picogpt_log.pkl", folder / "seed.pkl"
    write_log(again, read_log(golden, 2))
    seeds = [golden.read_bytes(), again.read_bytes()]
    again.unlink()
    return seeds
