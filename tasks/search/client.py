"""The client of Elasticsearch 8.x or 9.x, with our errors, and searches that need all shards."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from elastic_transport import ConnectionError as NoConnection
from elastic_transport import ConnectionTimeout, SerializationError, TlsError
from elasticsearch import ApiError, Elasticsearch, UnsupportedProductError

from custody.errors import ConfigurationError, SearchError
from tasks.settings import SearchSettings

REQUEST_SECONDS = 30
_BAD_MAPPING = frozenset({"illegal_argument_exception", "query_shard_exception"})


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
                settings.url, request_timeout=REQUEST_SECONDS, retry_on_timeout=False, max_retries=0, **options
            )
        except (ValueError, OSError) as error:
            raise ConfigurationError(f"search.url cannot be used: {error}") from None
        self.settings = settings
        self.prefix = settings.prefix
        self.cursors, self.rejected = f"{self.prefix}-cursors", f"{self.prefix}-rejected"
        """The index of cursors, and that of rejected events."""

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def find(self, **asked: Any) -> Mapping[str, Any]:
        """Search all shards, or fail: an incomplete answer must not look complete.

        By default Elasticsearch leaves out unassigned shards. A shard that cannot answer because of its index's
        mapping is skipped, so that one odd index does not block the others.

        Args:
            asked: parameters of the client's `search`.

        Raises:
            SearchError: a shard is unassigned, or failed.
            ApiError, TransportError: the client's own; see `errors`.
        """
        answer: Mapping[str, Any] = self.client.search(**asked).body
        shards = answer["_shards"]
        failures = [failure for failure in shards.get("failures", ()) if failure["reason"]["type"] not in _BAD_MAPPING]
        if failures or (shards["successful"] < shards["total"] and not shards["failed"]):
            reason = f"{failures[0]['index']}: {failures[0]['reason']['type']}" if failures else "no reason given"
            raise SearchError(
                f"Elasticsearch at {self.settings.url} answers for only {shards['successful']} of {shards['total']}"
                f" shards ({reason}): start the node that held the others, or see its log"
            )
        return answer

    def refresh(self, index: str) -> None:
        """Make all indexed documents visible to searches, also those of the last second.

        Raises:
            SearchError: some shards cannot be refreshed.
            ApiError, TransportError: the client's own; see `errors`.
        """
        # A refresh waits a minute for an unassigned shard; a search fails at once.
        self.find(index=index, size=0)
        shards = self.client.indices.refresh(index=index)["_shards"]
        if shards["failed"]:
            raise SearchError(
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
    def errors(self, what: str) -> Iterator[None]:
        """Raise the client's errors as ours.

        Args:
            what: what the request is about.
        """
        server = f"Elasticsearch at {self.settings.url}"
        try:
            yield
        except (NoConnection, ConnectionTimeout, TlsError) as error:
            raise SearchError(f"{what}: {server} does not answer ({type(error).__name__})") from None
        except ApiError as error:
            status = f"{error.status_code} {error.error}"
            raise SearchError(f"{what}: {server} answers {status}: {_reason(error)}") from None
        except (SerializationError, UnsupportedProductError, KeyError, TypeError, ValueError) as error:
            raise SearchError(f"{what}: {server} does not answer like an Elasticsearch: {error}") from None


def _reason(error: ApiError) -> str:
    body = error.body
    cause = body.get("error") if isinstance(body, Mapping) else None
    return str(cause.get("reason") if isinstance(cause, Mapping) else cause or "no reason given")[:300]
