"""Elasticsearch, 8.x or 9.x: the client, its errors as ours, and searches that ask all shards."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from elastic_transport import ConnectionError as NoConnection
from elastic_transport import ConnectionTimeout, SerializationError, TlsError
from elasticsearch import ApiError, Elasticsearch, UnsupportedProductError

from custody.errors import ConfigurationError, SearchError
from tasks.settings import SearchSettings

REQUEST_SECONDS = 30
_ODDLY_MADE = frozenset({"illegal_argument_exception", "query_shard_exception"})


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

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    @property
    def cursors(self) -> str:
        """The index of cursors."""
        return f"{self.prefix}-cursors"

    @property
    def rejected(self) -> str:
        """The index of what was not taken."""
        return f"{self.prefix}-rejected"

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
        """Make all that was indexed visible to searches; what came within the last second is not yet.

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


def _reason(error: ApiError) -> str:
    body = error.body
    cause = body.get("error") if isinstance(body, Mapping) else None
    return str(cause.get("reason") if isinstance(cause, Mapping) else cause or "no reason given")[:300]
