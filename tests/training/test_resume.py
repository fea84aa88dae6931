"""Runs that are resumed: killed or stopped in every way, and continued to the same bits."""

import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from picogpt.config import RunConfig
from picogpt.engine.lanes import FORK
from picogpt.errors import UserError
from picogpt.monitoring.plotter import Plotter
from picogpt.runs import checkpoints
from tests.support.running import EASY, MODEL, before_step, config_for, log_of, open_run, result_of

pytestmark = pytest.mark.usefixtures("no_plots", "short_samples")

# Everything that could break continuing is on: dropout, rolling windows, two lanes, uneven micro-batches, blocks that
# come in later.
HARD = {"context": 32, "batch_size": 5, "micro_batch": 2, "decay_fraction": 0.0, "depth_warmup": 0.6}


def hard_config(text: Path, **train: Any) -> RunConfig:
    return config_for(text, replace(MODEL, dropout=0.1, n_layer=4, init="zero"), **{**HARD, **train})


@pytest.fixture(scope="module", params=["adamw", "muon"])
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, short_samples: None
) -> tuple[str, dict[str, Any]]:
    """Return (optimizer, result) of a run that nothing stopped."""
    text = tmp_path_factory.mktemp("undisturbed") / "easy.txt"
    text.write_text(EASY, encoding="utf-8")
    run = open_run(hard_config(text, optimizer=request.param))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plotter, "redraw", lambda self: None)
        run.train()
    return request.param, result_of(run)


def die() -> None:
    raise RuntimeError("the power went")


@pytest.mark.parametrize("step", [2, 6, 8])
def test_killed_and_continued(
    text: Path, undisturbed: tuple[str, dict[str, Any]], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = hard_config(text, optimizer=undisturbed[0])
    with monkeypatch.context() as patch:
        before_step(patch, step, die)
        with pytest.raises(RuntimeError, match="the power went"):
            open_run(config).train()
    run = open_run(config)
    assert run.state.step == step // 4 * 4  # back to the last evaluation
    run.train()
    assert result_of(run) == undisturbed[1]


def test_killed_between_log_and_checkpoint(
    text: Path, undisturbed: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is then ahead; its entries of the lost steps are made again."""
    config, publish = hard_config(text, optimizer=undisturbed[0]), checkpoints.publish

    def too_late(draft: checkpoints.Draft) -> Path:
        return publish(draft) if draft.step < 8 else draft.final

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "publish", too_late)
        before_step(patch, 9, die)
        with pytest.raises(RuntimeError, match="the power went"):
            open_run(config).train()
    run = open_run(config)
    assert run.state.step == 4 and log_of(run)["iter_num"] == 8
    run.train()
    assert result_of(run) == undisturbed[1]


@pytest.mark.skipif(not FORK, reason="lanes are threads here")
def test_a_lane_killed_and_continued(
    text: Path, undisturbed: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that is short of memory does that: between steps, while the caller lives."""

    def kill() -> None:
        [lane] = multiprocessing.active_children()
        lane.kill()
        lane.join()

    config = hard_config(text, optimizer=undisturbed[0])
    with monkeypatch.context() as patch:
        before_step(patch, 6, kill)
        with pytest.raises(UserError, match="ended from outside"):
            open_run(config).train()
    assert multiprocessing.active_children() == []
    run = open_run(config)
    assert run.state.step == 4
    run.train()
    assert result_of(run) == undisturbed[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 6])
def test_stopped_by_a_signal_and_continued(
    text: Path,
    undisturbed: tuple[str, dict[str, Any]],
    step: int,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = hard_config(text, optimizer=undisturbed[0])
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        before_step(patch, step, lambda: signal.raise_signal(number))
        stopped = open_run(config)
        stopped.train()
    assert signal.getsignal(number) is handler
    assert f"stopped and saved after step {step + 1}: the same command continues" in capsys.readouterr().out
    run = open_run(config)
    assert run.state.step == step + 1  # the current step is finished, and nothing is lost
    run.train()
    assert f"continuing run run after step {step + 1}" in capsys.readouterr().out
    assert result_of(run) == undisturbed[1]


def test_a_second_signal_ends_at_once(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before_step(monkeypatch, 5, twice)
    config = config_for(text)
    with pytest.raises(KeyboardInterrupt):
        open_run(config).train()
    assert open_run(config).state.step == 4


def test_killed_twice_and_stopped_once(
    text: Path, undisturbed: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = hard_config(text, optimizer=undisturbed[0])
    actions: list[tuple[int, Callable[[], None]]] = [
        (3, lambda: signal.raise_signal(signal.SIGTERM)),
        (5, die),
        (9, die),
    ]
    for step, action in actions:
        with monkeypatch.context() as patch:
            before_step(patch, step, action)
            try:
                open_run(config).train()
            except RuntimeError:
                assert action is die
    run = open_run(config)
    run.train()
    assert result_of(run) == undisturbed[1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_more_steps_later(text: Path, optimizer: Any) -> None:
    results = []
    for name, stops in (("parts", (4, 8, 12)), ("whole", (12,))):
        for steps in stops:
            # The depth follows the length of the run: here all blocks train from the first step.
            run = open_run(hard_config(text, optimizer=optimizer, steps=steps, depth_warmup=0.0), name)
            run.train()
        results.append(result_of(run))
    assert results[0] == results[1]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(text: Path) -> None:
    runs = [open_run(config_for(text, seed=seed), name) for seed, name in ((1, "a"), (1, "b"), (2, "c"))]
    for run in runs:
        run.train()
    first, again, other = map(result_of, runs)
    assert first == again
    assert first["losses"] != other["losses"] and first["model.wte.weight"] != other["model.wte.weight"]


def test_what_may_change_when_a_run_goes_on(text: Path) -> None:
    open_run(config_for(text, steps=4)).train()
    free = {"steps": 6, "minutes": 9.0, "micro_batch": 1, "lanes": 1, "recompute": True}
    run = open_run(config_for(text, **free))
    run.train()
    assert [entry["step"] for entry in log_of(run)["evaluations"]] == [4, 6]


def test_a_stop_in_the_last_step_still_evaluates(
    text: Path, undisturbed: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = hard_config(text, optimizer=undisturbed[0])
    before_step(monkeypatch, config.train.steps - 1, lambda: signal.raise_signal(signal.SIGINT))
    run = open_run(config)
    run.train()
    assert result_of(run) == undisturbed[1]


def test_a_log_without_its_checkpoints_is_not_thrown_away(text: Path) -> None:
    config = config_for(text)
    run = open_run(config)
    run.train()
    checkpoints.clear(run.dir)
    with pytest.raises(UserError, match="has a log but no checkpoint"):
        open_run(config)
    open_run(config, fresh=True).train()


def test_one_window_by_its_number_is_the_default(text: Path) -> None:
    open_run(config_for(text, steps=1)).train()
    assert open_run(config_for(text, steps=1, context=MODEL.context_len)).state.step == 1
