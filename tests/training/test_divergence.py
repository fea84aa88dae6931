"""Losses that are not finite: steps are left out, then the run goes back and learns more slowly, and finally ends."""

import itertools
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from picogpt.errors import UserError
from picogpt.runs import checkpoint, checkpoints
from picogpt.runs.checkpoint_meta import DivergenceState
from picogpt.tensorfiles.safetensors import write_safetensors
from picogpt.training import divergence
from picogpt.training.divergence import Recovery
from picogpt.training.trainer import Trainer
from tests.support.running import before_step, config_for, log_of, open_run, result_of

pytestmark = pytest.mark.usefixtures("no_plots", "short_samples")


def poison(monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...], below_rate: float = 1.0) -> None:
    """Make the loss of these steps NaN, as long as the learning rates are no lower than this share of their setting."""
    original = Trainer.accumulate

    def poisoned(self: Trainer, x: Any, y: Any, step: int, depth: int | None = None) -> tuple[float, float]:
        loss, norm = original(self, x, y, step, depth)
        return (math.nan, norm) if step in steps and rates[-1] >= below_rate else (loss, norm)

    rates: list[float] = [1.0]

    def noted(*arguments: Any) -> Any:
        made = DivergenceState(*arguments)
        rates.append(made.rate)
        return made

    monkeypatch.setattr(divergence, "DivergenceState", noted)
    monkeypatch.setattr(Trainer, "accumulate", poisoned)


def test_a_step_that_is_not_finite_is_left_out(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, (5, 7, 8))
    run = open_run(config_for(text))
    run.train()
    log = log_of(run)
    assert [event["step"] for event in log["divergence"]] == [6, 8, 9]
    assert all(event["text"].endswith("is left out") for event in log["divergence"])
    assert all(math.isfinite(loss) for loss in log["losses"]["train"] + log["losses"]["val"])
    assert checkpoints.newest(run.dir) == run.dir / "checkpoints" / "00000012"


def test_three_in_a_row_go_back_and_learn_slower(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, (5, 6, 7))
    run = open_run(config_for(text))
    run.train()
    log = log_of(run)
    assert log["divergence"][-1]["text"].endswith("at step 8: back to step 4, with 0.5 of the learning rates")
    # The steps would be NaN again, if the rate were not lower.
    assert [entry["step"] for entry in log["evaluations"]] == [4, 8, 12]
    rate = run.config.train.learning_rate
    assert log["evaluations"][0]["lr"] == pytest.approx(rate) and log["evaluations"][1]["lr"] <= rate / 2


def test_what_goes_back_takes_the_same_way_after_a_kill(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, (5, 6, 7))
    whole = open_run(config_for(text), "whole")
    whole.train()

    def die() -> None:
        raise RuntimeError("the power went")

    for step in (4, 6, 7, 9):
        with monkeypatch.context() as patch:
            poison(patch, (5, 6, 7))
            before_step(patch, step, die)
            with pytest.raises(RuntimeError, match="the power went"):
                open_run(config_for(text)).train()
    poison(monkeypatch, (5, 6, 7))
    run = open_run(config_for(text))
    run.train()
    assert result_of(run) == result_of(whole)
    assert log_of(run)["divergence"] == log_of(whole)["divergence"]


def test_what_never_gets_better_is_given_up(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, tuple(range(6, 100)), below_rate=0.0)
    run = open_run(config_for(text))
    with pytest.raises(UserError, match=r"step 11: loss nan, .* training diverged"):
        run.train()
    assert len([event for event in run.log.divergence if "back to step" in event.text]) == 5
    found = checkpoints.latest(run.dir)
    assert found is not None and all(np.isfinite(array).all() for array in found.model.values())


def test_going_back_again_and_again_comes_to_an_end(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends also where there are evaluations between the best one and the steps that diverge."""
    losses = itertools.chain([1.0], itertools.repeat(2.0))
    monkeypatch.setattr(Trainer, "evaluate", lambda self, x, y: next(losses))
    poison(monkeypatch, (13, 14, 15), below_rate=0.0)
    run = open_run(config_for(text, steps=20))
    with pytest.raises(UserError, match=r"step 16: loss nan, .* training diverged"):
        run.train()
    assert len([event for event in run.log.divergence if "back to step" in event.text]) == 5


def test_an_evaluation_that_is_not_finite_sends_the_run_back(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are spoilt then, so that leaving out steps does not help."""
    original, spoilt = Trainer.step, [True]

    def step(self: Trainer, x: Any, y: Any, done: int, *how: Any) -> float:
        loss = original(self, x, y, done, *how)
        if done == 11 and spoilt.pop():
            self.arrays["wte.weight"].fill(np.nan)
            spoilt.append(False)
        return loss

    monkeypatch.setattr(Trainer, "step", step)
    run = open_run(config_for(text))
    run.train()
    log = log_of(run)
    assert [event["text"][-50:] for event in log["divergence"]] == [
        "step 12: back to step 8, with 0.5 of the learning rates"[-50:]
    ]
    assert [entry["step"] for entry in log["evaluations"]] == [4, 8, 12]
    assert all(math.isfinite(loss) for loss in log["losses"]["val"])


def test_time_that_is_over_after_going_back_is_told(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, (0, 1, 2))
    go_back = Recovery.go_back

    def late(self: Recovery, *how: Any) -> None:
        go_back(self, *how)
        self._session.state.seconds = 1e9

    monkeypatch.setattr(Recovery, "go_back", late)
    with pytest.raises(UserError, match="training diverged before its time was over: run run has it up to step 0"):
        open_run(config_for(text, minutes=60.0)).train()


def test_time_before_going_back_counts(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that diverges again and again ends when its minutes are over."""
    poison(monkeypatch, (8, 9, 10))
    seconds: list[tuple[float, float]] = []
    go_back = Recovery.go_back

    def noted(self: Recovery, *how: Any) -> None:
        before = self._session.state.seconds
        go_back(self, *how)
        seconds.append((before, self._session.state.seconds))

    monkeypatch.setattr(Recovery, "go_back", noted)
    open_run(config_for(text)).train()
    assert len(seconds) == 1 and seconds[0][0] == seconds[0][1] > 0


def test_the_second_time_it_goes_back_to_the_best(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([2.0, 3.0, *[1.0] * 10])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, x, y: next(losses))
    poison(monkeypatch, (9, 10, 11), below_rate=0.5)
    run = open_run(config_for(text))
    run.train()
    backs = [event["text"] for event in log_of(run)["divergence"] if "back to" in event["text"]]
    assert ["back to step 8" in backs[0], "back to step 4" in backs[1]] == [True, True]


def test_a_kill_in_an_evaluation_that_is_not_finite_changes_nothing(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves no checkpoint from which a run would continue."""
    evaluate, go_back = Trainer.evaluate, Recovery.go_back

    def spoilt(self: Trainer, x: Any, y: Any) -> float:
        return math.nan if step_of[0] == 8 and rate_of[0] == 1 else evaluate(self, x, y)

    step_of, rate_of = [0], [1.0]
    original = Trainer.step

    def step(self: Trainer, x: Any, y: Any, done: int, *how: Any) -> float:
        step_of[0] = done + 1
        return original(self, x, y, done, *how)

    def noted(self: Recovery, *how: Any) -> None:
        go_back(self, *how)
        rate_of[0] = self._session.state.divergence.rate

    def die(self: Recovery, *how: Any) -> None:
        self._saver.wait()
        raise RuntimeError("the power went")

    monkeypatch.setattr(Trainer, "evaluate", spoilt)
    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(Recovery, "go_back", noted)
    whole = open_run(config_for(text), "whole")
    whole.train()
    rate_of[0] = 1.0
    with monkeypatch.context() as patch:
        patch.setattr(Recovery, "go_back", die)
        with pytest.raises(RuntimeError, match="the power went"):
            open_run(config_for(text)).train()
    run = open_run(config_for(text))
    assert run.state.step == 4
    run.train()
    assert result_of(run) == result_of(whole)


def test_a_save_that_failed_before_going_back_is_forgotten(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, (8, 9, 10))
    save_file, go_back = write_safetensors, Recovery.go_back

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def stopped(self: Recovery, *how: Any) -> None:
        go_back(self, *how)
        monkeypatch.setattr(checkpoint, "write_safetensors", save_file)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Recovery, "go_back", stopped)
    before_step(
        monkeypatch, 7, lambda: (run.saver.wait(), monkeypatch.setattr(checkpoint, "write_safetensors", full))[1]
    )
    run = open_run(config_for(text))
    run.train()
    found = checkpoints.latest(run.dir)
    assert found is not None and found.step == 4 and found.meta.evaluated and found.meta.val_loss
