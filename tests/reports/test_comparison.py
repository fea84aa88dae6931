"""Runs compared: whose loss is higher, by how much, over what, and what makes the comparison less than fair."""

import io
import pickle
from dataclasses import replace
from math import log as ln
from math import nan
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from picogpt.errors import UserError
from picogpt.reports.comparison import common_axis, difference, differing_settings, notes
from picogpt.reports.comparison_view import ComparisonView, row
from picogpt.reports.number_format import count
from picogpt.reports.summary import Summary, read_runs
from picogpt.runs.find import find_logs
from picogpt.runs.log import Evaluation, LogContent, read_log
from tests.support.logfiles import summary_of, write_log


def shown(runs: list[Summary], encoding: str = "utf-8", width: int = 100) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    Console(file=file, width=width, color_system=None).print(ComparisonView(runs))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def test_the_figures_of_a_run(tmp_path: Path) -> None:
    run = summary_of(tmp_path / "run", [2.5, 1.5, 2.0])
    assert (run.axis, run.steps, run.tokens, run.seconds, run.parameters) == ("step", 150, 150 * 16 * 128, 90, 17_664)
    assert (run.train_loss, run.val_loss, run.best) == (1.9, 2.0, (100, 1.5))
    assert run.bits_per_char == pytest.approx(2.0 / ln(2)) and run.bits_per_byte == pytest.approx(1.0 / ln(2))
    assert (run.tokens_per_second, run.memory_mb, run.share) == (2000, 73, 1)
    assert run.machine.startswith("Old i3")


def test_what_a_log_does_not_tell_is_not_made_up(tmp_path: Path) -> None:
    path = tmp_path / "old" / "log.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({"losses": {"train": [3.0, 2.5], "val": [nan, 2.75]}}))
    [run] = read_runs([path])
    assert run.axis == "evaluation" and run.best == (2, 2.75) and run.val_loss == 2.75
    figures = (run.tokens, run.seconds, run.steps, run.parameters, run.tokens_per_second, run.memory_mb, run.share)
    assert figures == (None,) * 7 and run.machine == ""
    assert row(run, [run]) == ["old", "-", "-", "-", "2.5000", "2.7500", "2.7500", "3.967", "-", "first", "-", "-"]


def test_the_best_is_of_the_text_that_was_read_last(tmp_path: Path) -> None:
    run = summary_of(tmp_path / "run", [1.0, 2.5, 2.0])
    texts = zip(run.points, ("sample", "wiki", "wiki"), strict=True)
    run = Summary(run.name, replace(run.log, evaluations=[replace(point, text=text) for point, text in texts]))
    assert run.best == (150, 2.0)


@pytest.mark.parametrize(
    ("first", "other", "told"),
    [(2.0, 2.0228, "+1.14 %"), (2.0, 1.9772, "-1.14 %"), (2.0, 2.00001, "0.00 %"), (2.0, None, "-"), (0.0, 1.0, "-")],
)
def test_the_sign_says_worse_with_plus(tmp_path: Path, first: float, other: float | None, told: str) -> None:
    runs = [summary_of(tmp_path / "a", [first]), summary_of(tmp_path / "b", [other])]
    assert row(runs[1], runs)[9] == told
    assert "+ is worse and - is better" in " ".join(shown(runs).split())


@given(st.floats(0.01, 20), st.floats(0.01, 20))
@settings(max_examples=50, deadline=None)
def test_a_difference_leads_back_to_the_loss(first: float, other: float) -> None:
    none: dict[str, list[float | None]] = {"train": [], "val": []}
    a, b = (
        Summary(name, LogContent(none, evaluations=[Evaluation(1, None, loss)]))
        for name, loss in (("a", first), ("b", other))
    )
    percent = difference(b, a)
    assert percent is not None and first * (1 + percent / 100) == pytest.approx(other)


def test_losses_of_other_tokens_have_no_difference_without_bits_of_text(tmp_path: Path) -> None:
    first, *others = [
        Summary(run.name, replace(run.log, evaluations=[replace(e, bits_per_byte=None) for e in run.points]))
        for run in (
            summary_of(tmp_path / "a", [2.0]),
            summary_of(tmp_path / "b", [1.0], tokenizer="chars"),
            summary_of(tmp_path / "c", [1.0], vocab_size=90),
        )
    ]
    assert [difference(run, first) for run in others] == [None, None]
    assert any("the losses cannot be compared" in note and "a: picogpt" in note for note in notes([first, others[0]]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"data": "text"}, "different text, so the losses are of different tasks (a: sample; b: text)"),
        ({"data": "shakespeare"}, "different text, so the losses are of different tasks (a: sample; b: shakespeare)"),
        ({"batch_size": 8}, "not trained on equally many tokens, which is part of the difference (a: 204,800; b: 102"),
        ({"context_len": 64}, "different windows of the validation text"),
        ({"eval_interval": 7}, "different windows of the validation text"),
        ({"steps": 200}, "b has not finished: 50 % of its steps or minutes"),
        ({"minutes": 2.0, "steps": 1000}, "b has not finished: 50 % of its steps or minutes"),
        ({"about": {}}, "there are no settings in the log of b"),
        ({"about": {"machine": "another"}}, "different machines (a: Old i3, 2 cores, 8 GB, Linux; b: another)"),
    ],
)
def test_what_is_unfair_is_said(tmp_path: Path, options: dict[str, object], told: str) -> None:
    runs = [summary_of(tmp_path / "a", [3.0, 2.0]), summary_of(tmp_path / "b", [3.0, 1.9], **options)]
    assert any(told in note for note in notes(runs)), notes(runs)
    assert "note: " in shown(runs)


def test_other_tokenizers_are_compared_by_bits_a_byte(tmp_path: Path) -> None:
    chars = summary_of(tmp_path / "chars", [2.0, 1.5], tokenizer="chars")
    bpe = summary_of(tmp_path / "bpe", [6.0, 4.2], tokenizer="bpe", vocab_size=4096, per_token=3)
    assert difference(bpe, chars) == pytest.approx(100 * (4.2 / 3 / 1.5 - 1))  # more nats a token, but fewer bits
    assert row(bpe, [chars, bpe])[9] == "-6.67 %"
    [note] = [note for note in notes([chars, bpe]) if "of different kinds" in note]
    assert note.startswith("the runs are compared by bits a byte")
    assert "validation loss in bits a byte over steps" in shown([chars, bpe])
    without = Summary("old", replace(bpe.log, evaluations=[replace(e, bits_per_byte=None) for e in bpe.points]))
    assert difference(without, chars) is None
    assert any(note.startswith("the losses cannot be compared") for note in notes([chars, without]))


def test_tokenizers_of_one_name_are_told_apart_by_their_fingerprints(tmp_path: Path) -> None:
    runs = [summary_of(tmp_path / name, [4.0], tokenizer="bpe", per_token=k) for name, k in (("a", 3), ("b", 2))]
    assert difference(runs[1], runs[0]) == 0.0
    runs = [Summary(run.name, replace(run.log, config={**run.log.config, "tokenizer": run.name})) for run in runs]
    assert difference(runs[1], runs[0]) == pytest.approx(50)


def test_text_that_a_tokenizer_does_not_know_is_told(tmp_path: Path) -> None:
    runs = [summary_of(tmp_path / "a", [2.0]), summary_of(tmp_path / "b", [1.0], unknown=0.25)]
    assert any("b: 25.0% of the text is unknown to its tokenizer" in note for note in notes(runs))


def test_a_fair_comparison_needs_no_note(tmp_path: Path) -> None:
    runs = [summary_of(tmp_path / "a", [3.0, 2.0]), summary_of(tmp_path / "b", [3.0, 1.9], n_head=4)]
    assert notes(runs) == [] and "note" not in shown(runs)
    assert differing_settings(runs) == {"model.n_head": ["8", "4"]}


def test_the_axis_is_steps_where_they_are_equal_and_else_tokens(tmp_path: Path) -> None:
    a, same = summary_of(tmp_path / "a", [3.0, 2.0]), summary_of(tmp_path / "same", [3.0, 2.0, 1.5])
    half = summary_of(tmp_path / "half", [3.0, 2.0], batch_size=8)
    old = Summary("old", LogContent({"train": [3.0], "val": [3.0]}))
    assert common_axis([a]) == common_axis([a, same]) == "step"
    assert common_axis([a, half]) == "tokens"
    assert half.curve("val_loss", "tokens")[0].tolist() == [50 * 8 * 128, 100 * 8 * 128]
    assert "over tokens, as the runs differ in tokens a step" in shown([a, half])
    assert common_axis([a, old]) == "evaluation" and a.curve("val_loss", "evaluation")[0].tolist() == [1, 2]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [40, 80, 120])
def test_every_run_can_be_found_in_the_plot_without_colour(tmp_path: Path, encoding: str, width: int) -> None:
    losses = [[3.0 - i / 10 - k / 40 for i in range(20)] for k in range(12)]
    losses[3] = losses[2]  # one hides the other
    runs = [summary_of(tmp_path / f"run é {k}", it) for k, it in enumerate(losses)]
    text = shown(runs, encoding, width)
    plot = "".join(line[10:] for line in text.splitlines() if line[9:10] in tuple("┤│|"))
    assert set("abcdefghijkl") <= set(plot)
    assert all(len(line) <= width for line in text.splitlines())
    assert ("run é 11" if encoding == "utf-8" else r"run \xe9") in text


def test_a_table_keeps_its_numbers_whole_on_80_columns(tmp_path: Path) -> None:
    runs = [summary_of(tmp_path / f"an experiment {k}", [2.0 + k]) for k in range(2)]
    lines = shown(runs, width=80).splitlines()
    assert any("2.0000" in line and "17.7k" in line and "1,000" in line for line in lines)
    assert any("+50.00 %" in line and "3.0000" in line for line in lines)


def test_days_have_a_line_of_their_own_where_there_is_little_room(tmp_path: Path) -> None:
    log = read_log(write_log(tmp_path / "a", [2.0]))
    log = replace(log, evaluations=[replace(log.evaluations[0], seconds=183_845)])
    runs = [Summary("an experiment 1", log), Summary("an experiment 2", log)]
    assert shown(runs, width=120).count(" 2 days, 3:04:05 ") == 2
    lines = shown(runs, width=80).splitlines()
    assert sum("experiment" in line and " 2 days, " in line and "17.7k" in line for line in lines) == 2
    assert sum(line.strip() == "3:04:05" for line in lines) == 2


def test_a_name_a_folder_a_file_and_a_folder_of_runs(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    one = write_log(logs / "one", [2.0])
    sweep = [write_log(logs / "sweep" / name, [2.0]) for name in ("b-2", "b-10", "a-1")]
    assert find_logs(["one"], logs) == find_logs([str(logs / "one")], logs) == find_logs([str(one)], logs) == [one]
    assert find_logs(["sweep", "one"], logs) == [sweep[2], sweep[0], sweep[1], one]
    with pytest.raises(UserError, match="there is no log at"):
        find_logs(["one", "nobody"], logs)
    with pytest.raises(UserError, match="53 runs are too many to tell apart: name 52 at most"):
        find_logs(["one"] * 53, logs)


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    paths = [write_log(tmp_path / folder / "run", [2.0]) for folder in ("x", "y")]
    assert [run.name for run in read_runs(paths)] == [path.parent.as_posix() for path in paths]


def test_differing_settings_of_one_run_are_what_is_not_the_default(tmp_path: Path) -> None:
    run = summary_of(tmp_path / "a", [2.0], n_layer=3, steps=77)
    assert differing_settings([run]) == {"model.n_layer": ["3"], "train.steps": ["77"]}


@pytest.mark.parametrize("seconds", [0.0, -1.0, 59.6, 1e29])
def test_any_number_of_a_log_can_be_shown(tmp_path: Path, seconds: float) -> None:
    log = read_log(write_log(tmp_path / "a", [2.0]))
    point = replace(log.evaluations[0], seconds=seconds, tokens=1e29, memory_mb=-5.0, tokens_per_second=1e29)
    log = replace(log, evaluations=[point])
    assert shown([Summary("a", log), Summary("b", log)], width=60)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (None, "-"),
        (0, "0"),
        (9_990, "9,990"),
        (17_664, "17.7k"),
        (6_341_120, "6.34M"),
        (999_960, "1M"),
        (2.5e9, "2.5G"),
        (3e12, "3T"),
    ],
)
def test_counts_are_short(number: float | None, told: str) -> None:
    assert count(number) == told
