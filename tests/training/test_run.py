"""Runs: new, refused, started over, begun from another, ended by the clock, and what they leave on the disk."""

import json
import math
import pickletools
import signal
from dataclasses import replace
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from picogpt.config import DataConfig, MonitoringConfig, RunConfig
from picogpt.engine.lanes import Lanes
from picogpt.errors import UserError
from picogpt.model.initialization import initial_arrays
from picogpt.model.parameters import parameter_shapes
from picogpt.monitoring.observers import Observers
from picogpt.runs import checkpoints
from picogpt.runs.log import Evaluation
from picogpt.training import clock
from picogpt.training.trainer import Trainer
from tests.support.checkpoints import forge_meta
from tests.support.folders import snapshot
from tests.support.running import EASY, MODEL, before_step, config_for, log_of, open_run, result_of

pytestmark = pytest.mark.usefixtures("no_plots", "short_samples")


def test_the_loss_falls_on_easy_text(text: Path) -> None:
    run = open_run(config_for(text, steps=60, batch_size=8, eval_interval=20))
    run.train()
    losses = log_of(run)["losses"]
    assert losses["val"][0] > losses["val"][1] > losses["val"][2]
    assert losses["train"][0] > 2.5 and losses["val"][2] < 2  # it begins at log 88
    assert log_of(run)["best_loss"] == losses["val"][-1]


def test_the_train_loss_is_the_mean_since_the_last_evaluation(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, losses = Trainer.step, []

    def wrapped(*arguments: Any) -> float:
        losses.append(original(*arguments))
        return losses[-1]

    monkeypatch.setattr(Trainer, "step", wrapped)
    run = open_run(config_for(text, steps=10))
    run.train()
    assert len(losses) == 10
    expected = [np.mean(losses[:4]), np.mean(losses[4:8]), np.mean(losses[8:])]
    assert log_of(run)["losses"]["train"] == pytest.approx(expected, rel=1e-12)


# Finished, refused, started over


def test_a_finished_run_says_so_and_changes_nothing(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_run(config_for(text)).train()
    before = snapshot(text.parent)
    capsys.readouterr()
    open_run(config_for(text)).train()
    assert "run run has trained its 12 steps already: raise --steps or --minutes" in capsys.readouterr().out
    assert snapshot(text.parent) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate was 0.01, now 0.5"),
        ({"optimizer": "adamw", "seed": 3}, "optimizer was muon, now adamw; seed was 1337, now 3"),
        ({"batch_size": 8}, "batch_size was 4, now 8"),
        ({"model": replace(MODEL, n_layer=1)}, "n_layer was 2, now 1"),
        ({"tokenizer": "chars"}, "tokenizer was picogpt, now chars"),
    ],
)
def test_another_configuration_is_refused(text: Path, change: dict[str, Any], message: str) -> None:
    open_run(config_for(text)).train()
    before = snapshot(text.parent / "logs")
    with pytest.raises(UserError) as error:
        open_run(config_for(text, **change))
    assert message in str(error.value) and "--fresh" in str(error.value)
    assert snapshot(text.parent / "logs") == before


def test_changed_text_is_refused_and_touched_text_is_not(text: Path) -> None:
    open_run(config_for(text)).train()
    before = snapshot(text.parent / "logs")
    text.write_text(EASY.replace("shore", "store"), encoding="utf-8")
    with pytest.raises(UserError, match=r"the text of .*easy\.txt has changed"):
        open_run(config_for(text, steps=14))
    assert snapshot(text.parent / "logs") == before
    text.write_text(EASY, encoding="utf-8")
    run = open_run(config_for(text, steps=14))
    run.train()
    assert log_of(run)["iter_num"] == 14


def test_a_damaged_log_is_refused_before_anything_changes(text: Path) -> None:
    run = open_run(config_for(text))
    run.train()
    (run.dir / "log.pkl").write_bytes(b"\x80\x04nonsense")
    before = snapshot(text.parent)
    with pytest.raises(UserError, match=r"log\.pkl"):
        open_run(config_for(text, steps=20))
    assert snapshot(text.parent) == before


def test_fresh_starts_over(text: Path) -> None:
    first = open_run(config_for(text))
    first.train()
    expected = result_of(first)
    (first.dir / "notes.txt").write_text("mine", encoding="utf-8")
    again = open_run(config_for(text), fresh=True)
    assert again.state.step == 0 and again.log.evaluations == []
    again.train()
    assert result_of(again) == expected
    other = open_run(config_for(text, learning_rate=0.5, steps=4), fresh=True)
    other.train()
    assert [entry["step"] for entry in log_of(other)["evaluations"]] == [4]
    assert (first.dir / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("data", ["missing.txt", "empty.txt", "short.txt", ""])
def test_a_fresh_start_that_fails_destroys_nothing(text: Path, data: str) -> None:
    open_run(config_for(text)).train()
    (text.parent / "empty.txt").touch()
    (text.parent / "short.txt").write_text("too short", encoding="utf-8")
    before = snapshot(text.parent / "logs")
    config = config_for(text.parent / data) if data else replace(config_for(text), data=DataConfig(""))
    with pytest.raises(UserError):
        open_run(config, fresh=True)
    assert snapshot(text.parent / "logs") == before


def test_nothing_appears_before_there_is_something_to_keep(text: Path) -> None:
    run = open_run(config_for(text))
    assert not run.dir.exists()


# From another run


def test_init_from_keeps_weights_and_tokenizer(text: Path, tmp_path: Path) -> None:
    base = open_run(config_for(text, replace(MODEL, vocab_size=5), tokenizer="chars", optimizer="adamw"), "base")
    base.train()
    origin = checkpoints.newest(base.dir)
    assert origin is not None
    found = checkpoints.load(origin)
    new_text = tmp_path / "new.txt"
    new_text.write_text("See the shells? ÄÖÜ! " * 100, encoding="utf-8")  # characters the old text did not have
    config = config_for(new_text, base.config.model, tokenizer="chars", optimizer="adamw", steps=1, batch_size=6)
    config = replace(config, data=replace(config.data, allow_unknown=True))
    tuned = open_run(config, "tuned", init_from=origin)
    assert (tuned.state.step, tuned.start.resumed, tuned.state.seconds, tuned.state.recent) == (0, None, 0.0, (0.0, 0))
    assert tuned.feed.tokenizer.to_dict() == base.feed.tokenizer.to_dict()
    assert tuned.feed.fingerprint != base.feed.fingerprint
    assert {name: array.tobytes() for name, array in tuned.start.arrays.items()} == {
        name: array.tobytes() for name, array in found.model.items()
    }
    with Lanes(2) as lanes:  # the first step is that of an optimizer without a past, on the new text
        expected = Trainer(config, tuned.start.arrays, lanes)
        expected.step(*tuned.feed.batch(0, 6), 0, 0.5)
    tuned.train()
    saved = checkpoints.newest(tuned.dir)
    assert saved is not None and saved.name == "00000001"
    result = checkpoints.load(saved)
    for name, array in expected.arrays.items():
        assert np.array_equal(result.model[name], array), name
    for name, array in expected.optimizer.state.items():
        assert np.array_equal(result.optimizer[name], array), name
    assert len(log_of(tuned)["evaluations"]) == 1
    assert checkpoints.load(origin).step == 12  # the base is as it was
    again = open_run(replace(config, train=replace(config.train, steps=3)), "tuned", init_from=origin)
    assert again.state.step == 1  # the same command continues the tuned run, not the base


def test_init_from_refuses_another_shape_or_tokenizer(text: Path) -> None:
    base = open_run(config_for(text), "base")
    base.train()
    origin = checkpoints.newest(base.dir)
    before = snapshot(text.parent / "logs")
    with pytest.raises(UserError, match="another shape"):
        open_run(config_for(text, replace(MODEL, n_embd=32)), "tuned", init_from=origin)
    with pytest.raises(UserError, match="tokenizer picogpt: leave --tokenizer out"):
        open_run(config_for(text, tokenizer="chars"), "tuned", init_from=origin)
    assert snapshot(text.parent / "logs") == before


# What is left on the disk


def only_builtins(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) is str and only_builtins(inner) for key, inner in value.items())
    if type(value) is list:
        return all(map(only_builtins, value))
    return type(value) in (str, int, float, bool, type(None))


def test_the_log_opens_anywhere(text: Path) -> None:
    run = open_run(config_for(text))
    run.train()
    log = log_of(run)
    assert set(log) == {"losses", "best_loss", "iter_num", "evaluations", "divergence", "notices", "config"}
    opcodes = pickletools.genops((run.dir / "log.pkl").read_bytes())
    assert only_builtins(log) and not any("GLOBAL" in opcode.name for opcode, _, _ in opcodes)
    assert log["iter_num"] == 12 and log["best_loss"] == min(log["losses"]["val"])
    assert len(log["losses"]["train"]) == len(log["losses"]["val"]) == 3
    assert log["config"]["parameters"] == sum(map(math.prod, parameter_shapes(run.config.model).values()))
    assert RunConfig.from_dict({key: log["config"][key] for key in ("model", "data", "train")}) == run.config
    entry = log["evaluations"][-1]
    assert entry["tokens"] == 12 * 4 * 16 and entry["sample"].lower().startswith("he is a")
    assert entry["seconds"] > 0 and entry["memory_mb"] > 10 and entry["tokens_per_second"] > 0


@pytest.mark.parametrize("tokenizer", ["picogpt", "bytes", "bpe:300", "chars"])
def test_the_log_has_bits_of_text_from_exact_counts(tokenizer: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("der blaue käfer läuft schnell über die wiese. 食べる\n" * 300, encoding="utf-8")
    config = config_for(path, tokenizer=tokenizer)
    run = open_run(replace(config, data=replace(config.data, allow_unknown=True)))
    run.train()
    entry, y = log_of(run)["evaluations"][-1], run.feed.validation[1]
    text = "".join(run.feed.tokenizer.decode(row) for row in y).replace("<?>", "?")
    bits = entry["val_loss"] / log(2) * y.size
    if tokenizer in ("picogpt", "chars"):  # the windows of the others may cut a character
        assert entry["bits_per_char"] == pytest.approx(bits / len(text))
        assert entry["bits_per_byte"] == pytest.approx(bits / len(text.encode()))
    else:
        assert entry["bits_per_char"] == pytest.approx(bits / len(text), rel=0.1)
        assert 1.05 < entry["bits_per_char"] / entry["bits_per_byte"] < 1.3
    assert ("unknown" in entry) is (tokenizer == "picogpt")
    if tokenizer == "picogpt":
        assert entry["unknown"] == pytest.approx(6 / 50, abs=0.01)


def test_the_vocabulary_grows_to_the_characters(tmp_path: Path) -> None:
    text = tmp_path / "many.txt"
    many = "".join(map(chr, range(0x400, 0x400 + 120)))
    text.write_text(many * 30, encoding="utf-8")
    run = open_run(config_for(text, tokenizer="chars", steps=2))
    assert run.config.model.vocab_size == 120
    run.train()
    again = open_run(config_for(text, tokenizer="chars", steps=3))
    assert again.state.step == 2 and again.start.arrays["wte.weight"].shape == (120, 16)
    # and does not shrink below what was asked for
    assert open_run(config_for(text, replace(MODEL, vocab_size=300), tokenizer="chars"), "b").start.arrays[
        "wte.weight"
    ].shape == (300, 16)


def test_the_best_and_the_last_two_checkpoints_stay(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([4.0, 2.0, 3.0, 3.5, 2.5])
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: next(losses))
    run = open_run(config_for(text, steps=10, eval_interval=2))
    run.train()
    assert sorted(path.name for path in (run.dir / "checkpoints").iterdir()) == ["00000004", "00000008", "00000010"]
    best, last = checkpoints.best(run.dir), checkpoints.newest(run.dir)
    assert best is not None and last is not None
    assert (checkpoints.load(best).meta.val_loss, checkpoints.load(last).meta.val_loss) == (2.0, 2.5)
    assert log_of(run)["best_loss"] == 2.0


def test_a_checkpoint_knows_how_it_came_about(text: Path) -> None:
    run = open_run(config_for(text))
    run.train()
    folder = checkpoints.newest(run.dir)
    assert folder is not None
    meta = checkpoints.load(folder).meta
    assert meta.config == run.config
    assert meta.tokenizer == run.feed.tokenizer.to_dict() and meta.data == run.feed.fingerprint
    json.dumps(meta.to_dict(), allow_nan=False)


def test_evaluation_is_deterministic(text: Path) -> None:
    run = open_run(config_for(text, replace(MODEL, dropout=0.5)))
    arrays = initial_arrays(run.config.model, 0)
    with Lanes(2) as lanes:
        trainer = Trainer(run.config, arrays, lanes)
        first = trainer.evaluate(*run.feed.validation)
        assert [trainer.evaluate(*run.feed.validation) for _ in range(3)] == [first] * 3
    assert abs(first - np.log(88)) < 0.1
    x, y = open_run(config_for(text, seed=9)).feed.validation  # the same text whatever the seed
    assert np.array_equal(x, run.feed.validation[0]) and np.array_equal(y, run.feed.validation[1])


def test_a_diverging_run_keeps_its_checkpoint(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(text)
    run = open_run(config)
    original = Trainer.step

    def poisoned(self: Trainer, x: Any, y: Any, done: int, *how: Any) -> float:
        if done >= 6:
            self.arrays["wte.weight"].fill(np.nan)
        return original(self, x, y, done, *how)

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(UserError, match=r"step 8: validation loss nan: training diverged"):
        run.train()
    again = open_run(config)
    assert again.state.step == 4 and all(np.isfinite(array).all() for array in again.start.arrays.values())


# Time


def test_minutes_end_the_run_and_the_schedule_follows(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    # A step takes a second of this clock, an evaluation two.
    run = open_run(config_for(text, steps=1000, minutes=0.5, warmup_steps=0, decay_fraction=1.0, eval_interval=1000))
    run.train()
    (entry,) = log_of(run)["evaluations"]
    assert entry["step"] == 30
    assert entry["lr"] == pytest.approx(run.config.train.learning_rate / 30)  # one second before the end
    finished = open_run(replace(run.config, train=replace(run.config.train, minutes=0.4)))
    before = snapshot(text.parent)
    finished.train()
    assert snapshot(text.parent) == before
    longer = open_run(replace(run.config, train=replace(run.config.train, minutes=1.0)))
    longer.train()
    assert log_of(longer)["evaluations"][-1]["seconds"] >= 60


def test_time_spent_before_a_stop_counts(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    config = config_for(text, steps=1000, minutes=0.5, eval_interval=1000)
    with monkeypatch.context() as patch:
        before_step(patch, 9, lambda: signal.raise_signal(signal.SIGINT))
        open_run(config).train()
    run = open_run(config)
    assert (run.state.step, run.state.seconds) == (10, 10.0)
    run.train()
    assert log_of(run)["evaluations"][-1]["step"] == 30


def test_the_curve_is_drawn(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # this once, with plots
    run = open_run(config_for(text, steps=2))
    run.train()
    assert (run.dir / "log.png").read_bytes().startswith(b"\x89PNG")


def test_an_evaluation_is_being_saved_when_an_observer_is_asked(text: Path) -> None:
    """What becomes of the process while it waits for an answer costs nothing."""
    saved: list[int] = []

    def ask(evaluation: Evaluation) -> bool:
        run.saver.wait()
        newest = checkpoints.newest(run.dir)
        saved.append(int(newest.name) if newest else -1)
        return evaluation.step < 8

    folder = text.parent / "logs" / "run"
    run = open_run(config_for(text), observers=Observers(MonitoringConfig(), folder, ask))
    run.train()
    assert saved == [4, 8] and run.state.step == 8


def test_fresh_starts_over_what_another_version_wrote(text: Path) -> None:
    run = open_run(config_for(text, steps=4))
    run.train()
    config = run.config.to_dict()
    for folder in (run.dir / "checkpoints").iterdir():
        forge_meta(folder, {"config": {**config, "train": {**config["train"], "a_field_to_come": 1}}})
    with pytest.raises(UserError, match="another version of picogpt"):
        open_run(config_for(text, steps=8))
    again = open_run(config_for(text, steps=4), fresh=True)
    again.train()
    assert again.state.step == 4 and checkpoints.latest(again.dir) is not None
