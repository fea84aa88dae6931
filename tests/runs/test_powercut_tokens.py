"""A power cut at any moment: token shards are whole afterwards, or are made again."""

import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from stat import S_ISDIR, S_ISREG

import numpy as np
import pytest

from picogpt.config import DataConfig
from picogpt.data.prepare import Prepared, prepare
from picogpt.data.shards.reader import Shards
from picogpt.data.shards.writer import ShardWriter
from picogpt.errors import UserError
from tests.support.powercut import Disk, leave_out
from tests.support.shards import set_size

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows makes no promise about names")

IDS = np.arange(20, dtype=np.uint16)
SEALED = (0, 7, 12, 20)  # ids at the end of each shard


def write_shards(disk: Disk) -> None:
    with ShardWriter(disk.root / "tokens", np.uint16, "vocabulary", "corpus") as writer:
        for start, stop in pairwise(SEALED):
            writer.append(IDS[start:stop])
            writer.seal()
            disk.promised(stop)


def look_at_shards(place: Path, promise: int) -> None:
    """Check what is left. promise: how many ids there are at least, -1 where there need not be an index."""
    folder = place / "tokens"
    try:
        found = Shards(folder, "vocabulary")
        found.verify()
    except UserError:
        assert promise < 0
        shutil.rmtree(folder, ignore_errors=True)
        writer = ShardWriter(folder, np.uint16, "vocabulary", "corpus")
    else:
        assert len(found) in SEALED and len(found) >= promise
        writer = ShardWriter.resume(folder, "vocabulary", {None})
        assert writer.tokens == len(found)
    with writer:
        writer.append(IDS[writer.tokens :])
    whole = Shards(folder, "vocabulary")
    whole.verify()
    assert whole.read(0, len(whole)).tolist() == IDS.tolist()


def test_an_index_names_what_is_whole(memory: Path) -> None:
    (memory / "disk").mkdir()
    with Disk(memory / "disk", -1) as disk:
        write_shards(disk)
    assert len(disk.states) > 30
    assert not (harm := next(disk.harms(memory / "left", look_at_shards), "")), harm


def test_a_source_that_is_made_again_is_whole(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delete what an interrupted source has left, and use its names for others."""
    set_size(monkeypatch, "SHARD_TOKENS", 8)
    first, second, folder = ("a", 0), ("a", 1), memory / "disk" / "tokens"
    (memory / "disk").mkdir()

    def fill(folder: Path, promised: Callable[[int], None]) -> None:
        writer = ShardWriter.resume(folder, "vocabulary", Shards(folder, "vocabulary").sources)
        for source, ids in ((first, IDS[:10]), (second, IDS[10:])):
            if source not in writer.sources:
                writer.append(ids, source)
                writer.seal(source)
            promised(writer.tokens)

    def look(place: Path, promise: int) -> None:
        found = Shards(place / "tokens", "vocabulary")
        found.verify()
        assert len(found) in (0, 10, 20) and len(found) >= promise
        assert found.read(0, len(found)).tolist() == IDS[: len(found)].tolist()
        fill(place / "tokens", lambda tokens: None)
        assert Shards(place / "tokens", "vocabulary").read(0, 20).tolist() == IDS.tolist()

    with ShardWriter(folder, np.uint16, "vocabulary", "corpus"):
        pass
    with Disk(memory / "disk", 0) as disk:
        writer = ShardWriter.resume(folder, "vocabulary", set())
        writer.append(IDS[:9] + 100, first)
        writer.drop()  # it has sealed one shard of the source, and begun another
        writer.append(IDS[:18] + 200, first)
        writer._file.close()  # as if it had been killed
        fill(folder, disk.promised)
    assert not (harm := next(disk.harms(memory / "left", look), "")), harm


class Preparing:
    """Make a text and its tokens, in shards of 1,000 ids."""

    def __init__(self, text: Path, memory: Path) -> None:
        self._data, self.disk, self.left = DataConfig(str(text), "chars"), memory / "disk", memory / "left"
        self.disk.mkdir()
        self.expected = self.prepare(memory / "expected", []).fingerprint

    def prepare(self, folder: Path, notices: list[str]) -> Prepared:
        return prepare(self._data, folder, notices.append)

    def look(self, place: Path, promise: bool) -> None:
        """Check what is left. promise: the tokens are there already."""
        notices: list[str] = []
        assert self.prepare(place, notices).fingerprint == self.expected
        assert not (promise and notices), notices


@pytest.fixture
def preparing(text: Path, memory: Path, monkeypatch: pytest.MonkeyPatch) -> Preparing:
    set_size(monkeypatch, "SHARD_TOKENS", 1000)
    return Preparing(text, memory)


def test_tokens_are_made_again_or_kept(preparing: Preparing) -> None:
    with Disk(preparing.disk, False) as disk:
        preparing.prepare(disk.root, [])
        disk.promised(True)
    assert len(disk.states) > 100
    assert not (harm := next(disk.harms(preparing.left, preparing.look), "")), harm


def test_damaged_tokens_are_made_again(preparing: Preparing) -> None:
    preparing.prepare(preparing.disk, [])
    next(preparing.disk.rglob("00001.bin")).write_bytes(b"half")
    with Disk(preparing.disk, False) as disk:
        preparing.prepare(disk.root, [])
        disk.promised(True)
    assert not (harm := next(disk.harms(preparing.left, preparing.look), "")), harm


def test_what_an_error_leaves_is_no_trap(preparing: Preparing) -> None:
    with Disk(preparing.disk, False) as disk, pytest.MonkeyPatch.context() as patch:
        original, seals = ShardWriter.seal, [None] * 4

        def seal(writer: ShardWriter) -> None:
            if not seals:
                raise OSError(28, "No space left on device")
            seals.pop()
            original(writer)

        patch.setattr(ShardWriter, "seal", seal)
        with pytest.raises(UserError, match="No space left"):
            preparing.prepare(disk.root, [])
    assert not (harm := next(disk.harms(preparing.left, preparing.look), "")), harm


@pytest.mark.parametrize("kind", [S_ISREG, S_ISDIR])
def test_shards_nobody_waits_for_do_harm(memory: Path, kind: Callable[[int], bool]) -> None:
    (memory / "disk").mkdir()
    with Disk(memory / "disk", -1) as disk, pytest.MonkeyPatch.context() as patch:
        leave_out(kind)(patch)
        write_shards(disk)
    assert next(disk.harms(memory / "left", look_at_shards), "")
