"""The operations of an HTTP request, read from its bytes."""

import json
import time
from functools import partial
from hashlib import sha256
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.emit.operations import BATCH, BODY_BYTES, MALFORMED, PARTS, TOO_LARGE, Operation, operation, operations
from tests.helpers.growth import SHAPES, check_growth

JSON = "application/json"
QUERY = "query Q($a: Int) { a(a: $a) }"
DIGEST = sha256(QUERY.encode()).hexdigest()
FORM = "multipart/form-data; boundary=b0"
BROKEN = [Operation(failure=MALFORMED)]
LARGE = [Operation(failure=TOO_LARGE)]


def post(body: object, content_type: str = JSON, query_string: bytes = b"") -> list[Operation]:
    """Return the operations of a POST; what is not bytes is sent as JSON."""
    return operations(
        "POST", content_type, query_string, body if isinstance(body, bytes) else json.dumps(body).encode()
    )


def form(*parts: tuple[str, bytes], boundary: str = "b0") -> bytes:
    """Return a multipart form of parts, each its Content-Disposition's parameters and its content."""
    heads = (f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() for head, _ in parts)
    body = b"".join(head + content + b"\r\n" for head, (_, content) in zip(heads, parts, strict=True))
    return body + f"--{boundary}--\r\n".encode()


def test_a_post_of_json() -> None:
    """Its text and its name are taken, its variables are not."""
    body = {"query": QUERY, "operationName": "Q", "variables": {"a": "secret"}, "extensions": {"x": "secret"}}
    assert post(body) == [Operation(document=QUERY, name="Q")]
    assert post(body, "application/json; charset=utf-8") == post(body)
    assert post(body, "APPLICATION/GRAPHQL+JSON") == post(body)
    assert post({"query": QUERY, "operationName": None}) == [Operation(document=QUERY)]
    assert post({"query": QUERY, "operationName": 7}) == [Operation(document=QUERY)]


def test_a_text_is_in_no_repr() -> None:
    """A query may have a password in it, and a repr comes into logs."""
    assert "secret" not in repr(post({"query": '{ login(password: "secret") }'}))


@pytest.mark.parametrize("content_type", ["", "text/plain", "nonsense", "application/x-www-form-urlencoded"])
def test_what_has_no_known_type_is_tried_as_json(content_type: str) -> None:
    """A server that does not look at the type runs it."""
    assert post({"query": QUERY}, content_type) == [Operation(document=QUERY)]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"\xff", b"null", b"7", b'"{ a }"', b"[]", b"{}", b"[" * 9_999, b'{"query": "{ a }"'),
        *(b'{"query": 7}', b'{"query": ["{ a }"]}', b'{"query": null}', b'{"query": ""}'),
        b'{"query": "{ a }", "v": ' + b"9" * 5_000 + b"}",
    ],
)
def test_a_body_that_is_no_request_is_an_operation_with_a_failure(body: bytes) -> None:
    """So a request that fails is seen as well as one that succeeds."""
    assert post(body) == BROKEN


def test_a_batch() -> None:
    """Each operation is one, and knows its place."""
    assert post([{"query": "{ a }"}, 7, {"query": "{ b }", "operationName": "B"}]) == [
        Operation(document="{ a }", batch_index=0),
        Operation(failure=MALFORMED, batch_index=1),
        Operation(document="{ b }", name="B", batch_index=2),
    ]
    assert len(post([{"query": "{ a }"}] * BATCH)) == BATCH
    many = post([{"query": "{ a }"}] * (BATCH + 5))
    assert many[BATCH:] == [Operation(failure=TOO_LARGE, batch_index=BATCH)]


def test_a_get() -> None:
    """Its parameters are the same, and come percent-encoded."""
    sent = {"query": QUERY, "operationName": "Q", "variables": '{"a": 1}'}
    assert operations("GET", "", urlencode(sent).encode(), b"") == [Operation(document=QUERY, name="Q")]
    assert operations("head", JSON, b"query=%7Ba%7D&query=%7B+b+%7D", b"") == [Operation(document="{ b }")]
    assert operations("GET", "", b"query=%FF%ED%A0%80", b"") == [Operation(document="\ufffd" * 4)]
    assert operations("GET", "", b"query=", b"") == BROKEN
    assert operations("GET", "", b"query=a" + b"&x=1" * 2_000, b"") == LARGE
    assert operations("GET", "", b"query=" + b"a" * BODY_BYTES, b"") == LARGE


def test_a_request_without_an_operation() -> None:
    """The page of an editor, and methods that no server takes a query from, have none."""
    assert operations("GET", "", b"", b"") == []
    assert operations("GET", "", b"theme=dark&operationName=Q", b"") == []
    assert operations("OPTIONS", JSON, b"query=a", b'{"query": "{ a }"}') == []


def test_other_types_of_a_post() -> None:
    """A bare document, and a form."""
    assert post(QUERY.encode(), "application/graphql; charset=utf-8") == [Operation(document=QUERY)]
    assert post(b"\xff", "application/graphql") == [Operation(document="\ufffd")]
    sent = urlencode({"query": QUERY, "operationName": "Q"}).encode()
    assert post(sent, "application/x-www-form-urlencoded") == [Operation(document=QUERY, name="Q")]
    assert post(b"x=1", "application/x-www-form-urlencoded") == BROKEN


def test_the_query_of_a_post_may_stand_in_its_address() -> None:
    """Some servers take it from there where the body has none."""
    assert post({}, query_string=b"query=%7Ba%7D") == [Operation(document="{a}")]
    assert post({"query": "{ b }"}, query_string=b"query=%7Ba%7D") == [Operation(document="{ b }")]
    assert post({}, query_string=b"x=1") == BROKEN


def test_a_persisted_query() -> None:
    """APQ's hash stands for the text; with a text, the text counts."""
    extensions = {"persistedQuery": {"version": 1, "sha256Hash": DIGEST.upper()}}
    known = Operation(document_hash=f"sha256:{DIGEST}", name="Q")
    assert post({"operationName": "Q", "extensions": extensions}) == [known]
    assert post({"query": "{ a }", "extensions": extensions}) == [Operation(document="{ a }")]
    sent = urlencode({"extensions": json.dumps(extensions), "operationName": "Q"}).encode()
    assert operations("GET", "", sent, b"") == [known]
    assert operations("GET", "", b"extensions={", b"") == BROKEN
    broken: object
    for broken in ({"persistedQuery": {"sha256Hash": "../../x"}}, {"persistedQuery": 1}, {}, [], None):
        assert post({"extensions": broken}) == BROKEN


def test_a_trusted_document() -> None:
    """Its id is a hash, or a text of the server's."""
    assert post({"documentId": f"sha256:{DIGEST}"}) == [Operation(document_hash=f"sha256:{DIGEST}")]
    assert post({"documentId": DIGEST}) == [Operation(document_hash=f"sha256:{DIGEST}")]
    assert post({"documentId": "users-v1"}) == [Operation(document_id="users-v1")]
    assert operations("GET", "", b"documentId=users-v1", b"") == [Operation(document_id="users-v1")]
    assert post({"documentId": ""}) == post({"documentId": 7}) == BROKEN


def test_an_upload() -> None:
    """The part `operations` alone is read; files are not, and may be cut off."""
    sent = json.dumps({"query": QUERY, "variables": {"file": None}}).encode()
    parts = [('name="operations"', sent), ('name="map"', b"{}"), ('name="0"; filename="a"', b"\r\n\x00 secret")]
    assert post(form(*parts), FORM) == [Operation(document=QUERY)]
    assert post(form(*parts, boundary="b 0"), 'multipart/form-data; charset=x; boundary="b 0"') == [
        Operation(document=QUERY)
    ]
    long = form(*parts[:2], ('name="0"; filename="a"', b"x" * BODY_BYTES))
    assert post(long[: BODY_BYTES + 1], FORM) == [Operation(document=QUERY)]
    assert post(form(parts[0])[:-10], FORM) == BROKEN
    batch = form(("name=operations", b'[{"query": "{ a }"}, {"query": "{ b }"}]'))
    assert [each.batch_index for each in post(batch, FORM)] == [0, 1]


def test_a_part_that_a_server_reads_is_the_one_that_we_read() -> None:
    """The last one, as Starlette does; a delimiter is a whole one, and may be padded."""
    forged, real = b'{"query": "{ forged }"}', b'{"query": "{ real }"}'
    runs = [Operation(document="{ real }")]
    head = b'Content-Disposition: form-data; name="operations"\r\n\r\n'
    assert post(form(('name="operations"', forged), ('name="operations"', real)), FORM) == runs
    for inner in (b"x\r\n--b0x\r\n", b"x\r\n--b0 x\r\n", b"x\n--b0\r\n"):
        parts = (('name="operations"', real), ('name="0"; filename="a"', inner + head + forged))
        assert post(form(*parts), FORM) == runs
    assert post(form(('name="operations"', forged), ("name=x", b"\r\n--b0 \t\r\n" + head + real)), FORM) == runs
    assert post(form(('name="operations"', real), ('name="0"; filename="; name=operations"', forged)), FORM) == runs
    behind = form(('name="operations"', real)) + b"\r\n" + form(('name="operations"', forged))
    assert post(behind, FORM) == runs


@pytest.mark.parametrize(
    "head",
    [
        'name="x"; name="operations"',
        'name="operations"; name="x"',
        "name=\"x\"; name*=utf-8''operations",
        'name="x"\r\nContent-Disposition: form-data; name="operations"',
    ],
)
def test_a_part_of_two_names_is_malformed(head: str) -> None:
    """Servers and their versions differ in which one they take, so nobody can tell which query runs."""
    first = ('name="operations"', b'{"query": "{ a }"}')
    assert post(form(first, (head, b'{"query": "{ b }"}')), FORM) == BROKEN
    assert post(form(first), FORM + "; boundary=b1") == BROKEN


def test_a_form_that_may_hide_a_part_is_too_large() -> None:
    """Where a server may see more than we do, no query is named that perhaps did not run."""
    first = ('name="operations"', b'{"query": "{ a }"}')
    assert post(form(first, *[('name="x"', b"")] * (PARTS - 1)), FORM) == [Operation(document="{ a }")]
    assert post(form(first, *[('name="x"', b"")] * PARTS), FORM) == LARGE
    assert post(form(first, ('name="x"; y="' + "z" * 9_000 + '"', b"x")), FORM) == LARGE
    assert post(form(first, ('name="x"; y="' + "z" * 2_000 + '"', b"x")), FORM) == LARGE
    assert post(form(first, ("name=x" + "\r\nX: y" * 2_000, b"x")), FORM) == LARGE
    assert post(form(("name=file", b"x" * BODY_BYTES), first)[: BODY_BYTES + 1], FORM) == LARGE


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=b1", FORM + ";" * 2_000],
)
def test_a_form_without_its_boundary(content_type: str) -> None:
    """It cannot be read."""
    assert post(form(("name=operations", b'{"query": "{ a }"}')), content_type) == BROKEN


def test_a_body_beyond_the_limit() -> None:
    """It is not read, and says so."""
    body = b'{"query": "{ a }"}'
    assert post(body + b" " * (BODY_BYTES - len(body))) == [Operation(document="{ a }")]
    assert post(body + b" " * (BODY_BYTES + 1 - len(body))) == LARGE
    assert post(b"a" * (BODY_BYTES + 1), "application/graphql") == LARGE


def test_a_message_of_a_websocket() -> None:
    """A payload that is decoded already is read by the same rules."""
    assert operation({"query": QUERY, "operationName": "Q"}) == Operation(document=QUERY, name="Q")
    assert operation(None) == Operation(failure=MALFORMED)


TYPES = [
    JSON,
    "application/graphql",
    "application/x-www-form-urlencoded",
    FORM,
    "",
    'multipart/form-data; boundary="\\',
]


@given(
    st.sampled_from(["GET", "POST", "PUT", ""]),
    st.one_of(st.sampled_from(TYPES), st.text(max_size=20)),
    st.binary(max_size=20),
    st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.sampled_from([b"--b0", b"\r\n", b"--", b'Content-Disposition: a; name="operations"', b"{}", b'"'])
        ).map(b"".join),
    ),
)
def test_no_bytes_make_it_fail(method: str, content_type: str, query_string: bytes, body: bytes) -> None:
    """Whatever is sent, there are operations, and each has a text, a hash, an id or a failure."""
    for read in operations(method, content_type, query_string, body):
        assert [read.document, read.document_hash, read.document_id, read.failure].count(None) == 3


PART = b'--b0\r\nContent-Disposition: form-data; name="operations"\r\n\r\n{}\r\n'
BODIES = {
    "parts": PART,
    "delimiters": b"\r\n--b0",
    "empty parts": b"\r\n--b0\r\n",
    "heads without end": b"--b0\r\nContent-Disposition: a\r\n",
    "quotes": b'--b0\r\nContent-Disposition: a; name="' + b';"' * 300 + b"\r\n\r\n\r\n",
    "spaces": b"--b0\r\ncontent-disposition" + b" " * 4_000 + b"\r\n\r\n",
    "fields": b"a=b&",
    "percent": b"query=%41",
    "escapes": b"\\\\",
    "lines": b"\r\n",
}


@pytest.mark.parametrize("name", BODIES)
def test_hostile_forms_take_time_in_proportion(name: str) -> None:
    """No form takes longer than its size, and no query string."""
    item = BODIES[name]
    for content_type in (FORM, "application/x-www-form-urlencoded"):
        check_growth(partial(post, content_type=content_type), lambda size: item * (size // len(item) + 1))


@pytest.mark.parametrize("name", SHAPES)
def test_hostile_json_takes_time_in_proportion(name: str) -> None:
    """No body of JSON takes longer than its size."""
    check_growth(post, SHAPES[name])


def test_the_largest_hostile_bodies_take_well_under_a_second() -> None:
    """At the limit of a body."""
    for item in BODIES.values():
        body = (item * (BODY_BYTES // len(item) + 1))[:BODY_BYTES]
        for content_type in (JSON, FORM, "application/x-www-form-urlencoded"):
            began = time.process_time()
            post(body, content_type)
            assert time.process_time() - began < 0.5, (item, content_type)
