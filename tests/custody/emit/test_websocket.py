"""A WebSocket's messages as the writer's thread reads them: each operation is one event, whatever is sent."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.emit.address import Peer, Proxies
from custody.emit.asgi import AuditMiddleware
from custody.emit.describe import Describer, Rules
from custody.emit.queue import Limits
from custody.emit.websocket import KEPT_BYTES, OPEN_OPERATIONS, Closed, Entry, Frame, Session
from tests.helpers.collecting import CollectingWriter

CLOSED = Closed("disconnected", None, None, 9.0)
IDS = st.sampled_from(["a", "b", 'c"', "\ud800", 1, None])
TYPES = st.sampled_from(
    ["subscribe", "start", "next", "data", "error", "complete", "stop", "ping", "connection_init", "connection_ack", 7]
)
PAYLOADS = st.one_of(
    st.none(),
    st.just({"query": "{ a }"}),
    st.just({"data": {"a": [1, 2]}}),
    st.just([{"message": "x"}]),
    st.dictionaries(st.text(max_size=5), st.none() | st.lists(st.integers(), max_size=2), max_size=2),
)
MESSAGES = st.fixed_dictionaries({"type": TYPES}, optional={"id": IDS, "payload": PAYLOADS})


def session() -> Session:
    """Return a session of an unknown caller."""
    rules = Rules(Proxies(), "never", successes=False, runs_first=False)
    return Session(Describer(rules), "request", Peer("192.0.2.1"), [])


def frame(by: Any, message: Any, at: float = 1.0, *, cut: bool = False) -> Frame:
    """Return a message."""
    return Frame(by, message if isinstance(message, str | bytes) else json.dumps(message), cut, at, 10**18)


def read(*entries: Entry) -> list[dict[str, Any]]:
    """Return the events of a connection, without the time of their making."""
    return [dict(event.fields) for event in session().read(entries)]


@given(st.lists(st.tuples(st.sampled_from(["client", "server"]), MESSAGES), max_size=30))
def test_each_operation_is_one_event(messages: list[tuple[str, dict[str, Any]]]) -> None:
    """However many messages it has, in which order they come, and if nobody ends it."""
    begun = sum(by == "client" and message["type"] in {"subscribe", "start"} for by, message in messages)
    events = read(*(frame(by, message) for by, message in messages), CLOSED)
    assert len(events) == begun
    assert {event["event_type"] for event in events} <= {"query_executed"}


@given(st.lists(st.tuples(st.sampled_from(["client", "server"]), st.binary() | st.text(), st.booleans()), max_size=10))
def test_any_text_is_read(frames: list[tuple[str, Any, bool]]) -> None:
    """Nothing that is sent raises; what the client sent and is too long to be read is an event."""
    events = read(*(frame(by, text, cut=cut) for by, text, cut in frames), CLOSED)
    too_long = sum(by == "client" and cut for by, _, cut in frames)
    assert [event["query_hash_of"] for event in events] == ["failure"] * too_long


def test_times_are_those_of_the_messages() -> None:
    """Not of the moment at which the worker reads them."""
    begin = frame("client", {"type": "subscribe", "id": "1", "payload": {"query": "{ a }"}}, 1.0)
    first = frame("server", {"type": "next", "id": "1", "payload": {"data": {"a": 1}}}, 1.5)
    (event,) = read(begin, first, frame("server", {"type": "complete", "id": "1"}, 3.0), CLOSED)
    assert (event["first_byte_ms"], event["execution_time"]) == (500.0, 2000.0)
    assert event["timestamp"].startswith("2001-09-09T01:46:40")


def test_a_result_that_was_cut_is_counted_for_its_operation() -> None:
    """By the id at its begin; where that is not there, no operation knows its rows."""
    begin = [frame("client", {"type": "subscribe", "id": key, "payload": {"query": "{ a }"}}) for key in ("1", "2")]
    long = frame("server", '{"id": "1", "type": "next", "payload": {"data": {"a": [1, 2, 3', cut=True)
    one, other = read(*begin, long, CLOSED)
    assert (one["result_rows"], one["result_rows_exact"]) == (3, False)
    assert (other["result_rows"], other.get("result_rows_exact")) == (0, None)
    hidden = frame("server", '{"payload": {"data": {"a": [1, 2, 3', cut=True)
    assert [event["result_rows_exact"] for event in read(*begin, hidden, CLOSED)] == [False, False]


def test_operations_that_are_never_ended_are_bounded() -> None:
    """A client that only begins gets its events, and no more memory."""
    begin = (frame("client", {"type": "subscribe", "id": n, "payload": {}}) for n in range(OPEN_OPERATIONS + 10))
    connection = session()
    assert len(list(connection.read(list(begin)))) == 10
    assert len(list(connection.read([CLOSED]))) == OPEN_OPERATIONS


@pytest.fixture
def full() -> Iterator[tuple[AuditMiddleware, CollectingWriter]]:
    """A middleware whose writer's queue is full until it is opened."""
    writer = CollectingWriter(Limits(events=2))

    async def listens(_: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "websocket.disconnect":
            if "opens" in message.get("text", ""):
                writer.sink.away = False
            await send({"type": "websocket.send", "text": "{}"})

    writer.fill()
    yield AuditMiddleware(listens, writer), writer
    writer.sink.away = False


def talk(app: AuditMiddleware, texts: list[str], pause: float = 0.0) -> None:
    """Send texts, and go away."""
    waiting = [{"type": "websocket.connect"}, *({"type": "websocket.receive", "text": text} for text in texts)]

    async def receive() -> Any:
        await asyncio.sleep(pause if len(waiting) <= 1 else 0)
        return waiting.pop(0) if waiting else {"type": "websocket.disconnect", "code": 1001}

    async def send(_: Any) -> None:
        pass

    scope = {"type": "websocket", "path": "/graphql", "headers": [], "client": ("192.0.2.1", 1)}
    asyncio.run(app(scope, receive, send))


def test_messages_wait_while_the_queue_is_full(full: tuple[AuditMiddleware, CollectingWriter]) -> None:
    """What began while the queue was full is an event once it has room."""
    app, writer = full
    begin = json.dumps({"type": "subscribe", "id": "1", "payload": {"query": "{ a }"}})
    talk(app, [begin, '{"type": "opens"}', '{"type": "ping"}'], pause=0.7)
    assert writer.one()["status"] == "disconnected"
    assert app.counters()["unaudited_requests"] == 0


def test_messages_that_wait_are_bounded(full: tuple[AuditMiddleware, CollectingWriter]) -> None:
    """Beyond the bound they are dropped, and counted."""
    app, writer = full
    talk(app, ["x" * 500_000] * (KEPT_BYTES // 500_000 + 3))
    # Once for what was dropped on the way, once for the rest at the end.
    assert app.counters()["unaudited_requests"] == 2
    assert writer.counters()["dropped"] == 2
