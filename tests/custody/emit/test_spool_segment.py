"""Segments as bytes: whole records come back, and never one that was not written."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.emit.spool_segment import (
    HEAD_BYTES,
    LINE_BYTES,
    READABLE,
    RECORD_BYTES,
    SEGMENT_BYTES,
    VERSION,
    State,
    frame,
    head,
    parse,
    split,
)
from tests.helpers.spooling import lines, segment

VERSION_1 = bytes.fromhex("6375737473706c0a01000000d9dcd058")
CONTENT = lines(4)


def test_trap_22_version_1_is_read_as_it_was_written() -> None:
    """The bytes of version 1 stay as they are, whatever versions come later."""
    record = bytes.fromhex("02000000") + zlib.crc32(b"\2\0\0\0").to_bytes(4, "little")
    record += zlib.crc32(b"{}").to_bytes(4, "little") + b"{}"
    assert parse(VERSION_1 + record).lines == (b"{}",)


def test_trap_22_a_version_is_read_by_the_next() -> None:
    """What the last release left on disk is replayed by this one."""
    assert {VERSION, max(VERSION - 1, 1)} <= READABLE


@pytest.mark.parametrize("version", [0, VERSION + 1, 2**32 - 1])
def test_trap_22_another_version_is_not_guessed_at(version: int) -> None:
    """No line is read from a version that the code does not know."""
    contents = parse(head(version) + frame(b"{}"))
    assert (contents.lines, contents.state) == ((), State.UNKNOWN)


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_a_cut_leaves_whole_records(content: list[bytes], data: st.DataObject) -> None:
    """A segment that is cut anywhere has the records before the cut, and is torn unless it ends with one."""
    whole = segment(content)
    cut = data.draw(st.integers(0, len(whole)))
    ends = [HEAD_BYTES]
    for line in content:
        ends.append(ends[-1] + RECORD_BYTES + len(line))
    contents = parse(whole[:cut])
    assert list(contents.lines) == content[: max(sum(end <= cut for end in ends) - 1, 0)]
    assert contents.state is (State.WHOLE if cut in ends else State.TORN)


def test_a_flipped_bit_never_gives_another_record() -> None:
    """Each bit of a segment is guarded: what is read is a beginning of what was written, and the segment is damaged."""
    whole = segment(CONTENT)
    for position in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            contents = parse(bytes(flipped))
            assert list(contents.lines) == CONTENT[: len(contents.lines)]
            assert contents.end <= position
            assert contents.state is State.DAMAGED


@given(st.binary(max_size=200))
def test_any_bytes_are_taken(data: bytes) -> None:
    """No bytes are an error, in a head's place or behind a head."""
    assert not parse(data).lines
    assert parse(head() + data).end <= HEAD_BYTES + len(data)


@pytest.mark.parametrize("zeros", [1, 7, 12, 4096])
def test_zeros_behind_the_records_are_a_crash(zeros: int) -> None:
    """A file system may grow a file before it has its content. That is no damage."""
    contents = parse(segment(CONTENT) + bytes(zeros))
    assert (list(contents.lines), contents.state) == (CONTENT, State.TORN)
    assert parse(bytes(zeros)).state is State.TORN


def test_a_length_that_no_line_has_is_damage() -> None:
    """A length beyond the limit is never waited for, even with the right check."""
    length = (LINE_BYTES + 1).to_bytes(4, "little")
    record = length + zlib.crc32(length).to_bytes(4, "little") + bytes(4)
    assert parse(segment(CONTENT) + record).state is State.DAMAGED


def test_a_segment_that_is_too_large_is_not_ours() -> None:
    """Bytes behind the largest size of a segment are damage, even where they would be torn."""
    assert parse(segment(CONTENT).ljust(SEGMENT_BYTES + 1, b"\0")).state is State.DAMAGED


def test_records_are_split_where_a_segment_is_full() -> None:
    """A record is in one segment. The first body may be empty."""
    record = frame(bytes(LINE_BYTES))
    bodies = split([record] * 17, len(record) - 1)
    assert [len(body) for body in bodies] == [0, 7, 7, 3]
    assert split([], 0) == [[]]
