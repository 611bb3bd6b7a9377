"""Members: what is packed comes back, and nothing but one whole member of the stated size is taken."""

import contextlib
import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.errors import FormatError
from custody.segment import inflate, pack

PAYLOAD = b'{"a":1}\n' * 1000


@given(st.binary(max_size=5000), st.integers(0, 3))
def test_round_trip(payload: bytes, level: int) -> None:
    """Any payload comes back at any level, by isal and by the standard library."""
    member = pack(payload, level)
    assert member.inflated == len(payload)
    assert inflate(member.data, member.inflated) == payload
    assert gzip.decompress(member.data) == payload


def test_header() -> None:
    """A member has mtime 0 and no file name, so that equal bytes stay equal bytes."""
    data = pack(PAYLOAD).data
    assert data[:4] == b"\x1f\x8b\x08\x00"
    assert data[4:8] == bytes(4)


def test_stated_size() -> None:
    """A member that inflates to another size than stated is refused, on either side."""
    data = pack(PAYLOAD).data
    with pytest.raises(FormatError, match="more than"):
        inflate(data, len(PAYLOAD) - 1)
    with pytest.raises(FormatError, match=f"to {len(PAYLOAD)} bytes"):
        inflate(data, len(PAYLOAD) + 1)
    with pytest.raises(FormatError):
        inflate(data, 0)
    assert inflate(pack(b"").data, 0) == b""


def test_bomb() -> None:
    """A member that claims little and holds much is never inflated past what is stated."""
    bomb = gzip.compress(bytes(200 * 2**20), 9, mtime=0)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="more than"):
            inflate(bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_cut_short() -> None:
    """A member that lost its end, however little, is refused."""
    data = pack(PAYLOAD).data
    for size in range(len(data)):
        with pytest.raises(FormatError):
            inflate(data[:size], len(PAYLOAD))


def test_what_follows() -> None:
    """Bytes after the member, another member too, are refused."""
    member = pack(PAYLOAD)
    for more in (b"\x00", b"\n", member.data, pack(b"").data):
        with pytest.raises(FormatError, match="follow"):
            inflate(member.data + more, member.inflated)
    with pytest.raises(FormatError):
        inflate(member.data + member.data, 2 * member.inflated)


def test_damage() -> None:
    """A flipped bit anywhere in what is stored is refused, or means nothing: it never gives another payload."""
    member = pack(PAYLOAD)
    refused = 0
    for place in range(len(member.data)):
        for bit in range(8):
            changed = bytearray(member.data)
            changed[place] ^= 1 << bit
            try:
                assert inflate(bytes(changed), member.inflated) == PAYLOAD
            except FormatError:
                refused += 1
    # Times, flags and the system's name mean nothing; nor does which of two equal copies a match points to.
    assert refused > 4 * len(member.data)


@given(st.binary(max_size=200), st.integers(0, 1000))
def test_any_bytes(data: bytes, stated: int) -> None:
    """Whatever the bytes are, the answer is a payload of the stated size or a FormatError."""
    with contextlib.suppress(FormatError):
        assert len(inflate(data, stated)) == stated


def test_other_wrappings() -> None:
    """A zlib stream or a raw deflate stream is no gzip member."""
    for wbits in (15, -15):
        machine = zlib.compressobj(wbits=wbits)
        data = machine.compress(PAYLOAD) + machine.flush()
        with pytest.raises(FormatError):
            inflate(data, len(PAYLOAD))
