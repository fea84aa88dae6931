"""Shards of a few ids, for tests."""

import pytest

from picogpt.data.shards import index, reader, writer


def set_size(patch: pytest.MonkeyPatch, name: str, count: int) -> None:
    """Set SHARD_TOKENS or BLOCK_TOKENS wherever it is used."""
    for module in (index, reader, writer):
        if hasattr(module, name):
            patch.setattr(module, name, count)
