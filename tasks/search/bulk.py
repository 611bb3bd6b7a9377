"""Sends documents to Elasticsearch in bulk requests, and records those that it rejects."""

import logging
import re
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
from elasticsearch import ApiError
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_random_exponential

from custody.errors import SearchError, TransientSearchError
from custody.format.layout import Log
from custody.format.times import format_time
from custody.store.protocol import legible
from tasks.search.client import LATER, Search
from tasks.search.documents import ORIGIN, Documents

PATIENCE_SECONDS = 60
"""How long a bulk request is retried while Elasticsearch is too busy."""

REQUESTS = 2
"""Bulk requests under way at a time."""

_CREATED, _THERE, _TOO_LARGE = 201, 409, 413
_WRITE_BLOCK = "index write (api)"
"""In the reason, where an index has the block that the roll sets; other blocks are not ours to remove."""
_DOCUMENT_ERRORS = frozenset({"document_parsing_exception", "mapper_parsing_exception"})
"""Errors of a document itself: the mapping will never take it. Releases before 8.9 have the second."""
_ILLEGAL = "illegal_argument_exception"
"""An error of the document too, unless its reason is of these. A producer has many ways to it: a field after the end of
the document, a term that is too long."""
_CONDITIONS = re.compile(
    "Validation Failed|pipeline with id|Limit of total fields|no write index|only write ops"
    "|[Nn]umber of documents in|explicit index in bulk"
)
_SECURITY = "security_exception"
_REMEDIES = {
    "cluster_block_exception": "remove the block from the index",
    "index_closed_exception": "open the index",
    "index_not_found_exception": "create the index, or let action.auto_create_index allow it",
    "invalid_alias_name_exception": "an index has the name of the alias search.prefix: rename or delete that index",
    _SECURITY: "give the API key of search.api_key the right to create indices and documents",
    "validation_exception": "raise cluster.max_shards_per_node, or delete indices",
}
"""What an operator does about conditions of the cluster."""
_NDJSON = {"content-type": "application/x-ndjson", "accept": "application/json"}
_ERRORS_ONLY = "errors,items.*.status,items.*.error.type,items.*.error.reason"

logger = logging.getLogger(__name__)


class _Error(msgspec.Struct):
    type: str = ""
    reason: str = ""


_FORGED = _Error(
    "forged_origin",
    f"a key of the event is {ORIGIN}, or begins with {ORIGIN}., which in Elasticsearch says where an event is in the"
    " archive; the archive has the event",
)


class _Item(msgspec.Struct):
    status: int
    error: _Error | None = None


def _is_of_document(error: _Error) -> bool:
    """Return whether an error is of the document itself. An unknown error is not: it must not hide events."""
    illegal = error.type == _ILLEGAL and not _CONDITIONS.search(error.reason)
    return illegal or error.type in _DOCUMENT_ERRORS


class _Answer(msgspec.Struct):
    errors: bool
    items: list[dict[str, _Item]]


class Counted(Protocol):
    """Counts documents by outcome."""

    created: int
    there: int
    rejected: int


@dataclass(slots=True)
class Sent:
    """Numbers of documents by outcome: created now, already there, rejected."""

    created: int = 0
    there: int = 0
    rejected: int = 0

    def add_to(self, total: Counted) -> None:
        """Add these numbers to a total."""
        total.created += self.created
        total.there += self.there
        total.rejected += self.rejected


class Bulk:
    """Bulk requests that create documents; their size adapts to Elasticsearch. Threads may share it."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._size = search.settings.bulk_bytes
        self._busy = "no reason given"
        """Why documents were last sent again."""

    def send(self, log: Log, parts: Iterable[Documents], total: Counted) -> None:
        """Create documents that are made meanwhile. If making them fails, those made before are still created.

        Args:
            log: their log.
            parts: the documents, in order. Their errors are passed on.
            total: the numbers of documents are added to it.

        Raises:
            SearchError: as `create`.
        """
        waiting: list[Documents] = []
        size = 0
        # While some requests are running, the next one is prepared.
        with ThreadPoolExecutor(REQUESTS) as senders:
            under_way: deque[Future[Sent]] = deque()

            def submit() -> None:
                documents = Documents.join(waiting)
                waiting.clear()
                if len(under_way) == REQUESTS:
                    under_way.popleft().result().add_to(total)
                under_way.append(senders.submit(self.create, log, documents))

            try:
                for part in parts:
                    waiting.append(part)
                    size += sum(map(len, part.sources))
                    if size >= self._search.settings.bulk_bytes:
                        submit()
                        size = 0
            finally:
                if waiting:
                    submit()
                for sent in under_way:
                    sent.result().add_to(total)

    def create(self, log: Log, documents: Documents) -> Sent:
        """Create documents, in requests of a size that Elasticsearch accepts.

        If it is too busy, documents are sent again later, in smaller requests. Documents that it rejects, or that must
        not be indexed (`Documents.forged`), are recorded in the index of rejected events, with the reason. The others
        are still indexed.

        Raises:
            SearchError: it does not answer, is busy for longer than a minute, or refuses documents for a reason that is
                not theirs: a condition of the cluster, which is never recorded as a rejection of events.
        """
        sent = Sent()
        waiting: Sequence[int] = range(len(documents.sources))
        if documents.forged:
            forged = [position for position in waiting if documents.offsets[position] in documents.forged]
            self._reject(log, documents, [(position, _FORGED) for position in forged], sent)
            waiting = sorted({*waiting} - {*forged})
        while waiting:
            size = number = 0
            for number, position in enumerate(waiting, 1):  # noqa: B007 - how many fit is wanted
                size += len(documents.actions[position]) + len(documents.sources[position]) + 2
                if size >= self._size:
                    break
            self._create(log, documents, waiting[:number], sent)
            waiting = waiting[number:]
        return sent

    def _create(self, log: Log, documents: Documents, positions: Sequence[int], sent: Sent) -> None:
        waiting = positions

        def send() -> bool:
            nonlocal waiting
            waiting = self._try(log, documents, waiting, sent)
            if waiting:
                self._slow_down()
            return bool(waiting)

        wait = wait_random_exponential(multiplier=0.2, max=10)
        try:
            Retrying(stop=stop_after_delay(PATIENCE_SECONDS), wait=wait, retry=retry_if_result(bool))(send)
        except RetryError:
            raise TransientSearchError(
                f"Elasticsearch at {self._search.settings.url} has been too busy for {PATIENCE_SECONDS} s"
                f" ({self._busy}); the next run continues"
            ) from None
        self._size = min(self._search.settings.bulk_bytes, self._size + self._size // 8)

    def _slow_down(self) -> None:
        self._size = max(64 * 1024, self._size // 2)

    def _try(self, log: Log, documents: Documents, positions: Sequence[int], sent: Sent) -> Sequence[int]:
        """Send one request, and return the positions of the documents to send again."""
        lines = [line for position in positions for line in (documents.actions[position], documents.sources[position])]
        body = b"\n".join(lines) + b"\n"
        with self._search.errors(f"events of {log}"):
            try:
                answer = self._search.client.perform_request(
                    "POST", "/_bulk", params={"filter_path": _ERRORS_ONLY}, headers=_NDJSON, body=body
                )
            except ApiError as error:
                if error.status_code == _TOO_LARGE:
                    return self._halve(log, documents, positions, sent)
                if error.status_code in LATER:
                    self._busy = f"status {error.status_code}"
                    return positions
                raise
            outcome = msgspec.convert(answer.body, _Answer)
            if not outcome.errors:
                sent.created += len(positions)
                return []
            answered = list(zip(positions, (item["create"] for item in outcome.items), strict=True))
        again, refused, closed, stopped = [], [], set[str](), []
        for position, item in answered:
            status, cause = item.status, item.error or _Error()
            if status == _CREATED:
                sent.created += 1
            elif status == _THERE:
                sent.there += 1
            elif status in LATER:
                self._busy = f"{cause.type}: {cause.reason[:300]}"
                again.append(position)
            elif _WRITE_BLOCK in cause.reason:
                closed.add(documents.action(position)["_index"])
                again.append(position)
            elif _is_of_document(cause):
                refused.append((position, cause))
            else:
                stopped.append(cause)
        self._reject(log, documents, refused, sent)
        if stopped:
            raise self._condition(log, stopped)
        self._make_writable(closed)
        return again

    def _condition(self, log: Log, causes: Sequence[_Error]) -> SearchError:
        """Return the error for a condition of the cluster or an index. No event is recorded as rejected for it."""
        cause = causes[0]
        refused = f" (refused to {self._search.caller()})" if cause.type == _SECURITY else ""
        return SearchError(
            f"Elasticsearch at {self._search.settings.url} does not accept {len(causes)} events of {log}, for a reason"
            f" that is not theirs: {legible(f'{cause.type}: {cause.reason}')}{refused}:"
            f" {_REMEDIES.get(cause.type, 'see its log')}. The next run tries again"
        )

    def _make_writable(self, names: Iterable[str]) -> None:
        """Make read-only indices writable, for late events of their day. The next roll makes them read-only again."""
        for name in names:
            with self._search.errors(f"the settings of {name}"):
                self._search.client.indices.put_settings(index=name, settings={"index.blocks.write": None})

    def _halve(self, log: Log, documents: Documents, positions: Sequence[int], sent: Sent) -> Sequence[int]:
        if len(positions) == 1:
            size = len(documents.sources[positions[0]])
            error = _Error("too_large", f"the document has {size} bytes, which is too large")
            self._reject(log, documents, [(positions[0], error)], sent)
            return []
        self._slow_down()
        middle = len(positions) // 2
        halves = positions[:middle], positions[middle:]
        return [position for half in halves for position in self._try(log, documents, half, sent)]

    def _reject(self, log: Log, documents: Documents, refused: Sequence[tuple[int, _Error]], sent: Sent) -> None:
        """Record rejected events in their index, with the reasons."""
        if not refused:
            return
        name, now = self._search.rejected, format_time(datetime.now(UTC))
        operations: list[Any] = []
        for position, error in refused:
            action, offset = documents.action(position), documents.offsets[position]
            reason = {"type": error.type[:200], "reason": error.reason[:2000], "at": now}
            operations.append({"create": {"_index": name, "_id": action["_id"]}})
            operations.append({"log": str(log), "offset": offset, "index": action["_index"], **reason})
        with self._search.errors(f"the rejected events of {log}"):
            done = self._search.client.bulk(operations=operations, filter_path="items.*.status")
            statuses = [item["create"]["status"] for item in done["items"]]
        bad = [status for status in statuses if status not in {_CREATED, _THERE}]
        if bad:
            problem = f"{len(bad)} events of {log} (status {bad[0]})"
            raise SearchError(f"{name} did not accept {problem}: make that index writable")
        sent.rejected += len(refused)
        position, error = refused[0]
        first = f"offset {documents.offsets[position]}: {error.type}: {error.reason[:300]}"
        logger.warning("%s: Elasticsearch rejected %d events, listed in %s: %s", log, len(refused), name, first)
