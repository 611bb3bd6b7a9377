"""The GraphQL operations that an HTTP request asks for, read from its bytes alone. Variables are not kept.

A server may read a hostile request in another way than we do, and then run what no event tells of. So the rules are
those of Starlette, Strawberry and Ariadne: Python's JSON, of two values of one name the last one. And what has no
known content type is tried as JSON.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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
_LINE_BYTES = 1_024
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_DISPOSITION = re.compile(rb"^content-disposition[ \t]*+:([^\r\n]*+)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation of a request.

    Attributes:
        document: its text. It has a user's values, so it is in no repr.
        document_hash: the hash that stands for the text (APQ, trusted documents), as `sha256:` and 64 digits.
        document_id: what stands for the text otherwise.
        name: its name, as the client gave it.
        batch_index: which one of a batch it is.
        failure: why nobody can tell what it is: `MALFORMED` or `TOO_LARGE`.
    """

    document: str | None = field(default=None, repr=False)
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

    Where a server may see another part than we do, the request counts as malformed, and where it may see more, as too
    large. Files may be cut off: a part called `operations` behind a long file is not seen.
    """
    boundaries = _parameters(content_type, "boundary")
    last = None
    for number, (head, content) in enumerate(_parts(boundaries, body)):
        lines = _DISPOSITION.findall(head)
        if number == PARTS or len(head) > _HEAD_BYTES or max(map(len, lines), default=0) > _LINE_BYTES:
            return [Operation(failure=TOO_LARGE)]
        names = {name for line in lines for name in _parameters(line.decode("latin-1"), "name")}
        if "operations" in names:
            if len(names) > 1:
                return [Operation(failure=MALFORMED)]
            last = content
    if last is None:
        return [Operation(failure=TOO_LARGE if len(body) > BODY_BYTES else MALFORMED)]
    return _of_json(last)


def _parts(boundaries: set[str], body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield each whole part of a form, its head and its content; nothing if there is not one boundary."""
    boundary = "".join(boundaries)
    if len(boundaries) != 1 or not boundary:
        return
    body = b"\r\n" + body[:BODY_BYTES]
    # Whoever sends it may pad a delimiter with spaces (RFC 2046).
    delimiter = re.compile(rb"\r\n--" + re.escape(boundary.encode("utf-8", "replace")) + rb"(?:[ \t]*+(?=\r\n)|(--))")
    match = delimiter.search(body)
    while match and not match[1]:
        following = delimiter.search(body, match.end())
        if following is None:
            return
        head, _, content = body[match.end() : following.start()].partition(b"\r\n\r\n")
        yield head, content
        match = following


def _parameters(value: str, name: str) -> set[str]:
    """Return all values of a parameter of a header: servers differ in which of two they take."""
    if len(value) > _LINE_BYTES:
        return set()
    message = Message()
    message["content-type"] = value
    pairs: list[tuple[str, Any]] = list(message.get_params([]))
    values = [text for key, text in pairs if key.lower() == name]
    return {text[2] if isinstance(text, tuple) else text for text in values}
