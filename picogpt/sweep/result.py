"""What came out of a sweep: means and spreads over the seeds, and what of a difference may be chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from picogpt.reports.figures import count, signed
from picogpt.sweep.cases import Case
from picogpt.sweep.study import Trial

SURE = 3.0  # standard errors


@dataclass(frozen=True)
class Estimate:
    """A figure over several seeds."""

    mean: float
    spread: float | None
    """The sample standard deviation; None of one seed."""
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        """None of no values."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values)) if values else None


@dataclass(frozen=True)
class Result:
    """A case with all its seeds."""

    case: Case
    trials: list[Trial]

    def figure(self, name: str) -> Estimate | None:
        """Over the runs that came to their end."""
        return Estimate.of([trial.outcome.figures[name] for trial in self.trials if trial.outcome.state == "done"])

    def samples(self) -> tuple[str, str] | None:
        """Of its first seed that came to its end: before and after training."""
        done = [trial.outcome.figures for trial in self.trials if trial.outcome.state == "done"]
        return (done[0]["before"], done[0]["after"]) if done else None


def results(cases: Sequence[Case], trials: Sequence[Trial]) -> list[Result]:
    return [Result(case, [trial for trial in trials if trial.case == case.name]) for case in cases]


def difference(value: Estimate | None, first: Estimate | None) -> float | None:
    """Percent by which a mean is above the first's; a loss that is higher is worse."""
    return None if value is None or first is None or not first.mean else (value.mean / first.mean - 1) * 100


def is_clear(value: Estimate, first: Estimate) -> bool | None:
    """Whether two means are further apart than seeds explain: by more than SURE standard errors of their difference.

    That error is sqrt(s1^2 / n1 + s2^2 / n2) (B. L. Welch, 1947). With three seeds each, chance alone goes beyond three
    of them about once in 25 times. None where one seed has no spread.
    """
    if value.spread is None or first.spread is None:
        return None
    error = sqrt(value.spread**2 / value.count + first.spread**2 / first.count)
    return abs(value.mean - first.mean) > SURE * error


COLUMNS = ("case", "seeds", "params", "tokens", "min", "train", "val", "vs first", "tok/s", "MB")

PUBLISHED = ("published val (train)", "vs first there")


def table(found: Sequence[Result]) -> list[list[str]]:
    """A line of cells a case under COLUMNS and, where a study is reproduced, PUBLISHED; the first is their titles."""
    published = any(result.case.published for result in found)
    first = found[0].figure("val_loss")
    rows = [[*COLUMNS, *(PUBLISHED if published else ())]]
    for result in found:
        val = result.figure("val_loss")
        cells = [
            result.case.name,
            _seeds(result.trials),
            _mean(result.figure("parameters"), ",.0f"),
            count(tokens.mean if (tokens := result.figure("tokens")) else None),
            _mean(result.figure("seconds"), ",.1f", 1 / 60),
            _mean(result.figure("train_loss"), ".4f"),
            _spread(val),
            "first" if result is found[0] else _signed(val, first),
            _mean(result.figure("tokens_per_second"), ",.0f"),
            _mean(result.figure("memory_mb"), ",.0f"),
        ]
        if published:
            theirs = result.case.published
            percent = theirs.difference if theirs else None
            losses = f"{theirs.val_loss:.4f} ({theirs.train_loss:.4f})" if theirs else "-"
            cells += [losses, signed(percent)]
        rows.append(cells)
    return rows


def notes(found: Sequence[Result]) -> list[str]:
    """What is to be known of the table, a sentence each."""
    lines = [
        "train and val: losses in nats a token at the end, over up to a million tokens: the mean over the seeds, and "
        "their standard deviation. vs first: + is worse, - is better; ? is less than seeds alone may explain"
    ]
    if alone := [result.case.name for result in found if (val := result.figure("val_loss")) and val.count == 1]:
        lines.append(f"one seed alone tells nothing of chance: {', '.join(alone)}")
    tokens = [result.figure("tokens") for result in found]
    if tokens[0]:
        for word, more in (("more", True), ("fewer", False)):
            names = [
                f"{result.case.name} ({seen.mean / tokens[0].mean:.3g} times as many)"
                for result, seen in zip(found, tokens, strict=True)
                if seen and (seen.mean > tokens[0].mean if more else seen.mean < tokens[0].mean)
            ]
            if names:
                lines.append(
                    f"trained on {word} tokens than the first, which is part of the difference: {'; '.join(names)}"
                )
    for result in found:
        for trial in result.trials:
            if trial.outcome.state == "failed":
                lines.append(f"{result.case.name}, seed {trial.seed}, failed: {trial.outcome.reason}")
    return lines


def markdown(name: str, found: Sequence[Result], machine: str) -> str:
    """The whole as a page."""
    titles, *rows = table(found)
    lines = [f"# {name}", "", "| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines += ["", *(f"- {note}" for note in notes(found)), f"- machine: {machine}", ""]
    for result in found:
        if samples := result.samples():
            lines += [f"## {result.case.name}", ""]
            for when, text in zip(("before", "after"), samples, strict=True):
                lines += [f"{when} training:", "", *(f"    {line}" for line in text.splitlines()), ""]
    return "\n".join(lines)


def _seeds(trials: Sequence[Trial]) -> str:
    states: list[Any] = [trial.outcome.state for trial in trials]
    parts = [str(states.count("done"))] + [f"{states.count(s)} {s}" for s in ("pruned", "failed") if s in states]
    return ", ".join(parts)


def _mean(value: Estimate | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(value.mean * factor, form)


def _spread(value: Estimate | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.4f}" + ("" if value.spread is None else f" ± {value.spread:.4f}")


def _signed(value: Estimate | None, first: Estimate | None) -> str:
    percent = difference(value, first)
    if percent is None or value is None or first is None:
        return "-"
    return signed(percent) + (" ?" if is_clear(value, first) is False else "")
