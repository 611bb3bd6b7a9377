"""What a GraphQL response says: rows, errors and their codes. Messages and data are not kept.

A response is read on the writer's thread: JSON, a batch of it, `multipart/mixed` (`@defer`, subscriptions) or
server-sent events, plain or gzip. Of a response that was cut off the rows that are there are counted: at least so many.
"""

import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from typing import Any, Final

import msgspec

from custody.emit.graphql import result_rows
from custody.format.patterns import possessive

CODES: Final = 10
"""Different codes of errors that an event names."""
_PENDING = 1_000
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_IN_STRING = possessive(r'[^"\\]|\\.').encode()
_TOKEN = re.compile(b'"' + _IN_STRING + rb'"?|[\[\]{},:]|[^\s\[\]{},:"]++', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a response says of one operation.

    Attributes:
        rows: items in the lists directly under the root fields; 1 for anything else there, 0 for null.
        exact: whether there are no more.
        errors: how many errors it has.
        codes: their different `extensions.code`, at most `CODES`.
        frames: parts that it came in; 0 if it came in one.
        read: whether it is a GraphQL response at all.
    """

    rows: int = 0
    exact: bool = True
    errors: int = 0
    codes: tuple[str, ...] = ()
    frames: int = 0
    read: bool = True


UNREAD: Final = Answer(exact=False, read=False)


class Tally:
    """Counts the parts of one operation's response."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._rows = self._errors = self._frames = 0
        self._exact = True
        self._read = False
        self._codes: dict[str, None] = {}
        self._pending: dict[str, list[Any]] = {}

    def add(self, result: object) -> None:
        """Count a decoded part."""
        if not isinstance(result, dict):
            self._exact = False
            return
        if result.keys().isdisjoint({"data", "errors", "incremental", "hasNext", "completed"}):
            return
        self._read = True
        self._frames += 1
        self._rows += result_rows(self._with_paths(result))
        self.add_errors(result.get("errors"))
        for key in ("incremental", "completed"):
            for part in _dicts(result.get(key)):
                self.add_errors(part.get("errors"))

    def add_text(self, text: bytes) -> None:
        """Count a part; of one that is cut off, what is there."""
        result = decode(text)
        if result is None:
            self.add_cut(text)
        else:
            inner = result.get("payload") if isinstance(result, dict) and "data" not in result else None
            self.add(inner if isinstance(inner, dict) else result)

    def add_cut(self, text: bytes) -> None:
        """Count the rows in the begin of a part."""
        self._exact = False
        rows, has_data = rows_in_part(text)
        self._rows += rows
        self._read = self._read or has_data
        self._frames += 1

    def add_errors(self, errors: object) -> None:
        """Count errors."""
        if not isinstance(errors, list):
            return
        self._read = True
        self._errors += len(errors)
        for error in _dicts(errors):
            extensions = error.get("extensions")
            code = extensions.get("code") if isinstance(extensions, dict) else None
            if isinstance(code, str) and _CODE.fullmatch(code) and len(self._codes) < CODES:
                self._codes[code] = None

    def lose(self) -> None:
        """Note that something is missing."""
        self._exact = False

    def answer(self, *, in_parts: bool) -> Answer:
        """Return the sum."""
        frames = self._frames if in_parts else 0
        return Answer(self._rows, self._exact, self._errors, tuple(self._codes), frames, self._read)

    def _with_paths(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return a part in which each piece has its path. In the later form of `@defer` it names an id instead."""
        for pending in _dicts(result.get("pending")):
            key, path = pending.get("id"), pending.get("path")
            if isinstance(key, str) and isinstance(path, list) and len(self._pending) < _PENDING:
                self._pending[key] = path
        pieces = []
        for piece in _dicts(result.get("incremental")):
            path = self._pending.get(str(piece.get("id")), piece.get("path"))
            further = piece.get("subPath")
            if isinstance(path, list):
                whole = [*path, *further] if isinstance(further, list) else path
                piece = {key: value for key, value in piece.items() if key != "id"} | {"path": whole}
            pieces.append(piece)
        return {**result, "incremental": pieces}


def read_answers(content_type: str, encoding: str, body: bytes, *, cut: bool) -> list[Answer]:
    """Return what a response says of each of its operations; of one operation unless it is a batch.

    Args:
        content_type: its header.
        encoding: its header `content-encoding`.
        body: its begin.
        cut: whether there was more.
    """
    plain = _inflate(encoding.strip().lower(), body, cut)
    if plain is None:
        return [UNREAD]
    body, cut = plain
    kind = content_type.partition(";")[0].strip().lower()
    tally = Tally()
    if kind in {"multipart/mixed", "text/event-stream"}:
        parts = list(_parts(content_type, body) if kind == "multipart/mixed" else _events(body))
        for part in parts:
            tally.add_text(part)
        if cut:
            tally.lose()
        return [tally.answer(in_parts=True)]
    if "json" not in kind or not body:
        return [UNREAD]
    if cut:
        tally.add_cut(body)
        return [tally.answer(in_parts=False)]
    result = decode(body)
    if not isinstance(result, list):
        tally.add(result)
        return [tally.answer(in_parts=False)]
    return [_answer(item) for item in result]


def _answer(result: object) -> Answer:
    tally = Tally()
    tally.add(result)
    return tally.answer(in_parts=False)


def decode(text: bytes | str) -> Any:
    """Return what a text is in JSON, as servers write it; None if it is none."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass
    # Python's servers write NaN and halves of characters, which msgspec refuses.
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def rows_in_part(text: bytes) -> tuple[int, bool]:
    """Return the rows in the begin of a response in JSON, and whether its `data` begins there."""
    depth = rows = 0
    key = before = b""
    in_data = in_list = seen = False
    for match in _TOKEN.finditer(text):
        token = match[0]
        opens = token in b"[{"
        if token not in b"]},:" and _is_row(depth, before, in_list, token) and in_data:
            rows += 1
        if depth == 1 and before == b":":
            in_data = key == b'"data"' and token == b"{"
            seen = seen or in_data
        elif depth == 2 and before == b":":
            in_list = token == b"["
        if depth == 1 and before in {b"{", b","}:
            key = token
        depth += opens - (token in b"]}")
        before = token
    return rows, seen


def _is_row(depth: int, before: bytes, in_list: bool, token: bytes) -> bool:
    """Return whether a value is a row: an item of a list under a root field, or a root field that is no list."""
    if depth == 2:
        return before == b":" and token not in {b"[", b"null"}
    return depth == 3 and in_list and before in {b"[", b","}


def _inflate(encoding: str, body: bytes, cut: bool) -> tuple[bytes, bool] | None:
    """Return the begin of a body without its compression, and whether there is more; None if it cannot be read."""
    if encoding in {"", "identity"}:
        return body, cut
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        return None
    inflater = zlib.decompressobj(wbits=47)
    try:
        # No more than this, whatever it was compressed from.
        plain = inflater.decompress(body, INFLATED_BYTES)
    except zlib.error:
        return None
    return plain, cut or not inflater.eof


INFLATED_BYTES: Final = 1 << 20
"""Bytes that are inflated of a compressed response."""


def _parts(content_type: str, body: bytes) -> Iterator[bytes]:
    """Yield the parts of a `multipart/mixed` response. No JSON has a line that begins with a delimiter."""
    message = Message()
    message["content-type"] = content_type[:1_024]
    boundary = message.get_param("boundary", "-")
    delimiter = b"\r\n--" + (boundary if isinstance(boundary, str) else "-").encode("utf-8", "replace")
    for section in (b"\r\n" + body).split(delimiter)[1:]:
        content = section.partition(b"\r\n\r\n")[2].strip()
        if content:
            yield content


def _events(body: bytes) -> Iterator[bytes]:
    """Yield the data of server-sent events."""
    for block in _BLANK_LINE.split(body):
        data = b"\n".join(line[5:].lstrip(b" ") for line in _LINE_END.split(block) if line.startswith(b"data:"))
        if data.strip():
            yield data


def _dicts(value: object) -> Iterable[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else ()
