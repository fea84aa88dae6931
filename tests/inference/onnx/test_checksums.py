"""Checksums of ONNX files: a change of any byte of a file is found."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picogpt.inference.onnx.checksums import append_checksum, check_checksum

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(st.binary(max_size=60), st.data())
def test_a_file_with_its_checksum_is_unchanged_or_refused(tmp_path: Path, content: bytes, data: st.DataObject) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="file has no checksum"):
        check_checksum(path)
    append_checksum(path)
    check_checksum(path)
    whole = path.read_bytes()
    assert whole[:-9] == content
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    for other in (bytes(damaged), whole[:-1], whole[1:], whole + b"x"):
        path.write_bytes(other)
        with pytest.raises(ValueError, match="checksum"):
            check_checksum(path)
    append_checksum(path)  # a file may be changed and get a new checksum
    check_checksum(path)


def test_a_large_file_is_read_in_small_pieces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(20 << 20))
    tracemalloc.start()
    append_checksum(path)
    check_checksum(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20
