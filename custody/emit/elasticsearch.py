"""Sends events to Elasticsearch, by bulk requests that create documents.

A document's `_id` is its `event_id`. So one that is sent twice is created once: the second answer is a conflict, which
counts as delivered.

What an answer means:

1. 201, or a conflict (409): delivered.
2. 429, 5xx, a refused request, no connection: failed. It is sent again later.
3. 400 with an error that is about the document's content: refused.
4. 400 with another error may be about the index: an alias without a write index, a missing pipeline. The document is
   refused only if the index took another one in the same request. For that, a document that was delivered before is
   sent along; an index that has it stores nothing.
5. 413 of a request: it is sent in halves. A single document is refused.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from hashlib import sha256
from time import monotonic
from typing import Any, Final

import msgspec
from elasticsearch import ApiError, Elasticsearch, TransportError

from custody.emit.background import Background, Done
from custody.emit.errors import AuditError
from custody.emit.quiet import QuietLog
from custody.emit.sink import Outcome, Report, Sink
from custody.emit.writer import Options, QueuedWriter
from custody.errors import counted, legible

__all__ = ["ElasticsearchWriter"]

REQUESTS: Final = 2
"""Bulk requests under way at a time."""
REQUEST_LINES, REQUEST_BYTES = 1_000, 4 * 1024 * 1024
"""A bulk request ends at the first of these."""
HELD_LINES, HELD_BYTES = 10_000, 16 * 1024 * 1024
"""Documents that wait for a request, or are in one. Above this, no more are taken."""
REQUEST_SECONDS: Final = 10.0
"""How long a request may take, unless the client's properties say otherwise."""
ID_BYTES: Final = 512
"""The longest `_id` that Elasticsearch takes."""

_DEFAULTS: Final[Mapping[str, object]] = {"request_timeout": REQUEST_SECONDS}
_OURS: Final[Mapping[str, object]] = {"max_retries": 0, "retry_on_timeout": False}
"""What fails is sent again by the writer, also after a restart."""
_TAKEN: Final = frozenset({200, 201, 409})
_TOO_LARGE, _BAD = 413, 400
_REMEDIES: Final[Mapping[int, str]] = {
    401: ", so check the client's API key or password",
    403: ", so give the client the right to create documents there",
}
_OF_DOCUMENT: Final = frozenset(
    {"document_parsing_exception", "mapper_parsing_exception", "strict_dynamic_mapping_exception"}
)
"""Errors that are about a document's content alone."""
_FULL: Final = "number of documents in"
"""How the reason begins, in lower case, if a shard has as many documents as Lucene takes."""
_HEADERS: Final = {"content-type": "application/x-ndjson", "accept": "application/json"}
_ANSWER: Final = {"filter_path": "items.*.status,items.*.error.type,items.*.error.reason"}


class ElasticsearchWriter(QueuedWriter):
    """Writes audit events to an index, an alias or a data stream of Elasticsearch.

    Documents are the events as they are. The mapping is yours: custody makes no index, template or pipeline. A data
    stream needs a field `@timestamp`, which events lack: give its template a `default_pipeline` that sets it from
    `timestamp`. An index that rolls over may get an event twice, if it is sent again after that: `event_id` tells.
    """

    kind = "Elasticsearch"

    def __init__(self, index: str, client: Mapping[str, object], options: Options) -> None:
        """Set up. Nothing is connected before the first event.

        Args:
            index: where documents are created.
            client: arguments of the client `Elasticsearch`, such as `hosts`, `api_key`, `ca_certs`. Retries are ours.
            options: how events are treated.

        Raises:
            AuditError: the client refuses an argument, or the spool's folder cannot be used.
        """
        self._index, self._client = index, dict(client)
        # Arguments are checked by making a client. It connects to nobody.
        _make(self._client).close()
        super().__init__(options, index)

    def open_sink(self, quiet: QuietLog) -> Sink:
        """Return a client of this process."""
        return ElasticsearchSink(self._index, self._client, quiet)


_Lines = Sequence[tuple[bytes, Report]]


class ElasticsearchSink:
    """A client, and the threads that wait for its answers."""

    def __init__(self, index: str, client: Mapping[str, object], quiet: QuietLog) -> None:
        """Make the client.

        Raises:
            AuditError: the client refuses an argument.
        """
        self._client = _make(client)
        self._bulk = _Bulk(self._client, index, quiet)
        self._requests: Background[_Lines, _Outcomes] = Background(self._bulk.create, REQUESTS, quiet)
        self._waiting: deque[tuple[bytes, Report]] = deque()
        self._held = self._held_bytes = 0

    def send(self, lines: Sequence[bytes], report: Report) -> int:
        """Take lines, and begin requests; fewer while too many wait."""
        taken = 0
        for line in lines:
            if self._held >= HELD_LINES or self._held_bytes >= HELD_BYTES:
                break
            self._waiting.append((line, report))
            self._held += 1
            self._held_bytes += len(line)
            taken += 1
        self._begin_requests()
        return taken

    def poll(self, seconds: float) -> None:
        """Report what was answered, and begin further requests."""
        done = self._requests.receive(seconds)
        while done is not None:
            self._settle(done)
            done = self._requests.receive(0)
        self._begin_requests()

    def close(self, seconds: float) -> None:
        """Wait for answers, then give up the rest. A document that arrives later is not created twice."""
        deadline = monotonic() + seconds
        while self._held and (left := deadline - monotonic()) > 0:
            self.poll(left)
        under_way = self._requests.under_way
        for lines in (*under_way, self._waiting):
            for line, report in lines:
                report(line, "failed")
        self._waiting.clear()
        self._requests.close()
        if not under_way:
            self._client.close()

    def _begin_requests(self) -> None:
        while self._waiting and self._requests.is_free:
            lines: list[tuple[bytes, Report]] = []
            size = 0
            while self._waiting and len(lines) < REQUEST_LINES and size < REQUEST_BYTES:
                lines.append(self._waiting.popleft())
                size += len(lines[-1][0])
            self._requests.start(lines)

    def _settle(self, done: "Done[_Lines, _Outcomes]") -> None:
        outcomes = done.result or ["failed"] * len(done.job)
        self._report(done.job, outcomes)
        if "failed" in outcomes and "delivered" not in outcomes:
            # It is away or busy: what waits would only wait for its time-out.
            waiting = list(self._waiting)
            self._waiting.clear()
            self._report(waiting, ["failed"] * len(waiting))

    def _report(self, lines: _Lines, outcomes: Sequence[Outcome]) -> None:
        for (line, report), outcome in zip(lines, outcomes, strict=True):
            self._held -= 1
            self._held_bytes -= len(line)
            report(line, outcome)


class _Error(msgspec.Struct):
    type: str = ""
    reason: str = ""
    """May have values of the document: it is never shown."""


class _Item(msgspec.Struct):
    status: int
    error: _Error | None = None

    @property
    def is_of_document(self) -> bool:
        return self.status == _BAD and self.error is not None and self.error.type in _OF_DOCUMENT

    @property
    def is_doubtful(self) -> bool:
        """Whether it was refused, for a reason of its own or of the index."""
        full = self.error is not None and self.error.reason.lower().startswith(_FULL)
        return self.status == _BAD and not self.is_of_document and not full


class _Answer(msgspec.Struct):
    items: list[dict[str, _Item]]


class _Id(msgspec.Struct):
    event_id: str = ""


_Outcomes = list[Outcome]
_decode_id = msgspec.json.Decoder(_Id).decode


class _Bulk:
    """Makes bulk requests. Threads share it."""

    def __init__(self, client: Elasticsearch, index: str, quiet: QuietLog) -> None:
        self._client, self._quiet, self._index = client, quiet, index
        self._proof: bytes | None = None
        """A document that the index took, if there is one."""

    def create(self, lines: _Lines) -> _Outcomes:
        """Create documents, and return what became of each. Raises nothing that a server can cause."""
        return self._create([line for line, _ in lines])

    def _create(self, lines: Sequence[bytes]) -> _Outcomes:
        try:
            items = self._ask(lines)
        except ApiError as error:
            status = error.meta.status
            if status != _TOO_LARGE:
                return self._all_failed(lines, f"status {status}{_REMEDIES.get(status, '')}")
            if len(lines) == 1:
                self._warn(f"status {status}", f"an event of {len(lines[0]):,} bytes is too large")
                return ["refused"]
            middle = len(lines) // 2
            return self._create(lines[:middle]) + self._create(lines[middle:])
        except (TransportError, ValueError) as error:
            # An answer of something else than Elasticsearch raises a ValueError.
            return self._all_failed(lines, type(error).__name__)
        outcomes = list(map(self._outcome, items))
        taken = next((line for line, item in zip(lines, items, strict=True) if item.status in _TAKEN), None)
        self._proof = taken or self._proof
        doubtful = [at for at, item in enumerate(items) if item.is_doubtful]
        if doubtful and (taken is not None or any(item.is_of_document for item in items)):
            outcomes = [
                "refused" if item.is_doubtful else outcome for item, outcome in zip(items, outcomes, strict=True)
            ]
        elif doubtful and self._proof is not None and self._proof not in lines:
            *again, _ = self._create([*(lines[at] for at in doubtful), self._proof])
            for at, outcome in zip(doubtful, again, strict=True):
                outcomes[at] = outcome
        return outcomes

    def _ask(self, lines: Sequence[bytes]) -> Sequence[_Item]:
        """Send a bulk request, and return the outcome of each document.

        Raises:
            ApiError, TransportError: the client's own.
            ValueError: the answer is none to this request.
        """
        answer = self._client.perform_request(
            "POST", "/_bulk", params=_ANSWER, headers=_HEADERS, body=self._body(lines)
        )
        items = [item for outcome in msgspec.convert(answer.body, _Answer).items for item in outcome.values()]
        if len(items) != len(lines):
            raise ValueError("another number of outcomes than of documents")
        return items

    def _body(self, lines: Sequence[bytes]) -> bytes:
        parts = []
        for line in lines:
            parts.append(msgspec.json.encode({"create": {"_index": self._index, "_id": _id_of(line)}}))
            # In JSON a newline is always white space. A spool may have lines that somebody else wrote.
            parts.append(line.replace(b"\n", b" "))
        return b"\n".join((*parts, b""))

    def _outcome(self, item: _Item) -> Outcome:
        if item.status in _TAKEN:
            return "delivered"
        name = item.error.type if item.error else "no error named"
        self._warn(name, f"an event was not taken: status {item.status}, {name}")
        return "refused" if item.is_of_document else "failed"

    def _all_failed(self, lines: Sequence[bytes], reason: str) -> _Outcomes:
        self._warn(reason, f"a request with {counted(len(lines), 'event')} failed and is made again: {reason}")
        return ["failed"] * len(lines)

    def _warn(self, kind: str, text: str) -> None:
        self._quiet.warn(f"Elasticsearch {kind}", f"Elasticsearch, index {self._index}: {legible(text)}")


def _id_of(line: bytes) -> str:
    """Return the `_id` of an event: its `event_id`, or its hash if that cannot be one."""
    try:
        event_id = _decode_id(line).event_id
    except ValueError:
        event_id = ""
    return event_id if 0 < len(event_id.encode()) <= ID_BYTES else sha256(line).hexdigest()


def _make(client: Mapping[str, object]) -> Elasticsearch:
    """Return a client.

    Raises:
        AuditError: it refuses an argument.
    """
    arguments: dict[str, Any] = {**_DEFAULTS, **client, **_OURS}
    try:
        return Elasticsearch(**arguments)
    except Exception as error:  # noqa: BLE001 - the client's arguments reach several libraries
        # Its text may have the value of an argument, such as a password.
        raise AuditError(
            "Elasticsearch",
            f"the client does not accept its arguments ({type(error).__name__}): check names and values",
        ) from None
