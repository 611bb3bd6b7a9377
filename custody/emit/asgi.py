"""Audits the requests to a GraphQL server, whichever it is, as a pure ASGI middleware.

    app = AuditMiddleware(app, KafkaWriter("audit", {…}, Options(service="shop")), identify=who_calls)

- It knows bodies and headers alone. An extension (`custody.emit.strawberry`, `custody.emit.ariadne`) adds what they do
  not show.
- On a request's path it stamps times, keeps references, and appends to the writer's queue. The writer's thread reads.
- Put it outside of all other middleware, so that it sees the client's headers, and what is answered.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final

from custody.emit.address import Peer, Proxies
from custody.emit.callers import CONNECTION_INIT, Caller, Identify, Identity, without_keys
from custody.emit.describe import Describer, Rules, Signatures
from custody.emit.exchange import REQUEST_ID, Exchange, Message, Receive, Scope, Send
from custody.emit.identity import new_request_id
from custody.emit.notes import SCOPE_KEY
from custody.emit.outlet import Counts, OnAuditFailure, Outlet, ReservingOutlet
from custody.emit.quiet import QuietLog
from custody.emit.request import request_ids
from custody.emit.websocket import REFUSED, Connection
from custody.emit.writer import AuditWriter
from custody.errors import ConfigurationError

__all__ = ["AuditMiddleware"]

ANSWER_BYTES: Final = 262_144
"""Bytes of an answer that are read for its rows and errors. Of a longer one, the rows in its begin are counted."""
IDENTIFY_SECONDS: Final = 5.0
"""How long an asynchronous `identify` may take. The client has its answer by then."""

App = Callable[[Scope, Receive, Send], Awaitable[None]]
_REFUSAL = json.dumps(
    {"errors": [{"message": "the audit log is unavailable: try again later", "extensions": {"code": "AUDIT_FAILURE"}}]}
).encode()


class AuditMiddleware:
    """Wraps an ASGI application, and gives each GraphQL operation an event.

    Args:
        app: the application.
        writer: where events go. One that is shared with the application is fine.
        path: the path of the GraphQL server, or several. What is below it is audited too. None if the application is
            nothing but a GraphQL server: then each path is audited, as such a server answers on any.
        identify: says who calls. It is asked once the application has answered, so it may read what that has left in
            the scope, and holds up nobody.
        proxies: which proxies are trusted; none if not given. Over a unix socket, `hops` is needed.
        on_audit_failure: while the writer's queue is full, requests are served without an event, or refused with 503.
        signatures: whether the first event of a query, each day and process, has its text without literals.
        auth_successes: whether each request with a valid key gives an `auth_attempt`, not only those that failed.
        runs_first: whether the server runs the first of several operations where none is named, as Strawberry does.
        close_writer: whether the writer is closed when the server shuts down. uvicorn ends by a signal, so nothing
            later would do it.

    Raises:
        ConfigurationError: an argument cannot be used.
    """

    def __init__(
        self,
        app: App,
        writer: AuditWriter,
        *,
        path: str | Collection[str] | None = None,
        identify: Identify | None = None,
        proxies: Proxies | None = None,
        on_audit_failure: OnAuditFailure = "serve",
        signatures: Signatures = "first",
        auth_successes: bool = False,
        runs_first: bool = False,
        close_writer: bool = True,
    ) -> None:
        paths = ("/",) if path is None else (path,) if isinstance(path, str) else tuple(path)
        if not paths or not all(each.startswith("/") for each in paths):
            raise ConfigurationError("a path of the GraphQL server begins with '/', such as '/graphql'")
        if on_audit_failure not in {"serve", "refuse"}:
            raise ConfigurationError(f"on_audit_failure is 'serve' or 'refuse', not {on_audit_failure!r}")
        if signatures not in {"first", "never"}:
            raise ConfigurationError(f"signatures is 'first' or 'never', not {signatures!r}")
        self._app, self._writer = app, writer
        self._every_path = path is None
        self._paths = frozenset(each.rstrip("/") or "/" for each in paths)
        self._below = tuple(each.rstrip("/") + "/" for each in paths)
        self._identify = identify
        self._proxies = Proxies() if proxies is None else proxies
        self._trusts_any = self._proxies.any
        self._refuse = on_audit_failure == "refuse"
        self._close_writer = close_writer
        self._describer = Describer(Rules(self._proxies, signatures, auth_successes, runs_first))
        self._counts = Counts()
        self._quiet = QuietLog()
        self._serving = Outlet(writer, self._counts, self._quiet)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection, as ASGI asks."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(scope, receive, send)
        elif kind == "http":
            if scope["method"] == "OPTIONS" or not (self._every_path or self._audits(scope)):
                await self._app(scope, receive, send)
            else:
                await self._http(scope, receive, send)
        elif kind == "websocket" and (self._every_path or self._audits(scope)):
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def counters(self) -> dict[str, int]:
        """Return how many requests of this process were refused, and how many were served without an event."""
        return {"refused_requests": self._counts.refused, "unaudited_requests": self._counts.unaudited}

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Where no proxy is trusted, the id is ours whatever the request has: the common case, without a call.
        request_id = self._request_id(scope) if self._trusts_any or not scope.get("client") else new_request_id()
        outlet = self._serving
        if self._refuse:
            outlet = self._outlet()
            if not outlet.may_begin():
                await _refuse(send, request_id)
                return
        exchange = Exchange(scope, request_id, receive, send, ANSWER_BYTES)
        scope[SCOPE_KEY] = exchange.notes
        error: BaseException | None = None
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except BaseException as raised:
            error = raised
            raise
        finally:
            # What an application does after a whole answer is no part of the request.
            if not exchange.complete:
                exchange.end(error)
            # Otherwise this frame and the exception would hold each other.
            error = None
            try:
                if self._identify is not None:
                    exchange.identified = False
                    exchange.asked, exchange.identified = await self._ask(scope)
                    if scope["headers"] != exchange.headers:
                        # Something inside has added a key, and the hook may have taken it from there.
                        exchange.headers_after = tuple(scope["headers"])
            finally:
                outlet.put_last(partial(self._describer.exchange, exchange), exchange.keep())

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = self._request_id(scope)
        outlet = self._outlet()
        if not outlet.may_begin():
            await receive()
            await send({"type": "websocket.close", "code": REFUSED})
            return
        connection = Connection(
            scope,
            receive,
            send,
            peer=Peer.of(scope.get("client"), scope["headers"]),
            request_id=request_id,
            describer=self._describer,
            ask=self._caller,
            outlet=outlet,
            limit=ANSWER_BYTES,
        )
        error: BaseException | None = None
        try:
            await self._app(scope, connection.receive, connection.send)
        except BaseException as raised:
            error = raised
            raise
        finally:
            closed, error = connection.closed(error), None
            await connection.end(closed)

    def _audits(self, scope: Scope) -> bool:
        """Return whether a path is the GraphQL server's, or below it: a mounted application serves all of that."""
        path: str = scope["path"]
        if path in self._paths or path.startswith(self._below):
            return True
        inner = path.removeprefix(scope.get("root_path", ""))
        return inner in self._paths or inner.startswith(self._below)

    def _outlet(self) -> Outlet:
        return ReservingOutlet(self._writer, self._counts, self._quiet) if self._refuse else self._serving

    def _request_id(self, scope: Scope) -> str:
        """Return the id of a request: ours, or the one that a trusted proxy gave it.

        Raises:
            ConfigurationError: it came over a unix socket, and nothing says how many proxies there are.
        """
        client = scope.get("client")
        if not client:
            self._proxies.require_peer(None)
        if not self._trusts_any:
            return new_request_id()
        headers = scope["headers"]
        trusted = self._proxies.trusts(Peer.of(client, headers))
        return request_ids(headers, new_request_id, proxy_trusted=True).request_id if trusted else new_request_id()

    async def _ask(self, scope: Scope) -> tuple[Caller, bool]:
        """Return what the hook says, and whether it could. It never fails: an event without a key is better."""
        if self._identify is None:
            return None, True
        try:
            answer = self._identify(scope)
            # `isinstance` of an abstract class takes as long as all else here.
            if type(answer) is not Identity and isinstance(answer, Awaitable):
                async with asyncio.timeout(IDENTIFY_SECONDS):
                    answer = await answer
        except Exception as error:  # noqa: BLE001
            self._describer.identify_failed(error)
            return None, False
        return answer, True

    async def _caller(self, scope: Scope) -> tuple[Caller, bool]:
        """Return who opened a WebSocket, without the keys of its request; as `_ask`."""
        answer, known = await self._ask(scope)
        try:
            return without_keys(
                answer, scope["headers"], scope.get("query_string", b""), scope.get(CONNECTION_INIT)
            ), known
        except Exception as error:  # noqa: BLE001 - the hook returned anything at all
            self._describer.identify_failed(error)
            return None, False

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the server's start and end, and close the writer, whatever the application does.

        One that knows no lifespan may return, or raise at its first look: the server goes on then, and so do we.
        """
        received: list[str] = []
        sent: list[str] = []

        async def receive_and_note() -> Message:
            message = await receive()
            received.append(message["type"])
            return message

        async def send_last(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await self._close()
            await send(message)
            sent.append(message["type"])

        error: Exception | None = None
        try:
            await self._app(scope, receive_and_note, send_last)
        except Exception as raised:
            if "lifespan.startup.failed" in sent or received[-1:] == ["lifespan.shutdown"]:
                await self._close()
                raise
            error = raised
        if error is not None and received:
            kind = type(error).__name__
            self._quiet.warn("lifespan", f"the application raised {kind} in its lifespan: it is served all the same")
        if "lifespan.startup.failed" in sent:
            await self._close()
        else:
            await self._finish_lifespan(received, sent, receive, send_last)

    async def _finish_lifespan(self, received: list[str], sent: list[str], receive: Receive, send: Send) -> None:
        """Do what an application has left of its lifespan."""
        if not received:
            received.append((await receive())["type"])
        if "lifespan.startup.complete" not in sent:
            await send({"type": "lifespan.startup.complete"})
        if "lifespan.shutdown" not in received:
            await receive()
        if "lifespan.shutdown.complete" not in sent and "lifespan.shutdown.failed" not in sent:
            await send({"type": "lifespan.shutdown.complete"})

    async def _close(self) -> None:
        if self._close_writer:
            await asyncio.get_running_loop().run_in_executor(None, self._writer.close)


async def _refuse(send: Send, request_id: str) -> None:
    """Answer that there can be no audit event now."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(_REFUSAL)).encode()),
        (b"retry-after", b"1"),
        (REQUEST_ID, request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": _REFUSAL})
