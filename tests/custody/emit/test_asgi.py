"""What the audit middleware does when something goes wrong: in the application, in a hook, in the queue, at the end."""

import asyncio
import base64
import contextlib
import gc
import json
import logging
import re
import sys
import time
import traceback
import types
import weakref
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, StreamingResponse

from custody.emit import describe, notes
from custody.emit.address import Proxies
from custody.emit.ariadne import AuditHTTPHandler
from custody.emit.asgi import AuditMiddleware
from custody.emit.builders import own
from custody.emit.callers import CONNECTION_INIT, Caller, Failure, Identity, without_keys
from custody.emit.exchange import Exchange
from custody.emit.notes import Note, add_note
from custody.emit.operations import Operation
from custody.emit.queue import Limits
from custody.emit.quiet import QuietLog
from custody.emit.strawberry import AuditExtension
from custody.errors import ConfigurationError
from tests.helpers.collecting import CollectingWriter
from tests.helpers.graphql_servers import ariadne_app, strawberry_app
from tests.helpers.growth import check_growth
from tests.helpers.serving import serving

Message = MutableMapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]
BODY = b'{"query": "{ users { id } }"}'
JSON = [(b"content-type", b"application/json")]
KEY = "a-key-that-must-be-nowhere-0815"


def scope_of(**fields: Any) -> dict[str, Any]:
    """Return the scope of a request."""
    given = {"method": "POST", "path": "/graphql", "query_string": b"", "headers": JSON, "client": ("192.0.2.1", 1)}
    return {"type": "http", **given, **fields}


async def answer(_: Any, receive: Any, send: Any, body: bytes = b'{"data": {"users": [1, 2]}}') -> None:
    """Read the body, and answer."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": list(JSON)})
    await send({"type": "http.response.body", "body": body})


async def call(app: App, scope: Any, *messages: Message) -> list[Message]:
    """Call an application with what a client sends, and return what it answers."""
    waiting = list(messages or ({"type": "http.request", "body": BODY},))
    sent: list[Message] = []

    async def receive() -> Message:
        if waiting:
            return waiting.pop(0)
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def audited(app: App = answer, **options: Any) -> tuple[AuditMiddleware, CollectingWriter]:
    """Return an application behind the middleware, and the writer."""
    writer = CollectingWriter(options.pop("queue", None))
    return AuditMiddleware(app, writer, **options), writer


async def cancelled(app: Any) -> None:
    """Call an application, and cancel that."""
    task = asyncio.create_task(call(app, scope_of()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_an_exception_of_the_application_is_an_event() -> None:
    """It goes on to the server; the event has its type, and not its text."""

    async def fails(_: Any, receive: Any, __: Any) -> None:
        await receive()
        raise ValueError(KEY)

    app, writer = audited(fails)
    with pytest.raises(ValueError, match=KEY):
        asyncio.run(call(app, scope_of()))
    event = writer.one()
    assert (event["status"], event["error_type"], event["root_fields"]) == ("failed", "ValueError", 1)
    assert KEY not in json.dumps(event)


def test_an_exception_after_the_answer_is_none_of_the_query() -> None:
    """A background task may fail: the query did not."""

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await answer(scope, receive, send)
        raise ValueError

    app, writer = audited(fails)
    with pytest.raises(ValueError):  # noqa: PT011
        asyncio.run(call(app, scope_of()))
    assert writer.one()["status"] == "ok"


def test_trap_18_a_cancelled_task_still_emits() -> None:
    """A server that cancels a request, at its end or by a time-out, gets its event, with a hook that waits too."""

    async def waits(_: Any, receive: Any, __: Any) -> None:
        await receive()
        await asyncio.sleep(60)

    async def identify(_: Any) -> Caller:
        await asyncio.sleep(0)
        return Identity("key-1")

    app, writer = audited(waits, identify=identify)

    asyncio.run(cancelled(app))
    event = writer.one()
    assert (event["status"], event["api_key_id"]) == ("cancelled", "key-1")


def test_trap_18_a_hook_that_is_cancelled_loses_no_event() -> None:
    """The event comes without a key, and says that the hook could not answer."""

    async def identify(_: Any) -> Caller:
        await asyncio.sleep(60)
        return Identity("key-1")

    app, writer = audited(identify=identify)

    asyncio.run(cancelled(app))
    event = writer.one()
    assert (event["status"], event["api_key_id"], event["identify_failed"]) == ("ok", None, True)


def test_trap_18_a_client_that_goes_away() -> None:
    """Over real HTTP: in the middle of a stream, the event says so."""

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        async def parts() -> Any:
            while True:
                yield b'\r\n--x\r\nContent-Type: application/json\r\n\r\n{"data": {"users": [1]}}'
                await asyncio.sleep(0.01)

        await Request(scope, receive).body()
        await StreamingResponse(parts(), media_type='multipart/mixed; boundary="x"')(scope, receive, send)

    app, writer = audited(stream)
    with serving(app, lifespan="off") as url:
        with httpx.stream("POST", f"{url}/graphql", content=BODY, headers={"content-type": "application/json"}) as got:
            next(got.iter_raw())
        event = writer.one()
    assert event["status"] == "disconnected"
    assert event["result_rows"] >= 1
    assert event["result_rows_exact"] is False
    writer.close(5)


def test_a_client_that_goes_away_while_it_sends() -> None:
    """The application did not run the query: nobody knows it."""

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        await Request(scope, receive).body()
        await answer(scope, receive, send)

    app, writer = audited(reads)
    begin = {"type": "http.request", "body": BODY[:10], "more_body": True}
    with pytest.raises(ClientDisconnect):
        asyncio.run(call(app, scope_of(), begin, {"type": "http.disconnect"}))
    event = writer.one()
    assert (event["status"], event["query_hash_of"]) == ("disconnected", "failure")


def test_an_answer_without_an_end_failed() -> None:
    """An application may return before its answer is whole."""

    async def stops(_: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": list(JSON)})

    app, writer = audited(stops)
    asyncio.run(call(app, scope_of()))
    event = writer.one()
    assert (event["status"], event["http_status"]) == ("failed", 200)


def test_a_long_body_is_kept_up_to_a_bound() -> None:
    """1 MiB of it; the application gets all, in the parts in which it came."""
    length = 0

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        nonlocal length
        length = len(await Request(scope, receive).body())
        await JSONResponse({"data": None})(scope, receive, send)

    app, writer = audited(reads)
    part = {"type": "http.request", "body": b"x" * 100_000}
    asyncio.run(call(app, scope_of(), *[{**part, "more_body": True}] * 30, part))
    assert length == 3_100_000
    event = writer.one()
    assert (event["query_hash_of"], event["complexity"]) == ("failure", 2**63 - 1)


@pytest.mark.parametrize("refused", [True, False])
def test_a_batch_cannot_keep_the_worker_busy(refused: bool) -> None:
    """Of many operations in one request few are parsed, of a batch that the server refused at once only the first."""

    async def batch(_: Any, receive: Any, send: Any) -> None:
        await receive()
        response = JSONResponse({"errors": [{}]}, 400) if refused else JSONResponse([{"data": {"a": 1}}] * 150)
        await response({"type": "http"}, receive, send)

    app, writer = audited(batch)
    body = json.dumps([{"query": f"{{ batch{number} }}"} for number in range(150)]).encode()
    asyncio.run(call(app, scope_of(), {"type": "http.request", "body": body}))
    events = writer.take(150)
    assert [event["query_hash_of"] for event in events].count("signature") == (1 if refused else 100)
    assert {event["status"] for event in events} == {"errors" if refused else "ok"}
    assert len({event["document_hash"] for event in events}) == 150


def test_a_connection_of_another_kind_is_the_applications() -> None:
    """A server may have kinds of its own, without a path and without a method."""
    seen: list[Any] = []

    async def other(scope: Any, _: Any, __: Any) -> None:
        seen.append(scope)

    app, writer = audited(other, path="/graphql")
    asyncio.run(call(app, {"type": "webtransport"}))
    assert seen == [{"type": "webtransport"}]
    assert writer.counters()["written"] == 0


def test_the_answers_header_is_ours() -> None:
    """An application's own request id is kept in the event, if it may be."""

    async def with_id(scope: Any, receive: Any, send: Any) -> None:
        response = JSONResponse({"data": {}}, headers={"X-Request-ID": "theirs"})
        await receive()
        await response(scope, receive, send)

    app, writer = audited(with_id)
    start = asyncio.run(call(app, scope_of()))[0]
    event = writer.one()
    ids = [value for name, value in start["headers"] if name == b"x-request-id"]
    assert ids == [event["request_id"].encode()]
    assert event["application_request_id"] == "theirs"


def test_a_trusted_proxy_names_client_and_request() -> None:
    """Both headers count from a peer that is trusted, and from no other."""
    app, writer = audited(proxies=Proxies(["192.0.2.0/24"]))
    headers = [*JSON, (b"x-forwarded-for", b"198.51.100.7, 203.0.113.9"), (b"x-request-id", b"proxys")]
    asyncio.run(call(app, scope_of(headers=headers)))
    event = writer.one()
    assert (event["client_ip"], event["client_ip_source"], event["request_id"]) == ("203.0.113.9", "xff", "proxys")


def test_a_peer_that_is_no_address_is_unknown() -> None:
    """Starlette's test client calls itself `testclient`: events stay valid."""
    app, writer = audited()
    asyncio.run(call(app, scope_of(client=("testclient", 50000))))
    event = writer.one()
    assert (event["client_ip"], event["client_ip_source"]) == ("0.0.0.0", "unknown")  # noqa: S104


@pytest.mark.parametrize("header", ["203.0.113.9", "203.0.113.9:4711"])
def test_a_server_that_believes_a_header_is_noticed(header: str, caplog: pytest.LogCaptureFixture) -> None:
    """By uvicorn's defaults each local program chooses its address. The event does not call that the peer."""
    app, writer = audited(proxies=Proxies(["203.0.113.0/24"]))
    with serving(app, proxy_headers=True, lifespan="off") as url:
        httpx.post(f"{url}/graphql", content=BODY, headers={"x-forwarded-for": header, "x-request-id": "mine"})
        event = writer.one()
        assert (event["client_ip"], event["client_ip_source"]) == ("203.0.113.9", "server")
        assert event["request_id"] != "mine"
        assert "--no-proxy-headers" in caplog.text
        caplog.clear()
        httpx.post(f"{url}/graphql", content=BODY)
        assert writer.one()["client_ip_source"] == "peer"
    assert "--no-proxy-headers" not in caplog.text


PATHS = ["/", "", "/graphql", "//graphql", "/GraphQL", "/graphql/", "/graphql/x", "/%2e%2e/graphql", "/x", "/graphql;a"]


@pytest.fixture(scope="module")
def shop() -> tuple[AuditMiddleware, CollectingWriter]:
    """The tutorial's application, with a writer that collects."""
    writer = CollectingWriter()
    source = (Path(__file__).resolve().parents[3] / "docs" / "examples" / "shop.py").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("custody.emit.kafka.KafkaWriter", lambda *_: writer)
        patch.setenv("SHOP_TOPIC", "")
        patch.setenv("SHOP_KAFKA", "")
        module = types.ModuleType("shop")
        patch.setitem(sys.modules, "shop", module)
        exec(compile(source, "shop.py", "exec"), module.__dict__)  # noqa: S102 - the page is ours
    app: AuditMiddleware = module.app
    return app, writer


@pytest.mark.parametrize("path", PATHS)
def test_what_the_tutorials_server_answers_is_audited(
    path: str, shop: tuple[AuditMiddleware, CollectingWriter]
) -> None:
    """A server that is the whole application answers on every path, so every path is audited."""
    app, writer = shop
    body = {"type": "http.request", "body": b'{"query": "{ orders(first: 2) }"}'}
    sent = asyncio.run(call(app, scope_of(path=path, root_path=""), body))
    assert b"a lamp" in sent[1]["body"]
    assert (sent[0]["status"], writer.one()["result_rows"]) == (200, 2)


def test_a_unix_socket_needs_hops(tmp_path: Path) -> None:
    """Without, the first request is refused, and the server's log says why; with them the proxy's client is known."""
    socket = tmp_path / "s"
    transport = httpx.HTTPTransport(uds=str(socket))
    headers = {"content-type": "application/json", "x-forwarded-for": "203.0.113.9"}
    app, writer = audited()
    with pytest.raises(ConfigurationError, match="set hops"):
        asyncio.run(call(app, scope_of(client=None)))
    app, writer = audited(proxies=Proxies(hops=1))
    with serving(app, uds=str(socket), lifespan="off"), httpx.Client(transport=transport) as client:
        assert client.post("http://unix/graphql", content=BODY, headers=headers).status_code == 200
        event = writer.one()
    assert (event["client_ip"], event["client_ip_source"]) == ("203.0.113.9", "xff")


def full_queue(**options: Any) -> tuple[AuditMiddleware, CollectingWriter]:
    """Return an application whose writer's queue has no room, since nothing takes from it."""
    app, writer = audited(queue=Limits(events=2), **options)
    writer.fill()
    return app, writer


def wait_for_places(writer: CollectingWriter, count: int) -> None:
    """Wait until the queue has so many places, and check that it never has more."""
    deadline = time.monotonic() + 10
    free = -1
    while free != count:
        assert time.monotonic() < deadline, f"the queue has {free} places instead of {count}"
        free = sum(iter(writer.reserve, False))
        assert free <= count
        for _ in range(free):
            writer.release()
        time.sleep(0.002)


def test_serve_counts_what_has_no_event(caplog: pytest.LogCaptureFixture) -> None:
    """With a full queue the request is served at once; the loss is counted, logged once, and a hole in the numbers."""
    app, writer = full_queue()
    dropped = writer.counters()["dropped"]
    for _ in range(3):
        assert asyncio.run(call(app, scope_of()))[0]["status"] == 200
    assert writer.counters()["dropped"] == dropped + 3
    assert app.counters() == {"refused_requests": 0, "unaudited_requests": 3}
    assert len([r for r in caplog.records if "no audit event" in r.message]) == 1
    writer.sink.away = False


def test_refuse_does_not_run_what_it_cannot_audit() -> None:
    """With a full queue the application is not called, and the client learns that it may come again."""
    calls = 0

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        await answer(scope, receive, send)

    app, writer = full_queue(app=counted, on_audit_failure="refuse", path="/graphql")
    start, body = asyncio.run(call(app, scope_of()))
    assert (start["status"], calls) == (503, 0)
    assert dict(start["headers"])[b"retry-after"] == b"1"
    assert json.loads(body["body"])["errors"][0]["extensions"] == {"code": "AUDIT_FAILURE"}
    assert app.counters() == {"refused_requests": 1, "unaudited_requests": 0}
    closed = asyncio.run(call(app, scope_of(type="websocket"), {"type": "websocket.connect"}))
    assert closed == [{"type": "websocket.close", "code": 1013}]
    assert asyncio.run(call(app, scope_of(path="/other")))[0]["status"] == 200
    writer.sink.away = False


def test_refuse_gives_each_place_back() -> None:
    """Requests with an event, and those without, leave as many places as there were."""
    app, writer = audited(queue=Limits(events=3), on_audit_failure="refuse")
    for _ in range(10):
        assert asyncio.run(call(app, scope_of()))[0]["status"] == 200
        assert asyncio.run(call(app, scope_of(method="GET")))[0]["status"] == 200
        writer.take(1)
    wait_for_places(writer, 3)


def test_refuse_closes_a_socket_whose_operation_has_no_place() -> None:
    """A WebSocket lives long: each of its messages needs a place."""
    heard: list[Any] = []

    async def listens(_: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        heard.append(await receive())

    app, writer = audited(listens, queue=Limits(events=1), on_audit_failure="refuse")
    message = {"type": "websocket.receive", "text": '{"type": "subscribe", "id": "1", "payload": {}}'}
    sent = asyncio.run(call(app, scope_of(type="websocket"), {"type": "websocket.connect"}, message))
    assert sent[-1]["code"] == 1013
    assert heard == [{"type": "websocket.disconnect", "code": 1013}]
    wait_for_places(writer, 1)


@pytest.mark.parametrize("kind", ["raises", "waits", "wrong", "own key"])
def test_a_hook_that_fails_loses_no_event(
    kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it does: the event comes without a key, and nothing shows the one that the client sent."""
    monkeypatch.setattr("custody.emit.asgi.IDENTIFY_SECONDS", 0.05)

    async def identify(scope: Any) -> Any:
        key = dict(scope["headers"])[b"authorization"].decode().partition(" ")[2]
        if kind == "raises":
            raise ValueError(f"no such key: {key}")
        if kind == "waits":
            await asyncio.sleep(60)
        return Identity(key) if kind == "own key" else key

    app, writer = audited(identify=identify)
    asyncio.run(call(app, scope_of(headers=[*JSON, (b"authorization", f"Bearer {KEY}".encode())])))
    event = writer.one()
    assert event["api_key_id"] == ("[redacted]" if kind == "own key" else None)
    assert event.get("identify_failed", False) is (kind != "own key")
    assert KEY not in json.dumps(event) + caplog.text


def test_a_key_is_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Not in events, log lines, reprs or tracebacks, whichever way the client sent it, and whatever a hook returns."""
    caplog.set_level(logging.DEBUG)
    basic = base64.b64encode(f"ada:{KEY}".encode()).decode()
    traces: list[str] = []

    async def fails(_: Any, receive: Any, __: Any) -> None:
        await receive()
        raise ValueError

    for authorization in (f"Bearer {KEY}", KEY, f"Basic {basic}", f"Token token={KEY}"):
        for hook in (Failure(f"not good: {authorization}, {KEY}"), Failure("bad", api_key_id=KEY), Identity(KEY)):
            assert KEY not in repr(hook) or isinstance(hook, Failure)
            app, writer = audited(fails, identify=lambda _, hook=hook: hook, auth_successes=True)
            headers = [*JSON, (b"authorization", authorization.encode()), (b"cookie", f"session={KEY}".encode())]
            body = json.dumps({"query": f'{{ me(password: "{KEY}", token: {KEY.replace("-", "_")}) }}'}).encode()
            query = f"api_key={KEY}".encode()
            try:
                asyncio.run(
                    call(app, scope_of(headers=headers, query_string=query), {"type": "http.request", "body": body})
                )
            except ValueError as error:
                traces.append("".join(traceback.TracebackException.from_exception(error).format()))
            events = writer.take(2)
            shown = json.dumps(events) + repr((app, writer, events)) + caplog.text + "".join(traces)
            for secret in (KEY, basic, KEY.replace("-", "_")):
                assert secret not in shown, (authorization, hook)
    assert len(traces) == 12


def test_a_success_is_an_event_where_it_is_asked_for() -> None:
    """By default a valid key is named by its queries alone: an event more for each would double their number."""
    hook = lambda _: Identity("key-1", key_version=3, key_age_days=4)  # noqa: E731
    app, writer = audited(identify=hook)
    asyncio.run(call(app, scope_of()))
    assert writer.one()["event_type"] == "query_executed"
    app, writer = audited(identify=hook, auth_successes=True)
    asyncio.run(call(app, scope_of()))
    attempt, query = writer.take(2)
    assert (attempt["status"], attempt["key_version"], attempt["key_age_days"]) == ("success", 3, 4)
    assert attempt["api_key_id"] == query["api_key_id"] == "key-1"


def test_the_hook_sees_what_the_application_left() -> None:
    """It is asked after the answer, so an application need not check a key twice."""

    async def checks(scope: Any, receive: Any, send: Any) -> None:
        scope["user"] = "key-of-ada"
        await answer(scope, receive, send)

    app, writer = audited(checks, identify=lambda scope: Identity(scope["user"]))
    asyncio.run(call(app, scope_of()))
    assert writer.one()["api_key_id"] == "key-of-ada"


def test_what_a_server_ran_beyond_what_was_seen_is_an_event_too() -> None:
    """A server may read a request in another way than we do: an extension's note has the text that ran."""

    async def runs_more(scope: Any, receive: Any, send: Any) -> None:
        add_note(scope, Note("{ hidden }", None, "query", rows=7))
        add_note(scope, Note("{ users { id } }", None, "query", complexity=99, rows=3))
        await answer(scope, receive, send)

    app, writer = audited(runs_more)
    asyncio.run(call(app, scope_of()))
    asked, hidden = writer.take(2)
    assert (asked["complexity"], asked["result_rows"], asked["query_signature"]) == (99, 3, "{users{id}}")
    assert (hidden["result_rows"], hidden["query_signature"]) == (7, "{hidden}")
    asyncio.run(call(app, scope_of(), {"type": "http.request", "body": b"\xff"}))
    assert [event["query_hash_of"] for event in writer.take(2)] == ["signature", "signature"]


@pytest.mark.parametrize("known", [True, False])
def test_the_writer_is_closed_when_the_server_ends(known: bool) -> None:
    """Uvicorn ends by a signal, after which nothing else would; also for an application that knows no lifespan."""
    order: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            if not known:
                raise ValueError(scope["type"])
            assert (await receive())["type"] == "lifespan.startup"
            await send({"type": "lifespan.startup.complete"})
            assert (await receive())["type"] == "lifespan.shutdown"
            order.append("application")
            await send({"type": "lifespan.shutdown.complete"})
            return
        await answer(scope, receive, send)

    app, writer = audited(application)
    with serving(app) as url:
        assert httpx.post(f"{url}/graphql", content=BODY).status_code == 200
    types = [json.loads(line)["event_type"] for line in writer.lines]
    assert types == ["emitter_started", "query_executed", "emitter_stopped"]
    assert order == ["application"] * known


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("steps", ["", "r", "rs", "rsr", "rsrs", "s"])
def test_the_writer_is_closed_whatever_the_application_does(steps: str, fails: bool) -> None:
    """It returns or raises at any step: the server gets all it waits for, and the writer is closed at the end."""
    types = iter(("lifespan.startup.complete", "lifespan.shutdown.complete"))

    async def stops(_: Any, receive: Any, send: Any) -> None:
        for step in steps:
            await (receive() if step == "r" else send({"type": next(types)}))
        if fails:
            raise KeyError("method")

    app, writer = audited(stops)
    writer.write(own("order.paid"))
    with contextlib.suppress(KeyError):
        sent = asyncio.run(call(app, {"type": "lifespan"}, {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}))
        assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert [json.loads(line)["event_type"] for line in writer.lines][-1] == "emitter_stopped"


def test_an_application_that_ignores_the_lifespan_is_served_and_closed() -> None:
    """Over a real server: `if scope["type"] != "http": return`."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await answer(scope, receive, send)

    app, writer = audited(application)
    with serving(app) as url:
        assert httpx.post(f"{url}/graphql", content=BODY).status_code == 200
    types = [json.loads(line)["event_type"] for line in writer.lines]
    assert types == ["emitter_started", "query_executed", "emitter_stopped"]


def test_a_start_that_the_application_calls_failed_stays_one() -> None:
    """The server must not go on then: Starlette says it, and raises."""

    async def fails(_: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed"})
        raise ValueError

    app, _ = audited(fails)
    with pytest.raises(ValueError):  # noqa: PT011
        asyncio.run(call(app, {"type": "lifespan"}, {"type": "lifespan.startup"}))


@pytest.mark.parametrize(
    ("headers", "query", "kept"),
    [
        ([(b"x-shop-key", KEY.encode())], b"", False),
        ([(b"X-Shop", f"key {KEY}".encode())], b"", False),
        ([(b"x-shop", f'Token token="{KEY}", realm=shop'.encode())], b"", False),
        ([(b"cookie", f"a=b; session={KEY}".encode())], b"", False),
        ([(b"authorization", f"Bearer '{KEY}'".encode())], b"", False),
        ([], f"key={KEY}".encode(), False),
        ([], f"a=b&{KEY}".encode(), False),
        ([], b"k=" + "".join(f"%{ord(char):02x}" for char in KEY).encode(), False),
        ([(b"x-consumer-id", KEY.encode())], b"", True),
        ([(b"authorization", f"Bearer {KEY}.the-secret-part".encode())], b"", True),
        ([(b"x-request-id", KEY.encode())], b"a=b%20c", True),
    ],
)
def test_a_key_from_anywhere_is_no_id(headers: list[tuple[bytes, bytes]], query: bytes, kept: bool) -> None:
    """Whatever header a shop has for its keys, or the address: the hook may take it for the id."""
    expected = KEY if kept else "[redacted]"
    assert without_keys(Identity(KEY), headers, query) == Identity(expected)
    assert without_keys(Failure(f"no such key: {KEY}", KEY), headers, query).api_key_id == expected  # type: ignore[union-attr]
    app, writer = audited(identify=lambda _: Identity(KEY))
    asyncio.run(call(app, scope_of(headers=[*JSON, *((n.lower(), v) for n, v in headers)], query_string=query)))
    assert writer.one()["api_key_id"] == expected


def test_a_key_of_other_letters_is_no_id() -> None:
    """Clients send UTF-8, whatever a header may have."""
    key = "ключ-секрет"
    assert without_keys(Identity(key), [(b"x-api-key", key.encode())]) == Identity("[redacted]")


def test_a_key_that_the_application_added_is_no_id() -> None:
    """Something inside may turn a cookie into a header, from which the hook takes the key."""

    async def adds(scope: Any, receive: Any, send: Any) -> None:
        scope["headers"] = [*scope["headers"], (b"authorization", f"Bearer {KEY}".encode())]
        await answer(scope, receive, send)

    app, writer = audited(adds, identify=lambda _: Identity(KEY))
    asyncio.run(call(app, scope_of(headers=JSON)))
    assert writer.one()["api_key_id"] == "[redacted]"


def test_what_waits_is_counted_and_holds_no_connection() -> None:
    """Names count as values do, each pair counts, and the server's own objects are let go."""

    class Server:
        async def receive(self) -> Message:
            return {"type": "http.request"}

        async def send(self, _: Message) -> None:
            pass

    server = Server()
    headers = [(b"x" * 60_000, b""), *((b"y%d" % number, b"") for number in range(1_000))]
    exchange = Exchange(scope_of(headers=headers), "id", server.receive, server.send, 1_000)
    exchange.end(None)
    assert exchange.keep() > 60_000 + 1_000 * 100
    left = weakref.ref(server)
    del server
    gc.collect()
    assert left() is None
    assert asyncio.run(exchange.receive()) == {"type": "http.disconnect"}


def test_notes_are_matched_in_linear_time() -> None:
    """A batch whose notes come in another order belongs together, and twice as many take twice as long."""

    def shuffled(size: int) -> tuple[list[Operation], list[Note]]:
        texts = [f"{{ users(first: {number}) {{ id }} }}" for number in range(size)]
        return [Operation(document=text) for text in texts], [Note(f" {text}\n") for text in reversed(texts)]

    pairs = describe._with_notes(*shuffled(50))
    assert all(note and note.document and note.document.strip() == asked.document for asked, note in pairs)
    check_growth(lambda data: describe._with_notes(*shuffled(len(data) // 100)), bytes)


class _Raises(AuditExtension):
    def complexity(self) -> int | None:
        raise ValueError(KEY)


class _Negative(AuditExtension):
    def complexity(self) -> int | None:
        return -1


class _Text(AuditHTTPHandler):
    def complexity(self, *_: Any) -> Any:
        return KEY


class _AlsoRaises(AuditHTTPHandler):
    def complexity(self, *_: Any) -> Any:
        raise ValueError(KEY)


@pytest.mark.parametrize(
    "server",
    [
        lambda: strawberry_app([_Raises]),
        lambda: strawberry_app([_Negative]),
        lambda: ariadne_app(_Text),
        lambda: ariadne_app(_AlsoRaises),
    ],
)
def test_a_complexity_that_fails_breaks_no_answer(
    server: Callable[[], App], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets its data, the event custody's own complexity, and the log the reason without its text."""
    monkeypatch.setattr(notes, "_quiet", QuietLog())
    app, writer = audited(server())
    sent = asyncio.run(call(app, scope_of(root_path="")))
    assert json.loads(sent[1]["body"])["data"]["users"]
    assert (writer.one()["complexity"], KEY in caplog.text) == (2, False)
    assert "complexity" in caplog.text


@pytest.mark.parametrize(
    "options", [{"path": "graphql"}, {"path": ()}, {"on_audit_failure": "block"}, {"signatures": "always"}]
)
def test_wrong_arguments_are_refused(options: dict[str, Any]) -> None:
    """At once, and not at the first request."""
    with pytest.raises(ConfigurationError):
        audited(**options)


def test_the_payload_of_connection_init_does_not_stay() -> None:
    """It has a key, and the scope outlives the hook."""
    scope = scope_of(type="websocket")

    async def listens(_: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        await send({"type": "websocket.send", "text": '{"type": "connection_ack"}'})

    app, _ = audited(listens, identify=lambda scope: Failure(scope[CONNECTION_INIT]["token"]))
    message = {"type": "websocket.receive", "text": json.dumps({"type": "connection_init", "payload": {"token": KEY}})}
    asyncio.run(call(app, scope, {"type": "websocket.connect"}, message))
    assert KEY not in repr(scope)


def signatures(app: AuditMiddleware, writer: CollectingWriter, *queries: str) -> list[bool]:
    """Send queries, and return which of their events have a signature."""
    for query in queries:
        asyncio.run(call(app, scope_of(), {"type": "http.request", "body": json.dumps({"query": query}).encode()}))
    return ["query_signature" in event for event in writer.take(len(queries))]


def test_trap_17_signatures_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hostile queries, each another, take no more memory: what was forgotten comes again."""
    monkeypatch.setattr("custody.emit.signatures.SIGNATURES", 2)
    app, writer = audited()
    assert signatures(app, writer, "{a}", "{b}", "{a}", "{c}", "{a}", "{b}") == [True, True, False, True, False, True]


def test_signatures_come_again_on_the_next_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """So each day's events can be read by themselves; and not at all where nobody wants them."""
    app, writer = audited()
    assert signatures(app, writer, "{a}", "{a}") == [True, False]

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "datetime":  # type: ignore[override]
            return datetime.now(tz) + timedelta(days=1)

    monkeypatch.setattr("custody.emit.signatures.datetime", Tomorrow)
    assert signatures(app, writer, "{a}", "{a}") == [True, False]
    app, writer = audited(signatures="never")
    assert signatures(app, writer, "{a}") == [False]


PAGE = (Path(__file__).resolve().parents[3] / "docs" / "middleware.md").read_text()


def test_the_pages_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who copies it gets a middleware; nothing is connected before the first event."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"app": answer}
    exec(PAGE.partition("```python\n")[2].partition("```")[0], names)  # noqa: S102
    assert isinstance(names["app"], AuditMiddleware)
    names["writer"].close(0)


def test_the_page_has_each_field() -> None:
    """A field that an event has and the page does not is one that nobody can use."""
    folder = Path(describe.__file__).parent
    names = set(re.findall(r'"([a-z][a-z_]+)":', (folder / "describe.py").read_text()))
    names |= {"operation_id", "close_code", "identify_failed"}
    assert len(names) > 25
    assert sorted(name for name in names if f"`{name}`" not in PAGE) == []
