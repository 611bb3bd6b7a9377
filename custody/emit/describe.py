"""Makes the events of a request, on the writer's thread: all reading, hashing and counting is done here."""

import os
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, Literal

from custody.emit.address import Peer, Proxies
from custody.emit.builders import AuditEvent, auth_attempt, query_executed
from custody.emit.callers import Caller, Failure, Identity, without_keys
from custody.emit.exchange import REQUEST_ID, Exchange
from custody.emit.graphql import Analyzer, clean_name
from custody.emit.notes import Note
from custody.emit.operations import MALFORMED, NAME_CHARACTERS, TOO_LARGE, Operation, operations
from custody.emit.quiet import QuietLog
from custody.emit.request import Headers, given_id, request_ids
from custody.emit.responses import UNREAD, Answer, read_answers
from custody.emit.signatures import SignatureTexts

Signatures = Literal["first", "never"]
"""Whether the first event of a hash, in each process and on each day, has the text of the signature."""
Status = Literal["ok", "errors", "refused", "failed", "disconnected", "cancelled", "stopped"]
"""How an operation ended: see docs/middleware.md."""

PARSED: Final = 100
"""Operations of a request that are parsed. Of further ones the text is hashed, as of a batch that was refused whole:
otherwise a request that costs its server nothing could keep this thread busy for seconds."""
UNREAD_BODY: Final = "## UnreadRequest"
"""Hashed instead of a signature where the application did not read the request's body."""
_REPLACED = (
    "the server has put an address from X-Forwarded-For in place of the peer's: events have it as `client_ip`, with"
    " the source `server`; run uvicorn with --no-proxy-headers, and give `proxies`"
)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a middleware makes events.

    Attributes:
        proxies: which proxies are trusted.
        signatures: whether events have signatures.
        successes: whether each request with a valid key gives an `auth_attempt`.
        runs_first: whether the server runs the first of several operations where none is named.
    """

    proxies: Proxies
    signatures: Signatures
    successes: bool
    runs_first: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One operation that a server was asked for.

    Attributes:
        operation: what was asked for.
        answer: what came back.
        status: how it ended.
        started_at: when, in ns since 1970.
        seconds: how long it ran.
        note: what an extension knows of it.
        more: further fields.
    """

    operation: Operation
    answer: Answer
    status: Status
    started_at: int
    seconds: float
    note: Note | None = None
    more: Mapping[str, Any] | None = None


class Describer:
    """Makes events by rules. It remembers queries and signatures, so one thread uses it at a time."""

    def __init__(self, rules: Rules) -> None:
        """Set up, with nothing remembered."""
        self._rules = rules
        self._pid = os.getpid()
        self._analyzer = Analyzer(runs_first=rules.runs_first)
        self._texts = SignatureTexts()
        self._quiet = QuietLog()

    def caller_fields(self, request_id: str, peer: Peer, headers: Headers) -> dict[str, Any]:
        """Return the fields that say where a request is from."""
        if peer.replaced:
            self._quiet.warn("peer", _REPLACED)
        client = self._rules.proxies.client(peer, headers)
        trusted = self._rules.proxies.trusts(peer)
        ids = request_ids(headers, lambda: request_id, proxy_trusted=trusted)
        fields = {
            "request_id": request_id,
            "client_ip": client.ip,
            "client_ip_source": client.source,
            "client_request_id": ids.client_request_id,
            "trace_id": ids.trace_id,
            "span_id": ids.span_id,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def exchange(self, exchange: Exchange) -> Iterator[AuditEvent]:
        """Yield the events of a request over HTTP."""
        fields = self.caller_fields(exchange.request_id, exchange.peer, exchange.headers) | {"transport": "http"}
        caller, known = self._caller(exchange)
        if not known:
            fields["identify_failed"] = True
        if isinstance(caller, Failure) or (self._rules.successes and caller is not None):
            yield self.attempt(caller, fields, exchange.started_at)
        headers = {name.lower(): value.decode("latin-1") for name, value in exchange.answer_headers}
        fields |= _answer_fields(exchange, headers)
        asked = _asked(exchange)
        answers = [*_answers(exchange, headers, len(asked))]
        pairs = _with_notes(asked, exchange.notes)
        answers += [UNREAD] * (len(pairs) - len(asked))
        refused = exchange.http_status >= 400 and not any(answer.read for answer in answers)
        parsed = 1 if refused else PARSED
        for index, ((operation, note), answer) in enumerate(zip(pairs, answers, strict=True)):
            run = Run(
                operation=operation if index < parsed or note is not None else short(operation),
                answer=answer,
                status=_status(exchange, answer),
                started_at=exchange.started_at,
                seconds=max(0.0, exchange.ended - min(exchange.ready, exchange.ended)),
                note=note,
            )
            yield self.executed(run, caller, fields)

    def _caller(self, exchange: Exchange) -> tuple[Caller, bool]:
        """Return who called, without the keys of the request, and whether the hook could say it."""
        try:
            headers = (*exchange.headers, *exchange.headers_after)
            return without_keys(exchange.asked, headers, exchange.query_string), exchange.identified
        except Exception as error:  # noqa: BLE001 - the hook returned anything at all
            self.identify_failed(error)
            return None, False

    def identify_failed(self, error: Exception) -> None:
        """Warn that the hook failed, or returned what it may not. The error's text may have the key."""
        self._quiet.warn("identify", f"`identify` raised {type(error).__name__}: events lack who called")

    def attempt(self, caller: Identity | Failure, fields: Mapping[str, Any], at: int) -> AuditEvent:
        """Return the event that a caller was authenticated, or was not."""
        failed = isinstance(caller, Failure)
        return auth_attempt(
            api_key_id=_id(caller),
            status="failure" if failed else "success",
            failure_reason=caller.reason if isinstance(caller, Failure) else None,
            key_version=caller.key_version,
            key_age_days=caller.key_age_days,
            timestamp=_moment(at),
            **fields,
        )

    def executed(self, run: Run, caller: Caller, fields: Mapping[str, Any]) -> AuditEvent:
        """Return the event of an operation."""
        if self._pid != os.getpid():
            # The parent's thread may have been in the middle of a change when this process was forked.
            Describer.__init__(self, self._rules)
        operation, note, answer = run.operation, run.note, run.answer
        if note is not None and note.document is not None:
            # The server ran it. So this is the text, whatever the request looked like.
            name = operation.name or note.operation_name
            operation = replace(operation, document=note.document, name=name, failure=None)
        analysis = self._analyzer.analyze(operation)
        complexity, rows, exact = analysis.complexity, answer.rows, answer.exact
        if note is not None:
            complexity = complexity if note.complexity is None else note.complexity
            if note.rows is not None and not answer.frames:
                rows, exact = note.rows, True
        more = {
            "status": run.status,
            "query_hash_of": analysis.hashed,
            "document_hash": analysis.document_hash,
            "operation_type": (note.operation_type if note else None) or analysis.operation_type,
            "operation_name": analysis.operation_name,
            "aliases": analysis.aliases,
            "root_fields": analysis.root_fields,
            "depth": analysis.depth,
            "introspection": analysis.introspection or None,
            "batch_index": operation.batch_index,
            "errors": answer.errors or None,
            "error_codes": list(answer.codes) or None,
            "frames": answer.frames or None,
            "result_rows_exact": None if exact else False,
            "query_signature": self._texts.first(analysis) if self._rules.signatures == "first" else None,
            **(run.more or {}),
        }
        return query_executed(
            api_key_id=_id(caller) if isinstance(caller, Identity) else None,
            query_hash=analysis.query_hash,
            complexity=complexity,
            execution_time=round(run.seconds * 1000, 3),
            result_rows=rows,
            timestamp=_moment(run.started_at),
            **fields,
            **{name: value for name, value in more.items() if value is not None},
        )


def _answer_fields(exchange: Exchange, headers: Mapping[bytes, str]) -> dict[str, Any]:
    """Return the fields that say how a request was answered."""
    own_id = given_id(headers.get(REQUEST_ID))
    streamed = exchange.first_byte and headers.get(b"content-type", "").startswith(("multipart/", "text/event-stream"))
    fields = {
        "http_status": exchange.http_status or None,
        "response_bytes": exchange.answer_bytes,
        "first_byte_ms": round((exchange.first_byte - exchange.ready) * 1000, 3) if streamed else None,
        "error_type": exchange.error_type,
        "application_request_id": own_id,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _asked(exchange: Exchange) -> list[Operation]:
    """Return the operations that a request asked for."""
    content_type = next((value for name, value in exchange.headers if name == b"content-type"), b"").decode("latin-1")
    asked = operations(exchange.method, content_type, exchange.query_string, b"".join(exchange.body))
    if asked == [Operation(failure=MALFORMED)] and not exchange.body_whole:
        return [Operation(failure=UNREAD_BODY)]
    return asked


def _answers(exchange: Exchange, headers: Mapping[bytes, str], count: int) -> Sequence[Answer]:
    """Return what the answer says of each operation of a request."""
    body = b"".join(exchange.answer)
    cut = len(body) < exchange.answer_bytes or not exchange.complete
    answers = read_answers(headers.get(b"content-type", ""), headers.get(b"content-encoding", ""), body, cut=cut)
    if len(answers) == count:
        return answers
    # A batch was refused as a whole, or cut off: of each nothing more is known than that there are errors.
    whole = answers[0] if len(answers) == 1 else UNREAD
    return [replace(whole, rows=0, exact=False, read=False)] * count


def short(operation: Operation) -> Operation:
    """Return an operation with the hash of its text instead of the text, and no more of its names than events have."""
    cut = replace(operation, name=clean_name(operation.name))
    if operation.document is not None:
        digest = sha256(operation.document.encode("utf-8", "surrogatepass")).hexdigest()
        return replace(cut, document=None, document_hash=f"sha256:{digest}")
    if len(operation.document_id or "") > NAME_CHARACTERS:
        return replace(cut, document_id=None, failure=TOO_LARGE)
    return cut


def _status(exchange: Exchange, answer: Answer) -> Status:
    if exchange.ending is not None:
        return exchange.ending
    if exchange.http_status >= 500:
        return "failed"
    if answer.errors:
        return "errors"
    return "refused" if exchange.http_status >= 300 else "ok"


def _with_notes(asked: Sequence[Operation], notes: Sequence[Note]) -> list[tuple[Operation, Note | None]]:
    """Return each operation with the note about it, and then what the server ran beyond those.

    First those of one text belong together. What is left is taken in its order: a server may change a text before it
    runs it, or read a request in another way than we do.
    """
    about: defaultdict[_About, deque[int]] = defaultdict(deque)
    for number, note in enumerate(notes):
        for key in _about_note(note):
            about[key].append(number)
    left = dict(enumerate(notes))
    own: dict[int, Note] = {}
    for at, operation in enumerate(asked):
        numbers = about.get(_about_operation(operation), _NONE)
        while numbers and numbers[0] not in left:
            numbers.popleft()
        if numbers:
            own[at] = left.pop(numbers.popleft())
    rest = deque(left.values())
    for at in range(len(asked)):
        if at not in own and rest:
            own[at] = rest.popleft()
    further = [(Operation(document=note.document, name=note.operation_name), note) for note in rest if note.document]
    return [*((operation, own.get(at)) for at, operation in enumerate(asked)), *further]


_About = tuple[str | None, str | None]
"""A text without its margins, or its hash, and a name where one was asked for."""
_NONE: deque[int] = deque()


def _about_note(note: Note) -> Iterator[_About]:
    """Yield what operations that a note is about may have been asked for by."""
    if note.document is not None:
        digest = sha256(note.document.encode("utf-8", "surrogatepass")).hexdigest()
        for text in (note.document.strip(), f"sha256:{digest}"):
            yield text, None
            if note.operation_name:
                yield text, note.operation_name


def _about_operation(operation: Operation) -> _About:
    """Return the text, or the hash, that an operation was asked for by."""
    text = operation.document_hash if operation.document is None else operation.document.strip()
    return text, operation.name or None


def _id(caller: Caller) -> str | None:
    identity = None if caller is None else caller.api_key_id
    return None if identity is None else identity[:256].encode("utf-8", "replace").decode()


def _moment(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
