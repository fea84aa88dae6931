"""What a run reads while a data set arrives, and the runs themselves."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from picogpt.config import DataConfig, MonitoringConfig, RunConfig, TrainConfig
from picogpt.data.feed import CorpusFeed, open_feed
from picogpt.data.shards.reader import Shards
from picogpt.data.sources.datasets import Dataset
from picogpt.data.streaming import feed as feed_module
from picogpt.data.streaming.feed import StreamFeed
from picogpt.data.streaming.part import StreamPart
from picogpt.data.streaming.plan import plan_for, shards_of
from picogpt.errors import UserError
from picogpt.monitoring.observers import Observers
from picogpt.runs import checkpoints
from picogpt.tokenizers.characters import CharTokenizer
from picogpt.training.run import Run
from tests.support.hubserver import Hub, write_parquet
from tests.support.paths import ROOT
from tests.support.running import MODEL, log_of
from tests.support.streaming import filled, wait_for


def config_of(name: str = "wiki", **train: Any) -> RunConfig:
    settings = {"steps": 12, "batch_size": 4, "lanes": 1, "eval_interval": 4, "warmup_steps": 2, **train}
    return RunConfig(MODEL, DataConfig(name), TrainConfig(**settings))


def feed_of(folder: Path, state: Any = None) -> StreamFeed:
    found = open_feed(config_of(), folder, print, None, 8, state)
    assert isinstance(found, StreamFeed)
    return found


def starts_of(batch: Any) -> list[bytes]:
    return [row.tobytes() for row in batch[0]]


def test_the_sample_stands_in_until_text_is_sealed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_LOOK_SECONDS", 0.0)
    hub.down = True
    feed = feed_of(tmp_path)
    notices = feed.begin(0)
    assert "training on the embedded sample" in feed.warning and "trying again" in notices[0]
    assert feed.text == "sample" and "ON THE SAMPLE" in feed.status()
    sample, validation = feed.batch(0, 4), feed.validation
    hub.down = False
    assert wait_for(lambda: bool(feed.look(4)) and feed.text == "stream")
    assert not feed.warning and "SAMPLE" not in feed.status()
    real = feed.batch(4, 4)
    assert not {*starts_of(sample)} & {*starts_of(real)} and not np.array_equal(feed.validation[0], validation[0])
    feed.close()


def test_parts_visit_every_window_once_and_resume_to_the_same_bits(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = filled(tmp_path, data_limit="40KB")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    feed = feed_of(tmp_path)
    assert "HF_HUB_OFFLINE" in feed.begin(0)[0] and feed.text == "stream"
    shards = shards_of(plan)
    assert shards
    batches = [feed.batch(position, 7) for position in range(0, len(shards[0]) // 16 - 20, 7)]
    assert len({row for batch in batches for row in starts_of(batch)}) == 7 * len(batches)
    state = StreamPart.from_dict(json.loads(json.dumps(feed.state.to_dict())))
    position = 7 * len(batches)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    filled(tmp_path)  # more has arrived meanwhile
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = feed_of(tmp_path, state)
    expected = [feed.batch(position + i * 7, 7) for i in range(40)]
    assert all(starts_of(again.batch(position + i * 7, 7)) == starts_of(batch) for i, batch in enumerate(expected))
    assert again.state == feed.state and feed.state and feed.state.number == 2
    assert feed.state.start == state.stop  # what arrived comes before what was read
    assert np.array_equal(again.validation[0], feed.validation[0])


def test_without_anything_new_it_is_read_again(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, data_limit="10KB")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    feed = feed_of(tmp_path)
    feed.begin(0)
    orders = [starts_of(feed.batch(position, 100)) for position in range(0, 3000, 100)]
    assert feed.state and feed.state.number >= 3 and feed.state.start == 0
    assert orders[0] != orders[-1]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), UserError("Input/output error")])
def test_a_read_that_fails_where_a_part_ends_changes_nothing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    plan, _ = filled(tmp_path, data_limit="40KB")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    expected, feed = feed_of(tmp_path), feed_of(tmp_path)
    for each in (expected, feed):
        each.begin(0)
    shards = shards_of(plan)
    assert shards and feed.state
    position = (len(shards[0]) - 16) // 16 - 3  # three windows before the part ends
    state = feed.state
    with monkeypatch.context() as patch:
        feed.batch(position, 1)

        def failing(self: Shards, start: int, stop: int) -> Any:
            raise error

        patch.setattr(Shards, "chunk", failing)
        with pytest.raises(type(error), match="Input/output"):
            feed.batch(position, 7)
        assert feed.state == state
    assert starts_of(feed.batch(position, 7)) == starts_of(expected.batch(position, 7))
    assert feed.state == expected.state and feed.state.number == 2


def test_a_folder_that_goes_while_it_is_read_is_no_damage(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = filled(tmp_path, data_limit="40KB")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    feed = feed_of(tmp_path)
    feed.begin(0)
    plan.folder.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="its folder is gone"):
        feed.batch(10**6, 1)
    (tmp_path / "away").rename(plan.folder)
    assert len(feed.batch(10**6, 1)[0]) == 1


def test_lost_text_is_told(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = filled(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    feed = feed_of(tmp_path)
    feed.begin(0)
    state = feed.state
    shutil.rmtree(plan.folder)
    with pytest.raises(UserError, match="has lost text this run was reading"):
        feed_of(tmp_path, state)


def test_text_that_can_never_be_enough_is_an_error(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "hub" / "one" / "row" / "train.parquet", 0, 1, 1)
    found = open_feed(config_of("hf:one/row"), tmp_path, print, None, 8, None)
    with pytest.raises(UserError, match="all of it is here, and it is too short for a window"):
        found.begin(0)
    found.close()
    monkeypatch.setattr(feed_module, "_PATIENCE", 0.0)
    monkeypatch.setattr(feed_module, "_LOOK_SECONDS", 0.0)
    late = open_feed(config_of("hf:no/body"), tmp_path, print, None, 8, None)
    late.begin(0)
    with pytest.raises(UserError, match="has no data set no/body"):
        wait_for(lambda: late.look(0) and False)
    late.close()


def test_two_names_with_a_stream_among_them_are_refused(tmp_path: Path) -> None:
    config = RunConfig(MODEL, DataConfig(("wiki", "sample")), TrainConfig())
    with pytest.raises(UserError, match="streamed by itself"):
        open_feed(config, tmp_path, print, None, 8, None)


def test_a_tokenizer_to_fine_tune_with(tmp_path: Path) -> None:
    plans = [plan_for(Dataset("a/b"), DataConfig(), one, tmp_path) for one in (None, CharTokenizer("abc"))]
    assert plans[0].folder != plans[1].folder


# Training


def train(folder: Path, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    small = ["--n-layer", "1", "--n-head", "1", "--n-embd", "8", "--context-len", "16", "--batch-size", "2"]
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *options, *small, "--lanes", "1"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=600,
    )


def test_train_on_a_hub(hub: Hub, tmp_path: Path) -> None:
    done = train(tmp_path, "--data", "wiki", "--steps", "30", "--run", "w")
    assert done.returncode == 0, done.stderr
    assert "tokens so far" in done.stdout and "done: best" in done.stdout
    last = checkpoints.newest(tmp_path / "logs" / "w")
    assert last is not None
    meta = checkpoints.load(last).meta
    assert meta.text == "stream" and meta.feed is not None and meta.feed.text == "stream"
    more = train(tmp_path, "--data", "wiki", "--steps", "40", "--run", "w", "--data-limit", "9MB", HF_HUB_OFFLINE="1")
    assert more.returncode == 0 and "continuing run w after step 30" in more.stdout


def test_train_without_a_network(tmp_path: Path) -> None:
    done = train(tmp_path, "--data", "wiki", "--steps", "30", "--run", "w", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "WARNING: TRAINING ON THE EMBEDDED SAMPLE" in done.stdout and "Connection refused" in done.stdout
    assert not done.stderr


def test_train_on_nothing(hub: Hub, tmp_path: Path) -> None:
    done = train(tmp_path, "--data", "hf:no/body", "--steps", "30", "--run", "w")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "has no data set no/body" in done.stderr
    assert not (tmp_path / "logs").exists()


def test_a_wrong_name_costs_nothing(hub: Hub, tmp_path: Path) -> None:
    assert train(tmp_path, "--data", "sample", "--steps", "2", "--run", "w").returncode == 0
    before = (tmp_path / "logs" / "w" / "log.pkl").read_bytes()
    done = train(tmp_path, "--data", "hf:no/body", "--steps", "2", "--run", "w", "--fresh")
    assert done.returncode == 2 and (tmp_path / "logs" / "w" / "log.pkl").read_bytes() == before
    other = train(tmp_path, "--data", "wiki", "--steps", "4", "--run", "w")
    assert other.returncode == 2 and "the text of wikimedia/wikipedia (20231101.en) has changed" in other.stderr


def test_losses_on_the_sample_are_no_best_of_the_real_text(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_plots: None
) -> None:
    filled(tmp_path / "dataset")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arrived = StreamFeed._arrived
    runs: list[Run] = []
    monkeypatch.setattr(StreamFeed, "_arrived", lambda self: bool(runs) and runs[0].state.step >= 6 and arrived(self))
    monkeypatch.setattr(feed_module, "_LOOK_SECONDS", 0.0)
    run_dir = tmp_path / "logs" / "run"
    run = Run(config_of(), run_dir, tmp_path / "dataset", Observers(MonitoringConfig(), run_dir))
    runs.append(run)
    monkeypatch.setattr("picogpt.training.loop.write_sample", lambda *_: "")
    run.train()
    log = log_of(run)
    assert [entry["text"] for entry in log["evaluations"]] == ["sample", "stream", "stream"]
    assert log["best_loss"] == min(log["losses"]["val"][1:])
    best = checkpoints.best(run.dir)
    assert best is not None and checkpoints.load(best).meta.val_loss == log["best_loss"]
    assert any("embedded sample" in notice for notice in log["notices"])
    assert any("has arrived" in notice for notice in log["notices"])


def test_text_that_is_all_there_needs_no_state(tmp_path: Path) -> None:
    feed = open_feed(RunConfig(MODEL, DataConfig(), TrainConfig()), tmp_path, print, None, 8, None)
    assert (
        type(feed) is CorpusFeed and feed.state is None and not feed.look(0) and not feed.begin(0) and not feed.status()
    )
