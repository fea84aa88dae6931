"""What happened in the torture: counted while it goes on, and printed by report.py."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum


class Part(StrEnum):
    """What the time is spent on."""

    PACE = "measuring the pace"
    UNDISTURBED = "undisturbed runs"
    FAULTS = "faults"
    NO_EFFECT = "faults that had no effect"
    LAST_STARTS = "last starts"
    COMPARISONS = "comparisons"
    FILES = "damaged files"


@dataclass
class Tally:
    """How often everything was wanted and happened, and how long it took."""

    names: list[str] = field(default_factory=list)
    """Of the variants that were trained."""
    kills: Counter[str] = field(default_factory=Counter)
    """SIGKILLs that a run survived, by the variant."""
    wanted: Counter[str] = field(default_factory=Counter)
    """Faults that were planned, by kind."""
    faults: Counter[str] = field(default_factory=Counter)
    """Faults that took effect, by kind."""
    no_effect: Counter[str] = field(default_factory=Counter)
    """Faults that were tried in vain, by kind: the run was over before, or could not save for another reason."""
    disturbed: int = 0
    """Processes that were started to be disturbed."""
    seconds: dict[Part, float] = field(default_factory=dict)
    bits_compared: int = 0
    bits_different: int = 0
    problems: list[str] = field(default_factory=list)

    def spend(self, part: Part, seconds: float) -> None:
        """Add to the time of a part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    @contextmanager
    def timed(self, part: Part) -> Iterator[None]:
        """Add the time that passes inside to a part."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.spend(part, time.monotonic() - began)

    @property
    def seconds_a_fault(self) -> float:
        """The mean over all disturbed processes so far; 0 before the first."""
        spent = self.seconds.get(Part.FAULTS, 0.0) + self.seconds.get(Part.NO_EFFECT, 0.0)
        return spent / self.disturbed if self.disturbed else 0.0

    @property
    def missing(self) -> list[str]:
        """The kinds that were wanted and did not happen at all."""
        return [kind for kind, wanted in self.wanted.items() if wanted and not self.faults[kind]]
