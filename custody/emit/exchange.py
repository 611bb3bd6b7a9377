"""What is kept of a request while a server answers it: times, and references to bytes. Nothing is read here.

This is a request's own path: each method does as little as can be done. `custody.emit.describe` reads it later, on the
writer's thread. Until then the queue has all headers, also those with keys, as it has bodies with passwords.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from itertools import chain
from typing import Any, Final, Literal

from custody.emit.address import Peer
from custody.emit.callers import Caller
from custody.emit.notes import Note
from custody.emit.operations import BODY_BYTES

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Ending = Literal["failed", "disconnected", "cancelled"]
"""How a request ended that got no whole answer."""

REQUEST_ID: Final = b"x-request-id"
_PAIR_BYTES: Final = 150
"""About what a header, or a note, takes beside its text."""
_REQUEST_ID_LENGTH: Final = len(REQUEST_ID)


class Exchange:
    """A request and its answer.

    Attributes:
        headers: the request's, before the application had it.
        headers_after: the request's when the hook was asked, if the application has changed them.
        asked: what the hook `identify` returned, as it is.
        identified: whether the hook could say who calls.
    """

    __slots__ = (
        "_answer_limit",
        "_body_left",
        "_receive",
        "_send",
        "answer",
        "answer_bytes",
        "answer_headers",
        "asked",
        "body",
        "body_whole",
        "client",
        "complete",
        "disconnected",
        "ended",
        "ending",
        "error_type",
        "first_byte",
        "headers",
        "headers_after",
        "http_status",
        "identified",
        "method",
        "notes",
        "query_string",
        "ready",
        "request_id",
        "started",
        "started_at",
    )

    def __init__(self, scope: Scope, request_id: str, receive: Receive, send: Send, answer_limit: int) -> None:
        self.started_at = time.time_ns()
        self.started = self.ready = time.perf_counter()
        self.method: str = scope["method"]
        self.query_string: bytes = scope.get("query_string", b"")
        # A copy: an application may change the list in place.
        self.headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self.headers_after: Sequence[tuple[bytes, bytes]] = ()
        self.client: Sequence[Any] | None = scope.get("client")
        self.request_id = request_id
        self.asked: Caller = None
        self.identified = True
        self.notes: list[Note] = []
        self.body: list[bytes] = []
        self.body_whole = False
        self._body_left = BODY_BYTES + 1
        self._answer_limit = answer_limit
        self.answer: list[bytes] = []
        self.answer_bytes = 0
        self.answer_headers: Sequence[tuple[bytes, bytes]] = ()
        self.http_status = 0
        self.first_byte = self.ended = 0.0
        self.complete = self.disconnected = False
        self.ending: Ending | None = None
        self.error_type: str | None = None
        self._receive, self._send = receive, send

    async def receive(self) -> Message:
        """Pass the next part of the body on, and keep a reference to it."""
        message = await self._receive()
        if message["type"] == "http.request":
            body = message.get("body", b"")
            if body and self._body_left > 0:
                self.body.append(body[: self._body_left])
                self._body_left -= len(body)
            if not message.get("more_body", False):
                self.body_whole = True
                self.ready = time.perf_counter()
        elif message["type"] == "http.disconnect":
            self.disconnected = True
        return message

    async def send(self, message: Message) -> None:
        """Pass the next part of the answer on, with the request's id, and keep a reference to it."""
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            if body:
                if not self.answer_bytes:
                    self.first_byte = time.perf_counter()
                if self.answer_bytes < self._answer_limit:
                    self.answer.append(bytes(body[: self._answer_limit - self.answer_bytes]))
                self.answer_bytes += len(body)
            if not message.get("more_body", False):
                self.complete = True
                self.ended = time.perf_counter()
        elif message["type"] == "http.response.start":
            self.http_status = message["status"]
            # An iterable of them may be read once only.
            self.answer_headers = headers = list(message.get("headers", ()))
            message = {**message, "headers": with_request_id(headers, self.request_id)}
        await self._send(message)

    def end(self, error: BaseException | None) -> None:
        """Note how a request ended that has no whole answer."""
        self.ended = time.perf_counter()
        if self.disconnected:
            self.ending = "disconnected"
        elif error is None or isinstance(error, Exception):
            self.ending = "failed"
            self.error_type = None if error is None else type(error).__name__[:100]
        else:
            self.ending = "cancelled"

    @property
    def peer(self) -> Peer:
        """Whom the request came from."""
        return Peer.of(self.client, self.headers)

    def keep(self) -> int:
        """Drop the references to what is the server's, and return about how many bytes are kept."""
        # They hold the connection, and all that the application has put into the scope.
        self._receive, self._send = _disconnected, _nowhere
        before, answered, after = self.headers, self.answer_headers, self.headers_after
        size = 2_000 + _PAIR_BYTES * (len(before) + len(answered) + len(after)) + len(self.query_string)
        texts = chain(chain.from_iterable(chain(before, answered, after)), self.body, self.answer)
        size += sum(map(len, texts))
        for note in self.notes:
            size += _PAIR_BYTES + len(note.document or "")
        return size


async def _disconnected() -> Message:
    """Return what a server returns when a request is over: some task of the application may still ask."""
    return {"type": "http.disconnect"}


async def _nowhere(_: Message) -> None:
    """Drop what comes after the end, as a server does."""


def with_request_id(headers: Iterable[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer with our request id, and without another."""
    kept = []
    for pair in headers:
        # Lengths first: most names have another one, and need no copy in lower case.
        if len(pair[0]) != _REQUEST_ID_LENGTH or pair[0].lower() != REQUEST_ID:
            kept.append(pair)  # noqa: PERF401 - in Python 3.11 a comprehension is a call more, on a request's path
    kept.append((REQUEST_ID, request_id.encode()))
    return kept
