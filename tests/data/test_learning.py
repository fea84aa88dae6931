"""Tokenizers that are learnt from the first text of a stream."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from picogpt.config import DataConfig, RunConfig, TrainConfig
from picogpt.data.feed import Feed, open_feed
from picogpt.data.sources.datasets import dataset_named
from picogpt.data.streaming import row_groups
from picogpt.data.streaming.filler import fill
from picogpt.data.streaming.learning import stream_tokenizer
from picogpt.data.streaming.plan import Plan, plan_for, shards_of
from picogpt.data.token_folder import read_tokenizer
from picogpt.errors import UserError
from picogpt.tokenizers.bpe import BpeTokenizer
from tests.support.hubserver import Hub, wiki_files, write_parquet
from tests.support.paths import ROOT
from tests.support.running import MODEL
from tests.support.streaming import wait_for

BPE = DataConfig("wiki:ja", tokenizer="bpe:300")


@pytest.fixture
def japanese(hub: Hub) -> Hub:
    wiki_files(hub.root, "20231101.ja", files=2, groups=2, rows=30)
    return hub


def plan(folder: Path, data: DataConfig = BPE) -> Plan:
    dataset = dataset_named(data.names[0])
    assert dataset is not None
    return plan_for(dataset, data, None, folder)


def feed_of(folder: Path, data: DataConfig = BPE) -> Feed:
    return open_feed(RunConfig(MODEL, data, TrainConfig(lanes=1)), folder, print, None, 8, None)


def test_it_is_learnt_once_and_found_again(
    japanese: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    first = stream_tokenizer(plan(tmp_path), told.append)
    assert "waiting for the first text of wikimedia/wikipedia (20231101.ja)" in told[0] and "300 tokens" in told[1]
    assert first.name == "bpe" and first.vocab_size == 300
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = stream_tokenizer(plan(tmp_path), lambda text: pytest.fail(text))
    assert again.fingerprint() == first.fingerprint()
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: nothing is fetched, so the tokenizer of"):
        stream_tokenizer(plan(tmp_path, DataConfig("wiki:ja", tokenizer="bpe:400")), print)


def test_it_never_sees_the_text_to_validate_with(
    japanese: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    learn = BpeTokenizer.from_corpus.__func__  # type: ignore[attr-defined]

    def watching(cls: type[BpeTokenizer], texts: list[str], size: int = 0) -> BpeTokenizer:
        seen.extend(texts)
        return learn(cls, seen, size)

    monkeypatch.setattr(BpeTokenizer, "from_corpus", classmethod(watching))
    fill(plan(tmp_path), lambda status: None)
    shards = shards_of(plan(tmp_path))
    assert shards
    tokenizer = read_tokenizer(plan(tmp_path).folder)
    val = tokenizer.decode(shards[1].refresh() and shards[1].read(0, len(shards[1])))
    articles = [text for text in val.split("<|endoftext|>") if text]
    assert articles and len(seen) + len(articles) == 2 * 2 * 30 and not {*seen} & {*articles}


def test_a_run_in_another_language_waits_and_never_reads_the_sample(
    japanese: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for data in (BPE, DataConfig("wiki:ja", tokenizer="bytes")):
        feed = feed_of(tmp_path / data.tokenizer, data)
        feed.begin(0)
        assert feed.text == "stream" and not feed.warning
        assert set(feed.tokenizer.decode(feed.batch(0, 64)[0].reshape(-1))) <= set(
            "0123456789abcdef article<|endoftext|>"
        )
        feed.close()
        out = capsys.readouterr().out
        assert "waiting for the first text of wikimedia/wikipedia (20231101.ja)" in out


def test_it_waits_while_the_network_is_down(japanese: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    japanese.down = True
    told: list[str] = []
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(stream_tokenizer(plan(tmp_path), told.append)))
    thread.start()
    assert wait_for(lambda: any("trying again" in text for text in told))
    assert not found
    japanese.down = False
    thread.join(120)
    assert found


def test_nothing_is_learnt_from_nothing_or_from_the_text_to_validate_with(
    japanese: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups.time, "sleep", lambda seconds: None)
    write_parquet(japanese.root / "a" / "b" / "validation.parquet", 0, 1, 9)
    (japanese.root / "a" / "b" / "train.parquet").write_bytes(b"none")
    broken = plan(tmp_path, DataConfig("hf:a/b", tokenizer="bpe:300"))
    with pytest.raises(UserError, match="has no text that can be read, to learn a tokenizer from"):
        fill(broken, lambda status: None)
    assert not (broken.folder / "tokenizer.json").exists()
    monkeypatch.setattr(row_groups, "_ENOUGH_SECONDS", 0.0)
    write_parquet(japanese.root / "a" / "b" / "train.parquet", 100, 1, 9)
    assert len(row_groups.first_text(broken, print)) == 1


def test_trouble_changes_nothing_that_is_learnt(japanese: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = row_groups.first_text(plan(tmp_path / "quiet"), print)
    monkeypatch.setattr(row_groups.time, "sleep", lambda seconds: None)
    japanese.faults = ["", "", "", "", "garbage", "", "truncate", "garbage", "", "reset"]
    assert row_groups.first_text(plan(tmp_path / "troubled"), print) == quiet


def test_enough_is_enough(japanese: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups, "_ENOUGH_BYTES", 2_000)
    texts = list(row_groups.first_text(plan(tmp_path), print))
    assert sum(map(len, texts[:-1])) < 2_000 <= sum(map(len, texts))


def test_the_command_trains_on_it_and_continues(japanese: Hub, tmp_path: Path) -> None:
    model = ("--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--context-len", "16", "--batch-size", "2")
    words = ("--data", "wiki:ja", "--tokenizer", "bpe:300", *model, "--eval-interval", "2", "--run", "w")
    for steps in ("2", "4"):
        done = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *words, "--steps", steps],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ,
        )
        assert done.returncode == 0, done.stderr
        assert "bits/byte" in done.stdout and "ON THE SAMPLE" not in done.stdout
    assert "continuing run w after step 2" in done.stdout
