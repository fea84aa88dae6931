"""The result of a sweep: means and spreads over the seeds, and which differences may be chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from picogpt.reports.number_format import count, signed
from picogpt.sweep.cases import Case
from picogpt.sweep.study import Trial
from picogpt.sweep.worker import Figures

SURE = 3.0  # standard errors


@dataclass(frozen=True)
class Estimate:
    """The mean of a figure over several seeds."""

    mean: float
    spread: float | None
    """The sample standard deviation; None for one seed."""
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        """Return the mean and spread of the values; None where there are none."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values)) if values else None


@dataclass(frozen=True)
class CaseResult:
    """A case with its runs of all seeds."""

    case: Case
    trials: list[Trial]

    def figure(self, name: str) -> Estimate | None:
        """Return the mean of a field of `Figures` over the runs that came to their end; None where there is none."""
        values = [getattr(figures, name) for figures in self._figures]
        return None if None in values else Estimate.of(values)

    def samples(self) -> tuple[str, str] | None:
        """Return what the first run that came to its end wrote before and after training."""
        return (self._figures[0].before, self._figures[0].after) if self._figures else None

    @property
    def _figures(self) -> list[Figures]:
        return [trial.outcome.figures for trial in self.trials if trial.outcome.figures is not None]


def results(cases: Sequence[Case], trials: Sequence[Trial]) -> list[CaseResult]:
    """Return the result of each case."""
    return [CaseResult(case, [trial for trial in trials if trial.case == case.name]) for case in cases]


def difference(value: Estimate | None, first: Estimate | None) -> float | None:
    """Return by how many percent a mean is above the first's; a higher loss is worse."""
    return None if value is None or first is None or not first.mean else (value.mean / first.mean - 1) * 100


def is_clear(value: Estimate, first: Estimate) -> bool | None:
    """Return whether two means differ by more than seeds explain: by SURE standard errors of their difference.

    That error is sqrt(s1^2 / n1 + s2^2 / n2) (B. L. Welch, 1947). With three seeds each, chance alone exceeds three of
    them about once in 25 times. None where there is one seed, which has no spread.
    """
    if value.spread is None or first.spread is None:
        return None
    error = sqrt(value.spread**2 / value.count + first.spread**2 / first.count)
    return abs(value.mean - first.mean) > SURE * error


_LOSSES = "train", "val", "bits/char", "bits/byte", "vs first"
COLUMNS = ("case", "seeds", "params", "tokens", "min", *_LOSSES, "tok/s", "MB")
PUBLISHED = ("published val (train)", "vs first there")


def table(found: Sequence[CaseResult]) -> list[list[str]]:
    """Return the rows of the table: first the titles, COLUMNS and in a reproduced study PUBLISHED; then each case."""
    published = any(result.case.published for result in found)
    first = found[0].figure("loss")
    rows = [[*COLUMNS, *(PUBLISHED if published else ())]]
    for result in found:
        loss = result.figure("loss")
        cells = [
            result.case.name,
            _seeds(result.trials),
            _mean(result.figure("parameters"), ",.0f"),
            count(tokens.mean if (tokens := result.figure("tokens")) else None),
            _mean(result.figure("seconds"), ",.1f", 1 / 60),
            _mean(result.figure("train_loss"), ".4f"),
            _spread(result.figure("val_loss")),
            _mean(result.figure("bits_per_char"), ".4f"),
            _spread(result.figure("bits_per_byte")),
            "first" if result is found[0] else _signed(loss, first),
            _mean(result.figure("tokens_per_second"), ",.0f"),
            _mean(result.figure("memory_mb"), ",.0f"),
        ]
        if published:
            study = result.case.published
            percent = study.difference if study else None
            losses = f"{study.val_loss:.4f} ({study.train_loss:.4f})" if study else "-"
            cells += [losses, signed(percent)]
        rows.append(cells)
    return rows


def notes(found: Sequence[CaseResult]) -> list[str]:
    """Return what a reader of the table should know, a sentence each."""
    lines = [
        "train and val: losses in nats a token at the end, over up to a million tokens: the mean over the seeds, and "
        "their standard deviation; bits: val, as bits a character and a byte of the text. vs first: by how far "
        "bits/byte is above the first's, so + is worse, - is better; ? is less than seeds alone may explain"
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


def markdown(name: str, found: Sequence[CaseResult], machine: str) -> str:
    """Return table, notes and samples as a page in Markdown."""
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
    states: list[str] = [trial.outcome.state for trial in trials]
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
