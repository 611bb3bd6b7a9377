"""The GraphQL operations that an HTTP request asks for, read from its bytes alone. Variables are not kept.

A server may read a hostile request in another way than we do, and then run what no event tells of. So the rules are
those of Starlette, Strawberry and Ariadne: Python's JSON, of two values of one name the last one. And what has no
known content type is tried as JSON.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from email.message import Message
from typing import Any, Final
from urllib.parse import parse_qsl

BODY_BYTES: Final = 1_048_576
"""Bytes of a body that are read. A longer one is too large, but of a multipart form, which has files behind."""
BATCH: Final = 1_000
"""Operations of a batch that are read one by one. All that follow are one, which is too large."""
NAME_CHARACTERS: Final = 256
"""Characters of an operation's name, and of a document's, which are the client's text."""

PARTS: Final = 100
"""Parts of a multipart form that are looked at. One of more is too large."""

MALFORMED: Final = "## MalformedRequest"
TOO_LARGE: Final = "## TooLarge"

_FORM_FIELDS = 1_000
_HEAD_BYTES = 8_192
_DISPOSITION_BYTES = 1_024
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_DISPOSITION = re.compile(rb"^content-disposition[ \t]*+:([^\r\n]*+)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation of a request.

    Attributes:
        document: its text.
        document_hash: the hash that stands for the text (APQ, trusted documents), as `sha256:` and 64 digits.
        document_id: what stands for the text otherwise.
        name: its name, as the client gave it.
        batch_index: which one of a batch it is.
        failure: why nobody can tell what it is: `MALFORMED` or `TOO_LARGE`.
    """

    document: str | None = None
    document_hash: str | None = None
    document_id: str | None = None
    name: str | None = None
    batch_index: int | None = None
    failure: str | None = None


def operations(method: str, content_type: str, query_string: bytes, body: bytes) -> list[Operation]:
    """Return the operations of a request. It never fails: what cannot be read is an operation with a failure.

    A GET without any of a query's parameters asks for none: it is for the page of a GraphQL editor.

    Args:
        method: GET, HEAD or POST. Others have no operations.
        content_type: the header, or an empty text.
        query_string: what stands behind the `?`.
        body: up to `BODY_BYTES` and one more, so that it shows whether it was longer.
    """
    method = method.upper()
    if method in {"GET", "HEAD"}:
        return _of_query(query_string)
    if method != "POST":
        return []
    read = _of_body(content_type, body)
    if read == [Operation(failure=MALFORMED)] and query_string:
        # Some servers take a query from the address of a POST.
        return _of_query(query_string) or read
    return read


def operation(payload: object) -> Operation:
    """Return the operation of a decoded payload: a body, an item of a batch, a message of a WebSocket."""
    if not isinstance(payload, dict):
        return Operation(failure=MALFORMED)
    name = payload.get("operationName")
    read = Operation(name=name if isinstance(name, str) else None)
    document = payload.get("query")
    if isinstance(document, str) and document:
        return replace(read, document=document)
    if document is not None and not isinstance(document, str):
        return replace(read, failure=MALFORMED)
    return _persisted(payload, read)


def _persisted(payload: Mapping[str, Any], read: Operation) -> Operation:
    """Return an operation whose text the server has: by APQ's hash, or by the id of a trusted document."""
    extensions = payload.get("extensions")
    persisted = extensions.get("persistedQuery") if isinstance(extensions, dict) else None
    digest = persisted.get("sha256Hash") if isinstance(persisted, dict) else None
    if isinstance(digest, str) and _SHA256.fullmatch(digest.lower()):
        return replace(read, document_hash=f"sha256:{digest.lower()}")
    identity = payload.get("documentId")
    if not isinstance(identity, str) or not identity:
        return replace(read, failure=MALFORMED)
    if _SHA256.fullmatch(identity.lower().removeprefix("sha256:")):
        return replace(read, document_hash=f"sha256:{identity.lower().removeprefix('sha256:')}")
    return replace(read, document_id=identity)


def _of_body(content_type: str, body: bytes) -> list[Operation]:
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _of_form(content_type, body)
    if len(body) > BODY_BYTES:
        return [Operation(failure=TOO_LARGE)]
    if kind == "application/graphql":
        return [operation({"query": body.decode("utf-8", "replace")})]
    if kind == "application/x-www-form-urlencoded":
        return _of_query(body) or _of_json(body)
    return _of_json(body)


def _of_json(text: bytes) -> list[Operation]:
    payload = _json(text)
    if not isinstance(payload, list):
        return [operation(payload)]
    batch = [replace(operation(item), batch_index=index) for index, item in enumerate(payload[:BATCH])]
    if len(payload) > BATCH:
        batch.append(Operation(batch_index=BATCH, failure=TOO_LARGE))
    return batch or [Operation(failure=MALFORMED)]


def _of_query(query_string: bytes) -> list[Operation]:
    """Return the operation of a query string or a form, if it has one."""
    if len(query_string) > BODY_BYTES:
        return [Operation(failure=TOO_LARGE)]
    try:
        pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=_FORM_FIELDS)
    except ValueError:
        return [Operation(failure=TOO_LARGE)]
    fields: dict[str, Any] = dict(pairs)
    if fields.keys().isdisjoint({"query", "extensions", "documentId"}):
        return []
    fields["extensions"] = _json(fields.get("extensions", "").encode("utf-8", "surrogatepass"))
    return [operation(fields)]


def _json(text: bytes) -> object:
    """Return what a text is in JSON, as Python's servers read it; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _of_form(content_type: str, body: bytes) -> list[Operation]:
    """Return the operations of a multipart form: of the last part that is called `operations`.

    Where a server may see other parts than we do, the request is too large to tell. Files may be cut off: a part called
    `operations` behind a long file is not seen.
    """
    boundary = _parameter(content_type, "boundary")
    if not boundary:
        return [Operation(failure=MALFORMED)]
    last = None
    for number, (head, content) in enumerate(_parts(b"\r\n--" + boundary.encode("utf-8", "replace"), body)):
        lines = _DISPOSITION.findall(head)
        if number == PARTS or head == content == b"" or (lines and len(lines[-1]) > _DISPOSITION_BYTES):
            return [Operation(failure=TOO_LARGE)]
        if lines and _parameter(lines[-1].decode("latin-1"), "name") == "operations":
            last = content
    if last is None:
        return [Operation(failure=TOO_LARGE if len(body) > BODY_BYTES else MALFORMED)]
    return _of_json(last)


def _parts(mark: bytes, body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield each whole part of a form, its head and its content. Both are empty if the head is too long."""
    body = b"\r\n" + body[:BODY_BYTES]
    delimiter = re.compile(re.escape(mark) + b"(?:\r\n|(--))")
    match = delimiter.search(body)
    while match and not match[1]:
        following = delimiter.search(body, match.end())
        if following is None:
            return
        head_end = body.find(b"\r\n\r\n", match.end() - 2, match.end() + _HEAD_BYTES)
        if head_end > following.start() or head_end < 0:
            yield b"", b""
        else:
            yield body[match.end() : head_end], body[head_end + 4 : following.start()]
        match = following


def _parameter(value: str, name: str) -> str | None:
    """Return a parameter of a header's value. Python's servers read it by the same class (python-multipart)."""
    if len(value) > _DISPOSITION_BYTES:
        return None
    message = Message()
    message["content-type"] = value
    read = message.get_param(name)
    return read[2] if isinstance(read, tuple) else read
