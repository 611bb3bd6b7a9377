"""The audit middleware over real WebSockets: Strawberry by both protocols, and Ariadne."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from custody.emit.asgi import AuditMiddleware
from custody.emit.callers import CONNECTION_INIT, Caller, Failure, Identity
from custody.emit.websocket import Frame
from tests.helpers.collecting import CollectingWriter
from tests.helpers.graphql_servers import GOOD_KEY, PATHS, all_servers
from tests.helpers.serving import serving

NEW, OLD = "graphql-transport-ws", "graphql-ws"
WRONG_KEY = "plainly-wrong-one"


def identify(scope: Any) -> Caller:
    """Know one key, in the payload of `connection_init`."""
    payload = scope.get(CONNECTION_INIT)
    if not payload:
        return None
    key = payload["token"]
    return Identity("key-17") if key == GOOD_KEY else Failure(f"unknown: {key}")


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[str, CollectingWriter]]:
    """All servers behind one middleware, and its writer."""
    writer = CollectingWriter()
    with serving(AuditMiddleware(all_servers(), writer, path=PATHS, identify=identify)) as url:
        yield url.replace("http", "ws"), writer
        assert writer.flush(10) == 0
        assert writer.events() == []


@pytest.fixture
def writer(shared: tuple[str, CollectingWriter]) -> Iterator[CollectingWriter]:
    """The writer, which must have no event left when a test ends."""
    with shared[1].used_by_one() as writer:
        yield writer


class Client:
    """A client that has sent `connection_init`."""

    def __init__(self, connection: ClientConnection, payload: dict[str, Any] | None = None) -> None:
        self.connection = connection
        self.old = connection.subprotocol == OLD
        self.request_id = connection.response.headers["x-request-id"] if connection.response else ""
        self.send(type="connection_init", payload=payload or {})

    def send(self, **message: Any) -> None:
        """Send a message."""
        self.connection.send(json.dumps(message))

    def next(self) -> dict[str, Any]:
        """Return the server's next message."""
        return dict(json.loads(self.connection.recv(timeout=10)))

    def run(self, key: str, query: str, **more: Any) -> None:
        """Start an operation."""
        self.send(type="start" if self.old else "subscribe", id=key, payload={"query": query, **more})

    def until(self, kind: str) -> list[str]:
        """Return the types of the messages up to one of this type."""
        types: list[str] = []
        while not types or types[-1] != kind:
            types.append(self.next()["type"])
        return types


@contextlib.contextmanager
def opened(url: str, protocol: str, path: str = "/plain/") -> Iterator[ClientConnection]:
    """Yield a connection."""
    connection = connect(f"{url}{path}", subprotocols=[Subprotocol(protocol)], open_timeout=20, max_size=None)
    try:
        yield connection
    finally:
        connection.close()


def wait_for_close(connection: ClientConnection) -> int:
    """Return the code with which the server closes the connection."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            connection.recv(timeout=10)
    assert connection.close_code is not None
    return connection.close_code


@pytest.mark.parametrize(("protocol", "path"), [(NEW, "/plain/"), (OLD, "/plain/"), (NEW, "/ariadne/")])
def test_a_subscription_is_one_event(
    shared: tuple[str, CollectingWriter], writer: CollectingWriter, protocol: str, path: str
) -> None:
    """When it is complete, with how many results it had; so is a query over the same connection."""
    with opened(shared[0], protocol, path) as connection:
        client = Client(connection)
        client.run("a", "subscription S { count(to: 3) }")
        client.until("complete")
        event = writer.one()
        client.run("a", "subscription { count(to: 2) }" if client.old else "{ users(first: 2) { id } }")
        client.until("complete")
        second = writer.one()
    expected = {
        "request_id": client.request_id,
        "transport": "websocket",
        "operation_id": "a",
        "operation_type": "subscription",
        "operation_name": "S",
        "status": "ok",
        "frames": 3,
        "result_rows": 3,
        "client_ip": "127.0.0.1",
    }
    assert {name: event.get(name) for name in expected} == expected
    assert event["first_byte_ms"] <= event["execution_time"]
    assert (second["result_rows"], second["frames"]) == (2, 2 if client.old else 1)


@pytest.mark.parametrize("protocol", [NEW, OLD])
def test_a_stopped_subscription_says_so(
    shared: tuple[str, CollectingWriter], writer: CollectingWriter, protocol: str
) -> None:
    """The client may end it, and the connection too: the event comes nevertheless."""
    with opened(shared[0], protocol) as connection:
        client = Client(connection)
        client.run("a", "subscription { count(to: 1000, wait: 0.005) }")
        client.run("b", "subscription { count(to: 1000, wait: 0.005) }")
        client.until("data" if client.old else "next")
        client.send(type="stop" if client.old else "complete", id="a")
        event = writer.one()
    assert (event["operation_id"], event["status"]) == ("a", "stopped")
    left = writer.one()
    assert (left["operation_id"], left["status"]) == ("b", "disconnected")


@pytest.mark.parametrize("protocol", [NEW, OLD])
def test_errors_are_counted(shared: tuple[str, CollectingWriter], writer: CollectingWriter, protocol: str) -> None:
    """Those of an operation that did not start, and those in results."""
    with opened(shared[0], protocol) as connection:
        client = Client(connection)
        client.run("a", "subscription { nothing }")
        client.until("error")
        event = writer.one()
        client.run("b", "subscription { broken }" if client.old else "{ fail me { id } }")
        client.until("complete")
        in_result = writer.one()
    assert (event["status"], event["errors"], event["result_rows"]) == ("errors", 1, 0)
    assert (in_result["status"], in_result["errors"]) == ("errors", 1)


@pytest.mark.parametrize("protocol", [NEW, OLD])
def test_connection_init_is_an_attempt_to_authenticate(
    shared: tuple[str, CollectingWriter], writer: CollectingWriter, protocol: str
) -> None:
    """It succeeds or fails, and has the key's id; the key is nowhere."""
    with opened(shared[0], protocol) as connection:
        client = Client(connection, {"token": GOOD_KEY})
        client.until("connection_ack")
        client.run("a", "subscription { count(to: 1) }")
        client.until("complete")
        attempt, query = writer.take(2)
    assert (attempt["event_type"], attempt["status"], attempt["api_key_id"]) == ("auth_attempt", "success", "key-17")
    assert query["api_key_id"] == "key-17"
    with opened(shared[0], protocol) as connection:
        client = Client(connection, {"token": WRONG_KEY})
        wait_for_close(connection)
    attempt = writer.one()
    assert (attempt["status"], attempt["failure_reason"]) == ("failure", "unknown: [redacted]")
    assert attempt["request_id"] == client.request_id


def test_what_the_server_refuses_is_an_event(shared: tuple[str, CollectingWriter], writer: CollectingWriter) -> None:
    """An operation before `connection_init`, and one that is no GraphQL, at which Strawberry closes."""
    with opened(shared[0], NEW) as connection:
        connection.send(json.dumps({"type": "subscribe", "id": "1", "payload": {"query": "{ me { id } }"}}))
        assert wait_for_close(connection) == 4401
    event = writer.one()
    assert (event["status"], event["close_code"]) == ("refused", 4401)
    with opened(shared[0], NEW) as connection:
        client = Client(connection)
        client.run("1", "{")
        assert wait_for_close(connection) == 4400
    event = writer.one()
    assert (event["status"], event["close_code"], event["query_hash_of"]) == ("refused", 4400, "failure")


def test_long_results_are_counted_as_far_as_they_are_kept(
    shared: tuple[str, CollectingWriter], writer: CollectingWriter
) -> None:
    """What is longer than the bound is cut, and the event says so."""
    with opened(shared[0], NEW) as connection:
        client = Client(connection)
        client.run("a", "{ users(first: 12000) { id name } }")
        client.until("complete")
    event = writer.one()
    assert 5_000 < event["result_rows"] < 12_000
    assert (event["status"], event["result_rows_exact"]) == ("ok", False)


def test_other_sockets_are_left_alone(shared: tuple[str, CollectingWriter], writer: CollectingWriter) -> None:
    """A path that is not the GraphQL server's gives no event."""
    with pytest.raises(InvalidStatus), opened(shared[0], NEW, "/nothing"):
        pass
    assert writer.events() == []


def test_a_frame_shows_nothing() -> None:
    """A message is in no repr: `connection_init` has a key in it."""
    assert GOOD_KEY not in repr(Frame("client", GOOD_KEY, cut=False, at=0.0, moment=0))
