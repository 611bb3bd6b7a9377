"""Sends documents to Elasticsearch in bulk requests, and records those that it rejects.

Whether a refusal is the document's own fault, or a condition of the cluster, is decided by a trial, not by the error's
name: releases and plugins have hundreds of errors, and a producer can write into their reasons.

1. Refused documents are sent once more, with a plain event for each of their indices in the same request. The plain
   event requires a sequence number that no document has. So Elasticsearch checks it like any event, answers with a
   version conflict, and stores nothing.
2. A document is rejected if it is refused again while its index takes the plain event, and nobody else changed that
   index's mapping or pipeline. It is recorded, and the indexing goes on.
3. All else is a condition: the indexing of that log stops, says why, and tries again at the next run.

A request that is refused as a whole is never booked on its documents, except one document that is too large.
"""

import logging
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

import msgspec
from elasticsearch import ApiError
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_random_exponential
from tenacity.nap import sleep_using_event

from custody.errors import SearchError, TransientSearchError, counted, legible
from custody.format.layout import Log
from custody.format.times import format_time
from tasks.search.client import LATER, AnswerTooLarge, Search, count_busy
from tasks.search.documents import ORIGIN, Documents
from tasks.search.indices import changed_by_others

PATIENCE_SECONDS = 60
"""How long a bulk request is retried while Elasticsearch is too busy."""

REQUESTS = 2
"""Bulk requests of a log that are under way at a time."""
_LOGS = 2
"""Logs whose documents are made and sent at a time. The others wait: their documents would only fill memory, and keep
the interpreter from who drains beside."""

_CREATED, _THERE, _TOO_LARGE = 201, 409, 413
_BLOCK = "cluster_block_exception"
_WRITE_BLOCK = "index write (api)"
"""In the reason, where an index has the block that the roll sets; other blocks are not ours to remove."""
_FULL = "number of documents in"
"""How the reason begins, in lower case, if a shard has as many documents as Lucene takes. The answer to a plain event
comes before that check."""
_CONFLICT = "version_conflict_engine_exception"
_PLAIN = msgspec.json.encode(
    {"event_type": "auth_attempt", "timestamp": "2026-01-01T00:00:00Z", "client_ip": "::1", "request_id": "plain"}
)
"""An event that every index of ours takes. It is sent on a condition that never holds, so it is never stored."""
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
_REASONS = 20
"""Reasons of rejections that are counted apart."""
_RECORDED = 1000
"""Rejected events that are recorded in one request."""
_VARYING = re.compile(r"^\[\d+:\d+\] | in document with id .*", re.DOTALL)
"""The parts of a reason that differ between documents."""
_NDJSON = {"content-type": "application/x-ndjson", "accept": "application/json"}
_OUTCOMES = "items.*.status,items.*.error.type,items.*.error.reason"

logger = logging.getLogger(__name__)


class _Error(msgspec.Struct):
    type: str = ""
    reason: str = ""

    def short(self) -> str:
        """Return type and reason without what differs between documents."""
        return legible(f"{self.type}: {_VARYING.sub('', self.reason)[:150]}")


_FORGED = _Error(
    "forged_origin",
    f"a key of the event is {ORIGIN}, or begins with {ORIGIN}., which in Elasticsearch says where an event is in the"
    " archive; the archive has the event",
)


class _Item(msgspec.Struct):
    status: int
    error: _Error | None = None


class _Answer(msgspec.Struct):
    items: list[dict[str, _Item]]


class Counted(Protocol):
    """Counts documents by outcome."""

    created: int
    there: int
    rejected: int
    reasons: Counter[str]


@dataclass(slots=True)
class Sent:
    """Numbers of documents by outcome: created now, already there, rejected, and rejected by reason."""

    created: int = 0
    there: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add_to(self, total: Counted) -> None:
        """Add these numbers to a total."""
        total.created += self.created
        total.there += self.there
        total.rejected += self.rejected
        _add_reasons(total.reasons, self.reasons)


def _add_reasons(total: Counter[str], more: Mapping[str, int]) -> None:
    """Add numbers by reason to a total, of a bounded number of reasons."""
    for reason, count in more.items():
        total[reason if reason in total or len(total) < _REASONS else "other reasons"] += count


def describe_rejected(events: Counted, index: str) -> str:
    """Return how many events Elasticsearch rejected, the commonest reason, and where all reasons are."""
    ((reason, _),) = events.reasons.most_common(1) or [("unknown", 0)]
    rejected = counted(events.rejected, "event")
    return f"Elasticsearch rejected {rejected}, most often because of {reason}; {index} lists each"


class StoppedError(Exception):
    """No request is begun any more, because there is no time left."""


class Bulk:
    """Bulk requests that create documents; their size adapts to Elasticsearch. Threads may share it."""

    def __init__(self, search: Search, stopped: threading.Event | None = None) -> None:
        """Prepare.

        Args:
            search: Elasticsearch.
            stopped: once it is set, no request is begun.
        """
        self._search, self._stopped = search, stopped or threading.Event()
        self._size = search.settings.bulk_bytes
        self._turns = threading.BoundedSemaphore(_LOGS)
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
            StoppedError: there is no time left. Some documents may be created.
        """
        with self._turns:
            if self._stopped.is_set():
                raise StoppedError
            _send(parts, self._search.settings.bulk_bytes, partial(self.create, log), total)

    def create(self, log: Log, documents: Documents, sent: Sent) -> None:
        """Create documents, in requests of a size that Elasticsearch accepts.

        If it is too busy, documents are sent again later, in smaller requests. Documents that it rejects, or that must
        not be indexed (`Documents.forged`), are recorded in the index of rejected events, with the reason. The others
        are still indexed.

        Args:
            log: their log.
            documents: the documents.
            sent: the numbers of documents are added to it, also before an error.

        Raises:
            SearchError: it does not answer, is busy for longer than a minute, or refuses documents for a reason that is
                not theirs: a condition of the cluster, which is never recorded as a rejection of events.
        """
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
            stop, again = stop_after_delay(PATIENCE_SECONDS), retry_if_result(bool)
            sleep = sleep_using_event(self._stopped)
            Retrying(stop=stop, wait=wait, retry=again, sleep=sleep, before_sleep=count_busy)(send)
        except RetryError:
            raise TransientSearchError(
                f"Elasticsearch at {self._search.settings.url} has been too busy for {PATIENCE_SECONDS} s"
                f" ({self._busy}); the next run continues"
            ) from None
        self._size = min(self._search.settings.bulk_bytes, self._size + self._size // 8)

    def _slow_down(self) -> None:
        self._size = max(64 * 1024, self._size // 2)

    def _try(
        self, log: Log, documents: Documents, positions: Sequence[int], sent: Sent, plain: Sequence[str] = ()
    ) -> Sequence[int]:
        """Send one request, and return the positions of the documents to send again.

        Args:
            log: their log.
            documents: the documents.
            positions: the positions of those to send.
            sent: the numbers of documents are added to it.
            plain: indices that get a plain event too, if the documents were refused before.
        """
        lines = [line for position in positions for line in (documents.actions[position], documents.sources[position])]
        lines += [line for index in plain for line in (_plain_action(index), _PLAIN)]
        with self._search.errors(f"events of {log}"):
            try:
                items = self._ask(lines)
            except (ApiError, AnswerTooLarge) as error:
                return self._after(error, log, documents, positions, sent)
        answered = list(zip(positions, items[: len(positions)], strict=True))
        trials = items[len(positions) :]
        again: list[int] = []
        refused: dict[int, _Error] = {}
        closed = set[str]()
        for position, item in answered:
            status, cause = item.status, item.error or _Error("no error", f"it answers {item.status}")
            if status == _CREATED:
                sent.created += 1
            elif status == _THERE:
                sent.there += 1
            elif status in LATER:
                self._busy = f"{cause.type}: {cause.reason[:300]}"
                again.append(position)
            elif _WRITE_BLOCK in cause.reason and cause.type == _BLOCK:
                closed.add(documents.action(position)["_index"])
                again.append(position)
            else:
                refused[position] = cause
        if any(item.status in LATER for item in trials):
            again += refused
        elif refused and plain:
            self._settle(log, documents, refused, _which_take(plain, trials), sent)
        elif refused:
            again += self._try(log, documents, list(refused), sent, sorted(_indices(documents, refused)))
        self._make_writable(closed)
        return again

    def _after(
        self, error: ApiError | AnswerTooLarge, log: Log, documents: Documents, positions: Sequence[int], sent: Sent
    ) -> Sequence[int]:
        """Return the positions of the documents to send again, after an error of a whole request.

        Raises:
            ApiError, AnswerTooLarge: the error, if sending them again does not help.
        """
        if isinstance(error, AnswerTooLarge):
            if len(positions) == 1:
                raise error
            return self._in_halves(log, documents, positions, sent)
        if error.status_code == _TOO_LARGE:
            return self._halve(log, documents, positions, sent)
        if error.status_code in LATER:
            self._busy = f"status {error.status_code}"
            return positions
        raise error

    def _ask(self, lines: Sequence[bytes]) -> Sequence[_Item]:
        """Send the lines of a bulk request, two an operation, and return the outcome of each operation.

        Raises:
            SearchError: the answer has another number of outcomes.
            StoppedError: there is no time left.
            ApiError, TransportError: the client's own.
        """
        body = b"\n".join(lines) + b"\n"
        if self._stopped.is_set():
            raise StoppedError
        answer = self._search.client.perform_request(
            "POST", "/_bulk", params={"filter_path": _OUTCOMES}, headers=_NDJSON, body=body
        )
        items = [item for outcome in msgspec.convert(answer.body, _Answer).items for item in outcome.values()]
        if len(items) != len(lines) // 2:
            raise SearchError(
                f"Elasticsearch at {self._search.settings.url} answers {len(items)} outcomes to {len(lines) // 2}"
                " operations of a bulk request: see its log, and what is between"
            )
        return items

    def _settle(
        self, log: Log, documents: Documents, refused: Mapping[int, _Error], taken: frozenset[str], sent: Sent
    ) -> None:
        """Record documents as rejected that are refused beside a plain event which is taken.

        Raises:
            SearchError: others are refused for a reason that is not theirs.
        """
        changed = changed_by_others(self._search, _indices(documents, refused) & taken)
        own: list[tuple[int, _Error]] = []
        stopped: list[_Error] = []
        hint = ""
        for position, cause in refused.items():
            index = documents.action(position)["_index"]
            if index in taken and index not in changed and not cause.reason.lower().startswith(_FULL):
                own.append((position, cause))
            else:
                stopped.append(cause)
                hint = hint or changed.get(index, "")
        self._reject(log, documents, own, sent)
        if stopped:
            raise self._condition(log, stopped, hint)

    def _condition(self, log: Log, causes: Sequence[_Error], hint: str = "") -> SearchError:
        """Return the error for a condition of the cluster or an index. No event is recorded as rejected for it."""
        cause = causes[0]
        refused = f" (refused to {self._search.caller()})" if cause.type == _SECURITY else ""
        return SearchError(
            f"Elasticsearch at {self._search.settings.url} does not accept {counted(len(causes), 'event')} of {log},"
            f" for a reason that is not in the events: {legible(f'{cause.type}: {cause.reason}')}{refused}:"
            f" {legible(hint) or _REMEDIES.get(cause.type, 'see its log')}. The next run tries again"
        )

    def _make_writable(self, names: Iterable[str]) -> None:
        """Make read-only indices writable, for late events of their day. The next roll makes them read-only again."""
        for name in names:
            with self._search.errors(f"the settings of {name}"):
                self._search.client.indices.put_settings(index=name, settings={"index.blocks.write": None})

    def _halve(self, log: Log, documents: Documents, positions: Sequence[int], sent: Sent) -> Sequence[int]:
        if len(positions) == 1:
            index = documents.action(positions[0])["_index"]
            # If even a plain event is too large, somebody set the limit wrongly.
            (plain,) = self._ask([_plain_action(index), _PLAIN])
            if plain.status in LATER:
                return positions
            if not _which_take([index], [plain]):
                raise self._condition(log, [plain.error or _Error()])
            size = len(documents.sources[positions[0]])
            error = _Error("too_large", f"the document has {size} bytes, which is too large")
            self._reject(log, documents, [(positions[0], error)], sent)
            return []
        return self._in_halves(log, documents, positions, sent)

    def _in_halves(self, log: Log, documents: Documents, positions: Sequence[int], sent: Sent) -> Sequence[int]:
        self._slow_down()
        middle = len(positions) // 2
        halves = positions[:middle], positions[middle:]
        return [position for half in halves for position in self._try(log, documents, half, sent)]

    def _reject(self, log: Log, documents: Documents, refused: Sequence[tuple[int, _Error]], sent: Sent) -> None:
        """Record rejected events in their index, with the reasons.

        Raises:
            SearchError: the index does not accept them all.
        """
        # A reason may be longer than its event, and a request must not become too large.
        for start in range(0, len(refused), _RECORDED):
            self._record(log, documents, refused[start : start + _RECORDED], sent)

    def _record(self, log: Log, documents: Documents, refused: Sequence[tuple[int, _Error]], sent: Sent) -> None:
        name, now = self._search.rejected, format_time(datetime.now(UTC))
        lines: list[bytes] = []
        for position, error in refused:
            action, offset = documents.action(position), documents.offsets[position]
            reason = {"type": error.type[:200], "reason": error.reason[:2000], "at": now}
            rejection = {"log": str(log), "offset": offset, "index": action["_index"], **reason}
            create = {"create": {"_index": name, "_id": action["_id"]}}
            lines += (msgspec.json.encode(create), msgspec.json.encode(rejection))
        with self._search.errors(f"the rejected events of {log}"):
            items = self._ask(lines)
        bad = [item for item in items if item.status not in {_CREATED, _THERE}]
        if bad:
            raise _unrecorded(self._search, log, bad)
        sent.rejected += len(refused)
        _add_reasons(sent.reasons, Counter(error.short() for _, error in refused))
        position, error = refused[0]
        first = f"offset {documents.offsets[position]}: {error.type}: {error.reason[:300]}"
        logger.warning("%s: Elasticsearch rejected %d events, listed in %s: %s", log, len(refused), name, first)


def _send(parts: Iterable[Documents], limit: int, create: Callable[[Documents, Sent], None], total: Counted) -> None:
    """Create documents in requests of about a limit of bytes, some of them at a time, and count what they did."""
    waiting: list[Documents] = []
    size = 0
    # While some requests are running, the next one is prepared.
    with ThreadPoolExecutor(REQUESTS) as senders:
        under_way: deque[tuple[Future[None], Sent]] = deque()
        errors: list[Exception] = []

        def submit() -> None:
            documents, sent = Documents.join(waiting), Sent()
            waiting.clear()
            if len(under_way) == REQUESTS:
                end_first()
            if errors:
                return
            under_way.append((senders.submit(create, documents, sent), sent))

        def end_first() -> None:
            future, sent = under_way.popleft()
            try:
                future.result()
            except Exception as error:  # noqa: BLE001 - it is raised below, once all requests have ended
                errors.append(error)
            # Also what was done before an error.
            sent.add_to(total)

        try:
            for part in parts:
                waiting.append(part)
                size += sum(map(len, part.sources))
                if size >= limit:
                    submit()
                    size = 0
                if errors:
                    break
        finally:
            if waiting:
                submit()
            while under_way:
                end_first()
            if errors:
                # What Elasticsearch says comes before that there is no time left.
                raise min(errors, key=lambda error: isinstance(error, StoppedError))


def _unrecorded(search: Search, log: Log, bad: Sequence[_Item]) -> SearchError:
    """Return the error for rejected events that cannot be recorded. It is transient if Elasticsearch is only busy."""
    item = next((item for item in bad if item.status not in LATER), bad[0])
    cause = item.error or _Error("no reason given")
    passing = item.status in LATER
    remedy = "Elasticsearch is busy, or no node holds that index" if passing else "make that index writable"
    return (TransientSearchError if passing else SearchError)(
        f"{search.rejected} did not accept {counted(len(bad), 'event')} of {log} (status {item.status},"
        f" {legible(f'{cause.type}: {cause.reason[:300]}')}): {remedy}. The next run tries again"
    )


def _indices(documents: Documents, positions: Iterable[int]) -> frozenset[str]:
    """Return the indices of the documents at some positions."""
    return frozenset(documents.action(position)["_index"] for position in positions)


def _plain_action(index: str) -> bytes:
    """Return the action that checks a plain event like any other, and stores nothing."""
    never = {"if_seq_no": 2**62, "if_primary_term": 1}
    return msgspec.json.encode({"index": {"_index": index, "_id": "plain", **never}})


def _which_take(indices: Sequence[str], items: Sequence[_Item]) -> frozenset[str]:
    """Return the indices that took a plain event: all that they did not like is its version."""
    return frozenset(
        index
        for index, item in zip(indices, items, strict=True)
        if item.status == _THERE and item.error and item.error.type == _CONFLICT
    )
