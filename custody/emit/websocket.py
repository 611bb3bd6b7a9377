"""A WebSocket with GraphQL operations, by `graphql-transport-ws` or the older `graphql-ws`.

`Connection` is on the request's path: it keeps references to messages and the times at which they came. `Session` reads
them on the writer's thread, in their order, and makes an event of an operation when that has ended.

Rules:

1. An operation begins with the client's `subscribe` or `start`. It ends with the server's `complete` or `error`, the
   client's `complete` or `stop`, or with the connection.
2. Messages are passed to the worker when one may begin or end something, and before they become many.
3. While the queue is full they stay here. Beyond `KEPT_BYTES` they are dropped, and counted as one event.
4. Of an operation that runs, its text is kept, and beyond `OPEN_BYTES` of a connection only a hash of it.
5. `identify` is asked once: after the server's answer to `connection_init`, or when the connection has ended.
"""

import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from sys import getsizeof
from typing import Any, Final, Literal

from custody.emit.address import Peer
from custody.emit.builders import AuditEvent
from custody.emit.callers import CONNECTION_INIT, Caller, Failure, Identity
from custody.emit.describe import Describer, Run, Status, short
from custody.emit.exchange import REQUEST_ID, Message, Receive, Scope, Send, with_request_id
from custody.emit.operations import BODY_BYTES, TOO_LARGE, Operation, operation
from custody.emit.outlet import Outlet
from custody.emit.responses import Tally, decode

SENT_BYTES: Final = 65_536
"""Bytes of messages that wait here until they are passed on."""
SENT_MESSAGES: Final = 200
KEPT_BYTES: Final = 4 * BODY_BYTES
"""Bytes that are kept of a connection while the queue is full."""
OPEN_OPERATIONS: Final = 1_000
"""Operations of a connection that are followed at once."""
OPEN_BYTES: Final = 262_144
"""Bytes of their texts that are kept of a connection. Of further ones, the text is hashed at once."""
INIT_BYTES: Final = 65_536
"""Bytes of a `connection_init` that `identify` is given."""
REFUSED: Final = 1013
"""Code with which a connection is closed that cannot be audited: try again later."""

_KEPT_HEADERS = frozenset((b"forwarded", b"x-forwarded-for", b"traceparent", REQUEST_ID))
"""Headers that are read later. A connection may last for days, and other ones have keys."""
_ID_CHARACTERS = 128
_MESSAGE_BYTES = 200
"""About what a message takes beside its text."""
_ENDS = ('"complete"', '"error"', '"connection_')
_FIRST_MESSAGES = 4
"""Messages among which the client's `connection_init` is looked for."""

By = Literal["client", "server"]


@dataclass(frozen=True, slots=True, repr=False)
class Frame:
    """A message as it came.

    Attributes:
        by: who sent it.
        text: its begin.
        cut: whether there was more.
        at: when, in seconds of `perf_counter`.
        moment: when, in ns since 1970.
    """

    by: By
    text: str | bytes
    cut: bool
    at: float
    moment: int


@dataclass(frozen=True, slots=True, repr=False)
class Identified:
    """Who the caller is, from here on.

    Attributes:
        caller: what the hook said.
        known: whether the hook could say it.
        refused: why the server did not let the caller in, None if it did.
        attempted: whether there was a `connection_init`.
        moment: when, in ns since 1970.
    """

    caller: Caller
    known: bool
    refused: str | None
    attempted: bool
    moment: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The end of a connection.

    Attributes:
        status: how operations ended that were running.
        code: the code that the server closed it with, if it did.
        error_type: the exception that ended it.
        at: when, in seconds of `perf_counter`.
    """

    status: Status
    code: int | None
    error_type: str | None
    at: float


Entry = Frame | Identified | Closed


@dataclass(slots=True)
class _Open:
    """An operation that runs. It may do so for days, so its message is not kept."""

    operation: Operation
    began: float
    moment: int
    more: dict[str, Any]
    size: int = 0
    tally: Tally = field(default_factory=Tally)
    first: float | None = None


class Session:
    """The operations of one connection, read on the writer's thread."""

    def __init__(self, describer: Describer, request_id: str, peer: Peer, headers: list[tuple[bytes, bytes]]) -> None:
        """Begin without any operation."""
        self._describer = describer
        self._from = request_id, peer, headers
        self._open: dict[str, _Open] = {}
        self._bytes = 0
        self._identified = Identified(None, known=True, refused=None, attempted=False, moment=0)

    def read(self, entries: Sequence[Entry]) -> Iterator[AuditEvent]:
        """Yield the events of what ended."""
        for entry in entries:
            if isinstance(entry, Identified):
                yield from self._identify(entry)
            elif isinstance(entry, Closed):
                yield from self._close(entry)
            else:
                yield from self._message(entry)

    def _fields(self) -> dict[str, Any]:
        fields = self._describer.caller_fields(*self._from) | {"transport": "websocket"}
        return fields if self._identified.known else fields | {"identify_failed": True}

    def _identify(self, entry: Identified) -> Iterator[AuditEvent]:
        """Yield the event of an attempt to authenticate: `connection_init` is one, and each that failed."""
        self._identified = entry
        caller = entry.caller
        if entry.refused is not None and not isinstance(caller, Failure):
            of = caller.api_key_id if caller is not None else None
            yield self._describer.attempt(Failure(entry.refused, of), self._fields(), entry.moment)
        elif isinstance(caller, Failure) or (isinstance(caller, Identity) and entry.attempted):
            yield self._describer.attempt(caller, self._fields(), entry.moment)

    def _message(self, frame: Frame) -> Iterator[AuditEvent]:
        message = None if frame.cut else decode(frame.text)
        if not isinstance(message, dict):
            if frame.by == "client" and frame.cut:
                # Nobody knows its id, so it cannot be followed.
                yield self._end(_Open(Operation(failure=TOO_LARGE), frame.at, frame.moment, {}), "refused", frame.at)
            elif frame.cut:
                self._cut(frame)
            return
        kind, key = message.get("type"), _key(message.get("id"))
        if frame.by == "client":
            if kind in {"subscribe", "start"}:
                yield from self._begin(key, message, frame)
            elif kind in {"complete", "stop"} and key in self._open:
                yield self._end(self._take(key), "stopped", frame.at)
            return
        running = self._open.get(key)
        if running is None:
            return
        if kind in {"next", "data"}:
            running.first = running.first or frame.at
            running.tally.add(message.get("payload"))
        elif kind == "error":
            payload = message.get("payload")
            running.tally.add_errors(payload if isinstance(payload, list) else [payload])
            yield self._end(self._take(key), "errors", frame.at)
        elif kind == "complete":
            yield self._end(self._take(key), "ok", frame.at)

    def _begin(self, key: str, message: dict[str, Any], frame: Frame) -> Iterator[AuditEvent]:
        if key in self._open:
            # `graphql-ws` ends the first one; `graphql-transport-ws` closes the connection.
            yield self._end(self._take(key), "stopped", frame.at)
        if len(self._open) >= OPEN_OPERATIONS:
            yield self._end(self._take(next(iter(self._open))), "stopped", frame.at)
        given = str(message.get("id"))[:_ID_CHARACTERS].encode("utf-8", "replace").decode()
        asked = operation(message.get("payload"))
        if self._bytes + _size(asked) > OPEN_BYTES:
            asked = short(asked)
        self._open[key] = _Open(asked, frame.at, frame.moment, {"operation_id": given}, size=_size(asked))
        self._bytes += _size(asked)

    def _take(self, key: str) -> _Open:
        running = self._open.pop(key)
        self._bytes -= running.size
        return running

    def _cut(self, frame: Frame) -> None:
        """Count a result that is too long to be read: its id is in its first or its last characters."""
        text = frame.text if isinstance(frame.text, str) else frame.text.decode("utf-8", "replace")
        for key, running in self._open.items():
            if f'"id":{json.dumps(key)}' in text[:512].replace('": "', '":"'):
                running.first = running.first or frame.at
                running.tally.add_cut(_payload(text))
                return
        for running in self._open.values():
            running.tally.lose()

    def _close(self, closed: Closed) -> Iterator[AuditEvent]:
        for running in self._open.values():
            running.more |= {"close_code": closed.code} if closed.code is not None else {}
            running.more |= {"error_type": closed.error_type} if closed.error_type else {}
            yield self._end(running, closed.status, closed.at)
        self._open.clear()
        self._bytes = 0

    def _end(self, running: _Open, status: Status, at: float) -> AuditEvent:
        answer = running.tally.answer(in_parts=True)
        if running.first is not None:
            running.more["first_byte_ms"] = round((running.first - running.began) * 1000, 3)
        run = Run(
            operation=running.operation,
            answer=answer,
            status="errors" if status == "ok" and answer.errors else status,
            started_at=running.moment,
            seconds=max(0.0, at - running.began),
            more=running.more,
        )
        return self._describer.executed(run, self._identified.caller, self._fields())


def _key(identity: object) -> str:
    """Return an operation's id, or a hash of one that is long: a client may choose any."""
    text = str(identity)
    if len(text) <= _ID_CHARACTERS:
        return text
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _size(asked: Operation) -> int:
    """Return about how many bytes an operation's texts take."""
    return sum(getsizeof(text) for text in (asked.document, asked.document_id, asked.name) if text)


def _payload(text: str) -> bytes:
    """Return the payload of a message's begin."""
    return text.partition('"payload":')[2].lstrip().encode("utf-8", "surrogatepass")


Ask = Callable[[Scope], Awaitable[tuple[Caller, bool]]]
"""Asks the application's hook who calls, and whether it could say that."""


class Connection:
    """A WebSocket on the request's path: passes messages on, and keeps them for a session."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        peer: Peer,
        request_id: str,
        describer: Describer,
        ask: Ask,
        outlet: Outlet,
        limit: int,
    ) -> None:
        """Follow a connection.

        Args:
            scope: ASGI's.
            receive: ASGI's.
            send: ASGI's.
            peer: whom it came from.
            request_id: the id of the handshake's request.
            describer: makes the events.
            ask: asks the hook.
            outlet: where messages go.
            limit: bytes of a server's message that are kept.
        """
        headers = [pair for pair in scope["headers"] if pair[0] in _KEPT_HEADERS]
        self._session = Session(describer, request_id, peer, headers)
        self._scope, self._receive, self._send = scope, receive, send
        self._request_id, self._ask, self._outlet, self._limit = request_id, ask, outlet, limit
        self._entries: list[Entry] = []
        self._bytes = 0
        self._looked_at = 0
        self._attempted = self._asked = self._disconnected = False
        self._closed_with: int | None = None

    async def receive(self) -> Message:
        """Pass a message of the client on, and keep a reference to it."""
        message = await self._receive()
        if message["type"] == "websocket.receive":
            text = message.get("text")
            text = message.get("bytes") or b"" if text is None else text
            if not self._outlet.may_begin():
                await self._send({"type": "websocket.close", "code": REFUSED, "reason": "audit log unavailable"})
                self._closed_with = self._closed_with or REFUSED
                return {"type": "websocket.disconnect", "code": REFUSED}
            self._look_for_init(text)
            self._keep("client", text, BODY_BYTES)
            self._pass_on()
        elif message["type"] == "websocket.disconnect" and self._closed_with is None:
            self._disconnected = True
        return message

    async def send(self, message: Message) -> None:
        """Pass a message of the server on, and keep a reference to it."""
        kind = message["type"]
        if kind == "websocket.accept":
            headers = with_request_id(list(message.get("headers", ())), self._request_id)
            message = {**message, "headers": headers}
        elif kind == "websocket.close":
            self._closed_with = self._closed_with or message.get("code", 1000)
        await self._send(message)
        if kind != "websocket.send":
            return
        text = message.get("text")
        text = message.get("bytes") or b"" if text is None else text
        self._keep("server", text, self._limit)
        head = text[:512] if isinstance(text, str) else text[:512].decode("utf-8", "replace")
        if self._attempted and not self._asked and '"connection_' in head:
            await self._identify('"connection_error"' in head)
        if len(self._entries) >= SENT_MESSAGES or self._bytes >= SENT_BYTES or any(end in head for end in _ENDS):
            self._pass_on()

    async def end(self, closed: Closed) -> None:
        """Identify the caller if that was not done, and pass the rest on."""
        try:
            if not self._asked:
                await self._identify(refused=self._closed_with is not None and self._closed_with >= 4000)
        finally:
            self._entries.append(closed)
            entries, self._entries = self._entries, []
            session = self._session
            self._outlet.put_last(lambda: session.read(entries), self._bytes)

    def closed(self, error: BaseException | None) -> Closed:
        """Return how the connection has ended, by what the application raised."""
        status: Status = "cancelled"
        if self._disconnected:
            status = "disconnected"
        elif isinstance(error, Exception):
            status = "failed"
        elif self._closed_with is not None and self._closed_with >= 4000:
            status = "refused"
        error_type = type(error).__name__[:100] if isinstance(error, Exception) else None
        return Closed(status, self._closed_with, error_type, time.perf_counter())

    async def _identify(self, refused: bool) -> None:
        self._asked = True
        moment = time.time_ns()
        caller: Caller = None
        known = False
        try:
            caller, known = await self._ask(self._scope)
        finally:
            self._scope.pop(CONNECTION_INIT, None)
            code = "" if self._closed_with is None else f" ({self._closed_with})"
            reason = f"the server refused the connection{code}" if refused and self._attempted else None
            self._entries.append(Identified(caller, known, reason, self._attempted, moment))

    def _look_for_init(self, text: str | bytes) -> None:
        """Give the hook the payload of `connection_init`. It is among a client's first messages."""
        if self._attempted or self._looked_at >= _FIRST_MESSAGES or len(text) > INIT_BYTES:
            return
        self._looked_at += 1
        message = decode(text)
        if isinstance(message, dict) and message.get("type") == "connection_init":
            self._attempted = True
            self._scope[CONNECTION_INIT] = message.get("payload")

    def _keep(self, by: By, text: str | bytes, limit: int) -> None:
        cut = len(text) > limit
        kept = text[:limit] if cut else text
        self._entries.append(Frame(by, kept, cut, time.perf_counter(), time.time_ns()))
        self._bytes += len(kept) + _MESSAGE_BYTES

    def _pass_on(self) -> None:
        entries, session = self._entries, self._session
        if self._outlet.put(lambda: session.read(entries), self._bytes):
            self._entries, self._bytes = [], 0
        elif self._bytes > KEPT_BYTES:
            self._entries, self._bytes = [], 0
            self._outlet.lose()
