"""Row groups that are damaged, missing or of a split: none of a hub's data set is lost in silence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from picogpt.data.sources.formats import DamagedFileError, row_group
from picogpt.data.streaming import row_groups
from picogpt.data.streaming.filler import fill
from picogpt.data.streaming.plan import StreamStatus, shards_of
from picogpt.errors import UserError
from tests.support.hubserver import WIKI, Hub, write_parquet
from tests.support.shards import set_size
from tests.support.streaming import FILES, GROUPS, ROWS, articles, filled, numbers_of, plan_of, texts_of


def test_a_changed_file_is_read_anew(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "hub" / WIKI / "20231101.en" / "train-00001-of-00003.parquet"
    plan = plan_of(tmp_path)

    def change(status: StreamStatus) -> None:
        shards = shards_of(plan)
        if shards and len(shards[0].sources) == 6:
            write_parquet(path, 10_000, GROUPS, ROWS)

    fill(plan, change)
    train, val = map(articles, texts_of(plan))
    assert len(train) + len(val) == FILES * GROUPS * ROWS == len({*train, *val})
    assert {number for number in train if number >= 10_000}


def test_a_file_that_is_none_is_left_out_and_told(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups.time, "sleep", lambda seconds: None)
    folder = tmp_path / "hub" / WIKI / "20231101.en"
    (folder / "train-00007-of-00041.parquet").write_bytes(b"PAR1 in name only")
    plan, told = filled(tmp_path)
    assert sorted(numbers_of(plan)) == list(range(FILES * GROUPS * ROWS))
    assert told[-1].state == "incomplete"
    assert told[-1].text.endswith("all is here but 1 of 4 files could not be read, which the next run tries again")
    write_parquet(folder / "train-00007-of-00041.parquet", 900, 1, 10)
    plan, told = filled(tmp_path)
    assert told[-1].state == "complete" and sorted(numbers_of(plan))[-1] == 909


def test_a_row_group_damaged_at_its_source_is_put_off_and_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups.time, "sleep", lambda seconds: None)
    path = tmp_path / "hub" / WIKI / "20231101.en" / "train-00001-of-00003.parquet"
    sound, raw = path.read_bytes(), bytearray(path.read_bytes())
    begin = parquet.ParquetFile(path).metadata.row_group(0).column(2).dictionary_page_offset
    raw[begin : begin + 300] = bytes(300)
    path.write_bytes(raw)
    plan, told = filled(tmp_path)
    numbers = numbers_of(plan)
    assert len(numbers) == len(set(numbers)) == FILES * GROUPS * ROWS - ROWS
    assert told[-1].state == "incomplete" and "11 row groups; all is here but 1 of 12 row groups" in told[-1].text
    assert any(status.text.endswith("put off until the rest is here") for status in told)
    path.write_bytes(sound)
    plan, told = filled(tmp_path)
    assert told[-1].state == "complete" and sorted(numbers_of(plan)) == list(range(FILES * GROUPS * ROWS))


def test_all_runs_read_the_version_that_the_first_one_found(hub: Hub, tmp_path: Path) -> None:
    plan, _ = filled(tmp_path, data_limit="40KB")
    hub.version += 1
    hub.requests.clear()
    more, told = filled(tmp_path, data_limit="1GB")
    assert more.folder == plan.folder and told[-1].state == "complete"
    asked = [path for path in hub.requests if "/resolve/" in path or "/tree/" in path]
    assert asked and all(hub.commits(WIKI)[0] in path for path in asked)
    (plan.folder / "commit.txt").write_text("0123abcd", encoding="ascii")
    with pytest.raises(
        UserError, match=r"no longer has the version of wikimedia/wikipedia \(20231101\.en\) that .*: delete"
    ):
        filled(tmp_path)
    (plan.folder / "commit.txt").write_text("../..", encoding="ascii")
    with pytest.raises(UserError, match=r"commit\.txt is damaged: delete"):
        filled(tmp_path)


def test_without_a_sound_split_for_validation_a_share_of_the_rest_is_kept(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups.time, "sleep", lambda seconds: None)
    write_parquet(hub.root / "with" / "splits" / "train-0.parquet", 0, 4, 30)
    (hub.root / "with" / "splits" / "validation-0.parquet").write_bytes(b"none")
    plan, told = filled(tmp_path, "hf:with/splits", val_fraction=0.2)
    train, val = map(articles, texts_of(plan))
    assert val and sorted(train + val) == list(range(120)) and told[-1].state == "incomplete"


def test_an_empty_file_is_nothing_that_is_missing(hub: Hub, tmp_path: Path) -> None:
    write_parquet(hub.root / "with" / "none" / "a.parquet", 0, 2, 10)
    schema = parquet.read_schema(hub.root / "with" / "none" / "a.parquet")
    parquet.ParquetWriter(hub.root / "with" / "none" / "b.parquet", schema).close()
    assert filled(tmp_path, "hf:with/none")[1][-1].text.endswith("2 row groups; all of it is here")


def test_a_split_for_validation_is_not_trained_on(hub: Hub, tmp_path: Path) -> None:
    for name, first in (("train-0", 0), ("train-1", 100), ("validation-0", 200), ("test-0", 300)):
        write_parquet(hub.root / "with" / "splits" / f"{name}.parquet", first, 2, 20)
    plan, told = filled(tmp_path, "hf:with/splits", data_limit="40KB")
    train, val = map(articles, texts_of(plan))
    assert train and val and "limit" in told[-1].text  # there is something of both at once
    train, val = map(articles, texts_of(filled(tmp_path, "hf:with/splits", data_limit="1GB")[0]))
    assert sorted(train) == [*range(40), *range(100, 140)] and sorted(val) == list(range(200, 240))


def test_a_row_group_of_many_shards_is_whole_or_not_there(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_size(monkeypatch, "SHARD_TOKENS", 3000)
    monkeypatch.setattr(row_groups.time, "sleep", lambda seconds: None)
    original, failing = row_group, [False, False, True, False, True, True, True]

    def damaged(*how: Any) -> Iterator[str]:
        for number, text in enumerate(original(*how)):
            if number == 20 and failing and failing.pop(0):
                raise DamagedFileError("as it happens")
            yield text

    monkeypatch.setattr(row_groups, "row_group", damaged)
    plan, _ = filled(tmp_path)
    numbers = numbers_of(plan)
    assert len(numbers) == len(set(numbers)) == FILES * GROUPS * ROWS  # put off after the third time, and read at last
    kept = {path.name for path in (plan.folder / "train").glob("*.bin")}
    assert kept == {f"{number:05d}.bin" for number in range(len(kept))}


def test_a_file_that_changes_before_its_footer_is_read(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "hub" / WIKI / "20231101.en" / "train-00001-of-00003.parquet"
    hub.faults = ["", "", "", lambda: write_parquet(path, 10_000, GROUPS, ROWS)]
    plan, _ = filled(tmp_path)
    assert len(set(numbers_of(plan))) == FILES * GROUPS * ROWS


def test_the_hubs_own_conversion_is_said_by_every_run(hub: Hub, tmp_path: Path) -> None:
    (hub.root / "a" / "b").mkdir(parents=True)
    write_parquet(hub.root / "a" / "b@convert" / "default" / "train" / "0000.parquet", 0, 2, 10)
    for _ in range(2):
        _, told = filled(tmp_path, "hf:a/b")
        assert told[-1].text.endswith("2 row groups of the hub's own conversion to parquet; all of it is here")
