"""The table that `benchmarks.compare` makes of its measurements."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from statistics import median

from rich.table import Table

Answer = dict[str, object]
"""The JSON object that one measurement printed."""

Results = dict[str, list[Answer]]
"""What each contestant printed, an answer a round."""

PEERS = {f"{how} {batch}": (how, batch) for how in ("eager", "compile") for batch in (4, 8, 16, 32)}
COLUMNS = ("what", "picogpt", "beside it", "ratio", "peak MB")


@dataclass(frozen=True)
class Row:
    """A row of the table. `ratio` is above 1 where picogpt, or the first of two of its settings, is faster."""

    what: str
    picogpt: str
    beside: str = ""
    ratio: str = ""
    peak_mb: str = ""


def rows(results: Results, absent: Mapping[str, str]) -> list[Row]:
    """Return the rows of the table; `absent` says of each contestant without results why it has none."""
    facts = _Facts(results, absent)
    pico = "pico, AdamW, batch 16"
    return [
        facts.best_peer(pico),
        *facts.peers(pico),
        facts.peak_speed(pico, "pico"),
        *(facts.bound(name, name) for name in ("pico", "exercise-base", "race")),
        facts.against("pico rolling, --context 1280", "rolling", "pico", "plain windows"),
        facts.against("the same, both with Muon", "rolling muon", "pico muon", "plain windows"),
        facts.against("pico --low-memory", "low-memory", "pico", "without it"),
        facts.against("gpt2 --low-memory", "gpt2"),
        *facts.time_to_loss(),
    ]


class _Facts:
    """Figures of the contestants as text: medians over the rounds, or why there are none."""

    def __init__(self, results: Results, absent: Mapping[str, str]) -> None:
        self.results, self.absent = results, absent

    def values(self, name: str, key: str) -> list[float]:
        """Return a figure of each round."""
        return [number(answer, key) for answer in self.results[name]]

    def median(self, name: str, key: str) -> float:
        return float(median(self.values(name, key)))

    def speed(self, name: str) -> str:
        """Return a speed in words, or why there is none."""
        if name not in self.results:
            return self.absent[name]
        return f"{self.median(name, 'tokens_per_second'):,.0f} tokens/s"

    def memory(self, *names: str) -> str:
        """Return the peaks of memory of these contestants."""
        known = [name for name in names if name in self.results and self.results[name][0]["peak_rss_mb"] is not None]
        return " / ".join(f"{self.median(name, 'peak_rss_mb'):,.0f}" if name in known else "-" for name in names)

    def ratio(self, first: str, other: str) -> str:
        """Return the median ratio of two speeds."""
        if first not in self.results or other not in self.results:
            return ""
        speeds = (self.values(name, "tokens_per_second") for name in (first, other))
        return f"{median(a / b for a, b in zip(*speeds, strict=True)):.2f}"

    def against(self, what: str, first: str, other: str = "", label: str = "") -> Row:
        """Return the row of a speed, with that of another contestant beside it."""
        if not other:
            return Row(what, self.speed(first), peak_mb=self.memory(first))
        beside = f"{label}: {self.speed(other)}"
        return Row(what, self.speed(first), beside, self.ratio(first, other), self.memory(first, other))

    def best_peer(self, what: str) -> Row:
        """Return the row of the fastest peer."""
        measured = [name for name in PEERS if name in self.results]
        if not measured:
            return Row(what, self.speed("pico"), "no peer was measured", peak_mb=self.memory("pico"))
        best = max(measured, key=lambda name: self.median(name, "tokens_per_second"))
        return self.against(what, "pico", best, f"best of PyTorch, {_peer(best)}")

    def peers(self, what: str) -> list[Row]:
        """Return a row a peer; one for all where none has results, for the same reason."""
        reasons = {self.absent.get(name) for name in PEERS}
        if len(reasons) == 1 and (reason := reasons.pop()):
            return [Row("", "", f"PyTorch: {reason}")]
        return [self.against(what, "pico", name, f"PyTorch {_peer(name)}") for name in PEERS]

    def peak_speed(self, what: str, name: str) -> Row:
        """Return the row of a speed beside what sgemm would allow."""
        if name not in self.results:
            return Row(what, self.speed(name))
        gflops, mflop = self.median(name, "sgemm_gflops"), self.median(name, "mflop_per_token")
        beside = f"sgemm, {gflops:,.0f} GFLOP/s: {1e3 * gflops / mflop:,.0f} tokens/s"
        return Row(what, self.speed(name), beside, f"{self.median(name, 'peak_fraction'):.2f}")

    def bound(self, what: str, name: str) -> Row:
        """Return the row of a speed beside what its matrix products would allow."""
        if name not in self.results:
            return Row(what, self.speed(name))
        beside = f"its matrix products alone: {self.median(name, 'matmul_bound_tokens_per_second'):,.0f} tokens/s"
        return Row(what, self.speed(name), beside, f"{self.median(name, 'matmul_fraction'):.2f}", self.memory(name))

    def time_to_loss(self) -> list[Row]:
        """Return the rows of picogpt's seconds to its target beside each peer's to the end of its recipe."""
        if "time" not in self.results:
            return [Row("time to loss, race", self.absent["time"])]
        seconds, reached = self.values("time", "seconds"), all(self.values("time", "reached"))
        figures = f"{median(seconds):.1f} s, worst loss {max(self.values('time', 'val_loss')):.4f}"
        found = []
        for name in ("time eager", "time compile"):
            label = f"nanoGPT's recipe, {name.removeprefix('time ')}: "
            if name in self.results:
                beside = f"{self.median(name, 'seconds'):.1f} s, loss {self.median(name, 'val_loss'):.4f}"
                ratios = [peer / own for own, peer in zip(seconds, self.values(name, "seconds"), strict=True)]
                ratio = f"{median(ratios):.2f}" if reached else ""
            else:
                beside, ratio = self.absent[name], ""
            shown = figures if reached else f"NOT REACHED in every round: {figures}"
            what = f"time to loss {self.values('time', 'target')[0]:g}, race"
            found.append(Row(what, shown, label + beside, ratio, self.memory("time", name)))
        return found


def number(answer: Answer, key: str) -> float:
    """Return a figure of an answer; of a list, which has one a seed, the first."""
    value = answer[key]
    if isinstance(value, list):
        value = value[0]
    assert isinstance(value, int | float)
    return value


def _peer(name: str) -> str:
    how, batch = PEERS[name]
    return f"{how}, batch {batch}"


def as_rich(table: list[Row], machine: str) -> Table:
    """Return the table for a terminal, with the machine's name as its title."""
    shown = Table(title=machine, title_justify="left")
    for column in COLUMNS:
        shown.add_column(column, justify="right" if column in ("ratio", "peak MB") else "left")
    for row in table:
        shown.add_row(*astuple(row))
    return shown


def as_markdown(table: list[Row], machine: str) -> str:
    """Return the table in Markdown, below the machine's name."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(astuple(row) for row in table)]
    cells = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
    return "\n".join([f"{machine}:", "", *(f"| {line} |" for line in cells)])
