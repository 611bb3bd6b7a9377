"""The audit middleware over real HTTP: Strawberry, Ariadne and FastAPI as published, by uvicorn."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from custody.emit.address import Proxies
from custody.emit.asgi import AuditMiddleware
from custody.emit.callers import Caller, Failure, Identity
from custody.emit.strawberry import AuditExtension
from tests.helpers.collecting import CollectingWriter
from tests.helpers.graphql_servers import GOOD_KEY, PATHS, all_servers
from tests.helpers.serving import serving

USERS = "query Users { users(first: 2) { id } }"


def identify(scope: Any) -> Caller:
    """Know one key."""
    sent = dict(scope["headers"]).get(b"authorization", b"").decode()
    if not sent:
        return None
    return Identity("key-17", key_version=2) if sent == f"Bearer {GOOD_KEY}" else Failure(f"unknown key: {sent}")


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[str, CollectingWriter]]:
    """All servers behind one middleware, and its writer."""
    writer = CollectingWriter()
    app = AuditMiddleware(
        all_servers([AuditExtension]),
        writer,
        path=PATHS,
        identify=identify,
        proxies=Proxies(["10.0.0.0/8"]),
        runs_first=True,
    )
    with serving(app) as url:
        yield url, writer
        assert writer.flush(10) == 0
        assert writer.events() == []


@pytest.fixture
def writer(shared: tuple[str, CollectingWriter]) -> Iterator[CollectingWriter]:
    """The writer, which must have no event left when a test ends."""
    with shared[1].used_by_one() as writer:
        yield writer


@pytest.fixture
def client(shared: tuple[str, CollectingWriter]) -> Iterator[httpx.Client]:
    """A client of the servers."""
    with httpx.Client(base_url=shared[0], timeout=20, headers={"user-agent": "test"}) as client:
        yield client


def fields(event: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return some fields of an event."""
    return {name: event.get(name) for name in names}


@pytest.mark.parametrize("server", ["plain", "strawberry", "ariadne"])
def test_a_query_gives_one_event(client: httpx.Client, writer: CollectingWriter, server: str) -> None:
    """What ran, how long, how much came back, and under which id the client knows it."""
    answer = client.post(f"/{server}/", json={"query": USERS, "operationName": "Users"})
    event = writer.one()
    assert len(answer.json()["data"]["users"]) == 2
    assert event["request_id"] == answer.headers["x-request-id"]
    assert event["document_hash"] == f"sha256:{hashlib.sha256(USERS.encode()).hexdigest()}"
    expected = {
        "event_type": "query_executed",
        "status": "ok",
        "http_status": 200,
        "transport": "http",
        "operation_type": "query",
        "operation_name": "Users",
        "result_rows": 2,
        "complexity": 11,
        "root_fields": 1,
        "aliases": 0,
        "depth": 2,
        "client_ip": "127.0.0.1",
        "client_ip_source": "peer",
        "api_key_id": None,
        "query_hash_of": "signature",
        "response_bytes": len(answer.content),
    }
    assert fields(event, *expected) == expected
    assert 0 < event["execution_time"] < 10_000


def test_the_text_of_a_signature_comes_once(client: httpx.Client, writer: CollectingWriter) -> None:
    """A hash can be read back, without its values, and not at each event."""
    for number in (1, 2):
        client.post("/plain/", json={"query": f"query Once {{ users(first: {number}) {{ id name }} }}"})
    first, second = writer.take(2)
    assert first["query_signature"] == "query Once{users(first:0){id name}}"
    assert "query_signature" not in second
    assert first["query_hash"] == second["query_hash"]
    assert first["document_hash"] != second["document_hash"]
    assert first["query_hash"] == f"sha256:{hashlib.sha256(first['query_signature'].encode()).hexdigest()}"


def test_a_signature_keeps_the_names_of_variables(client: httpx.Client, writer: CollectingWriter) -> None:
    """Redaction leaves it whole, for it has no values; but a password without its quotes, an enum, goes."""
    query = 'mutation L($password: String!) { login(user: "ada", password: $password) }'
    client.post("/plain/", json={"query": query, "variables": {"password": "hunter2hunter2"}})
    event = writer.one()
    assert event["query_signature"] == 'mutation L($password:String!){login(password:$password,user:"")}'
    client.post("/plain/", json={"query": 'mutation { login(user: "ada", password: hunter2hunter2) }'})
    event = writer.one()
    assert event["query_signature"] == 'mutation{login(password:[redacted],user:"")}'
    assert event["status"] == "errors"


def test_a_batch_gives_an_event_for_each(client: httpx.Client, writer: CollectingWriter) -> None:
    """Each with its place, its rows and its errors."""
    client.post("/plain/", json=[{"query": USERS}, {"query": "{ me { id } }"}, {"query": "{ fail }"}])
    events = writer.take(3)
    assert [(e["batch_index"], e["result_rows"], e["status"]) for e in events] == [
        (0, 2, "ok"),
        (1, 0, "ok"),
        (2, 0, "errors"),
    ]
    assert len({e["request_id"] for e in events}) == 1
    assert "the text of an error" not in json.dumps(events)


def test_get_graphql_text_and_uploads(client: httpx.Client, writer: CollectingWriter) -> None:
    """A query may come in an address, as text, or beside a file, which is kept nowhere."""
    client.get("/plain/", params={"query": USERS})
    assert writer.one()["result_rows"] == 2
    client.get("/ariadne/", params={"query": f" {USERS} "})
    assert writer.one()["result_rows"] == 2
    client.post("/plain/", content=USERS, headers={"content-type": "application/graphql"})
    assert fields(writer.one(), "status", "http_status", "query_hash_of") == {
        "status": "refused",
        "http_status": 400,
        "query_hash_of": "failure",
    }
    client.post("/fastapi/", content=USERS, headers={"content-type": "application/graphql"})
    assert fields(writer.one(), "status", "result_rows", "operation_name") == {
        "status": "ok",
        "result_rows": 2,
        "operation_name": "Users",
    }
    operations = {"query": "mutation R($file: Upload!) { read(file: $file) }", "variables": {"file": None}}
    form = {"operations": json.dumps(operations), "map": json.dumps({"f": ["variables.file"]})}
    answer = client.post("/plain/", data=form, files={"f": ("a.txt", b"what is in the file" * 20_000)})
    assert answer.json() == {"data": {"read": 1}}
    event = writer.one()
    assert fields(event, "operation_name", "operation_type", "status", "result_rows") == {
        "operation_name": "R",
        "operation_type": "mutation",
        "status": "ok",
        "result_rows": 1,
    }
    assert "what is in" not in json.dumps(event)


def test_persisted_queries(client: httpx.Client, writer: CollectingWriter) -> None:
    """A hash without a text is an event too, and has the text's signature once that was seen."""
    query = "{ orders { id total } }"
    digest = hashlib.sha256(query.encode()).hexdigest()
    extensions = {"persistedQuery": {"version": 1, "sha256Hash": digest}}
    client.post("/fastapi/", json={"extensions": extensions})
    event = writer.one()
    assert fields(event, "query_hash", "document_hash", "query_hash_of", "status", "error_codes", "errors") == {
        "query_hash": f"sha256:{digest}",
        "document_hash": f"sha256:{digest}",
        "query_hash_of": "document",
        "status": "errors",
        "error_codes": ["PERSISTED_QUERY_NOT_FOUND"],
        "errors": 1,
    }
    client.post("/fastapi/", json={"query": query, "extensions": extensions})
    with_text = writer.one()
    client.post("/fastapi/", json={"extensions": extensions})
    again = writer.one()
    assert again["query_hash"] == with_text["query_hash"] != event["query_hash"]
    client.post("/fastapi/", json={"documentId": f"sha256:{digest}"})
    assert writer.one()["query_hash"] == with_text["query_hash"]
    client.post("/fastapi/", json={"documentId": "orders-3"})
    assert writer.one()["query_hash_of"] == "document-id"


@pytest.mark.parametrize("server", ["plain", "strawberry"])
def test_deferred_parts_are_summed(client: httpx.Client, writer: CollectingWriter, server: str) -> None:
    """Rows of all parts, and the times to the first and to the last byte."""
    query = "query D { users(first: 4) { id } ... @defer { slow(seconds: 1) } }"
    answer = client.post(f"/{server}/", json={"query": query}, headers={"accept": "multipart/mixed"})
    assert "multipart/mixed" in answer.headers["content-type"]
    event = writer.one()
    assert fields(event, "status", "result_rows", "frames") == {"status": "ok", "result_rows": 5, "frames": 2}
    assert event["first_byte_ms"] < 1000 <= event["execution_time"]


def test_a_subscription_in_parts_is_counted(client: httpx.Client, writer: CollectingWriter) -> None:
    """Apollo's protocol over `multipart/mixed` wraps each result once more."""
    headers = {"accept": 'multipart/mixed;boundary="graphql";subscriptionSpec=1.0'}
    answer = client.post("/plain/", json={"query": "subscription { count(to: 3) }"}, headers=headers)
    assert answer.headers["content-type"].startswith("multipart/mixed")
    assert fields(writer.one(), "status", "result_rows", "frames") == {"status": "ok", "result_rows": 3, "frames": 3}


@pytest.mark.parametrize("server", ["plain", "ariadne"])
def test_server_sent_events_are_counted(client: httpx.Client, writer: CollectingWriter, server: str) -> None:
    """A subscription over HTTP is one event, when it ends."""
    body = {"query": "subscription { count(to: 3) }"}
    answer = client.post(f"/{server}/", json=body, headers={"accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream"), answer.text
    event = writer.one()
    assert fields(event, "status", "result_rows", "frames", "operation_type") == {
        "status": "ok",
        "result_rows": 3,
        "frames": 3,
        "operation_type": "subscription",
    }


def test_compressed_answers_are_read(client: httpx.Client, writer: CollectingWriter) -> None:
    """Gzip is inflated, up to a bound, on the writer's thread."""
    answer = client.post("/gzip/", json={"query": "{ users(first: 500) { id name } }"})
    assert answer.headers["content-encoding"] == "gzip"
    assert fields(writer.one(), "result_rows", "status", "result_rows_exact") == {
        "result_rows": 500,
        "status": "ok",
        "result_rows_exact": None,
    }


def test_long_answers_are_counted_as_far_as_they_are_kept(client: httpx.Client, writer: CollectingWriter) -> None:
    """The middleware alone counts what is at the answer's begin, and says so; with an extension rows are exact."""
    query = {"query": "{ users(first: 12000) { id name } }"}
    client.post("/plain/", json=query)
    event = writer.one()
    assert 5_000 < event["result_rows"] < 12_000
    assert event["result_rows_exact"] is False
    client.post("/strawberry/", json=query)
    assert fields(writer.one(), "result_rows", "result_rows_exact") == {
        "result_rows": 12_000,
        "result_rows_exact": None,
    }


def test_what_is_no_query_or_fails(client: httpx.Client, writer: CollectingWriter) -> None:
    """Each way in which a server does not run a query is an event with its status."""
    cases: dict[str, tuple[bytes, str, str]] = {
        "not JSON": (b"{", "refused", "failure"),
        "no query": (b"{}", "refused", "failure"),
        "not GraphQL": (b'{"query": "{"}', "errors", "failure"),
        "unknown field": (b'{"query": "{ nothing }"}', "errors", "signature"),
        "unknown name": (b'{"query": "query A { me { id } }", "operationName": "B"}', "refused", "failure"),
        "two operations": (b'{"query": "query A { me { id } } query B { users { id } }"}', "ok", "signature"),
    }
    seen = {}
    for name, (body, _, _) in cases.items():
        client.post("/strawberry/", content=body, headers={"content-type": "application/json"})
        event = writer.one()
        seen[name] = (body, event["status"], event["query_hash_of"])
    assert seen == cases


def test_introspection_is_marked(client: httpx.Client, writer: CollectingWriter) -> None:
    """Who asks for the schema may be looking for a way in."""
    client.post("/plain/", json={"query": "{ __schema { types { name } } }"})
    assert writer.one()["introspection"] is True


def test_aliases_are_counted(client: httpx.Client, writer: CollectingWriter) -> None:
    """A hundred logins in one request have the hash of one, and do not hide."""
    logins = " ".join(f'a{n}: login(user: "ada", password: "{n}")' for n in range(100))
    client.post("/plain/", json={"query": f"mutation {{ {logins} }}"})
    assert fields(writer.one(), "aliases", "root_fields", "result_rows") == {
        "aliases": 100,
        "root_fields": 100,
        "result_rows": 100,
    }


def test_other_paths_and_methods_are_left_alone(client: httpx.Client, writer: CollectingWriter) -> None:
    """No event, no header, no place in the queue; below a server's path everything is audited."""
    before = writer.counters()["written"]
    assert "x-request-id" not in client.post("/other", json={"query": USERS}).headers
    assert client.options("/plain/").status_code == 405
    assert writer.counters()["written"] == before
    assert client.get("/plain/", headers={"accept": "text/html"}).status_code == 200
    assert client.put("/plain/", json={"query": USERS}).status_code == 405
    assert client.head("/plain/").headers["x-request-id"]
    assert writer.events() == []
    client.post("/plain/below/it", json={"query": USERS})
    assert writer.one()["result_rows"] == 2
    client.post("/plain", json={"query": USERS}, follow_redirects=False)
    assert fields(writer.one(), "status", "http_status") == {"status": "refused", "http_status": 307}


def test_forged_headers_change_nothing(client: httpx.Client, writer: CollectingWriter) -> None:
    """Whoever is no trusted proxy chooses neither the address nor the id under which a request is found."""
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {
        "x-forwarded-for": "203.0.113.9",
        "forwarded": "for=203.0.113.9",
        "x-request-id": "mine",
        "traceparent": f"00-{trace}-{span}-01",
    }
    answer = client.post("/plain/", json={"query": USERS}, headers=headers)
    event = writer.one()
    assert event["request_id"] == answer.headers["x-request-id"] != "mine"
    assert fields(event, "client_ip", "client_ip_source", "client_request_id", "trace_id", "span_id") == {
        "client_ip": "127.0.0.1",
        "client_ip_source": "peer",
        "client_request_id": "mine",
        "trace_id": trace,
        "span_id": span,
    }


def test_keys_are_known_by_their_id(client: httpx.Client, writer: CollectingWriter) -> None:
    """A valid key gives its id, a wrong one an event of its own; a key itself is nowhere, not even in a reason."""
    client.post("/plain/", json={"query": USERS}, headers={"authorization": f"Bearer {GOOD_KEY}"})
    assert writer.one()["api_key_id"] == "key-17"
    client.post("/plain/", json={"query": USERS}, headers={"authorization": "Bearer plainly-wrong-one"})
    attempt, query = writer.take(2)
    assert fields(attempt, "event_type", "status", "api_key_id", "failure_reason") == {
        "event_type": "auth_attempt",
        "status": "failure",
        "api_key_id": None,
        "failure_reason": "unknown key: [redacted]",
    }
    assert query["api_key_id"] is None
    assert attempt["request_id"] == query["request_id"]
