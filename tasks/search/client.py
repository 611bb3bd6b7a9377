"""The client of Elasticsearch 8.x or 9.x, with our errors, and searches that need all shards."""

import base64
import io
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPResponse
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from elastic_transport import ConnectionError as NoConnection
from elastic_transport import ConnectionTimeout, NodeConfig, SerializationError, TlsError, Urllib3HttpNode
from elasticsearch import ApiError, Elasticsearch, UnsupportedProductError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from custody.errors import ConfigurationError, SearchError, TransientSearchError, legible
from custody.format import limits
from custody.store import retries
from tasks.settings import SearchSettings

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

DOWN = "check that it runs, and search.url"
"""What to do about a server that does not answer. Errors end with it, after a colon."""
REQUEST_SECONDS = 30
REACH_SECONDS = 3.0
"""How long a server may take for the first, smallest answer."""
ANSWER_BYTES = 8 * limits.MIB
"""Answers are read up to this size: several times the largest event, and what a parser needs for it is bounded. A bulk
request whose answer is larger is sent again in halves."""
LATER = frozenset({429, 502, 503, 504})
"""Statuses of a server that is busy, or not there for now."""
REFUSED = frozenset({401, 403})
"""Statuses of a server that refuses this client."""
_ODD_ANSWER = (
    SerializationError,
    UnsupportedProductError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
)
_BUSY = 429
_BUSY_ERRORS = frozenset({"circuit_breaking_exception", "es_rejected_execution_exception"})
_BUSY_TRIES = 4
"""How often a search is made while Elasticsearch has no memory or no threads for it, over about two seconds."""
_MISSING = 404
_REFRESHED = 20
"""Indices that are refreshed at once: a path has room for their names."""
_BAD_MAPPING = frozenset({"illegal_argument_exception", "query_shard_exception"})


def count_busy(_: RetryCallState) -> None:
    """Count a request that is made again because Elasticsearch was too busy for it, whatever words it had for that."""
    retries.count("elasticsearch", str(_BUSY))


class AnswerTooLarge(ValueError):
    """An answer has more than `ANSWER_BYTES`."""


class Unreachable(TransientSearchError):
    """No connection to Elasticsearch can be made: nothing answers where it should be."""


class _BusyError(TransientSearchError):
    """Elasticsearch has no memory or no threads for a request at the moment."""


class _Timed(io.RawIOBase):
    """What is received until a deadline. A socket's own timeout begins again with each byte."""

    def __init__(self, sock: Any, received: io.RawIOBase) -> None:
        self._sock, self._received = sock, received
        # A connection has the rest of the request's time as its timeout when its response begins.
        self._deadline = time.monotonic() + (sock.gettimeout() or REQUEST_SECONDS)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the response takes too long")
        self._sock.settimeout(left)
        return self._received.readinto(buffer)

    def close(self) -> None:
        self._received.close()
        super().close()


class _Response(HTTPResponse):
    """A response of which all, from its first line to its last byte, must come within one timeout."""

    def __init__(self, sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Timed(sock, self.fp.detach()))


class _Node(Urllib3HttpNode):
    """A server whose answers are not read beyond a size, nor for longer than one timeout."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        made = self.pool.ConnectionCls
        self.pool.ConnectionCls = type(made.__name__, (made,), {"response_class": _Response})
        self.pool.urlopen = partial(self._open, self.pool.urlopen)  # type: ignore[method-assign,assignment]

    def _open(self, urlopen: Callable[..., Any], method: str, target: str, **options: Any) -> SimpleNamespace:
        limit = ANSWER_BYTES + 1
        response = urlopen(method, target, preload_content=False, **options)
        try:
            data = response.read(limit)
            if len(data) == limit:
                # The error's frames live until the next collection, and must not hold what was read.
                del data
                response.close()
                raise AnswerTooLarge(f"an answer of more than {ANSWER_BYTES:,} bytes")
        finally:
            response.release_conn()
        return SimpleNamespace(status=response.status, headers=response.headers, data=data)


class Search:
    """One Elasticsearch and the indices of one prefix. Threads may share it."""

    def __init__(self, settings: SearchSettings, seconds: float = REQUEST_SECONDS) -> None:
        """Open the client; no request is made yet.

        Args:
            settings: the settings.
            seconds: the longest that one response may take, from its first byte to its last.

        Raises:
            ConfigurationError: the URL is missing or invalid.
        """
        if settings.url is None:
            raise ConfigurationError("search.url is not set: set it to the URL of Elasticsearch")
        options: dict[str, Any] = {}
        if settings.api_key is not None:
            options["api_key"] = settings.api_key.get_secret_value()
        if settings.ca_certs is not None:
            options["ca_certs"] = str(settings.ca_certs)
        try:
            self.client = Elasticsearch(
                settings.url,
                node_class=_Node,
                request_timeout=seconds,
                retry_on_timeout=False,
                max_retries=0,
                **options,
            )
        except (ValueError, OSError) as error:
            raise ConfigurationError(f"search.url cannot be used: {error}") from None
        self.settings = settings
        self.prefix = settings.prefix
        self.cursors, self.rejected = f"{self.prefix}-cursors", f"{self.prefix}-rejected"
        """The index of cursors, and that of rejected events."""
        self.chosen: Sequence[str] | None = None
        """The indices that searches of the alias are made in; all behind it if None."""
        self.unassigned: Collection[str] = ()
        """Indices with a shard on no node. Audits look for them: whether an event is in one cannot be known."""
        self.skipped: set[str] | None = None
        """Indices of which a shard could not answer a search, because of what the index is. If None, searches fail
        then: only those who report what was left out may leave it out."""

    def reach(self) -> None:
        """Check that Elasticsearch answers within `REACH_SECONDS`, whatever it answers.

        Otherwise a command would wait `REQUEST_SECONDS` for a server that takes connections, and no request.

        Raises:
            TransientSearchError: it does not answer.
        """
        # Whatever else it answers, the next request says what is wrong with it.
        with suppress(ApiError, *_ODD_ANSWER):
            try:
                self.client.options(request_timeout=REACH_SECONDS).info()
            except ConnectionTimeout:
                raise TransientSearchError(
                    f"Elasticsearch at {self.settings.url} does not answer within {REACH_SECONDS:.0f} s: {DOWN}"
                ) from None
            except (NoConnection, TlsError):
                # It is refused at once, in the words of each step.
                return

    def caller(self) -> str:
        """Return who this client is, for errors: the id of its API key, and never the key."""
        key = self.settings.api_key
        if key is None:
            return "a client without an API key: set search.api_key"
        try:
            name = base64.b64decode(key.get_secret_value(), validate=True).partition(b":")
            known = name[0].decode("ascii") if name[1] else ""
        except ValueError:
            known = ""
        return f"API key {legible(known)} of search.api_key" if known else "the API key of search.api_key"

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def find(self, **asked: Any) -> Mapping[str, Any]:
        """Search all shards, or fail: an incomplete answer must not look complete.

        By default Elasticsearch leaves out unassigned shards. A shard that cannot answer because of its index's mapping
        or settings may be left out, so that one odd index does not block the others: see `skipped`. While
        Elasticsearch is too busy, the search is made again.

        Args:
            asked: parameters of the client's `search`. If they name the alias, `chosen` counts.

        Raises:
            TransientSearchError: a shard is unassigned, or failed. Or Elasticsearch is too busy, or ran out of time.
            SearchError: an index cannot be searched, or an aggregation has more buckets than were asked for.
            ApiError, TransportError: the client's own; see `errors`.
        """
        # Otherwise whoever can set the cluster's search.default_search_timeout could end each search at once.
        asked.setdefault("timeout", f"{REQUEST_SECONDS}s")
        again = retry_if_exception_type(_BusyError)
        wait = wait_random_exponential(multiplier=0.2, max=2)
        tries = stop_after_attempt(_BUSY_TRIES)
        for attempt in Retrying(stop=tries, wait=wait, retry=again, reraise=True, before_sleep=count_busy):
            with attempt:
                answer = self._answer(asked)
                self._check_complete(answer)
        return answer

    def _check_complete(self, answer: Mapping[str, Any]) -> None:
        server, shards = f"Elasticsearch at {self.settings.url}", answer["_shards"]
        failures = []
        for failure in shards.get("failures", ()):
            if failure["reason"]["type"] not in _BAD_MAPPING:
                failures.append(failure)
            elif self.skipped is not None:
                self.skipped.add(failure["index"])
            else:
                reason = legible(f"{failure['reason']['type']}: {failure['reason'].get('reason')}")
                raise SearchError(
                    f"{server} cannot search the index {failure['index']} ({reason}): see its mapping and settings"
                )
        if failures or shards["successful"] + shards["failed"] < shards["total"]:
            kinds = {failure["reason"]["type"] for failure in failures}
            reason = f"{failures[0]['index']}: {failures[0]['reason']['type']}" if failures else "no reason given"
            raise (_BusyError if kinds & _BUSY_ERRORS else TransientSearchError)(
                f"{server} answers for only {shards['successful']} of {shards['total']}"
                f" shards ({reason}): start the node that held the others, or see its log"
            )
        if answer.get("timed_out"):
            raise TransientSearchError(
                f"{server} did not look at all documents within {REQUEST_SECONDS} s: see what keeps it busy"
            )
        if name := _cut_off(answer.get("aggregations", {})):
            raise SearchError(f"{server} has more {name} than can be listed: see who wrote its documents")

    def _answer(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            if self.chosen is None or asked["index"] != self.prefix:
                answer: Mapping[str, Any] = self.client.search(**asked).body
            elif not self.chosen:
                answer = self.client.search(**{**asked, "index": f"{self.prefix}-none"}).body
            else:
                # The names of all indices may be longer than the path of a request may be.
                body = {name: value for name, value in asked.items() if name != "index" and value is not None}
                if "source" in body:
                    body["_source"] = body.pop("source")
                answer = self.client.msearch(searches=[{"index": list(self.chosen)}, body])["responses"][0]
        except ApiError as error:
            if error.status_code == _BUSY:
                raise self._error(error.status_code, error.body) from None
            raise
        if "error" in answer:
            raise self._error(answer["status"], answer)
        return answer

    def _error(self, status: int, body: object) -> SearchError:
        """Return the error for a search that was not made. It says nothing about the data if it may be made later."""
        kind: type[SearchError] = SearchError
        if status == _BUSY:
            kind = _BusyError
        elif status in LATER or status == _MISSING:
            # A chosen index that is missing was deleted meanwhile.
            kind = TransientSearchError
        return kind(f"Elasticsearch at {self.settings.url} answers {status}: {_reason(body)}{self._refused(status)}")

    def _refused(self, status: int) -> str:
        """Return who was refused, for the end of an error; nothing for another status."""
        return f" (refused to {self.caller()})" if status in REFUSED else ""

    def refresh(self, index: str) -> None:
        """Make all indexed documents visible to searches, also those of the last second.

        Args:
            index: the indices. If it is the alias, `chosen` counts.

        Raises:
            TransientSearchError: some shards cannot be refreshed.
            ApiError, TransportError: the client's own; see `errors`.
        """
        # A refresh waits a minute for an unassigned shard; a search fails at once.
        self.find(index=index, size=0)
        chosen = [index] if self.chosen is None or index != self.prefix else self.chosen
        for start in range(0, len(chosen), _REFRESHED):
            part = ",".join(chosen[start : start + _REFRESHED])
            failed = self.client.indices.refresh(index=part)["_shards"]["failed"]
            if failed:
                raise TransientSearchError(
                    f"Elasticsearch at {self.settings.url} cannot refresh {failed} shards of {index}, so their newest"
                    " documents are not visible: see its log, then try again"
                )

    def create_index(self, name: str, **body: Any) -> None:
        """Create an index, unless it exists.

        Raises:
            ApiError, TransportError: the client's own; see `errors`.
        """
        try:
            self.client.indices.create(index=name, **body)
        except ApiError as error:
            if error.error != "resource_already_exists_exception":
                raise

    @contextmanager
    def errors(self, subject: str) -> Iterator[None]:
        """Raise the client's errors as ours.

        Args:
            subject: what the request is about.
        """
        server = f"Elasticsearch at {self.settings.url}"
        try:
            yield
        except (NoConnection, ConnectionTimeout, TlsError) as error:
            missing = isinstance(error.__cause__, NewConnectionError | ConnectTimeoutError)
            raise (Unreachable if missing else TransientSearchError)(
                f"{subject}: {server} does not answer ({type(error).__name__}): {DOWN}"
            ) from None
        except ApiError as error:
            status = f"{error.status_code} {error.error}"
            kind = TransientSearchError if error.status_code in LATER else SearchError
            refused = self._refused(error.status_code)
            raise kind(f"{subject}: {server} answers {status}: {_reason(error.body)}{refused}") from None
        # A document nested deeper than Python's parser goes is a RecursionError.
        except _ODD_ANSWER as error:
            raise SearchError(f"{subject}: {server} does not answer like an Elasticsearch: {error!r}"[:500]) from None


def _cut_off(aggregations: Mapping[str, Any]) -> str:
    """Return the name of an aggregation, at any depth, that leaves documents out; empty if none does."""
    for name, value in aggregations.items():
        if not isinstance(value, Mapping):
            continue
        if value.get("sum_other_doc_count"):
            return name
        if inner := _cut_off(value):
            return inner
    return ""


def _reason(body: object) -> str:
    """Return the reason, and the deepest cause: that one names what is in the way."""
    cause = body.get("error") if isinstance(body, Mapping) else None
    reasons = []
    while isinstance(cause, Mapping):
        reasons.append(str(cause.get("reason")))
        cause = cause.get("caused_by")
    return ": ".join(map(legible, dict.fromkeys(reasons[:1] + reasons[-1:]))) or legible(
        str(cause or "no reason given")
    )
