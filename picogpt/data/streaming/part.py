"""Which part of a data set is being read: a record that a checkpoint stores."""

from dataclasses import asdict, dataclass

SAMPLE, STREAM = "sample", "stream"


@dataclass(frozen=True)
class StreamPart:
    """A part of a text: tokens start..stop - 1, read once from position `first` on."""

    of: str
    """Fingerprint of the data set."""
    text: str
    """sample (the embedded one) or stream."""
    number: int
    """The number of parts that were read before it."""
    first: int
    """The position of the run at which it begins."""
    start: int
    stop: int
    validation: int
    """The tokens of the validation text that windows are taken from."""

    def to_dict(self) -> dict[str, object]:
        """Return the part as a checkpoint stores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: object) -> "StreamPart":
        """Return the part that `to_dict` described. Raises ValueError for anything else."""
        match fields:
            case {
                "of": str(of),
                "text": "sample" | "stream" as text,
                "number": int(number),
                "first": int(first),
                "start": int(start),
                "stop": int(stop),
                "validation": int(validation),
                **rest,
            } if not rest and not any(isinstance(count, bool) for count in (number, first, start, stop, validation)):
                return cls(of, text, number, first, start, stop, validation)
        raise ValueError("this is no part of a stream")
