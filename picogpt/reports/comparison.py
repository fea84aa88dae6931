"""What is to be known before runs are compared, and what differs between them."""

from collections.abc import Callable, Sequence

from picogpt.config import DataConfig, RunConfig
from picogpt.reports.summary import Summary, flat_settings, number_or_none, shown_value


def common_axis(runs: Sequence[Summary]) -> str:
    """What the runs' losses are drawn over: the same of each, so that the places compare.

    Steps, or tokens where a step is not the same number of them in every run; evaluations where a log has losses alone.
    """
    runs = [run for run in runs if run.points] or runs
    if any(run.axis == "evaluation" for run in runs):
        return "evaluation"
    if len({run.tokens_per_step for run in runs}) == 1 or any(run.tokens is None for run in runs):
        return "step"
    return "tokens"


def difference(run: Summary, first: Summary) -> float | None:
    """Percent by which the validation loss is higher than the first run's; None where that says nothing."""
    a, b = first.val_loss, run.val_loss
    other = _tokenizer(run) != _tokenizer(first) or (_text(run) != _text(first) and _text(run) and _text(first))
    if a is None or b is None or a <= 0 or other:
        return None
    return (b / a - 1) * 100


def notes(runs: Sequence[Summary]) -> list[str]:
    """What makes a comparison of these runs less than fair, a sentence each."""
    found = [f"{run.name} has no evaluation yet" for run in runs if not run.points]
    runs = [run for run in runs if run.points]
    found += [
        f"{run.name} is not at its end: {100 * run.share:.0f} % of its steps or minutes"
        for run in runs
        if run.share is not None and run.share < 1
    ]
    tokenizers = "the losses do not compare, their tokens are of different kinds"
    found += _differing(runs, tokenizers, lambda run: ", vocabulary ".join(_tokenizer(run)))
    found += _differing(runs, "different text, so the losses are of different tasks", _text)
    trained = "they have not trained on equally many tokens, which is part of the difference"
    found += _differing(runs, trained, lambda run: "" if run.tokens is None else f"{run.tokens:,.0f}")
    windows = "the losses are taken from different windows of the validation text, by their settings"
    found += _differing(runs, windows, _validation)
    found += _differing(runs, "time, speed and memory are of different machines", lambda run: run.machine)
    silent = [run.name for run in runs if not run.settings]
    if silent and runs[1:]:
        found.append(f"whether text and tokenizer are the same is not known: {', '.join(silent)} tells no settings")
    return found


def differing_settings(runs: Sequence[Summary]) -> dict[str, list[str]]:
    """Settings that are not the same in all runs, each with the value in every run; of one, what is not the default."""
    every = [run.settings for run in runs]
    if len(runs) == 1:
        every = [dict(flat_settings(RunConfig().to_dict())), *every]
    names = dict.fromkeys(name for settings in every for name in settings)
    rows = {name: [shown_value(settings.get(name, "-")) for settings in every] for name in names}
    return {name: row[-len(runs) :] for name, row in rows.items() if len(set(row)) > 1}


def all_settings(run: Summary) -> dict[str, str]:
    return {name: shown_value(value) for name, value in run.settings.items()}


def _differing(runs: Sequence[Summary], what: str, of: Callable[[Summary], str]) -> list[str]:
    """The sentence, with which run has what, where those that tell of it do not agree."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(of(run), []).append(run.name)
    groups.pop("", None)
    if len(groups) < 2:
        return []
    return [f"{what} ({'; '.join(f'{_names(names)}: {value}' for value, names in groups.items())})"]


def _names(names: list[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more"


def _tokenizer(run: Summary) -> tuple[str, ...]:
    """Two runs of the same have tokens of the same kind: characters of the corpus are, if there are equally many."""
    return tuple(
        shown_value(run.settings[name]) for name in ("data.tokenizer", "model.vocab_size") if name in run.settings
    )


def _text(run: Summary) -> str:
    names = ("data.data", "data.val_fraction", "data.text_field", "data.qa")
    usual = {"data.val_fraction": 0.0, "data.text_field": DataConfig.text_field, "data.qa": DataConfig.qa}
    found = {name: run.settings.get(name) for name in names}
    told = [shown_value(value) for name, value in found.items() if value not in (None, usual.get(name))]
    last = run.points[-1].text
    return " ".join([*told, *([f"now {shown_value(last)}"] if last else [])])


def _validation(run: Summary) -> str:
    """The settings that choose the windows to validate with: their length, and how many there are."""
    names = ("train.context", "model.context_len", "train.batch_size", "train.eval_interval")
    context, window, batch, interval = (number_or_none(run.settings.get(name)) for name in names)
    if not window or not batch or not interval:
        return ""
    return f"--context {context or window:.0f} --batch-size {batch:.0f} --eval-interval {interval:.0f}"
