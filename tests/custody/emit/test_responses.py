"""What is read of a GraphQL response: rows, errors and codes, in every form in which servers send it."""

import gzip
import json
import zlib
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.emit.graphql import result_rows
from custody.emit.responses import INFLATED_BYTES, UNREAD, Answer, Tally, read_answers, rows_in_part
from tests.helpers.growth import check_growth

KINDS = ["multipart/mixed; boundary=x", "text/event-stream", "application/json"]
LEAVES = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
RESPONSES = st.fixed_dictionaries(
    {"data": st.dictionaries(st.text(), VALUES, max_size=4)}, optional={"extensions": VALUES, "errors": VALUES}
)


def read(body: Any, content_type: str = "application/json", encoding: str = "", *, cut: bool = False) -> list[Answer]:
    """Return what a body says."""
    return read_answers(content_type, encoding, body if isinstance(body, bytes) else json.dumps(body).encode(), cut=cut)


@given(RESPONSES, st.booleans())
def test_rows_of_a_whole_response_are_those_of_its_begin(response: dict[str, Any], compact: bool) -> None:
    """Both ways to count agree where nothing is missing, whatever data looks like data."""
    text = json.dumps(response, separators=(",", ":") if compact else None, ensure_ascii=compact)
    rows, has_data = rows_in_part(text.encode("utf-8", "surrogatepass"))
    assert (rows, has_data) == (result_rows(response), True)


@given(RESPONSES, st.integers(0, 200))
def test_a_begin_never_has_more_rows(response: dict[str, Any], length: int) -> None:
    """Cut anywhere, at most one row is counted that the cut has a part of."""
    text = json.dumps(response, ensure_ascii=False).encode("utf-8", "surrogatepass")
    rows, _ = rows_in_part(text[:length])
    assert rows <= result_rows(response) + 1


@given(
    st.binary(max_size=300), st.sampled_from(["application/json", "multipart/mixed; boundary=x", "text/event-stream"])
)
def test_any_bytes_are_read(body: bytes, content_type: str) -> None:
    """Nothing that a server sends raises."""
    for encoding in ("", "gzip", "br"):
        for cut in (True, False):
            assert read(body, content_type, encoding, cut=cut)


def test_errors_and_codes() -> None:
    """Errors are counted, their codes named once, their messages never; a code that is a text of any kind is not."""
    errors = [{"message": "secret", "extensions": {"code": code}} for code in ("A", "A", "B.c", "a b", 3, "x" * 65)]
    answer = read({"data": None, "errors": [*errors, "text", {"extensions": None}]})[0]
    assert answer == Answer(0, errors=8, codes=("A", "B.c"))
    many = [{"extensions": {"code": f"C{n}"}} for n in range(50)]
    assert len(read({"errors": many})[0].codes) == 10


def test_what_is_no_response() -> None:
    """A page, an empty body, another encoding: nothing is known, which is said."""
    assert read(b"<html>", "text/html") == read(b"", cut=True) == read(b"x", encoding="br") == [UNREAD]
    assert read(b"not JSON") == [Answer(exact=False, read=False)]
    assert read({"status": "ok"}) == [Answer(read=False)]
    assert read(b'{"data": {"a": NaN, "b": "\\ud800"}}') == [Answer(rows=2)]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_server_sent_events(newline: bytes) -> None:
    """Events, comments, data of several lines, and the mode in which the data has the operation's id."""
    lines = [
        b": ping",
        b"",
        b"event: next",
        b'data: {"data":',
        b'data: {"a": [1, 2]}}',
        b"",
        b"event: complete",
        b"data:",
        b"",
    ]
    lines += [b"event: next", b'data: {"id": "1", "payload": {"data": {"a": 1}, "errors": [{}]}}', b"", b""]
    assert read(newline.join(lines), "text/event-stream; charset=utf-8") == [Answer(rows=3, errors=1, frames=2)]


def test_deferred_parts_name_a_path_or_an_id() -> None:
    """Both forms of `@defer` and `@stream`: items that are added to a list under a root field are rows."""
    old = [
        {"data": {"users": [1], "me": None}, "hasNext": True},
        {"incremental": [{"items": [2, 3], "path": ["users", 1]}, {"data": {"x": 1}, "path": ["users", 0]}]},
        {"incremental": [{"data": {"me": 1}, "path": []}], "hasNext": False},
    ]
    new = [
        {"data": {"users": [1]}, "pending": [{"id": "0", "path": ["users"]}, {"id": "1", "path": []}], "hasNext": True},
        {"incremental": [{"id": "0", "items": [2, 3]}, {"id": "0", "subPath": [0, "tags"], "items": [1, 2, 3]}]},
        {"incremental": [{"id": "1", "data": {"me": 1}, "errors": [{}]}], "completed": [{"id": "1"}]},
    ]
    for parts, rows, errors in ((old, 4, 0), (new, 4, 1)):
        body = b"".join(b"\r\n--x\r\nContent-Type: application/json\r\n\r\n" + json.dumps(p).encode() for p in parts)
        (answer,) = read(body + b"\r\n--x--\r\n", "multipart/mixed; boundary=x")
        assert (answer.rows, answer.errors, answer.frames, answer.exact) == (rows, errors, 3, True)


def test_a_boundary_within_a_value_parts_nothing() -> None:
    """The usual boundary is `-`, which values may have."""
    body = b'--x\r\n\r\n{"data": {"a": ["---", "\\r\\n---"]}}\r\n--x--'
    assert read(body.replace(b"--x", b"---"), 'multipart/mixed; boundary="-"') == [Answer(rows=2, frames=1)]


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_compressed_responses_are_read_up_to_a_bound(compress: Any) -> None:
    """A bomb is inflated no further; what was cut off is read as far as it goes; what is broken is not read."""
    encoding = "gzip" if compress is gzip.compress else "deflate"
    body = json.dumps({"data": {"a": [1, 2, 3]}}).encode()
    assert read(compress(body), encoding=encoding) == [Answer(rows=3)]
    bomb = compress(b'{"data": {"a": [1,' + b" " * (20 * INFLATED_BYTES) + b"2]}}")
    assert read(bomb, encoding=encoding) == [Answer(rows=1, exact=False, read=True)]
    assert not read(compress(body)[:-6], encoding=encoding)[0].exact
    assert read(b"no gzip", encoding=encoding) == [UNREAD]


def repeated(item: bytes, size: int) -> bytes:
    """Return bytes of about a size."""
    return item * (size // len(item))


@pytest.mark.parametrize("content_type", KINDS)
def test_time_grows_with_the_size(content_type: str) -> None:
    """For any bytes: brackets, quotes, backslashes, delimiters."""
    for item in (b"[", b'"', b'\\"', b'{"data":', b"\r\n--x\r\n\r\n", b"data:\n\n", b'{"a":[1],'):
        shape = partial(repeated, item)
        check_growth(partial(read, content_type=content_type, cut=True), shape)


def test_what_is_no_object_is_not_exact() -> None:
    """A part that is no object may hide rows."""
    tally = Tally()
    tally.add([1])
    assert tally.answer(in_parts=True) == Answer(exact=False, read=False)
