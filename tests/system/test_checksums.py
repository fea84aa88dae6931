"""Checksums: a change of any byte of a file is found."""

import tracemalloc
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from picogpt.system.checksums import append_checksum, check_checksum, with_checksum, without_checksum

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(st.binary(max_size=60))
def test_data_comes_back_without_its_checksum(data: bytes) -> None:
    assert with_checksum(data) == data + b"crc32" + crc32(data).to_bytes(4, "little")
    assert without_checksum(with_checksum(data)) == data
    assert without_checksum(with_checksum(with_checksum(data))) == with_checksum(data)


@FEW
@given(st.binary(max_size=60), st.data())
def test_a_changed_byte_is_found(content: bytes, data: st.DataObject) -> None:
    damaged = bytearray(with_checksum(content))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    if len(content) <= at < len(content) + 5:  # no trailer any more, so all of it is content
        assert without_checksum(bytes(damaged)) == damaged
    else:
        with pytest.raises(ValueError, match="checksum does not match"):
            without_checksum(bytes(damaged))


@pytest.mark.parametrize("data", [b"", b"crc32", b"crc32abc", b"no trailer at all"])
def test_what_has_no_trailer_is_left_as_it_is(data: bytes) -> None:
    assert without_checksum(data) == data


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
