"""The log of a run: one pickle of plain builtins that `pickle.load` opens anywhere.

    {"losses": {"train": [...], "val": [...]}, "best_loss", "iter_num", "evaluations": [{...}], "divergence": [{...}],
     "notices", "config"}

A checksum follows the pickle, where `pickle.load` does not look. A pickle can run code, so logs are read by a reader of
our own that knows nothing but plain data.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from picogpt.errors import UserError
from picogpt.system.checksums import with_checksum, without_checksum
from picogpt.system.files import write_durably
from picogpt.system.terminal import visible
from picogpt.tensorfiles.pickle_reader import ClassNamedError, loads

MOST_EVALUATIONS, _MOST_LINES = 10_000, 1_000  # kept of a run, however long it is

_SIZE_LIMIT = 32 << 20  # bytes; ten thousand evaluations are about 6 MB

_NUMBERS = ("step", "tokens", "seconds", "lr", "train_loss", "val_loss", "tokens_per_second", "memory_mb")

_SCALARS = (str, int, float, bool, type(None))

Values = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Steps (N,), or what else is counted, and what there is at each (N,)."""


class RunLog:
    """The log being written, in memory; `to_bytes` is the file as a whole, and `save` replaces it."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = _plain(config)
        self.evaluations: list[dict[str, Any]] = []
        self.divergence: list[dict[str, Any]] = []
        self.notices: list[str] = []

    @classmethod
    def open(cls, path: Path, config: dict[str, Any]) -> "RunLog":
        """Go on with the log at `path`, or begin one. Raises UserError for a file that is not a log of ours."""
        log = cls(path, config)
        if path.exists():
            found = read_log(path)
            if found["losses"]["val"] and not found["evaluations"]:
                raise UserError(f"{path} holds losses without their steps, it cannot be continued: move it away")
            log.evaluations, log.notices = found["evaluations"], found["notices"]
            log.divergence = found["divergence"]
        return log

    def evaluation(self, *, step: int, train_loss: float | None, val_loss: float | None, **fields: Any) -> None:
        """Append one evaluation. NumPy scalars become builtins; TypeError for what is no plain scalar.

        Where there are too many, every second one goes, but for the best and the last.
        """
        entry = {"step": step, "train_loss": train_loss, "val_loss": val_loss, **fields}
        self.evaluations.append({name: _scalar(value) for name, value in entry.items()})
        if len(self.evaluations) > MOST_EVALUATIONS:
            losses = [entry["val_loss"] for entry in self.evaluations]
            best, last = losses.index(self.best_loss) if self.best_loss in losses else -1, len(losses) - 1
            self.evaluations = [e for i, e in enumerate(self.evaluations) if i % 2 == last % 2 or i == best]

    def diverged(self, step: int, text: str) -> None:
        """Append what was done about a step that was not finite."""
        self.divergence = [*self.divergence, {"step": step, "text": text}][-_MOST_LINES:]

    def notice(self, text: str) -> None:
        """Append one line the user should find again."""
        self.notices = [*self.notices, text][-_MOST_LINES:]

    def rewind(self, step: int, divergence: list[dict[str, Any]]) -> None:
        """Be what the log was after `step`: a run that goes on from there makes again what came after.

        divergence: what it had to say of that by then.
        """
        self.evaluations = [entry for entry in self.evaluations if entry["step"] <= step]
        self.divergence = divergence

    @property
    def best_loss(self) -> float | None:
        """Lowest finite validation loss on the text of the last evaluation."""
        text = self.evaluations[-1].get("text") if self.evaluations else None
        losses = [entry["val_loss"] for entry in self.evaluations if entry.get("text") == text]
        return min(filter(is_finite, losses), default=None)

    def to_bytes(self) -> bytes:
        """The file."""
        losses = {name: [entry[f"{name}_loss"] for entry in self.evaluations] for name in ("train", "val")}
        content = {
            "losses": losses,
            "best_loss": self.best_loss,
            "iter_num": self.evaluations[-1]["step"] if self.evaluations else 0,
            "evaluations": self.evaluations,
            "divergence": self.divergence,
            "notices": self.notices,
            "config": self.config,
        }
        return with_checksum(pickle.dumps(content, protocol=4))

    def save(self) -> None:
        """Replace the file, in a folder that is there. Raises UserError when the disk refuses."""
        write_log(self.path, self.to_bytes())


def write_log(path: Path, content: bytes) -> None:
    """Replace the file, in a folder that is there. Raises UserError when the disk refuses."""
    try:
        write_durably(path, content)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): look at the folder and the free disk space"
        ) from error


def read_log(path: Path) -> dict[str, Any]:
    """A log as a dict with every key, checked. Losses alone are enough of a log; the rest is then empty.

    Raises UserError for a file that is missing, damaged, foreign, too large, or that names any class.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot read the log {path}: it is not a file")
        if path.stat().st_size > _SIZE_LIMIT:
            raise UserError(f"{path} has more than {_SIZE_LIMIT >> 20} MB: this is not a log of picogpt")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the log {path}: {error.strerror or error}") from None
    try:
        pickled = without_checksum(data)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): move it away") from None
    try:
        content = loads(pickled)
    except ClassNamedError as error:
        named = visible(str(error)[:80], "utf-8")
        raise UserError(
            f"{path} names the class {named}: this is not a log of picogpt, and loading it could run code"
        ) from None
    except ValueError as error:
        reason = visible(str(error)[:120], "utf-8")
        raise UserError(f"{path} is damaged or not a log of picogpt ({reason})") from None
    return _checked(content, path)


def entries(log: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """What the log's horizontal axis counts, and its evaluations; losses alone are counted from 1."""
    if log["evaluations"]:
        return "step", log["evaluations"]
    pairs = enumerate(zip(log["losses"]["train"], log["losses"]["val"], strict=True), start=1)
    return "evaluation", [{"step": i, "train_loss": train, "val_loss": val} for i, (train, val) in pairs]


def series(points: list[dict[str, Any]], name: str) -> Values:
    """Steps (N,) in order and the finite values (N,) of field `name` at them."""
    pairs = sorted((point["step"], point[name]) for point in points if is_finite(point.get(name)))
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def is_finite(value: object) -> bool:
    """A number that can be drawn: not None, NaN, infinite or beyond all sense."""
    return isinstance(value, int | float) and -1e30 < value < 1e30


def _checked(content: object, path: Path) -> dict[str, Any]:
    """The log with all its keys. Raises UserError for another structure."""
    reason = _foreign(content)
    if reason or not isinstance(content, dict):
        raise UserError(f"{path} is not a log of picogpt: {reason}")
    empty: dict[str, Any] = {"best_loss": None, "iter_num": 0, "evaluations": [], "divergence": [], "notices": []}
    empty["config"] = {}
    return {"losses": content["losses"], **{name: content.get(name, value) for name, value in empty.items()}}


def _foreign(content: object) -> str:
    """What makes `content` no log, or nothing. Only as deep as it is used."""
    if not isinstance(content, dict) or not isinstance(content.get("losses"), dict):
        return "it has no losses"
    losses = [content["losses"].get(name) for name in ("train", "val")]
    if not all(type(values) is list and all(map(_is_number, values)) for values in losses):
        return "its losses are not lists of numbers"
    if len(losses[0]) != len(losses[1]):
        return "its train and val losses differ in number"
    if not all(_is_number(content.get(name)) for name in ("best_loss", "iter_num")):
        return "its best_loss or iter_num is not a number"
    for name, kind in (("evaluations", list), ("divergence", list), ("notices", list), ("config", dict)):
        if type(content.get(name, kind())) is not kind:
            return f"its {name} are not a {kind.__name__}"
    if not all(type(notice) is str for notice in content.get("notices", [])):
        return "a notice is not text"
    if not all(is_event(entry) for entry in content.get("divergence", [])):
        return "what it says of divergence is damaged"
    if not all(_is_evaluation(entry) for entry in content.get("evaluations", [])):
        return "an evaluation is damaged"
    return ""


def _is_evaluation(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and all(type(name) is str and type(value) in _SCALARS for name, value in entry.items())
        and type(entry.get("step")) is int
        and {"train_loss", "val_loss"} <= entry.keys()
        and all(_is_number(entry.get(name)) for name in _NUMBERS)
        and type(entry.get("sample")) in (str, type(None))
    )


def is_event(entry: object) -> bool:
    """What `diverged` appends."""
    return (
        isinstance(entry, dict)
        and entry.keys() == {"step", "text"}
        and (type(entry["step"]), type(entry["text"])) == (int, str)
    )


def _is_number(value: object) -> bool:
    """A float, an int that a float can hold, or None for a number that was not measured."""
    return value is None or type(value) is float or (type(value) is int and abs(value) < 1 << 63)


def _scalar(value: Any) -> Any:
    """`value` as a builtin scalar; TypeError if it is none."""
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) not in _SCALARS:
        raise TypeError(f"a log holds plain builtins, not {type(value).__name__}")
    return value


def _plain(value: Any) -> Any:
    """`value` with its dicts and lists, tuples as lists, down to builtin scalars; TypeError for anything else."""
    if type(value) is dict:
        return {_scalar(key): _plain(inner) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return [_plain(inner) for inner in value]
    return _scalar(value)
