"""Counts the calls to servers that this process made again, for the metric `custody_retries_total`.

Whoever makes a call again calls `count`; botocore, which retries by itself, is followed by `follow`. An error's type is
an HTTP status, or the name of a class or of an error code: never text of a server, so there are few.
"""

import threading
from collections import Counter
from typing import Any, Literal

Backend = Literal["elasticsearch", "kafka", "kms", "s3"]
Retries = Counter[tuple[Backend, str]]
"""How many calls were made again, by the server and the type of the error before."""

_REMEMBERED = "custody_error"
_lock = threading.Lock()
_counts: Retries = Counter()


def count(backend: Backend, error_type: str) -> None:
    """Count one call that is made again.

    Args:
        backend: the server that is called.
        error_type: why, from a bounded set: a status, or the name of a class or code.
    """
    with _lock:
        _counts[backend, error_type] += 1


def add(counts: Retries) -> None:
    """Add what another process counted for this one."""
    with _lock:
        _counts.update(counts)


def take() -> Retries:
    """Return the counts since the last call, and begin again at 0."""
    with _lock:
        taken = Counter(_counts)
        _counts.clear()
    return taken


def type_of(error: BaseException) -> str:
    """Return the type of an error of ours: the HTTP status of the answer behind it, else the class of its cause."""
    # Ours are raised `from None`, so `__context__` alone has the cause.
    cause = error.__context__ or error
    answer = getattr(cause, "response", None)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    return str(status) if isinstance(status, int) else type(cause).__name__.lstrip("_")


def follow(client: Any, backend: Backend) -> None:
    """Count the calls that a client of boto3 makes again by itself.

    botocore asks after each attempt whether to make another one. So when it asks after the second attempt, the first
    one was retried.

    Args:
        client: the client.
        backend: the server that it calls.
    """

    def asked(
        request_dict: dict[str, Any], attempts: int, response: Any = None, caught_exception: Any = None, **_: Any
    ) -> None:
        context = request_dict["context"]
        if attempts > 1 and _REMEMBERED in context:
            count(backend, context[_REMEMBERED])
        if caught_exception is not None:
            context[_REMEMBERED] = type(caught_exception).__name__
        elif response is not None:
            context[_REMEMBERED] = str(response[0].status_code)

    client.meta.events.register(f"needs-retry.{client.meta.service_model.service_name}", asked)
