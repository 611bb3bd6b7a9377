"""A request's ids: ours, the caller's, and the trace's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.emit.request import RequestIds, parse_traceparent, request_ids

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def ids(*headers: tuple[bytes, bytes], trusted: bool = False) -> RequestIds:
    """Return the ids of a request; ours is `ours`."""
    return request_ids(headers, lambda: "ours", proxy_trusted=trusted)


def test_the_id_is_ours_and_the_callers_is_beside_it() -> None:
    """Nobody outside chooses under which id a request is found; a trusted proxy does."""
    assert ids() == RequestIds("ours", None, None, None)
    assert ids((b"x-request-id", b"abc.D_-9")) == RequestIds("ours", "abc.D_-9", None, None)
    assert ids((b"X-Request-ID", b"abc"), trusted=True) == RequestIds("abc", None, None, None)
    assert ids(trusted=True) == RequestIds("ours", None, None, None)


def test_the_header_may_have_another_name() -> None:
    """A proxy may use a header of its own."""
    ours = request_ids([(b"x-amzn-id", b"1-a")], lambda: "ours", proxy_trusted=True, header=b"x-amzn-id")
    assert ours.request_id == "1-a"


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("value", [b"", b"a b", b"a\n", b"a" * 129, b"\xe9", b"<x>", b"a,b", b"\xb2"])
def test_an_id_of_other_characters_is_dropped(value: bytes, trusted: bool) -> None:
    """What does not follow the rules is in no event, not even beside ours."""
    assert ids((b"x-request-id", value), trusted=trusted) == RequestIds("ours", None, None, None)


def test_an_id_that_came_twice_is_dropped() -> None:
    """Of two, nobody knows which one the proxy wrote."""
    sent = ((b"x-request-id", b"forged"), (b"x-request-id", b"real"))
    assert ids(*sent, trusted=True) == RequestIds("ours", None, None, None)


def test_the_longest_id() -> None:
    """128 characters are the most."""
    assert ids((b"x-request-id", b"a" * 128)).client_request_id == "a" * 128


@pytest.mark.parametrize(
    "value",
    [f"00-{TRACE}-{SPAN}-01", f" 00-{TRACE}-{SPAN}-00\t", f"01-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what"],
)
def test_a_trace_is_read(value: str) -> None:
    """Of a later version too, as W3C asks."""
    read = ids((b"traceparent", value.encode()))
    assert (read.trace_id, read.span_id) == (TRACE, SPAN)


@pytest.mark.parametrize(
    "value",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE[1:]}\u0661-{SPAN}-01",
    ],
)
def test_what_is_no_trace(value: str) -> None:
    """Other versions, zeros, upper case and other lengths are none."""
    assert parse_traceparent([value]) == (None, None)


def test_a_trace_comes_once() -> None:
    """Two headers are none, as W3C asks."""
    assert parse_traceparent([f"00-{TRACE}-{SPAN}-01"] * 2) == (None, None)


@given(st.lists(st.tuples(st.sampled_from([b"x-request-id", b"traceparent"]), st.binary(max_size=70)), max_size=3))
def test_no_bytes_make_it_fail(headers: list[tuple[bytes, bytes]]) -> None:
    """Whatever a header has, the ids have characters that need no escape."""
    read = ids(*headers, trusted=True)
    for text in (read.request_id, read.client_request_id, read.trace_id, read.span_id):
        assert text is None or text.replace("-", "").replace(".", "").replace("_", "").isalnum()
