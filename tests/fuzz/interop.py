"""Targets of other programs' models: Hugging Face's, folders of .dat files, and PicoGPT's logs."""

from pathlib import Path

import numpy as np

from picogpt.interop.dat import read_dat
from picogpt.interop.foreign_model import shape_of
from picogpt.interop.huggingface.reader import read_huggingface
from picogpt.interop.picogpt_log import read_picogpt_log, write_picogpt_log
from picogpt.model.parameters import parameter_shapes
from picogpt.tensorfiles.safetensors import read_safetensors, write_safetensors
from tests.support.paths import GOLDEN


def dat_folder(folder: Path, data: bytes) -> None:
    """Other properties, with files that are sound."""
    from tests.support.datfolders import GPT2, arrays_of, save
    from tests.support.models import lively_arrays

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
    from tests.support.datfolders import GPT2, NEO, properties

    mapped = {"file.input/wte": "input/split", "file.input/wpe": "Input/WPE.dat", "position.embedding": None}
    half = {"data.type": "FLOAT16", "byte.order": "LITTLE_ENDIAN", "weights.transposed": "false"}
    texts = [properties(GPT2), properties(NEO), properties(GPT2, **mapped), properties(GPT2, **half)]
    return [text.encode() for text in texts]


def picogpt_log(folder: Path, data: bytes) -> None:
    """What was read is written, and read again as it was."""
    path, again = folder / "log.pkl", folder / "again.pkl"
    path.write_bytes(data)
    found = read_picogpt_log(path, 2)
    again.unlink(missing_ok=True)
    write_picogpt_log(again, found)
    other = read_picogpt_log(again, 2)
    assert repr(other) == repr(found)
    for name, array in found.arrays.items():
        assert np.array_equal(array.view(np.uint32), other.arrays[name].view(np.uint32)), name


def picogpt_logs(folder: Path) -> list[bytes]:
    golden, again = GOLDEN / "picogpt_log.pkl", folder / "seed.pkl"
    write_picogpt_log(again, read_picogpt_log(golden, 2))
    seeds = [golden.read_bytes(), again.read_bytes()]
    again.unlink()
    return seeds


def safetensors_file(folder: Path, data: bytes) -> None:
    """What is read can be written, and is the same again."""
    path, again = folder / "file", folder / "again"
    path.write_bytes(data)
    found = {name: tensor for name, tensor in read_safetensors(path).items() if tensor.dtype in ("F32", "F16", "BF16")}
    write_safetensors(again, {name: tensor.raw() for name, tensor in found.items()})
    other = read_safetensors(again)
    assert {name: tensor.shape for name, tensor in other.items()} == {n: tensor.shape for n, tensor in found.items()}
    for name, tensor in found.items():
        assert tensor.raw().tobytes() == other[name].raw().tobytes(), name


def safetensors_files(folder: Path) -> list[bytes]:
    from tests.support.hf import container

    tensors = {"w": np.ones((2, 3), np.float32), "b": np.zeros(1, np.float32)}
    return [container(tensors, kind) for kind in ("float32", "float16", "bfloat16")]


def huggingface_config(folder: Path, data: bytes) -> None:
    from tests.support.hf import GOLDEN

    for family, file in (("gpt2", "model.safetensors"), ("gpt_neo", "pytorch_model.bin")):
        place = folder / family
        if not place.exists():
            place.mkdir()
            (place / file).write_bytes((GOLDEN / family / file).read_bytes())
    place = folder / ("gpt_neo" if b"attention_types" in data else "gpt2")
    (place / "config.json").write_bytes(data)
    found = read_huggingface(place)
    assert {name: shape_of(pieces) for name, pieces in found.weights.items()} == parameter_shapes(found.model)


def huggingface_configs(folder: Path) -> list[bytes]:
    from tests.support.hf import GOLDEN

    return [(GOLDEN / family / "config.json").read_bytes() for family in ("gpt2", "gpt_neo")]


def huggingface_index(folder: Path, data: bytes) -> None:
    """An index that names what it likes: no file outside its folder is opened."""
    from tests.support.hf import CONFIGS, weights_of, write_folder

    place = folder / "shards"
    if not place.exists():
        write_folder(place, CONFIGS["gpt2"], weights_of("gpt2"), shards=2)
    (place / "model.safetensors.index.json").write_bytes(data)
    found = read_huggingface(place)
    assert all(piece.storage.path.parent == place for pieces in found.weights.values() for piece in pieces)


def huggingface_indexes(folder: Path) -> list[bytes]:
    from tests.support.hf import CONFIGS, weights_of, write_folder

    place = write_folder(folder / "seed", CONFIGS["gpt2"], weights_of("gpt2"), shards=2)
    return [(place / "model.safetensors.index.json").read_bytes()]
