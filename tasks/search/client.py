"""The client of Elasticsearch 8.x or 9.x, with our errors, and searches that need all shards."""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

from elastic_transport import ConnectionError as NoConnection
from elastic_transport import ConnectionTimeout, NodeConfig, SerializationError, TlsError, Urllib3HttpNode
from elasticsearch import ApiError, Elasticsearch, UnsupportedProductError

from custody.errors import ConfigurationError, SearchError, TransientSearchError
from custody.format import limits
from custody.store.protocol import legible
from tasks.settings import SearchSettings

REQUEST_SECONDS = 30
ANSWER_BYTES = 8 * limits.MIB
"""Answers are read up to this size: several times the largest event, and what a parser needs for it is bounded."""
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
_BAD_MAPPING = frozenset({"illegal_argument_exception", "query_shard_exception"})


class AnswerTooLarge(ValueError):
    """An answer has more than `ANSWER_BYTES`."""


class _Node(Urllib3HttpNode):
    """A server whose answers are not read beyond a size. The size of a bulk request's answer follows from our own."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self.pool.urlopen = partial(self._open, self.pool.urlopen)  # type: ignore[method-assign,assignment]

    def _open(self, urlopen: Callable[..., Any], method: str, target: str, **options: Any) -> SimpleNamespace:
        limit = None if target.endswith("/_bulk") else ANSWER_BYTES + 1
        response = urlopen(method, target, preload_content=False, **options)
        try:
            data = response.read(limit)
            if limit is not None and len(data) == limit:
                response.close()
                raise AnswerTooLarge(f"an answer of more than {ANSWER_BYTES:,} bytes")
        finally:
            response.release_conn()
        return SimpleNamespace(status=response.status, headers=response.headers, data=data)


class Search:
    """One Elasticsearch and the indices of one prefix. Threads may share it."""

    def __init__(self, settings: SearchSettings) -> None:
        """Open the client; no request is made yet.

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
                request_timeout=REQUEST_SECONDS,
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
        self.skipped: set[str] = set()
        """Indices of which a shard could not answer a search, because of what the index is."""

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

        By default Elasticsearch leaves out unassigned shards. A shard that cannot answer because of its index's
        mapping or settings is skipped, so that one odd index does not block the others. `skipped` says which.

        Args:
            asked: parameters of the client's `search`. If they name the alias, `chosen` counts.

        Raises:
            TransientSearchError: a shard is unassigned, or failed.
            ApiError, TransportError: the client's own; see `errors`.
        """
        answer = self._answer(asked)
        shards = answer["_shards"]
        failures = []
        for failure in shards.get("failures", ()):
            if failure["reason"]["type"] in _BAD_MAPPING:
                self.skipped.add(failure["index"])
            else:
                failures.append(failure)
        if failures or shards["successful"] + shards["failed"] < shards["total"]:
            reason = f"{failures[0]['index']}: {failures[0]['reason']['type']}" if failures else "no reason given"
            raise TransientSearchError(
                f"Elasticsearch at {self.settings.url} answers for only {shards['successful']} of {shards['total']}"
                f" shards ({reason}): start the node that held the others, or see its log"
            )
        return answer

    def _answer(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
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
            if "error" in answer:
                reason = _reason(answer)
                refused = f" (refused to {self.caller()})" if answer["status"] in REFUSED else ""
                raise SearchError(f"Elasticsearch at {self.settings.url} answers {answer['status']}: {reason}{refused}")
        return answer

    def refresh(self, index: str) -> None:
        """Make all indexed documents visible to searches, also those of the last second.

        Raises:
            TransientSearchError: some shards cannot be refreshed.
            ApiError, TransportError: the client's own; see `errors`.
        """
        # A refresh waits a minute for an unassigned shard; a search fails at once.
        self.find(index=index, size=0)
        shards = self.client.indices.refresh(index=index)["_shards"]
        if shards["failed"]:
            raise TransientSearchError(
                f"Elasticsearch at {self.settings.url} cannot refresh {shards['failed']} shards of {index}, so their"
                " newest documents are not visible: see its log, then try again"
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
            raise TransientSearchError(f"{subject}: {server} does not answer ({type(error).__name__})") from None
        except ApiError as error:
            status = f"{error.status_code} {error.error}"
            kind = TransientSearchError if error.status_code in LATER else SearchError
            refused = f" (refused to {self.caller()})" if error.status_code in REFUSED else ""
            raise kind(f"{subject}: {server} answers {status}: {_reason(error.body)}{refused}") from None
        # A document nested deeper than Python's parser goes is a RecursionError.
        except _ODD_ANSWER as error:
            raise SearchError(f"{subject}: {server} does not answer like an Elasticsearch: {error!r}"[:500]) from None


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
