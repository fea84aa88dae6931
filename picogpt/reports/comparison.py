"""The comparison of runs: over which axis, by how many percent, in which settings, and how fair it is."""

from collections.abc import Callable, Sequence
from typing import Literal

from picogpt.config import DataConfig, RunConfig
from picogpt.reports.summary import Summary, flat_settings, number_or_none, shown_value


def common_axis(runs: Sequence[Summary]) -> str:
    """Return what the losses of all runs are drawn over: "step", "tokens" or "evaluation".

    Tokens where a step is not the same number of them in every run; evaluations where a log has losses alone.
    """
    runs = [run for run in runs if run.points] or runs
    if any(run.axis == "evaluation" for run in runs):
        return "evaluation"
    if len({run.tokens_per_step for run in runs}) == 1 or any(run.tokens is None for run in runs):
        return "step"
    return "tokens"


def common_loss(runs: Sequence[Summary]) -> Literal["val_loss", "bits_per_byte"] | None:
    """Return the measure that compares these runs: where their tokens are of different kinds, bits a byte does.

    None where a log does not tell it.
    """
    runs = [run for run in runs if run.points] or runs
    fingerprints = {shown_value(of) for run in runs if (of := run.log.config.get("tokenizer"))}
    if len(set(map(_tokenizer, runs))) == 1 and len(fingerprints) < 2:
        return "val_loss"
    return None if any(run.bits_per_byte is None for run in runs) else "bits_per_byte"


def difference(run: Summary, first: Summary) -> float | None:
    """Return by how many percent a run's validation loss is above the first run's; None where that says nothing."""
    field = common_loss([first, run])
    if field is None or (_text(run) != _text(first) and _text(run) and _text(first)):
        return None
    a, b = ((one.val_loss, one.bits_per_byte)[field == "bits_per_byte"] for one in (first, run))
    if a is None or b is None or a <= 0:
        return None
    return (b / a - 1) * 100


def notes(runs: Sequence[Summary]) -> list[str]:
    """Return what makes a comparison of these runs less than fair, one sentence for each reason."""
    found = [f"{run.name} has no evaluation yet" for run in runs if not run.points]
    runs = [run for run in runs if run.points]
    found += [
        f"{run.name} has not finished: {100 * run.share:.0f} % of its steps or minutes"
        for run in runs
        if run.share is not None and run.share < 1
    ]
    in_bits = common_loss(runs) == "bits_per_byte"
    told = "the runs are compared by bits a byte" if in_bits else "the losses cannot be compared"
    tokenizers = f"{told}, as their tokens are of different kinds"
    found += [
        f"{run.name}: {run.unknown:.1%} of the text is unknown to its tokenizer, which makes it easier to predict"
        for run in runs
        if run.unknown
    ]
    found += _differing(runs, tokenizers, lambda run: ", vocabulary ".join(_tokenizer(run)))
    found += _differing(runs, "different text, so the losses are of different tasks", _text)
    trained = "the runs have not trained on equally many tokens, which is part of the difference"
    found += _differing(runs, trained, lambda run: "" if run.tokens is None else f"{run.tokens:,.0f}")
    windows = "the losses are measured on different windows of the validation text, by their settings"
    found += _differing(runs, windows, _validation)
    found += _differing(runs, "time, speed and memory are of different machines", lambda run: run.machine)
    silent = [run.name for run in runs if not run.settings]
    if silent and runs[1:]:
        found.append(f"text and tokenizer may differ: there are no settings in the log of {', '.join(silent)}")
    return found


def differing_settings(runs: Sequence[Summary]) -> dict[str, list[str]]:
    """Return the settings that differ between runs, each with the value in every run.

    For a single run: the settings that are not the defaults.
    """
    every = [run.settings for run in runs]
    if len(runs) == 1:
        every = [dict(flat_settings(RunConfig().to_dict())), *every]
    names = dict.fromkeys(name for settings in every for name in settings)
    rows = {name: [shown_value(settings.get(name, "-")) for settings in every] for name in names}
    return {name: row[-len(runs) :] for name, row in rows.items() if len(set(row)) > 1}


def all_settings(run: Summary) -> dict[str, str]:
    """Return all settings of a run, with their values as text."""
    return {name: shown_value(value) for name, value in run.settings.items()}


def _differing(runs: Sequence[Summary], sentence: str, value_of: Callable[[Summary], str]) -> list[str]:
    """Return the sentence and which runs have which value, if these differ; runs with the value "" do not count."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(value_of(run), []).append(run.name)
    groups.pop("", None)
    if len(groups) < 2:
        return []
    return [f"{sentence} ({'; '.join(f'{_listed(names)}: {value}' for value, names in groups.items())})"]


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more"


def _tokenizer(run: Summary) -> tuple[str, ...]:
    """Return what tells kinds of tokens apart. Two sets of characters count as one kind if they are equally large."""
    return tuple(
        shown_value(run.settings[name]) for name in ("data.tokenizer", "model.vocab_size") if name in run.settings
    )


def _text(run: Summary) -> str:
    """Return which text a run was trained and validated on, in a few words."""
    names = ("data.data", "data.val_fraction", "data.text_field", "data.qa")
    usual = {"data.val_fraction": 0.0, "data.text_field": DataConfig.text_field, "data.qa": DataConfig.qa}
    found = {name: run.settings.get(name) for name in names}
    words = [shown_value(value) for name, value in found.items() if value not in (None, usual.get(name))]
    last = run.points[-1].text
    return " ".join([*words, *([f"now {shown_value(last)}"] if last else [])])


def _validation(run: Summary) -> str:
    """Return the settings that choose the validation windows: their length and number."""
    names = ("train.context", "model.context_len", "train.batch_size", "train.eval_interval")
    context, window, batch, interval = (number_or_none(run.settings.get(name)) for name in names)
    if not window or not batch or not interval:
        return ""
    return f"--context {context or window:.0f} --batch-size {batch:.0f} --eval-interval {interval:.0f}"
