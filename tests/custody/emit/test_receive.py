"""What other servers post is taken as a whole or not at all, and neither answers nor log lines show it."""

import asyncio
import contextlib
import http.client
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from custody.emit import receive, worker
from custody.emit.address import NO_ADDRESS
from custody.emit.builders import AuditEvent, own
from custody.emit.errors import AuditError
from custody.emit.queue import Limits
from custody.emit.receive import BODY_BYTES, ENTRIES, Receiver, receiver
from custody.emit.writer import Options
from custody.errors import ConfigurationError
from custody.format import events
from tests.helpers.corpus import EVENTS
from tests.helpers.emitting import MemoryWriter
from tests.helpers.growth import SHAPES, check_growth
from tests.helpers.serving import serving

TOKEN = "a-token-of-the-receiver"
OLD_TOKEN = "the-token-before-it="
BEARER = {"authorization": f"Bearer {TOKEN}"}
PLANTED = "hunter2planted"
ENTRY: dict[str, Any] = {
    "id": 7,
    "timestamp": "2026-11-28T20:00:00.123456789Z",
    "level": "INFO",
    "user_id": 123,
    "tenant_id": 456,
    "operation": "query",
    "query": '{ users(name: "hunter2planted") { id name } }',
    "variables": {"password": PLANTED},
    "ip_address": "192.0.2.1",
    "user_agent": "Mozilla/5.0",
    "error": None,
    "duration_ms": 100,
    "previous_hash": None,
    "integrity_hash": "ab" * 32,
}
"""An `AuditEntry` of FraiseQL 2.18, as serde writes it."""


class Collected(MemoryWriter):
    """A writer that keeps its lines, and would drop an event without room."""

    def __init__(self, queue: Limits | None = None) -> None:
        super().__init__(Options(service="shop", queue=queue or Limits(), on_full="drop"))

    def take(self) -> list[dict[str, Any]]:
        """Return what was written since the last call, without the markers of the source. The drain takes all of it."""
        assert self.flush(10) == 0
        lines, self.sink.delivered[:] = list(self.sink.delivered), []
        assert [reason for line in lines if (reason := events.reason(line))] == []
        return [event for event in map(json.loads, lines) if "emitter" not in event["event_type"]]


@pytest.fixture(scope="module", autouse=True)
def soon() -> Iterator[None]:
    """Make the writer's thread look often, so that no `flush` waits for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_IDLE_SECONDS", 0.01)
        yield


@pytest.fixture(scope="module")
def writer() -> Iterator[Collected]:
    with Collected() as made:
        yield made


@pytest.fixture(scope="module")
def server(writer: Collected) -> Iterator[httpx.Client]:
    app = receiver(writer, token=(TOKEN, OLD_TOKEN), close_writer=False)
    with serving(app) as url, httpx.Client(base_url=url) as client:
        yield client


def post(server: httpx.Client, entries: object) -> dict[str, Any]:
    """Post entries, and return the answer, which must be 202."""
    answer = server.post("/", json=entries, headers=BEARER)
    assert answer.status_code == 202, answer.text
    taken: dict[str, Any] = answer.json()
    return taken


def call(app: Receiver, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Post a body to an application without a server, and return status and answer."""
    sent: list[Any] = []
    messages = iter(
        [{"type": "http.request", "body": body[:10], "more_body": True}, {"type": "http.request", "body": body[10:]}]
    )

    async def receive_() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in ({"authorization": f"Bearer {TOKEN}"} | headers).items()]
    asyncio.run(app({"type": "http", "method": "POST", "headers": raw}, receive_, send))
    start, content = sent
    assert json.loads(content["body"])
    return start["status"], content["body"]


def test_an_entry_of_fraiseql_becomes_a_query_executed(server: httpx.Client, writer: Collected) -> None:
    """Hashes stand for the query, variables are dropped, and what FraiseQL does not know is said to be unknown."""
    assert post(
        server, [ENTRY, {**ENTRY, "error": f"no user {PLANTED}", "duration_ms": None, "ip_address": "unix"}]
    ) == {
        "accepted": 2,
        "refused": 0,
        "reasons": [],
    }
    first, failed = writer.take()
    assert PLANTED not in json.dumps([first, failed])
    assert {"variables", "query", "error"}.isdisjoint(first | failed)
    wanted = {
        "event_type": "query_executed",
        "timestamp": ENTRY["timestamp"],
        "client_ip": "192.0.2.1",
        "client_ip_source": "sender",
        "execution_time": 100,
        "operation_type": "query",
        "user_id": 123,
        "tenant_id": 456,
        "user_agent": "Mozilla/5.0",
        "status": "ok",
        "result_rows_exact": False,
        "query_hash_of": "signature",
        "complexity": 3,
        "depth": 2,
        "origin": "fraiseql",
        "origin_id": 7,
        "origin_hash": "ab" * 32,
    }
    assert {name: first.get(name) for name in wanted} == wanted
    assert first["source_seq"] + 1 == failed["source_seq"]
    assert (failed["status"], failed["errors"], failed["execution_time_exact"]) == ("errors", 1, False)
    assert (failed["client_ip"], failed["client_ip_source"]) == (NO_ADDRESS, "unknown")
    assert first["query_hash"] == failed["query_hash"]


def test_the_text_of_a_signature_comes_once_a_day(server: httpx.Client, writer: Collected) -> None:
    """An auditor can read what a hash stands for; the text has no literals, and is not in each event."""
    query = {"query": f'{{ once(name: "{PLANTED}") {{ id }} }}'}
    post(server, [{**ENTRY, **query}, {**ENTRY, **query}])
    first, second = writer.take()
    assert first["query_signature"] == '{once(name:""){id}}'
    assert "query_signature" not in second
    assert first["query_hash"] == second["query_hash"]


def test_an_entry_that_is_posted_again_has_the_same_event_id(server: httpx.Client, writer: Collected) -> None:
    """A sender that had no answer posts again, and its events can be told from new ones."""
    post(server, [ENTRY, {**ENTRY, "id": 8}])
    post(server, [ENTRY])
    post(server, [{**ENTRY, "id": None, "integrity_hash": None}] * 2)
    first, other, again, *without_id = [event["event_id"] for event in writer.take()]
    assert first == again
    assert len({first, other, *without_id}) == 4


def test_our_own_shapes_are_taken_with_their_ids(server: httpx.Client, writer: Collected) -> None:
    """A server in any language posts events as builders make them, with its own ids, and own types too."""
    sent = [{**event, "event_id": f"e{number}"} for number, event in enumerate(EVENTS.values())]
    sent.append({"event_type": "export_done", "query": "kept", "password": PLANTED})
    assert post(server, sent)["accepted"] == len(sent)
    *six, own_type = writer.take()
    for event, given_event in zip(six, sent, strict=False):
        assert {name: event[name] for name in given_event} == given_event
    assert (own_type["query"], own_type["password"]) == ("kept", "[redacted]")
    assert own_type["timestamp"]
    assert own_type["event_id"]


def test_the_text_of_a_query_is_hashed_in_our_own_shape_too(server: httpx.Client, writer: Collected) -> None:
    """A server that cannot hash as Apollo does leaves that to the receiver."""
    shape = {
        name: value for name, value in EVENTS["query_executed"].items() if name not in {"query_hash", "complexity"}
    }
    post(server, [{**shape, "query": ENTRY["query"], "variables": {"x": PLANTED}}, ENTRY])
    event, of_fraiseql = writer.take()
    assert PLANTED not in json.dumps(event)
    assert {"query", "variables"}.isdisjoint(event)
    assert event["query_hash"] == of_fraiseql["query_hash"]
    assert event["complexity"] == 3


def test_refused_entries_have_reasons_without_values(
    server: httpx.Client, writer: Collected, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever posted learns which entry is wrong and why; neither the answer nor the log has a value."""
    wrong: list[Any] = [
        PLANTED,
        {PLANTED: 1},
        {"event_type": [PLANTED]},
        {**EVENTS["auth_attempt"], "status": PLANTED},
        {**EVENTS["auth_attempt"], "client_ip": PLANTED},
        {**EVENTS["auth_attempt"], "timestamp": PLANTED},
        {**EVENTS["auth_attempt"], "event_id": [PLANTED]},
        {**EVENTS["auth_attempt"], "source": PLANTED},
        {**ENTRY, "duration_ms": PLANTED},
        {**ENTRY, "timestamp": PLANTED},
    ]
    with caplog.at_level(logging.DEBUG):
        answer = post(server, [ENTRY, *wrong])
    assert (answer["accepted"], answer["refused"]) == (1, len(wrong))
    assert [reason["index"] for reason in answer["reasons"]] == list(range(1, len(wrong) + 1))
    assert all(reason["reason"] for reason in answer["reasons"])
    assert PLANTED not in json.dumps(answer) + caplog.text
    assert "an audit event that was posted was refused: the entry is not an object" in caplog.text
    assert len(writer.take()) == 1


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", "Bearer")],
        [("authorization", f"Bearer {TOKEN}x")],
        [("authorization", f"Bearer {TOKEN[:-1]}")],
        [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")],
    ],
)
def test_without_the_token_nothing_is_taken(
    server: httpx.Client, writer: Collected, headers: list[tuple[str, str]]
) -> None:
    """A wrong token, half of it, or two of them are refused before the body is looked at."""
    answer = server.post("/", json=[ENTRY], headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/json"
    assert TOKEN not in answer.text
    assert writer.take() == []


def test_each_of_several_tokens_is_taken(server: httpx.Client, writer: Collected) -> None:
    """While a token is replaced, senders have the old one or the new one. The scheme has any case (RFC 9110)."""
    for value in (f"bearer {OLD_TOKEN}", f"BEARER  {TOKEN}"):
        assert server.post("/", json=[ENTRY], headers={"authorization": value}).status_code == 202
    assert len(writer.take()) == 2


@pytest.mark.parametrize("token", ["", "short", "with a blank in the middle", "umlauts-äöü-äöü-äöü", [], [TOKEN, "x"]])
def test_a_token_that_protects_nothing_is_refused(writer: Collected, token: Any) -> None:
    """A short token, or one that no header can have, is an error at the start, which does not show it."""
    with pytest.raises(ConfigurationError, match="at least 16") as refusal:
        receiver(writer, token=token)
    assert not token or str(token) not in str(refusal.value)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_answered_with_405(server: httpx.Client, method: str) -> None:
    """Events are posted, and the answer says so."""
    answer = server.request(method, "/", headers=BEARER)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (b"[", 400),
        (b"\xff\xfe[\x00]\x00", 400),
        (b"\xef\xbb\xbf[]", 400),
        (b"[" + b"9" * 5000 + b"]", 400),
        (b'[{"event_type":"a","event_type":"hunter2planted"}]', 400),
        (b"[" * 70 + b"]" * 70, 413),
        (b"[" * 500_000, 413),
        (b"[" + b"1," * ENTRIES + b"1]", 413),
        (b" " * BODY_BYTES + b"[]", 413),
    ],
)
def test_bodies_beyond_the_bounds_are_refused_in_json(
    server: httpx.Client, writer: Collected, body: bytes, status: int
) -> None:
    """What is no array, too long, too deep, or has too many entries is refused as a whole."""
    answer = server.post("/", content=body, headers=BEARER)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert PLANTED not in answer.text
    assert writer.take() == []


def test_a_body_of_unknown_length_is_bounded(server: httpx.Client, writer: Collected) -> None:
    """Without a length in its header, a body is read up to the bound and no further."""
    answer = server.post("/", content=iter([b" " * 65_536] * 32), headers=BEARER)
    assert answer.status_code == 413
    assert server.post("/", content=iter([b"[", json.dumps(ENTRY).encode(), b"]"]), headers=BEARER).status_code == 202
    assert len(writer.take()) == 1


def test_a_compressed_body_is_refused(server: httpx.Client) -> None:
    """What is small on the wire must not be large in memory."""
    assert server.post("/", content=b"x", headers={**BEARER, "content-encoding": "gzip"}).status_code == 415


def test_a_sender_that_goes_away_leaves_nothing(server: httpx.Client, writer: Collected) -> None:
    """Half of a body is not taken, and the next sender is served."""
    connection = http.client.HTTPConnection(server.base_url.netloc.decode())
    connection.putrequest("POST", "/")
    connection.putheader("authorization", BEARER["authorization"])
    connection.putheader("content-length", "1000")
    connection.endheaders(b"[")
    connection.close()
    assert post(server, [ENTRY])["accepted"] == 1
    assert len(writer.take()) == 1


def test_a_body_that_does_not_come_is_answered(monkeypatch: pytest.MonkeyPatch, writer: Collected) -> None:
    """A sender that stops in the middle does not keep its place."""
    monkeypatch.setattr(receive, "BODY_SECONDS", 0.05)
    sent: list[Any] = []

    async def wait() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    app = receiver(writer, token=TOKEN)
    headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
    asyncio.run(app({"type": "http", "method": "POST", "headers": headers}, wait, send))
    assert sent[0]["status"] == 408
    assert call(app, json.dumps([ENTRY]).encode())[0] == 202
    assert len(writer.take()) == 1


def test_while_the_queue_is_full_nothing_is_taken() -> None:
    """A full queue is 503 with a time to wait, also where the writer would drop; later all of it is taken, once."""
    writer = Collected(Limits(events=3))
    with serving(receiver(writer, token=TOKEN)) as url, httpx.Client(base_url=url) as server:
        writer.sink.away = True
        answers = [server.post("/", json=[ENTRY] * 3, headers=BEARER) for _ in range(40)]
        accepted = [answer for answer in answers if answer.status_code == 202]
        full = [answer for answer in answers if answer.status_code == 503]
        assert len(accepted) + len(full) == 40
        assert full
        assert all(int(answer.headers["retry-after"]) > 0 for answer in full)
        writer.sink.away = False
        assert len(writer.take()) == 3 * len(accepted)
        assert post(server, [ENTRY])["accepted"] == 1
        assert writer.counters()["dropped"] == 0


def test_too_many_requests_at_a_time_are_refused(monkeypatch: pytest.MonkeyPatch, writer: Collected) -> None:
    """Bodies in memory are bounded: whoever comes in between is asked to come again."""
    monkeypatch.setattr(receive, "REQUESTS", 0)
    assert call(receiver(writer, token=TOKEN), b"[]")[0] == 503


def test_the_writer_is_closed_when_the_server_ends() -> None:
    """The server ends by a signal, so what is in memory is delivered before; a closed writer takes no more."""
    writer = Collected()
    app = receiver(writer, token=TOKEN)
    with serving(app) as url, httpx.Client(base_url=url) as server:
        post(server, [ENTRY])
    assert [json.loads(line)["event_type"] for line in writer.sink.delivered] == [
        "emitter_started",
        "query_executed",
        "emitter_stopped",
    ]
    assert call(app, json.dumps([ENTRY]).encode())[0] == 503


def test_an_application_maps_its_own_entries(writer: Collected) -> None:
    """A hook makes events of what only the application knows; what it raises shows no value."""

    def mapped(entry: Any) -> AuditEvent | None:
        if entry.get("kind") == "login":
            return own("login", user=entry["user"])
        if entry.get("kind") == "no":
            raise AuditError("Serialization", "not ours")
        return entry if entry.get("kind") == "itself" else None

    app = receiver(writer, token=TOKEN, map_entry=mapped)
    refused = writer.counters()["refused"]
    sent = [{"kind": "login", "user": "u"}, {"kind": "login", PLANTED: 1}, {"kind": "no"}, {"kind": "itself"}, ENTRY]
    status, body = call(app, json.dumps(sent).encode())
    assert status == 202
    assert [reason["reason"] for reason in json.loads(body)["reasons"]] == [
        "mapping it raised KeyError",
        "not ours",
        "mapping it returned dict, not an event",
    ]
    assert [event["event_type"] for event in writer.take()] == ["login", "query_executed"]
    assert writer.counters()["refused"] == refused + 3


keys = st.sampled_from([*ENTRY, *EVENTS["config_change"], "event_id", "source", "details"]) | st.text(
    st.characters(exclude_categories=()), max_size=5
).map(lambda text: text + PLANTED)
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=5)
)
planted = scalars | scalars.map(lambda value: f"{value}{PLANTED}")
values = st.recursive(
    planted, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=5
)
shapes = st.sampled_from([ENTRY, *EVENTS.values(), {"event_type": "mine"}, {}])
entries = st.builds(lambda shape, more: {**shape, **more}, shapes, st.dictionaries(keys, values, max_size=4)) | values


@given(st.lists(entries, max_size=5))
@example([{**ENTRY, "query": '"' * 1000}, {**ENTRY, "ip_address": "::ffff:192.0.2.1"}, {**ENTRY, "id": 10**400}])
@example([{**ENTRY, "user_agent": "\ud800", "operation": "\ud800", "tenant_id": "\ud800"}])
def test_any_entries_are_accepted_or_refused_and_never_shown(writer: Collected, sent: list[Any]) -> None:
    """Each entry becomes one event that the drain takes, or a reason. The answer has nothing of it."""
    status, body = call(receiver(writer, token=TOKEN), json.dumps(sent).encode())
    assert status in {202, 413}
    assert PLANTED.encode() not in body
    if status == 202:
        answer = json.loads(body)
        assert answer["accepted"] + answer["refused"] == len(sent)
        assert len(writer.take()) == answer["accepted"]


@pytest.mark.parametrize("name", SHAPES)
def test_hostile_bodies_take_time_in_proportion(writer: Collected, name: str) -> None:
    """No body takes longer than its size, whether it is refused or not."""
    app = receiver(writer, token=TOKEN)

    def take(body: bytes) -> None:
        with contextlib.suppress(receive._Refused):
            app._take(body)

    check_growth(take, SHAPES[name])
    writer.take()


@given(st.binary(max_size=200) | st.text('[]{}",:1 \\u', max_size=60).map(str.encode))
def test_any_bytes_are_answered(writer: Collected, body: bytes) -> None:
    """Whatever stands in a body, the answer is JSON with a status that the page lists."""
    assert call(receiver(writer, token=TOKEN), body)[0] in {202, 400, 413}
    assert writer.take() == []
