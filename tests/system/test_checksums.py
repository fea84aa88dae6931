"""Checksums: a change of any byte is found."""

from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from picogpt.system.checksums import with_checksum, without_checksum

FEW = settings(max_examples=60, deadline=None)


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
