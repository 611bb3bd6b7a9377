"""Sends documents to Elasticsearch in bulk requests, and records those that it rejects."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
from elasticsearch import ApiError
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from custody.errors import SearchError
from custody.format.layout import Log
from custody.format.times import format_time
from tasks.search.client import Search
from tasks.search.documents import ORIGIN, Documents

PATIENCE_SECONDS = 60
"""How long a bulk request is retried while Elasticsearch is too busy."""

_CREATED, _FORBIDDEN, _THERE, _TOO_LARGE, _BUSY = 201, 403, 409, 413, 429
_BLOCKED = "cluster_block_exception"
_LATER = frozenset({_BUSY, 502, 503, 504})
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


class _Created(msgspec.Struct):
    create: _Item


class _Answer(msgspec.Struct):
    errors: bool
    items: list[_Created]


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


class _Busy(Exception):
    """Elasticsearch is too busy: try again later."""


class Bulk:
    """Bulk requests that create documents; their size adapts to Elasticsearch. Threads may share it."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._size = search.settings.bulk_bytes

    def create(self, log: Log, found: Documents) -> Sent:
        """Create documents, in requests of a size that Elasticsearch accepts.

        If it is too busy, documents are sent again later, in smaller requests. Documents that it rejects, or that must
        not be indexed (`Documents.forged`), are recorded in the index of rejected events, with the reason. The others
        are still indexed.

        Raises:
            SearchError: it does not answer, is busy for longer than a minute, or refuses a whole request.
        """
        sent = Sent()
        places: Sequence[int] = range(len(found.sources))
        if found.forged:
            forged = [place for place in places if found.offsets[place] in found.forged]
            self._reject(log, found, [(place, _FORGED) for place in forged], sent)
            places = sorted({*places} - {*forged})
        while places:
            size = number = 0
            for number, place in enumerate(places, 1):  # noqa: B007 - how many fit is wanted
                size += len(found.actions[place]) + len(found.sources[place]) + 2
                if size >= self._size:
                    break
            self._create(log, found, places[:number], sent)
            places = places[number:]
        return sent

    def _create(self, log: Log, found: Documents, places: Sequence[int], sent: Sent) -> None:
        waiting = list(places)
        try:
            for attempt in Retrying(
                stop=stop_after_delay(PATIENCE_SECONDS),
                wait=wait_random_exponential(multiplier=0.2, max=10),
                retry=retry_if_exception_type(_Busy),
            ):
                with attempt:
                    waiting = self._try(log, found, waiting, sent)
                    if waiting:
                        self._slow_down()
                        raise _Busy
        except RetryError:
            raise SearchError(
                f"Elasticsearch at {self._search.settings.url} has been too busy for {PATIENCE_SECONDS} s; the next run"
                " continues"
            ) from None
        self._size = min(self._search.settings.bulk_bytes, self._size + self._size // 8)

    def _slow_down(self) -> None:
        self._size = max(64 * 1024, self._size // 2)

    def _try(self, log: Log, found: Documents, places: Sequence[int], sent: Sent) -> list[int]:
        """Send one request, and return the documents to send again."""
        body = b"\n".join([line for place in places for line in (found.actions[place], found.sources[place])]) + b"\n"
        with self._search.errors(f"events of {log}"):
            try:
                answer = self._search.client.perform_request(
                    "POST", "/_bulk", params={"filter_path": _ERRORS_ONLY}, headers=_NDJSON, body=body
                )
            except ApiError as error:
                if error.status_code == _TOO_LARGE:
                    return self._halve(log, found, places, sent)
                if error.status_code in _LATER:
                    return list(places)
                raise
            outcome = msgspec.convert(answer.body, _Answer)
            if not outcome.errors:
                sent.created += len(places)
                return []
            answered = list(zip(places, outcome.items, strict=True))
        again, refused, closed = [], [], set[str]()
        for place, one in answered:
            if one.create.status == _CREATED:
                sent.created += 1
            elif one.create.status == _THERE:
                sent.there += 1
            elif one.create.status in _LATER:
                again.append(place)
            elif one.create.status == _FORBIDDEN and one.create.error and one.create.error.type == _BLOCKED:
                closed.add(msgspec.json.decode(found.actions[place])["create"]["_index"])
                again.append(place)
            else:
                refused.append((place, one.create.error or _Error()))
        self._reject(log, found, refused, sent)
        # Late events make the read-only index of their day writable. The next roll makes it read-only again.
        for name in closed:
            with self._search.errors(f"the settings of {name}"):
                self._search.client.indices.put_settings(index=name, settings={"index.blocks.write": None})
        return again

    def _halve(self, log: Log, found: Documents, places: Sequence[int], sent: Sent) -> list[int]:
        if len(places) == 1:
            error = _Error("too_large", f"the document has {len(found.sources[places[0]])} bytes, which is too large")
            self._reject(log, found, [(places[0], error)], sent)
            return []
        self._slow_down()
        middle = len(places) // 2
        return [*self._try(log, found, places[:middle], sent), *self._try(log, found, places[middle:], sent)]

    def _reject(self, log: Log, found: Documents, refused: Sequence[tuple[int, _Error]], sent: Sent) -> None:
        """Record rejected events in their index, with the reasons."""
        if not refused:
            return
        operations: list[Any] = []
        for place, error in refused:
            action = msgspec.json.decode(found.actions[place])["create"]
            operations.append({"create": {"_index": self._search.rejected, "_id": action["_id"]}})
            operations.append(
                {
                    "log": str(log),
                    "offset": found.offsets[place],
                    "index": action["_index"],
                    "type": error.type[:200],
                    "reason": error.reason[:2000],
                    "at": format_time(datetime.now(UTC)),
                }
            )
        with self._search.errors(f"the rejected events of {log}"):
            done = self._search.client.bulk(operations=operations, filter_path="items.*.status")
            statuses = [item["create"]["status"] for item in done["items"]]
        bad = [status for status in statuses if status not in {_CREATED, _THERE}]
        if bad:
            what = f"{len(bad)} events of {log} (status {bad[0]})"
            raise SearchError(f"{self._search.rejected} did not accept {what}: make that index writable")
        sent.rejected += len(refused)
        offset, error = found.offsets[refused[0][0]], refused[0][1]
        logger.warning(
            "%s: Elasticsearch rejected %d events, which are listed in %s: offset %d: %s: %s",
            log,
            len(refused),
            self._search.rejected,
            offset,
            error.type,
            error.reason[:300],
        )
