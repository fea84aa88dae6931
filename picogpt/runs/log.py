"""The log of a run: one pickle of plain builtins that `pickle.load` opens anywhere.

    {"losses": {"train": [...], "val": [...]}, "best_loss", "iter_num", "evaluations": [{...}], "divergence": [{...}],
     "notices", "config"}

A checksum follows the pickle, where `pickle.load` does not look. A pickle can run code, so logs are read with picogpt's
own reader, which knows nothing but plain data.
"""

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TypeGuard, TypeVar, cast

import numpy as np
import numpy.typing as npt

from picogpt.errors import UserError, one_line
from picogpt.system.checksums import with_checksum, without_checksum
from picogpt.system.files import write_durably
from picogpt.tensorfiles.pickle_reader import ClassNamedError, loads

MOST_EVALUATIONS, _MOST_LINES = 10_000, 1_000  # in the log of a run, however long it is
_SIZE_LIMIT = 32 << 20  # bytes; ten thousand evaluations are about 6 MB
_SCALARS = (str, int, float, bool, type(None))

Value = TypeVar("Value")
Values = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Steps (N,), or what else is counted, and the value (N,) at each."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: a field is added here and nowhere else. None stands for what was not measured."""

    step: int
    """Steps done."""
    train_loss: float | None
    """The mean since the previous evaluation, in nats a token."""
    val_loss: float | None
    """In nats a token."""
    bits_per_char: float | None = None
    """The validation loss in bits a character: it compares runs with different tokenizers, as long as most of the text
    is known to them."""
    bits_per_byte: float | None = None
    """The same in bits a byte of UTF-8."""
    unknown: float | None = None
    """The share of the text's characters that the tokenizer does not know."""
    tokens: float | None = None
    """Trained on so far."""
    seconds: float | None = None
    """Spent training."""
    lr: float | None = None
    """Learning rate of AdamW."""
    tokens_per_second: float | None = None
    memory_mb: float | None = None
    """Peak of the memory that training has used."""
    sample: str | None = None
    """Text that the model generated."""
    text: str | None = None
    """Which text the losses are measured on, where that may change."""

    def to_dict(self) -> dict[str, object]:
        """Return the fields as the file has them: without what was not measured."""
        return {name: value for name, value in vars(self).items() if value is not None or name in _ALWAYS}

    @classmethod
    def from_dict(cls, fields: object) -> "Evaluation":
        """Read what `to_dict` made; fields of other programs are left out. Raises ValueError for anything else."""
        if (
            not isinstance(fields, dict)
            or not all(type(name) is str and type(value) in _SCALARS for name, value in fields.items())
            or type(fields.get("step")) is not int
            or not {"train_loss", "val_loss"} <= fields.keys()
            or not all(_is_number(fields.get(name)) for name in _NUMBERS)
            or not all(type(fields.get(name)) in (str, type(None)) for name in _TEXTS)
        ):
            raise ValueError("an evaluation is damaged")
        return cls(**{name: value for name, value in fields.items() if name in (*_NUMBERS, *_TEXTS)})


_ALWAYS, _TEXTS = ("step", "train_loss", "val_loss"), ("sample", "text")
_NUMBERS = tuple(field.name for field in dataclass_fields(Evaluation) if field.name not in _TEXTS)


@dataclass(frozen=True)
class DivergenceEvent:
    """What was done about a step whose loss or gradient was not finite."""

    step: int
    text: str

    def to_dict(self) -> dict[str, object]:
        """Return the fields as plain builtins."""
        return {"step": self.step, "text": self.text}

    @classmethod
    def from_dict(cls, fields: object) -> "DivergenceEvent":
        """Read what `to_dict` made. Raises ValueError for anything else."""
        match fields:
            case {"step": int(step), "text": str(text), **rest} if not rest and type(step) is int:
                return cls(step, text)
        raise ValueError("what it says of divergence is damaged")


@dataclass(frozen=True)
class LogContent:
    """A log that was read. One of losses alone is valid; the rest is then empty."""

    losses: dict[str, list[float | None]]
    """"train" and "val": of each evaluation, in nats a token."""
    best_loss: float | None = None
    iter_num: float | None = 0
    """The step of the last evaluation."""
    evaluations: list[Evaluation] = field(default_factory=list)
    divergence: list[DivergenceEvent] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    config: dict[str, object] = field(default_factory=dict)
    """The run's settings as they were written, and "parameters", "machine" and the fingerprint of the "tokenizer"."""

    @property
    def axis(self) -> str:
        """What the `points` are counted by: "step", or "evaluation" where there are losses alone."""
        return "step" if self.evaluations else "evaluation"

    @property
    def points(self) -> list[Evaluation]:
        """The evaluations; made of the losses where there is nothing else, and counted from 1."""
        pairs = enumerate(zip(self.losses["train"], self.losses["val"], strict=True), start=1)
        return self.evaluations or [Evaluation(i, train, val) for i, (train, val) in pairs]


class RunLog:
    """The log of a run that trains, in memory: `to_bytes` makes the whole file, and `save` replaces it."""

    def __init__(self, path: Path, config: dict[str, object]) -> None:
        """Begin an empty log. config: plain builtins; raises TypeError for others."""
        self.path = path
        self.config = cast("dict[str, object]", _plain(config))
        self.evaluations: list[Evaluation] = []
        self.divergence: list[DivergenceEvent] = []
        self.notices: list[str] = []

    @classmethod
    def open(cls, path: Path, config: dict[str, object]) -> "RunLog":
        """Continue the log at `path`, or begin one. Raises UserError for a file that is not a log of picogpt."""
        log = cls(path, config)
        if path.exists():
            found = read_log(path)
            if found.losses["val"] and not found.evaluations:
                raise UserError(f"{path} holds losses without their steps, it cannot be continued: move it away")
            log.evaluations, log.notices, log.divergence = found.evaluations, found.notices, found.divergence
        return log

    def evaluation(self, evaluation: Evaluation) -> None:
        """Append one evaluation. NumPy scalars become builtins; raises TypeError for what is no plain scalar.

        Where there are too many, every second one is dropped, except the best and the last.
        """
        self.evaluations.append(Evaluation(**{name: _scalar(value) for name, value in vars(evaluation).items()}))
        if len(self.evaluations) > MOST_EVALUATIONS:
            losses = [entry.val_loss for entry in self.evaluations]
            best, last = losses.index(self.best_loss) if self.best_loss in losses else -1, len(losses) - 1
            self.evaluations = [e for i, e in enumerate(self.evaluations) if i % 2 == last % 2 or i == best]

    def diverged(self, step: int, text: str) -> None:
        """Append what was done about a step that was not finite."""
        self.divergence = [*self.divergence, DivergenceEvent(step, text)][-_MOST_LINES:]

    def notice(self, text: str) -> None:
        """Append one line that the user should find again."""
        self.notices = [*self.notices, text][-_MOST_LINES:]

    def rewind(self, step: int, divergence: Sequence[DivergenceEvent]) -> None:
        """Set the log back to what it was after `step`, from where the run continues.

        divergence: the events that it had by then.
        """
        self.evaluations = [entry for entry in self.evaluations if entry.step <= step]
        self.divergence = list(divergence)

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the lowest finite validation loss on the text of the last one."""
        text = self.evaluations[-1].text if self.evaluations else None
        finite = [entry for entry in self.evaluations if entry.text == text and is_finite(entry.val_loss)]
        return min(finite, key=lambda entry: entry.val_loss or 0.0, default=None)

    @property
    def best_loss(self) -> float | None:
        """The lowest finite validation loss on the text of the last evaluation."""
        return self.best.val_loss if self.best else None

    def to_bytes(self) -> bytes:
        """Return the content of the whole file."""
        evaluations = [entry.to_dict() for entry in self.evaluations]
        content = {
            "losses": {name: [entry[f"{name}_loss"] for entry in evaluations] for name in ("train", "val")},
            "best_loss": self.best_loss,
            "iter_num": self.evaluations[-1].step if self.evaluations else 0,
            "evaluations": evaluations,
            "divergence": [event.to_dict() for event in self.divergence],
            "notices": self.notices,
            "config": self.config,
        }
        return with_checksum(pickle.dumps(content, protocol=4))

    def save(self) -> None:
        """Replace the file, in a folder that exists. Raises UserError where the disk refuses."""
        write_log(self.path, self.to_bytes())


def write_log(path: Path, content: bytes) -> None:
    """Replace the file, in a folder that exists. Raises UserError where the disk refuses."""
    try:
        write_durably(path, content)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): look at the folder and the free disk space"
        ) from error


def read_log(path: Path) -> LogContent:
    """Read a log and check it.

    Raises UserError for a file that is missing, damaged, too large, of another program, or that names a class.
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
        raise UserError(
            f"{path} names the class {one_line(error, 80)}: this is not a log of picogpt, and loading it could run code"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged or not a log of picogpt ({one_line(error)})") from None
    try:
        return _log_content(content)
    except ValueError as reason:
        raise UserError(f"{path} is not a log of picogpt: {reason}") from None


def values_of(pairs: Iterable[tuple[float, float | None]]) -> Values:
    """Return the steps (N,) in order and the values (N,) at them, of the pairs whose value is finite."""
    finite = sorted((step, value) for step, value in pairs if is_finite(value))
    steps, values = np.array(finite, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def series(points: Sequence[Evaluation], name: str) -> Values:
    """Return the steps (N,) in order and the finite values (N,) of the field `name` at them."""
    return values_of((point.step, getattr(point, name)) for point in points)


def is_finite(value: object) -> TypeGuard[float]:
    """Return whether a number can be drawn: not None, NaN, infinite or too large to mean anything."""
    return isinstance(value, int | float) and -1e30 < value < 1e30


def _log_content(content: object) -> LogContent:
    """Return what a pickle holds as a log, checked as deep as it is used. Raises ValueError that says what is wrong."""
    if not isinstance(content, dict) or not isinstance(content.get("losses"), dict):
        raise ValueError("it has no losses")
    losses = {name: content["losses"].get(name) for name in ("train", "val")}
    if not all(type(values) is list and all(map(_is_number, values)) for values in losses.values()):
        raise ValueError("its losses are not lists of numbers")
    if len(losses["train"]) != len(losses["val"]):
        raise ValueError("its train and val losses differ in number")
    best_loss, iter_num = content.get("best_loss"), content.get("iter_num", 0)
    if not (_is_number(best_loss) and _is_number(iter_num)):
        raise ValueError("its best_loss or iter_num is not a number")
    for name, kind in (("evaluations", list), ("divergence", list), ("notices", list), ("config", dict)):
        if type(content.get(name, kind())) is not kind:
            raise ValueError(f"its {name} are not a {kind.__name__}")
    notices = content.get("notices", [])
    if not all(type(notice) is str for notice in notices):
        raise ValueError("a notice is not text")
    divergence = list(map(DivergenceEvent.from_dict, content.get("divergence", [])))
    evaluations = list(map(Evaluation.from_dict, content.get("evaluations", [])))
    return LogContent(losses, best_loss, iter_num, evaluations, divergence, notices, content.get("config", {}))


def _is_number(value: object) -> bool:
    """Return whether it is a float, an int that a float can hold, or None for a number that was not measured."""
    return value is None or type(value) is float or (type(value) is int and abs(value) < 1 << 63)


def _scalar(value: Value) -> Value:
    """Return the value as a builtin scalar. Raises TypeError for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) not in _SCALARS:
        raise TypeError(f"a log holds plain builtins, not {type(value).__name__}")
    return value


def _plain(value: object) -> object:
    """Return the value with builtin scalars, and with tuples as lists. Raises TypeError for anything else."""
    if type(value) is dict:
        return {_scalar(key): _plain(inner) for key, inner in value.items()}
    if type(value) is list or type(value) is tuple:
        return [_plain(inner) for inner in value]
    return _scalar(value)
