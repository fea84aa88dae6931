"""Data sets of a hub, streamed to shards and trained on meanwhile, whatever goes wrong."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import parquet

from picogpt.data.streaming import process, row_groups
from picogpt.data.streaming.filler import fill
from picogpt.data.streaming.plan import StreamStatus, read_status, shards_of, write_status
from picogpt.data.streaming.process import StreamProcess
from picogpt.errors import UserError
from tests.support.hubserver import Hub, article
from tests.support.paths import ROOT
from tests.support.streaming import (
    FILES,
    GROUPS,
    PICO,
    ROWS,
    articles,
    content,
    filled,
    numbers_of,
    plan_of,
    texts_of,
    wait_for,
)

# Filling


def test_every_article_comes_once_in_whole_and_in_a_random_order(hub: Hub, tmp_path: Path) -> None:
    plan, told = filled(tmp_path)
    train, val = map(articles, texts_of(plan))
    assert sorted(train + val) == list(range(FILES * GROUPS * ROWS)) and 2 <= len(val) <= 40
    firsts = [number // ROWS for number in train[:: ROWS // 2]]
    assert firsts != sorted(firsts) and len({first // GROUPS for first in firsts[: len(firsts) // 2]}) > 1
    assert told[-1].state == "complete" and told[-1].text.endswith("12 row groups; all of it is here")
    assert {path.name for path in plan.folder.iterdir()} == {
        *("tokenizer.json", "unknown.json", "train", "val", "lock", "commit.txt")
    }


def test_only_the_text_is_fetched(hub: Hub, tmp_path: Path) -> None:
    table = {"title": ["x" * 40_000 + str(i) for i in range(60)], "text": [article(i) for i in range(60)]}
    import pyarrow as pa

    path = tmp_path / "hub" / "a" / "b" / "train.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pa.table(table), path, row_group_size=20, compression="none", use_dictionary=False)
    hub.headers.clear()
    filled(tmp_path, "hf:a/b")
    ranges = [headers["Range"].removeprefix("bytes=").split("-") for headers in hub.headers if "Range" in headers]
    assert sum(int(last) + 1 - int(first) for first, last in ranges) < path.stat().st_size / 5


FAULTS = ["429", "reset", "truncate", "slow", "503", "garbage", "truncate", "reset", "500", "garbage", "reset", "slow"]


@pytest.mark.parametrize("seed", range(3))
def test_trouble_changes_nothing(hub: Hub, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = filled(tmp_path / "quiet")
    monkeypatch.setattr(row_groups.time, "sleep", lambda seconds: None)
    hub.faults += [*random.Random(seed).sample([*FAULTS, *[""] * 20], 32), hub.expire]
    troubled, told = filled(tmp_path / "troubled")
    assert content(troubled.folder) == content(plan.folder)
    assert any(status.state == "waiting" for status in told)


def test_nothing_there_is_a_user_error(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no data set no/body, or it is private"):
        filled(tmp_path, "hf:no/body")
    with pytest.raises(UserError, match=r"no column 'body' \(it has id, title, text\): use --text-field"):
        filled(tmp_path, text_field="body")
    with pytest.raises(UserError, match="use --tokenizer bpe"):
        filled(tmp_path, tokenizer="chars")


def test_what_was_taken_away_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    plan, _ = filled(tmp_path)
    before = content(plan.folder)
    shutil.rmtree(plan.folder / "val")
    assert shards_of(plan) is None
    assert content(filled(tmp_path)[0].folder) == before


def test_the_default_limit_counts_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=8000))
    plan = plan_of(tmp_path)
    assert plan.limit == 2000
    (plan.folder / "train").mkdir()
    (plan.folder / "train" / "00000.bin").write_bytes(bytes(4000))
    assert plan_of(tmp_path).limit == 3000


def test_the_limit_is_kept_and_may_be_raised(hub: Hub, tmp_path: Path) -> None:
    plan, told = filled(tmp_path, data_limit="40KB")
    tokens = sum(map(len, texts_of(plan)))
    assert 20_000 <= tokens <= 40_000 and "the limit of 4e-05 GB is reached (--data-limit)" in told[-1].text
    more, _ = filled(tmp_path, data_limit="1GB")
    assert more.folder == plan.folder and sum(map(len, texts_of(more))) > tokens
    assert content(filled(tmp_path / "at once")[0].folder) == content(more.folder)


def test_a_full_disk_is_the_end(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    plan = plan_of(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=usage.total // 25))
    told: list[StreamStatus] = []
    fill(plan, told.append)
    assert told[-1].state == "complete" and told[-1].text.endswith("the disk is nearly full")


def test_questions_and_answers_are_streamed_with_their_marks(hub: Hub, tmp_path: Path) -> None:
    import pyarrow as pa

    rows = [{"question": f"what is {i}?", "response": f"{i}."} for i in range(30)]
    path = tmp_path / "hub" / "Open-Orca" / "OpenOrca" / "1M-GPT4-Augmented.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)
    plan, _ = filled(tmp_path, "hf:Open-Orca/OpenOrca", qa="question,response", val_fraction=0.2)
    texts = texts_of(plan)
    assert "<Q>what is 7?</Q>\n<A>7.</A>\n\n" in "".join(texts) and all(texts)
    shards = shards_of(plan)
    assert shards and sum(int((part.read(0, len(part)) == PICO.special["<A>"]).sum()) for part in shards) == 30


# Interruptions

KILLS = 10
FILL = """
import sys
from picogpt.data.streaming.filler import fill
from picogpt.data.streaming.plan import Plan
fill(Plan.from_json(sys.argv[1]), lambda status: print(status.text, flush=True))
"""


def test_killed_at_any_moment_it_ends_as_if_undisturbed(hub: Hub, tmp_path: Path) -> None:
    quiet, _ = filled(tmp_path / "quiet")
    plan, chance, seen = plan_of(tmp_path / "killed"), random.Random(0), []
    for _ in range(KILLS):
        hub.faults = ["slow", "", "", ""] * 30  # a quarter of a second now and then
        process = subprocess.Popen([sys.executable, "-c", FILL, plan.to_json()], stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        process.stdout.readline()  # it is under way
        time.sleep(chance.random() * 1.6)
        process.kill()
        process.wait()
        process.stdout.close()
        if shards := shards_of(plan):  # whole articles only, at any moment
            seen.append(len(articles(PICO.decode(shards[0].read(0, len(shards[0]))))))
    assert seen == sorted(seen) and len(set(seen)) > 2
    hub.faults = []
    fill(plan, lambda status: None)
    assert content(plan.folder) == content(quiet.folder)


def test_a_second_one_waits_for_the_first(hub: Hub, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    streams = [StreamProcess(plan), StreamProcess(plan)]
    for one in streams:
        one.start()
    assert wait_for(lambda: all(one._process is not None and one._process.poll() == 0 for one in streams))
    assert sorted(numbers_of(plan)) == list(range(FILES * GROUPS * ROWS))
    assert streams[0].status().state == streams[1].status().state == "complete"
    for one in streams:
        one.close()


def test_it_ends_with_the_run_that_began_it(hub: Hub, tmp_path: Path) -> None:
    hub.down = True
    plan = plan_of(tmp_path)
    code = "import sys, time; from picogpt.data.streaming.plan import Plan; "
    code += "from picogpt.data.streaming.process import StreamProcess; "
    code += "s = StreamProcess(Plan.from_json(sys.argv[1])); s.start(); "
    code += "print(s._process.pid, flush=True); time.sleep(100)"
    run = subprocess.Popen([sys.executable, "-c", code, plan.to_json()], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.stdout is not None
    child = int(run.stdout.readline())
    assert wait_for(lambda: (plan.folder / "status.json").exists())
    run.kill()
    run.wait()
    run.stdout.close()
    import psutil

    assert wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie")


def test_one_that_dies_is_begun_again(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_AFTER_DYING", 0.0)
    hub.down = True
    one = StreamProcess(plan_of(tmp_path))
    one.start()
    assert one._process is not None
    first = one._process
    assert wait_for(lambda: one.status().state == "waiting")
    first.kill()
    first.wait()
    assert one.status().text.startswith("the stream ended by itself")
    hub.down = False
    assert wait_for(lambda: one.status().state == "complete")
    assert one._process is not first
    one.close()


def test_a_failure_is_told(hub: Hub, tmp_path: Path) -> None:
    one = StreamProcess(plan_of(tmp_path, "hf:no/body"))
    one.start()
    assert wait_for(lambda: one.status().state == "failed")
    assert "has no data set no/body" in one.status().text
    one.close()


def test_what_an_earlier_run_said_is_not_news_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path)
    write_status(plan.folder, StreamStatus("failed", "of yesterday"))
    one = StreamProcess(plan)
    assert one.status() == StreamStatus("working", "asking for wikimedia/wikipedia (20231101.en)")
    monkeypatch.setattr(time, "time", lambda: 0.0)  # somebody sets the clock back
    write_status(plan.folder, StreamStatus("failed", "of yesterday"))
    assert (one.status().state, one.status().text) == ("failed", "of yesterday")


STATUS = {"state": "working", "text": "a", "tokens": 5, "mark": "x"}


@pytest.mark.parametrize(
    "raw",
    [
        *[b"", b"{", b"\xff", b"[]", b"5", b"[" * 100_000, b"9" * 5000, b" " * 200_000 + json.dumps(STATUS).encode()],
        *[json.dumps({**STATUS, "state": state}).encode() for state in ("done", 5, None, [], {})],
        *[json.dumps({**STATUS, "tokens": tokens}).encode() for tokens in ("5", True, -1, 1.5, 10**400, None)],
        *[json.dumps({**STATUS, name: 5}).encode() for name in ("text", "mark")],
        *[json.dumps({key: STATUS[key] for key in STATUS if key != name}).encode() for name in STATUS],
    ],
)
def test_a_damaged_status_is_none(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "status.json").write_bytes(json.dumps({**STATUS, "text": "a\nb"}).encode())
    assert read_status(tmp_path) == StreamStatus("working", "a b", 5, "x")
    (tmp_path / "status.json").write_bytes(raw)
    assert read_status(tmp_path) is None


def test_a_first_row_group_that_the_disk_cannot_hold(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    plan = plan_of(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=usage.total // 20 + 5000))
    told: list[StreamStatus] = []
    fill(plan, told.append)
    assert told[-1].text.endswith("0 tokens of 0 row groups; the disk is nearly full")


def test_a_stream_that_cannot_be_started_again_is_started_later(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_AFTER_DYING", 0.0)
    monkeypatch.setattr(process, "_AFTER_FAILING", 0.0)
    plan, away = plan_of(tmp_path), tmp_path / "away"
    one = StreamProcess(plan)
    one.start()
    assert one._process is not None
    one._process.kill()
    one._process.wait()
    plan.folder.rename(away)
    found = one.status()
    assert found.state == "waiting" and "cannot be started (No such file or directory)" in found.text
    away.rename(plan.folder)
    assert wait_for(lambda: one.status().state == "complete")
    one.close()
