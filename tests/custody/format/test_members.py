"""Members: what is packed comes back, and nothing but one whole member of the stated size is taken."""

import contextlib
import gzip
import multiprocessing
import random
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from custody.errors import FormatError
from custody.format import limits, members
from custody.format.manifest import Batch
from custody.format.members import (
    HEADER,
    has_libdeflate,
    inflate,
    inflate_batch,
    inflate_stream,
    inflate_unchecked,
    pack,
)
from flows.operate.sample import sample_events
from tests.helpers.growth import SHAPES, check_growth

PAYLOAD = b'{"a":1}\n' * 1000
DENSE_SHAPES = {
    **{name: SHAPES[name] for name in ("zeros", "escapes", "many numbers", "many hashes", "events of many types")},
    # Long matches that differ at their ends: the worst for a search through a chain of candidates.
    "matches that end late": lambda size: b"".join(b"%b%04d" % (b"a" * 250, at % 7_919) for at in range(size // 254)),
    "noise": lambda size: random.Random(1).randbytes(size),
}


@given(st.binary(max_size=5000), st.integers(0, 3), st.booleans())
def test_round_trip(payload: bytes, level: int, dense: bool) -> None:
    """Any payload comes back at any level, and dense, by isal and by the standard library."""
    member = pack(payload, level, dense=dense)
    assert member.inflated == len(payload)
    assert inflate(member.data, member.inflated) == payload
    assert gzip.decompress(member.data) == payload


@given(st.integers(64 * 1024 - 2, 64 * 1024 + 2), st.sampled_from([b"a", b"b"]), st.booleans())
@settings(max_examples=20)
def test_large(size: int, filling: bytes, dense: bool) -> None:
    """Payloads that are hashed beside compressing come back, too, with their own digest."""
    payload = filling * size
    member = pack(payload, 1, dense=dense)
    assert (member.inflated, member.sha256) == (size, sha256(payload).hexdigest())
    assert inflate(member.data, size) == payload
    assert member.data[:8] == b"\x1f\x8b\x08\x00" + bytes(4)


def test_large_in_threads() -> None:
    """Each caller gets the digest of its own payload."""
    payloads = [bytes([number]) * (100_000 + number) for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        members = list(pool.map(pack, payloads))
    assert [member.sha256 for member in members] == [sha256(payload).hexdigest() for payload in payloads]


def test_large_after_a_fork() -> None:
    """A child that was forked packs as its parent does."""
    payload = PAYLOAD * 100
    whole = pack(payload)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert pool.submit(pack, payload).result(timeout=60) == whole


@pytest.mark.parametrize("payload", [PAYLOAD, b"".join(b'{"a":%d}\n' % number for number in range(20_000))])
def test_level(payload: bytes) -> None:
    """The level is the one asked for, 1 if none is: level 0 takes other bytes, on either side of the limit."""
    assert pack(payload).data == pack(payload, 1).data
    assert len({pack(payload, level).data for level in (0, 1)}) == 2


def test_dense_is_smaller() -> None:
    """Dense members of the sample take less than a fifth of its bytes, and fast ones more, whatever isal's level is."""
    payload = b"".join(event + b"\n" for event in sample_events(1000, 1, datetime(2026, 3, 1, tzinfo=UTC)))
    fast, dense = pack(payload), pack(payload, dense=True)
    assert len(dense.data) < len(payload) / 5 < len(fast.data)
    assert pack(payload, 3, dense=True) == dense
    assert has_libdeflate()


def test_dense_without_libdeflate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed, zlib makes dense members: larger ones, and no less a member."""
    dense = pack(PAYLOAD, dense=True)
    monkeypatch.setitem(sys.modules, "deflate", None)
    members._libdeflate.cache_clear()
    try:
        assert not has_libdeflate()
        plain = pack(PAYLOAD, dense=True)
    finally:
        members._libdeflate.cache_clear()
    assert plain.data == zlib.compress(PAYLOAD, 6, wbits=31) != dense.data
    assert inflate(plain.data, len(PAYLOAD)) == PAYLOAD
    assert plain.data.startswith(HEADER)


@pytest.mark.parametrize("dense", [False, True])
def test_what_cannot_be_compressed_stays_within_the_limit(dense: bool) -> None:
    """A batch of noise becomes no larger than a member may be, and takes little more memory than its member."""
    payload = random.Random(1).randbytes(limits.BATCH_BYTES // 4)
    tracemalloc.start()
    try:
        member = pack(payload, dense=dense)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * len(payload)
    finally:
        tracemalloc.stop()
    assert len(member.data) <= len(payload) + (limits.MEMBER_BYTES - limits.BATCH_BYTES) // 4


@pytest.mark.parametrize("shape", DENSE_SHAPES)
def test_dense_takes_time_in_proportion(shape: str) -> None:
    """No payload makes libdeflate search for a match in more than a bounded time for each byte."""
    check_growth(lambda payload: pack(payload, dense=True), DENSE_SHAPES[shape])


@pytest.mark.parametrize("dense", [False, True])
def test_header(dense: bool) -> None:
    """A member has mtime 0 and no file name, so that equal bytes stay equal bytes."""
    data = pack(PAYLOAD, dense=dense).data
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


@pytest.mark.parametrize("size", [limits.BATCH_BYTES + 1, limits.INT_MAX])
@pytest.mark.parametrize("field", ["size", "inflated"])
def test_beyond_the_limits(field: str, size: int) -> None:
    """A batch that is stated to be beyond the limits is refused before it is inflated, whatever is stored."""
    member = pack(PAYLOAD)
    stated = Batch(
        number=0, first_offset=0, next_offset=1000, events=1000, start=0, size=len(member.data),
        inflated=member.inflated, sha256=member.sha256, min_time="", max_time="", kafka_time=None, leaves=None,
    )  # fmt: skip
    assert inflate_batch(stated, member.data) == PAYLOAD
    size += limits.MEMBER_BYTES if field == "size" else 0
    wrong = msgspec.structs.replace(stated, **{field: min(size, limits.INT_MAX)})
    for read in (inflate_batch, inflate_unchecked):
        with pytest.raises(FormatError, match="not inflated"):
            read(wrong, member.data)


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
    with pytest.raises(FormatError, match="the gzip member is cut short"):
        inflate(data[:-1], len(PAYLOAD))


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


def other_headers() -> list[bytes]:
    """Return members that hold the payload, and that other programs make: with a time, with a name."""
    timed = gzip.compress(PAYLOAD, mtime=1_772_366_400)
    named = bytearray(gzip.compress(PAYLOAD, mtime=0))
    named[3] |= 8
    named[10:10] = b"name\0"
    assert gzip.decompress(timed) == gzip.decompress(named) == PAYLOAD
    return [timed, bytes(named)]


@pytest.mark.parametrize("data", other_headers(), ids=["a time", "a name"])
def test_other_headers(data: bytes) -> None:
    """A member that begins otherwise than ours is refused, whole or piece by piece; only a diagnosis looks into it."""
    with pytest.raises(FormatError, match="does not begin"):
        inflate(data, len(PAYLOAD))
    for step in (1, 7, len(data)):
        pieces = [data[at : at + step] for at in range(0, len(data), step)]
        for before in ([], [pack(b"{}\n").data]):
            with pytest.raises(FormatError, match="does not begin"):
                list(inflate_stream(iter([*before, *pieces]), 10**6))
        assert b"".join(inflate_stream(iter(pieces), 10**6, any_header=True)) == PAYLOAD


@pytest.mark.parametrize("step", [1, 3, 8, 1000])
def test_piece_by_piece(step: int) -> None:
    """Members one after another give what they hold, wherever they are cut, and stop at the limit."""
    data = pack(PAYLOAD).data + pack(b"{}\n").data

    def pieces() -> Iterator[bytes]:
        return (data[at : at + step] for at in range(0, len(data), step))

    whole = PAYLOAD + b"{}\n"
    assert b"".join(inflate_stream(pieces(), len(whole))) == whole
    with pytest.raises(FormatError, match="more than"):
        list(inflate_stream(pieces(), len(whole) - 1))
    with pytest.raises(FormatError, match="follow"):
        list(inflate_stream(pieces(), len(whole), single=True))
    for end in (0, 5, len(data) - 1):
        with pytest.raises(FormatError, match="cut short"):
            list(inflate_stream(iter([data[:end]] if end else []), len(whole)))
