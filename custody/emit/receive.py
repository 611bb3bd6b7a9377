"""An HTTP receiver for servers that are not in Python: it takes JSON arrays of events by POST, and writes them.

    app = receiver(writer, token=os.environ["RECEIVER_TOKEN"])

`uvicorn` or any other ASGI server runs it, or an application mounts it. `custody.emit.entries` says which entries it
takes. Rules:

1. Who posts has a bearer token. Nothing of a request is read before that is checked.
2. A request is taken as a whole, or not at all: 202 says that each entry is in the writer's queue, or was refused and
   why. With any other answer nothing was taken, so it may be posted again.
3. Without room in the queue the answer is 503, with `Retry-After`. So the sender keeps what we cannot.
4. Answers and log lines have reasons and numbers, never what was posted.
5. The body, its nesting, its entries, the requests at a time and the time of each are bounded.

| status | when |
|---|---|
| 202 | `{"accepted": 2, "refused": 1, "reasons": [{"index": 1, "reason": "…"}]}` |
| 400 | the body is not a JSON array, or a name stands twice in an object of it |
| 401 | the bearer token is missing or wrong |
| 405 | the method is not POST |
| 408 | the body did not come in time |
| 413 | the body is too long, nested too deep, or has too many entries |
| 415 | the body is compressed |
| 503 | the queue is full, or too many requests are being read |
"""

import asyncio
import hmac
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import msgspec

from custody.emit.builders import AuditEvent
from custody.emit.entries import Entries, MapEntry
from custody.emit.errors import AuditError
from custody.emit.quiet import QuietLog
from custody.emit.request import header_lines
from custody.emit.writer import AuditWriter
from custody.errors import ConfigurationError, FormatError
from custody.format.limits import EVENT_DEPTH, MIB
from custody.format.strict_json import check_depth, unique

__all__ = ["Receiver", "receiver"]

BODY_BYTES: Final = MIB
ENTRIES: Final = 1_000
REQUESTS: Final = 8
"""Requests that are read or mapped at a time."""
BODY_SECONDS: Final = 30.0
"""How long a body may take to come."""
RETRY_SECONDS: Final = 5
"""How long whoever gets a 503 is asked to wait."""
TOKEN_CHARACTERS: Final = 16
"""The shortest token."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer: its status, its JSON, and headers beside those that all have."""

    status: int
    content: dict[str, Any]
    headers: tuple[tuple[bytes, bytes], ...] = ()


class _Refused(Exception):
    """A request gets another answer than 202."""

    def __init__(self, status: int, reason: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(reason)
        self.answer = _Answer(status, {"error": reason}, headers)


@dataclass(slots=True)
class _Taken:
    """What became of the entries of a request."""

    events: list[AuditEvent] = field(default_factory=list)
    bytes: int = 0
    reasons: list[dict[str, Any]] = field(default_factory=list)


class Receiver:
    """The ASGI application that `receiver` makes."""

    def __init__(self, writer: AuditWriter, tokens: Sequence[str], entries: Entries, *, close_writer: bool) -> None:
        """Set up; the tokens are valid ones."""
        self._writer, self._entries, self._close_writer = writer, entries, close_writer
        self._digests = tuple(sha256(token.encode()).digest() for token in tokens)
        self._quiet = QuietLog()
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI asks."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            try:
                answer = await self._answer(scope, receive)
            except _Refused as refused:
                answer = refused.answer
            if answer is not None:
                await _send(answer, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        """Follow the server's start and end."""
        while True:
            message = await receive()
            ends = message["type"] == "lifespan.shutdown"
            if ends and self._close_writer:
                await asyncio.to_thread(self._writer.close)
            await send({"type": f"{message['type']}.complete"})
            if ends:
                return

    async def _answer(self, scope: Scope, receive: Receive) -> _Answer | None:
        """Return the answer to a request, None if its sender has gone.

        Raises:
            _Refused: another answer than 202 is due.
        """
        if scope["method"] != "POST":
            raise _Refused(405, "events are posted: use POST", (b"allow", b"POST"))
        self._authenticate(scope)
        _check_headers(scope)
        if self._open >= REQUESTS or not self._writer.has_room(0):
            raise _full()
        self._open += 1
        try:
            body = await _read(receive)
            # Hashing a query takes milliseconds, so it is not for the event loop.
            return None if body is None else await asyncio.to_thread(self._take, body)
        finally:
            self._open -= 1

    def _authenticate(self, scope: Scope) -> None:
        """Check the bearer token, in a time that says nothing about it.

        Raises:
            _Refused: it is missing or wrong.
        """
        lines = header_lines(scope["headers"], b"authorization")
        scheme, _, token = lines[0].partition(" ") if len(lines) == 1 else ("", "", "")
        digest = sha256(token.strip().encode()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise _Refused(401, "the bearer token is missing or wrong", (b"www-authenticate", b"Bearer"))

    def _take(self, body: bytes) -> _Answer:
        """Return the answer to a whole body, whose entries are in the queue then.

        Raises:
            _Refused: it cannot be read, or there is no room.
        """
        taken = self._map(_decode(body))
        if taken.events:
            if not self._writer.reserve():
                raise _full()
            events = taken.events
            try:
                self._writer.submit(lambda: events, taken.bytes, reserved=True)
            except AuditError as error:
                # It was closed meanwhile. One of several was: the others have the events, so they are not posted again.
                if not error.accepted:
                    raise _full() from None
        for refused in taken.reasons:
            self._writer.refuse()
            self._quiet.warn("received", f"an audit event that was posted was refused: {refused['reason']}")
        counts = {"accepted": len(taken.events), "refused": len(taken.reasons)}
        return _Answer(202, {**counts, "reasons": taken.reasons})

    def _map(self, entries: Sequence[object]) -> _Taken:
        """Return the events of entries, and why the others are none. Each event was checked as the writer does it."""
        taken = _Taken()
        for index, entry in enumerate(entries):
            try:
                event = self._entries.event(entry)
                size = self._writer.size(event)
            except AuditError as error:
                taken.reasons.append({"index": index, "reason": str(error)})
            else:
                taken.events.append(event)
                taken.bytes += size
        return taken


def receiver(
    writer: AuditWriter,
    *,
    token: str | Sequence[str],
    map_entry: MapEntry | None = None,
    close_writer: bool = True,
) -> Receiver:
    """Return an ASGI application that takes events by POST, at any path.

    Args:
        writer: where they go. Its queue decides when there is no room; `on_full` is not asked.
        token: the bearer token that senders have; several while one replaces another.
        map_entry: returns the event of a decoded entry, or None for one that is mapped as usual. It may raise an
            AuditError, whose text the sender gets.
        close_writer: whether the writer is closed when the server shuts down. uvicorn ends by a signal, so nothing
            later would do it.

    Raises:
        ConfigurationError: a token is short, or cannot stand in a header.
    """
    tokens = (token,) if isinstance(token, str) else tuple(token)
    if not tokens or not all(len(each) >= TOKEN_CHARACTERS and _TOKEN.fullmatch(each) for each in tokens):
        raise ConfigurationError(
            f"a receiver's token has at least {TOKEN_CHARACTERS} letters, digits and `-._~+/`, with `=` at its end"
            " alone: make one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'`"
        )
    return Receiver(writer, tokens, Entries(map_entry), close_writer=close_writer)


def _full() -> _Refused:
    retry = (b"retry-after", str(RETRY_SECONDS).encode())
    return _Refused(503, "there is no room for events now: post them again later", retry)


def _check_headers(scope: Scope) -> None:
    """Check what the headers say of the body.

    Raises:
        _Refused: it is too long, or compressed.
    """
    length = header_lines(scope["headers"], b"content-length")
    if length and (not length[0].isdecimal() or len(length[0]) > 9 or int(length[0]) > BODY_BYTES):
        raise _too_long()
    coding = header_lines(scope["headers"], b"content-encoding")
    if any(each.strip().lower() not in {"", "identity"} for each in coding):
        raise _Refused(415, "the body is compressed: post it as it is")


def _too_long() -> _Refused:
    return _Refused(413, f"the body has more than {BODY_BYTES:,} bytes: post fewer entries")


async def _read(receive: Receive) -> bytes | None:
    """Return a request's body, None if its sender has gone.

    Raises:
        _Refused: it is too long, or too slow.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > BODY_BYTES:
                    raise _too_long()
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise _Refused(408, f"the body took longer than {BODY_SECONDS:.0f} seconds") from None


def _decode(body: bytes) -> list[object]:
    """Return the entries of a body.

    Raises:
        _Refused: it is no JSON array, or has too many entries, or is nested too deep.
    """
    try:
        check_depth(body, EVENT_DEPTH + 1)
    except FormatError:
        raise _Refused(413, f"an entry is nested deeper than {EVENT_DEPTH}") from None
    entries: object = None
    try:
        entries = json.loads(body.decode(), object_pairs_hook=unique)
    except FormatError:
        # The error has the name, which a sender may have made of anything.
        raise _Refused(400, "a name stands twice in an object of the body") from None
    except (ValueError, RecursionError):
        raise _Refused(400, "the body is not JSON in UTF-8") from None
    if not isinstance(entries, list):
        raise _Refused(400, "the body is not a JSON array")
    if len(entries) > ENTRIES:
        raise _Refused(413, f"the body has more than {ENTRIES:,} entries: post fewer")
    return entries


async def _send(answer: _Answer, send: Send) -> None:
    content = msgspec.json.encode(answer.content)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"cache-control", b"no-store"),
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
