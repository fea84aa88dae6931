"""What the tests of checkpoints share: some arrays, saved, compared, damaged and forged."""

import json
import struct
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from picogpt.config import RunConfig
from picogpt.runs import checkpoint, checkpoints
from picogpt.runs.checkpoint_meta import CheckpointMeta

FILES = (checkpoint.META, checkpoint.MODEL, checkpoint.OPTIMIZER)


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "blocks.0.weight": rng.standard_normal((5, 7), dtype=np.float32),
        "strided": rng.standard_normal((6, 4), dtype=np.float32)[::2].T,
        "größe": np.array([np.nan, np.inf, -0.0], dtype=np.float32),
        "scalar": np.array(3.5, dtype=np.float32),
        "empty": np.zeros((0, 4), dtype=np.float32),
    }


def meta(val_loss: float | None = None, **fields: Any) -> CheckpointMeta:
    return CheckpointMeta(RunConfig(), {"name": "picogpt"}, "some text", val_loss=val_loss, **fields)


def save(run: Path, step: int, val_loss: float | None = None, seed: int | None = None) -> Path:
    content = arrays(step if seed is None else seed)
    optimizer = {f"m.{name}": array for name, array in content.items()}
    return checkpoints.save(run, step, content, optimizer, meta(val_loss, recent=(float(step), 2)))


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].shape == right[name].shape and left[name].tobytes() == right[name].tobytes() for name in left
    )


def remove(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-20] ^= 4
    file.write_bytes(data)


def blank(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def scrawl(file: Path) -> None:
    """Write as many other bytes."""
    file.write_bytes(np.random.default_rng(0).bytes(file.stat().st_size))


DAMAGES = (remove, truncate, flip, blank, empty, scrawl)
"""Ways to damage a file."""


def forge(folder: Path, content: bytes) -> Path:
    """Replace the model by other bytes, and make the record's checksums match them."""
    (folder / checkpoint.MODEL).write_bytes(content)
    record = json.loads((folder / checkpoint.META).read_text(encoding="utf-8"))
    record["files"][checkpoint.MODEL] = {"size": len(content), "crc32": crc32(content)}
    del record["crc32"]
    record["crc32"] = crc32(json.dumps(record, sort_keys=True).encode())
    (folder / checkpoint.META).write_text(json.dumps(record), encoding="utf-8")
    return folder / checkpoint.MODEL


def forge_meta(folder: Path, change: dict[str, Any], whole: bool = False) -> None:
    """Change what a record says of the run, or replace all of it, and make its checksum match again."""
    record = json.loads((folder / checkpoint.META).read_text(encoding="utf-8"))
    record["meta"] = change if whole else {**record["meta"], **change}
    del record["crc32"]
    record["crc32"] = crc32(json.dumps(record, sort_keys=True).encode())
    (folder / checkpoint.META).write_text(json.dumps(record), encoding="utf-8")


def container(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: object, begin: object, end: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
