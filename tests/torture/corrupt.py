"""The files of a finished run are damaged at random: a reader must refuse them in one line, or find what was there."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from picogpt.data.shards.reader import Shards
from picogpt.data.token_folder import PARTS, read_tokenizer
from picogpt.errors import UserError
from picogpt.inference.engines import export_checkpoint
from picogpt.inference.onnx.session import OnnxModel, OnnxReader
from picogpt.runs import checkpoints
from picogpt.runs.log import read_log

REFUSED, HARMLESS, ACCEPTED, CRASHED = "refused", "harmless", "accepted", "crashed"
_BLOCK = 64  # bytes, at most a third of a file


@dataclass
class Corruption:
    """Counts what the readers did with damaged files, by the file's name."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        return sum(sum(counts.values()) for counts in self.outcomes.values())

    def of(self, outcome: str) -> int:
        return sum(counts[outcome] for counts in self.outcomes.values())


def flip(data: bytearray, random: Random) -> None:
    for _ in range(random.randint(1, 8)):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def truncate(data: bytearray, random: Random) -> None:
    del data[random.randrange(len(data)) :]


def extend(data: bytearray, random: Random) -> None:
    data += random.randbytes(random.randint(1, _BLOCK))


def zero(data: bytearray, random: Random) -> None:
    start, size = _block(data, random)
    data[start : start + size] = bytes(size)


def swap(data: bytearray, random: Random) -> None:
    (first, size), (second, _) = _block(data, random), _block(data, random)
    if abs(first - second) >= size:
        one, other = data[first : first + size], data[second : second + size]
        data[first : first + size], data[second : second + size] = other, one


def overwrite(data: bytearray, random: Random) -> None:
    start, size = _block(data, random)
    data[start : start + size] = random.randbytes(size)


def foreign(data: bytearray, random: Random) -> None:
    data[:] = random.randbytes(random.randint(0, len(data)))


DAMAGES = (flip, flip, truncate, extend, zero, swap, overwrite, foreign)


def _block(data: bytearray, random: Random) -> tuple[int, int]:
    size = max(1, min(_BLOCK, len(data) // 3))
    return random.randrange(len(data) - size + 1), size


class Corrupter:
    """Damages the files of a run and of its text, and knows what they held."""

    def __init__(self, home: Path, random: Random) -> None:
        """Export the run too. home: the folder with logs/run and dataset, as the run has left them."""
        self._random, self.result = random, Corruption()
        newest = checkpoints.newest(home / "logs" / "run")
        [tokens] = [folder for folder in (home / "dataset" / "tokens").iterdir() if folder.is_dir()]
        assert newest is not None
        onnx, log = export_checkpoint(newest, "fp32", False), home / "logs" / "run" / "log.pkl"
        self._readers: list[tuple[Path, Callable[[], object]]] = [(log, lambda: read_log(log))]
        self._readers += [(path, lambda: _checkpoint(newest)) for path in sorted(newest.iterdir())]
        self._readers += [(path, lambda: _tokens(tokens)) for path in sorted(tokens.rglob("*")) if path.is_file()]
        self._readers.append((onnx, lambda: _model(onnx)))
        self._right = [read() for _, read in self._readers]

    def round(self) -> None:
        """Damage every file once, each kind of damage as often as any other, and put it right again."""
        for (path, read), right in zip(self._readers, self._right, strict=True):
            content = path.read_bytes()
            damaged, damage = content, flip
            while damaged == content:
                damage = self._random.choice(DAMAGES)
                data = bytearray(content)
                damage(data, self._random)
                damaged = bytes(data)
            path.write_bytes(damaged)
            outcome, why = _outcome(read, right)
            path.write_bytes(content)
            name = f"{path.parent.name}/{path.name}" if path.parent.name in PARTS else path.name
            self.result.outcomes.setdefault(name, Counter())[outcome] += 1
            if outcome in (ACCEPTED, CRASHED):
                self.result.problems.append(f"{name} ({damage.__name__}) was {outcome}: {why}")


def _outcome(read: Callable[[], object], right: object) -> tuple[str, str]:
    try:
        found = read()
    except UserError as error:
        lines = str(error).splitlines()
        return (REFUSED, "") if len(lines) == 1 else (CRASHED, f"its refusal has {len(lines)} lines")
    except Exception as error:
        return CRASHED, f"{type(error).__name__}: {error}"[:200]
    return (HARMLESS, "") if found == right else (ACCEPTED, "with another content")


def _checkpoint(folder: Path) -> object:
    found = checkpoints.load(folder)
    arrays = [(name, array.tobytes()) for part in (found.model, found.optimizer) for name, array in part.items()]
    return found.step, arrays, found.meta


def _tokens(folder: Path) -> object:
    """Read the tokens as a run does: the index vouches for the tokenizer."""
    tokenizer = read_tokenizer(folder)
    parts = [Shards(folder / part, tokenizer.fingerprint()) for part in PARTS]
    for shards in parts:
        shards.verify()
    return tokenizer.to_dict(), [shards.read(0, len(shards)).tobytes() for shards in parts]


def _model(path: Path) -> object:
    """Return what the model says of itself, and its answers to every token at every place of a window."""
    model = OnnxModel(path, 1, spin=False)
    window, vocabulary = model.config.context_len, model.config.vocab_size
    rows = np.arange(-(-vocabulary // window) * window).reshape(-1, window) % vocabulary
    reader = OnnxReader(model, len(rows))
    answers = reader.read(rows.astype(np.int64)).tobytes()
    return model.config, model.tokenizer.to_dict(), model.precision, model.portable, model.source, answers
