"""A request's own id, the id that its caller gave, and the trace that it is part of (W3C Trace Context)."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Headers = Iterable[tuple[bytes, bytes]]
"""A request's headers as ASGI has them: a header that was sent twice is two pairs."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-[0-9a-f]{2}(?P<more>-.*)?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class RequestIds:
    """The ids of a request.

    Attributes:
        request_id: the id under which we log it: ours, or the one that a trusted proxy gave.
        client_request_id: the caller's id, where it is not ours.
        trace_id: the trace, as 32 hexadecimal digits.
        span_id: the caller's span in that trace, as 16 hexadecimal digits.
    """

    request_id: str
    client_request_id: str | None
    trace_id: str | None
    span_id: str | None


def header_lines(headers: Headers, name: bytes) -> list[str]:
    """Return the values of a header, in the order in which they came. `name` is in lower case."""
    return [value.decode("latin-1") for key, value in headers if key.lower() == name]


def request_ids(
    headers: Headers, make: Callable[[], str], *, proxy_trusted: bool, header: bytes = b"x-request-id"
) -> RequestIds:
    """Return the ids of a request.

    An id is taken if the header came once and has only letters, digits and `._-`, at most 128. Any other is dropped.

    Args:
        headers: the request's headers.
        make: makes an id of ours.
        proxy_trusted: whether the id comes from a proxy that is trusted, which makes it ours.
        header: the header that has the caller's id, in lower case.
    """
    pairs = list(headers)
    sent = header_lines(pairs, header)
    given = given_id(sent[0]) if len(sent) == 1 else None
    trace_id, span_id = parse_traceparent(header_lines(pairs, b"traceparent"))
    if given is not None and proxy_trusted:
        return RequestIds(given, None, trace_id, span_id)
    return RequestIds(make(), given, trace_id, span_id)


def given_id(text: str | None) -> str | None:
    """Return an id that somebody else gave, if it may stand in an event; None if it may not."""
    return text if text is not None and _REQUEST_ID.fullmatch(text) else None


def parse_traceparent(lines: list[str]) -> tuple[str, str] | tuple[None, None]:
    """Return the trace's and the span's id of a `traceparent` header; None twice if it came not once, or is not valid.

    Of a version later than 00, the part that every version has is read, as the specification asks.
    """
    match = _TRACEPARENT.fullmatch(lines[0].strip(" \t")) if len(lines) == 1 else None
    if match is None or match["version"] == "ff" or (match["version"] == "00" and match["more"]):
        return None, None
    if not match["trace"].strip("0") or not match["span"].strip("0"):
        return None, None
    return match["trace"], match["span"]
