"""What the measurements of `benchmarks.compare` say, as the rows of a table."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from statistics import median
from typing import Any

from rich.table import Table

# What each contestant printed, a dict a round.
Results = dict[str, list[dict[str, Any]]]

PEERS = {f"{how} {batch}": (how, batch) for how in ("eager", "compile") for batch in (4, 8, 16, 32)}
COLUMNS = ("what", "picogpt", "beside it", "ratio", "peak MB")


@dataclass(frozen=True)
class Row:
    """A line of the table. `ratio` is above 1 where picogpt, or the first of two ways of it, is the faster."""

    what: str
    picogpt: str
    beside: str = ""
    ratio: str = ""
    peak_mb: str = ""


def rows(results: Results, absent: Mapping[str, str]) -> list[Row]:
    """The table of what was measured; `absent` says of each contestant without results why it has none."""
    facts = _Facts(results, absent)
    pico = "pico, AdamW, batch 16"
    return [
        facts.best_peer(pico),
        *facts.peers(pico),
        facts.roof(pico, "pico"),
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

    def median(self, name: str, key: str) -> float:
        return float(median(answer[key] for answer in self.results[name]))

    def speed(self, name: str) -> str:
        if name not in self.results:
            return self.absent[name]
        return f"{self.median(name, 'tokens_per_second'):,.0f} tokens/s"

    def peak(self, *names: str) -> str:
        known = [name for name in names if name in self.results and self.results[name][0]["peak_rss_mb"] is not None]
        return " / ".join(f"{self.median(name, 'peak_rss_mb'):,.0f}" if name in known else "-" for name in names)

    def ratio(self, ours: str, theirs: str, key: str = "tokens_per_second") -> str:
        if ours not in self.results or theirs not in self.results:
            return ""
        pairs = zip(self.results[ours], self.results[theirs], strict=True)
        return f"{median(a[key] / b[key] for a, b in pairs):.2f}"

    def against(self, what: str, ours: str, theirs: str = "", label: str = "") -> Row:
        """A speed, and that of another contestant beside it."""
        if not theirs:
            return Row(what, self.speed(ours), peak_mb=self.peak(ours))
        beside = f"{label}: {self.speed(theirs)}"
        return Row(what, self.speed(ours), beside, self.ratio(ours, theirs), self.peak(ours, theirs))

    def best_peer(self, what: str) -> Row:
        measured = [name for name in PEERS if name in self.results]
        if not measured:
            return Row(what, self.speed("pico"), "no peer was measured", peak_mb=self.peak("pico"))
        best = max(measured, key=lambda name: self.median(name, "tokens_per_second"))
        return self.against(what, "pico", best, f"best of PyTorch, {_peer(best)}")

    def peers(self, what: str) -> list[Row]:
        """A row a peer; one for all where they have nothing for the same reason."""
        reasons = {self.absent.get(name) for name in PEERS}
        if len(reasons) == 1 and (reason := reasons.pop()):
            return [Row("", "", f"PyTorch: {reason}")]
        return [self.against(what, "pico", name, f"PyTorch {_peer(name)}") for name in PEERS]

    def roof(self, what: str, name: str) -> Row:
        if name not in self.results:
            return Row(what, self.speed(name))
        gflops, mflop = self.median(name, "sgemm_gflops"), self.median(name, "mflop_per_token")
        beside = f"sgemm, {gflops:,.0f} GFLOP/s: {1e3 * gflops / mflop:,.0f} tokens/s"
        return Row(what, self.speed(name), beside, f"{self.median(name, 'roof_fraction'):.2f}")

    def bound(self, what: str, name: str) -> Row:
        if name not in self.results:
            return Row(what, self.speed(name))
        beside = f"its matrix products alone: {self.median(name, 'matmul_bound_tokens_per_second'):,.0f} tokens/s"
        return Row(what, self.speed(name), beside, f"{self.median(name, 'matmul_fraction'):.2f}", self.peak(name))

    def time_to_loss(self) -> list[Row]:
        """picogpt's seconds to its target beside a peer's to the end of its recipe; one row where none was measured."""
        if "time" not in self.results:
            return [Row("time to loss, race", self.absent["time"])]
        runs = self.results["time"]
        seconds, losses = [run["seconds"][0] for run in runs], [run["val_loss"][0] for run in runs]
        reached = all(run["reached"][0] for run in runs)
        ours = f"{median(seconds):.1f} s, worst loss {max(losses):.4f}"
        found = []
        for name in ("time eager", "time compile"):
            label = f"nanoGPT's recipe, {name.removeprefix('time ')}: "
            if name in self.results:
                beside = f"{self.median(name, 'seconds'):.1f} s, loss {self.median(name, 'val_loss'):.4f}"
                times = [peer["seconds"] / own for own, peer in zip(seconds, self.results[name], strict=True)]
                ratio = f"{median(times):.2f}" if reached else ""
            else:
                beside, ratio = self.absent[name], ""
            shown = ours if reached else f"NOT REACHED in every round: {ours}"
            what = f"time to loss {runs[0]['target']:g}, race"
            found.append(Row(what, shown, label + beside, ratio, self.peak("time", name)))
        return found


def _peer(name: str) -> str:
    how, batch = PEERS[name]
    return f"{how}, batch {batch}"


def as_rich(table: list[Row], machine: str) -> Table:
    shown = Table(title=machine, title_justify="left")
    for column in COLUMNS:
        shown.add_column(column, justify="right" if column in ("ratio", "peak MB") else "left")
    for row in table:
        shown.add_row(*astuple(row))
    return shown


def as_markdown(table: list[Row], machine: str) -> str:
    """The same as a Markdown table below the machine's name."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(astuple(row) for row in table)]
    cells = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
    return "\n".join([f"{machine}:", "", *(f"| {line} |" for line in cells)])
