"""Elasticsearch, 8.x or 9.x: the client, what custody keeps there beside the events, and how documents get there.

Beside the daily indices there are two of custody's own: `<prefix>-cursors` says of each log how far it is indexed, so
that a server that was lost, or restored from an old snapshot, says by itself what it lacks; `<prefix>-rejected` says of
each event that Elasticsearch would not take why not, for as long as the event would have been there (`tasks.roll`).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec
from elastic_transport import ConnectionError as NoConnection
from elastic_transport import ConnectionTimeout, SerializationError, TlsError
from elasticsearch import ApiError, Elasticsearch, NotFoundError, UnsupportedProductError
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from custody.errors import ConfigurationError, SearchError
from custody.format.envelope import Int
from custody.format.layout import Log
from custody.format.times import format_time
from tasks.search import documents
from tasks.search.documents import OFFSET, ORIGIN, PARTITION, TOPIC, Documents
from tasks.settings import SearchSettings

REQUEST_SECONDS = 30
PATIENCE_SECONDS = 60
"""How long a bulk request that Elasticsearch is too busy for is sent again."""

_DELETED, _CREATED, _FORBIDDEN, _THERE, _TOO_LARGE, _BUSY = 200, 201, 403, 409, 413, 429
_PAGE = 1000
_BLOCKED = "cluster_block_exception"
_LATER = frozenset({_BUSY, 502, 503, 504})
_NDJSON = {"content-type": "application/x-ndjson", "accept": "application/json"}
_ODDLY_MADE = frozenset({"illegal_argument_exception", "query_shard_exception"})
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


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a log is indexed.

    Attributes:
        sequence: the first statement that is not indexed.
        indexed: events indexed before it.
        rejected: events before it that Elasticsearch did not take.
    """

    sequence: Int = 0
    indexed: Int = 0
    rejected: Int = 0


class Counted(Protocol):
    """What counts documents by what became of them."""

    created: int
    there: int
    rejected: int


@dataclass(slots=True)
class Sent:
    """What became of documents: created now, there already, rejected."""

    created: int = 0
    there: int = 0
    rejected: int = 0

    def add_to(self, total: Counted) -> None:
        """Add this to a sum."""
        total.created += self.created
        total.there += self.there
        total.rejected += self.rejected


@dataclass(frozen=True, slots=True)
class LogDocuments:
    """The documents of one log in an index: how many, and their first and last offset."""

    name: str
    partition: int
    first: int
    last: int
    count: int


class _Busy(Exception):
    """Elasticsearch said: later."""


class Search:
    """One Elasticsearch and the indices of one prefix. Threads may share it."""

    def __init__(self, settings: SearchSettings) -> None:
        """Open the client; nothing is asked yet.

        Raises:
            ConfigurationError: there is no URL, or one that cannot be used.
        """
        if settings.url is None:
            raise ConfigurationError("search.url is not set: it says where Elasticsearch is")
        options: dict[str, Any] = {}
        if settings.api_key is not None:
            options["api_key"] = settings.api_key.get_secret_value()
        if settings.ca_certs is not None:
            options["ca_certs"] = str(settings.ca_certs)
        try:
            self.client = Elasticsearch(
                settings.url, request_timeout=REQUEST_SECONDS, retry_on_timeout=False, max_retries=0, **options
            )
        except (ValueError, OSError) as error:
            raise ConfigurationError(f"search.url cannot be used: {error}") from None
        self.settings = settings
        self.prefix = settings.prefix
        self._size = settings.bulk_bytes

    def close(self) -> None:
        """Let connections go."""
        self.client.close()

    @property
    def cursors(self) -> str:
        """The index of cursors."""
        return f"{self.prefix}-cursors"

    @property
    def rejected(self) -> str:
        """The index of what was not taken."""
        return f"{self.prefix}-rejected"

    def prepare(self) -> None:
        """Set the templates, and make the indices of custody's own; doing it again changes nothing.

        Raises:
            SearchError: Elasticsearch does not answer, or says no.
        """
        settings = {"index": {"number_of_replicas": self.settings.replicas, **documents.ON_HOT_NODES}}
        own = {
            self.cursors: {"log": {"type": "keyword"}, "sealed_at": {"type": "date"}},
            self.rejected: {
                "log": {"type": "keyword"},
                "offset": {"type": "long"},
                "index": {"type": "keyword"},
                "type": {"type": "keyword"},
                "reason": {"type": "text", "index": False},
                "at": {"type": "date"},
            },
        }
        with self.errors("its templates"):
            self.client.indices.put_index_template(
                name=self.prefix, **documents.template(self.prefix, self.settings.replicas)
            )
            for name, properties in own.items():
                if not self.client.indices.exists(index=name):
                    try:
                        self.client.indices.create(
                            index=name, settings=settings, mappings={"dynamic": False, "properties": properties}
                        )
                    except ApiError as error:
                        if error.error != "resource_already_exists_exception":
                            raise

    def cursor(self, archive: str, log: Log) -> Cursor | None:
        """Return how far Elasticsearch says a log is indexed: its word, which whoever may write there can change.

        Returns:
            The cursor; the beginning where there is none, and None where what stands there is no cursor.

        Raises:
            SearchError: Elasticsearch does not answer, or says no.
        """
        with self.errors(f"the cursor of {log}"):
            try:
                found = self.client.get(index=self.cursors, id=_cursor_id(archive, log)).get("_source")
            except NotFoundError:
                return Cursor()
        try:
            return msgspec.convert(found, Cursor)
        except msgspec.ValidationError:
            return None

    def put_cursor(self, archive: str, log: Log, cursor: Cursor, sealed_at: str | None) -> None:
        """Say how far a log is indexed. Of two that index at once the last word counts: what it repeats is there.

        Args:
            archive: its id.
            log: the log.
            cursor: how far.
            sealed_at: when the last statement before it was sealed, None where nobody knows.

        Raises:
            SearchError: Elasticsearch does not take it.
        """
        document = {
            "archive": archive,
            "log": str(log),
            "sequence": cursor.sequence,
            "indexed": cursor.indexed,
            "rejected": cursor.rejected,
            "sealed_at": sealed_at,
            "at": format_time(datetime.now(UTC)),
        }
        with self.errors(f"the cursor of {log}"):
            self.client.index(index=self.cursors, id=_cursor_id(archive, log), document=document)

    def find(self, **asked: Any) -> Mapping[str, Any]:
        """Search all shards of what is asked for, or fail: what some of them hold must not pass for all that there is.

        Elasticsearch by itself answers without the shards that no node holds just now. A shard that cannot answer
        because of how somebody made its index is passed over: it must not keep the others from being looked at.

        Args:
            asked: as the client's `search` takes it.

        Raises:
            SearchError: a shard is on no node, or failed.
            ApiError, TransportError: the client's own; see `errors`.
        """
        answer: Mapping[str, Any] = self.client.search(**asked).body
        shards = answer["_shards"]
        failures = [one for one in shards.get("failures", ()) if one["reason"]["type"] not in _ODDLY_MADE]
        if failures or (shards["successful"] < shards["total"] and not shards["failed"]):
            what = f"{failures[0]['index']}: {failures[0]['reason']['type']}" if failures else "no reason given"
            raise SearchError(
                f"Elasticsearch at {self.settings.url} answers for {shards['successful']} of {shards['total']} shards"
                f" alone ({what}): bring back the node that held the others, or see its log"
            )
        return answer

    def refresh(self, index: str) -> None:
        """Let searches see all that was indexed: what came within the last second is there, and would not be seen.

        Raises:
            SearchError: some shards cannot be refreshed.
            ApiError, TransportError: the client's own; see `errors`.
        """
        # For a shard that no node holds a refresh waits a minute; a search says at once that there is one.
        self.find(index=index, size=0)
        shards = self.client.indices.refresh(index=index)["_shards"]
        if shards["failed"]:
            raise SearchError(
                f"Elasticsearch at {self.settings.url} cannot refresh {shards['failed']} shards of {index}, and does"
                " not show what they hold; see its log, then do this again"
            )

    def logs_in(self, index: str) -> tuple[int, list[LogDocuments]]:
        """Return how many documents of an index do not say where in the archive they are, and the others by log.

        Raises:
            ApiError, TransportError: the client's own; see `errors`.
        """
        self.refresh(index)
        sources = [{"topic": {"terms": {"field": TOPIC}}}, {"partition": {"terms": {"field": PARTITION}}}]
        # By documents and not by values: one that claims two offsets, or two logs, is one.
        placed = {"bool": {"filter": [{"exists": {"field": name}} for name in (TOPIC, PARTITION, OFFSET)]}}
        spans = {"first": {"min": {"field": OFFSET}}, "last": {"max": {"field": OFFSET}}}
        logs = {"composite": {"size": 10_000, "sources": sources}, "aggs": spans}
        # All by one search: documents may come meanwhile.
        answer = self.find(
            index=index,
            size=0,
            track_total_hits=True,
            aggs={"placed": {"filter": placed, "aggs": {"logs": logs}}},
        )
        within = answer["aggregations"]["placed"]
        found = [
            LogDocuments(
                str(bucket["key"]["topic"]),
                int(bucket["key"]["partition"]),
                int(bucket["first"]["value"]),
                int(bucket["last"]["value"]),
                int(bucket["doc_count"]),
            )
            for bucket in within["logs"]["buckets"]
        ]
        return answer["hits"]["total"]["value"] - within["doc_count"], found

    def refused_logs(self) -> dict[str, int]:
        """Return the logs that events were refused of, by name, each with the lowest offset of such an event.

        Raises:
            SearchError: some shards do not answer.
            ApiError, TransportError: the client's own; see `errors`.
        """
        self.refresh(self.rejected)
        logs = {"terms": {"field": "log", "size": 10_000}, "aggs": {"first": {"min": {"field": "offset"}}}}
        found = self.find(index=self.rejected, size=0, query={"exists": {"field": "offset"}}, aggs={"logs": logs})[
            "aggregations"
        ]["logs"]["buckets"]
        return {str(bucket["key"]): int(bucket["first"]["value"]) for bucket in found}

    def count(self, index: str, query: Mapping[str, Any]) -> int:
        """Return how many documents of an index a query finds.

        Raises:
            SearchError: Elasticsearch does not answer, or says no.
        """
        with self.errors(f"a count of {index}"):
            found = self.find(index=index, size=0, track_total_hits=True, query=query)
            return int(found["hits"]["total"]["value"])

    def delete(self, index: str, query: Mapping[str, Any]) -> None:
        """Delete the documents of an index that a query finds.

        Raises:
            SearchError: Elasticsearch does not answer, or does not delete them.
        """
        # By their ids: what deletes by a query is a module that not every server has.
        with self.errors(f"deleting documents of {index}"):
            while True:
                hits = self.find(index=index, size=_PAGE, query=query, source=False, sort=["_doc"])["hits"]["hits"]
                deletes = [{"delete": {"_index": hit["_index"], "_id": hit["_id"]}} for hit in hits]
                if not deletes:
                    return
                done = self.client.bulk(operations=deletes, refresh=True, filter_path="items.*.status")
                if not any(one["delete"]["status"] == _DELETED for one in done["items"]):
                    status = done["items"][0]["delete"]["status"]
                    raise SearchError(
                        f"Elasticsearch at {self.settings.url} does not delete documents of {index} (status {status}):"
                        " see its log, then roll again"
                    )

    def create(self, log: Log, found: Documents) -> Sent:
        """Create documents, in requests of about the size that Elasticsearch has shown to take.

        What it is too busy for is sent again, ever later and in smaller requests; what it will never take, or must not
        be given (`Documents.forged`), goes to the index of rejected events, with the reason, and stops nothing.

        Raises:
            SearchError: it does not answer, is busy for longer than a minute, or refuses the request as a whole.
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
                f"Elasticsearch at {self.settings.url} has been too busy for {PATIENCE_SECONDS} s; the next run goes on"
            ) from None
        self._size = min(self.settings.bulk_bytes, self._size + self._size // 8)

    def _slow_down(self) -> None:
        self._size = max(64 * 1024, self._size // 2)

    def _try(self, log: Log, found: Documents, places: Sequence[int], sent: Sent) -> list[int]:
        """Send one request, and return what is to be sent again."""
        body = b"\n".join([line for place in places for line in (found.actions[place], found.sources[place])]) + b"\n"
        with self.errors(f"events of {log}"):
            try:
                answer = self.client.perform_request(
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
        # What comes late opens the index of its day; the next roll closes it again.
        for name in closed:
            with self.errors(f"the settings of {name}"):
                self.client.indices.put_settings(index=name, settings={"index.blocks.write": None})
        return again

    def _halve(self, log: Log, found: Documents, places: Sequence[int], sent: Sent) -> list[int]:
        if len(places) == 1:
            error = _Error("too_large", f"the document has {len(found.sources[places[0]])} bytes, and is refused whole")
            self._reject(log, found, [(places[0], error)], sent)
            return []
        self._slow_down()
        middle = len(places) // 2
        return [*self._try(log, found, places[:middle], sent), *self._try(log, found, places[middle:], sent)]

    def _reject(self, log: Log, found: Documents, refused: Sequence[tuple[int, _Error]], sent: Sent) -> None:
        """Put what is refused where it is seen, the reason beside it."""
        if not refused:
            return
        operations: list[Any] = []
        for place, error in refused:
            action = msgspec.json.decode(found.actions[place])["create"]
            operations.append({"create": {"_index": self.rejected, "_id": action["_id"]}})
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
        with self.errors(f"the rejected events of {log}"):
            done = self.client.bulk(operations=operations, filter_path="items.*.status")
            statuses = [one["create"]["status"] for one in done["items"]]
        bad = [status for status in statuses if status not in {_CREATED, _THERE}]
        if bad:
            raise SearchError(f"{self.rejected} did not take {len(bad)} events of {log} (status {bad[0]}); free it")
        sent.rejected += len(refused)
        offset, error = found.offsets[refused[0][0]], refused[0][1]
        logger.warning(
            "%s: Elasticsearch refuses %d events, which are in %s: offset %d: %s: %s",
            log,
            len(refused),
            self.rejected,
            offset,
            error.type,
            error.reason[:300],
        )

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turn the client's errors into ours.

        Args:
            what: what was asked for.
        """
        where = f"Elasticsearch at {self.settings.url}"
        try:
            yield
        except (NoConnection, ConnectionTimeout, TlsError) as error:
            raise SearchError(f"{where} does not answer ({type(error).__name__}), asked for {what}") from None
        except ApiError as error:
            raise SearchError(f"{where} says {error.status_code} {error.error} to {what}: {_reason(error)}") from None
        except (
            *(SerializationError, UnsupportedProductError),
            *(msgspec.ValidationError, KeyError, TypeError, ValueError),
        ) as error:
            raise SearchError(f"{where} answers otherwise than Elasticsearch does, to {what}: {error}") from None


def of_log(log: Log) -> list[dict[str, Any]]:
    """Return what a query for a log's documents filters by."""
    return [{"term": {TOPIC: log.name}}, {"term": {PARTITION: log.partition}}]


def below(log: Log, offset: int) -> dict[str, Any]:
    """Return the query for a log's documents of offsets below one."""
    return {"bool": {"filter": [*of_log(log), {"range": {OFFSET: {"lt": offset}}}]}}


def refused_of(log: Log) -> list[dict[str, Any]]:
    """Return what a query for a log's refused events filters by."""
    return [{"term": {"log": str(log)}}]


def refused_below(log: Log, offset: int, since: datetime) -> dict[str, Any]:
    """Return the query for a log's refused events of offsets below one, but for those refused since a moment."""
    lately = {"range": {"at": {"gte": format_time(since)}}}
    return {"bool": {"filter": [*refused_of(log), {"range": {"offset": {"lt": offset}}}], "must_not": [lately]}}


def _cursor_id(archive: str, log: Log) -> str:
    return f"{archive}-{log.name}-{log.partition}"


def _reason(error: ApiError) -> str:
    body = error.body
    cause = body.get("error") if isinstance(body, Mapping) else None
    return str(cause.get("reason") if isinstance(cause, Mapping) else cause or "no reason given")[:300]
