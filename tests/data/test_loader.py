"""The order of batches: every window once an epoch, from the position alone."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.data import loader
from picogpt.data.loader import Loader, validation_windows
from picogpt.data.shards.index import SHARD_TOKENS
from picogpt.data.shards.reader import Shards
from picogpt.data.shards.writer import ShardWriter
from picogpt.errors import UserError
from tests.support.shards import set_size


def counting(folder: Path, count: int, shard_tokens: int = SHARD_TOKENS) -> Shards:
    """Tokens 0, 1, 2, ...: a token says where it stood."""
    with pytest.MonkeyPatch.context() as patch, ShardWriter(folder, np.uint16, "vocabulary", "corpus") as writer:
        set_size(patch, "SHARD_TOKENS", shard_tokens)
        writer.append(np.arange(count, dtype=np.uint16))
    return Shards(folder, "vocabulary")


def starts_of(x: np.ndarray, y: np.ndarray) -> list[int]:
    """Where each window starts, after checking that it runs on from there and y is one later."""
    context = x.shape[1]
    assert x.dtype == y.dtype == np.int32 and x.shape == y.shape
    assert x.flags.c_contiguous and y.flags.c_contiguous
    assert np.array_equal(x, x[:, :1] + np.arange(context)) and np.array_equal(y, x + 1)
    return x[:, 0].tolist()


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 400),
    context=st.integers(1, 30),
    chunk_tokens=st.integers(1, 100),
    shard_tokens=st.integers(20, 400),
    batch=st.integers(1, 40),
    seed=st.integers(0, 2**40),
)
def test_every_window_once_an_epoch(tmp_path_factory, count, context, chunk_tokens, shard_tokens, batch, seed):
    context = min(context, count - 1)
    tokens = counting(tmp_path_factory.mktemp("loader") / "tokens", count, shard_tokens)
    with mock.patch.object(loader, "CHUNK_TOKENS", chunk_tokens):
        batches = Loader(tokens, context, seed)
    per_epoch = batches.windows_per_epoch
    assert per_epoch * context > count - 1 - 2 * context  # hardly anything is left out
    starts: list[int] = []
    for position in range(0, 3 * per_epoch, batch):
        starts += starts_of(*batches.batch(position, batch))
    for epoch in range(3):
        ordered = sorted(starts[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert ordered == list(range(ordered[0], ordered[0] + per_epoch * context, context))
        assert ordered[0] < context


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 50)), min_size=1, max_size=6))
def test_batch_depends_on_nothing_but_its_position(tmp_path_factory, requests):
    tokens = counting(tmp_path_factory.mktemp("loader") / "tokens", 500)
    with mock.patch.object(loader, "CHUNK_TOKENS", 10):
        used, whole = Loader(tokens, 5, 1), Loader(tokens, 5, 1).batch(0, 350)
    for position, count in requests:
        assert np.array_equal(used.batch(position, count)[0], whole[0][position : position + count])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists what is mapped")
def test_only_one_group_is_mapped(tmp_path):
    tokens = counting(tmp_path / "tokens", 4000)
    with mock.patch.object(loader, "CHUNK_TOKENS", 10):
        batches = Loader(tokens, 10, 1)
        for position in range(0, 3 * batches.windows_per_epoch, loader.GROUP_CHUNKS):
            batches.batch(position, loader.GROUP_CHUNKS)
            maps = Path("/proc/self/maps").read_text(encoding="utf-8").count(f"{tmp_path}/")
            assert 0 < maps <= loader.GROUP_CHUNKS


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets nobody cut a file that is mapped")
def test_a_shard_cut_short_is_one_line_and_not_the_end_of_the_process(tmp_path):
    tokens = counting(tmp_path / "tokens", 4000)
    with mock.patch.object(loader, "_GATHERED_TOKENS", 50):
        batches = Loader(tokens, 10, 1)
    batches.batch(0, 5)
    os.truncate(tmp_path / "tokens/00000.bin", 100)
    with pytest.raises(UserError, match="has been cut short"):
        batches.batch(5, 5)


def test_epochs_and_seeds_differ(tmp_path):
    tokens = counting(tmp_path / "tokens", 1000)
    batches = Loader(tokens, 10, 1)
    per_epoch = batches.windows_per_epoch
    orders = [starts_of(*batches.batch(epoch * per_epoch, per_epoch)) for epoch in range(10)]
    orders.append(starts_of(*Loader(tokens, 10, 2).batch(0, per_epoch)))
    assert len({tuple(order) for order in orders}) == len(orders)
    assert len({min(order) for order in orders}) > 3  # offsets move
    assert all(order != sorted(order) for order in orders)


def test_order_is_chunk_sequential_and_reads_each_chunk_once(tmp_path):
    tokens = counting(tmp_path / "tokens", 20_001)
    with mock.patch.object(loader, "CHUNK_TOKENS", 100):
        batches = Loader(tokens, 10, 7)
    per_epoch = batches.windows_per_epoch
    chunks = -(-per_epoch // 10)
    with mock.patch.object(Shards, "chunk", autospec=True, side_effect=Shards.chunk) as read:
        starts = np.concatenate([starts_of(*batches.batch(i, 1)) for i in range(per_epoch)])
    assert read.call_count == chunks
    assert max(stop - start for _, start, stop in (call.args for call in read.call_args_list)) == 101
    visited = (starts - starts.min()) // 100
    groups = [set(visited[i : i + 80].tolist()) for i in range(0, 10 * 80, 80)]
    assert all(len(group) <= 9 for group in groups)  # eight chunks, and a ninth where the short one comes early
    assert sorted(groups[0]) != list(range(8))  # chunks are permuted
    assert len(set(visited[:10].tolist())) > 2  # and their windows are shuffled together


def test_nothing_the_size_of_the_text_is_permuted(tmp_path):
    tokens = counting(tmp_path / "tokens", 60_000)
    with mock.patch.object(loader, "CHUNK_TOKENS", 100):
        batches = Loader(tokens, 1, 3)
    batches.batch(30_000, 64)
    assert batches._group is not None and len(batches._group.windows) <= 8 * 100


def test_threads_share_a_loader(tmp_path):
    tokens = counting(tmp_path / "tokens", 5_000)
    with mock.patch.object(loader, "CHUNK_TOKENS", 50):
        batches, alone = Loader(tokens, 5, 3), Loader(tokens, 5, 3)
    positions = [i * 37 % 3000 for i in range(200)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda position: batches.batch(position, 16)[0], positions))
    assert all(np.array_equal(x, alone.batch(i, 16)[0]) for i, x in zip(positions, together, strict=True))


def test_shortest_text_is_one_window(tmp_path):
    tokens = counting(tmp_path / "tokens", 9)
    batches = Loader(tokens, 8, 0)
    assert batches.windows_per_epoch == 1
    assert starts_of(*batches.batch(5, 3)) == [0, 0, 0]
    assert starts_of(*validation_windows(tokens, 8, 4)) == [0]


@pytest.mark.parametrize("count", [0, 1, 8])
def test_too_short_a_text_is_a_user_error(tmp_path, count):
    tokens = counting(tmp_path / "tokens", count)
    with pytest.raises(UserError, match=f"training text has {count} tokens.*needs 9.*--context-len"):
        Loader(tokens, 8, 0)
    with pytest.raises(UserError, match=f"validation text has {count} tokens.*needs 9.*--context-len"):
        validation_windows(tokens, 8, 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 300), st.integers(1, 20), st.integers(1, 60))
def test_validation_windows_are_evenly_spaced_and_apart(tmp_path_factory, length, context, count):
    context = min(context, length - 1)
    tokens = counting(tmp_path_factory.mktemp("loader") / "tokens", length, 50)
    starts = starts_of(*validation_windows(tokens, context, count))
    available = (length - 1) // context
    assert len(starts) == min(count, available) and starts[0] == 0
    gaps = np.diff([*starts, available * context])
    assert gaps.min() >= context and gaps.max() - gaps.min() <= context
