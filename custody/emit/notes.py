"""What an extension inside a GraphQL server adds to the events of a request: it knows what no body shows.

The middleware puts a list into the ASGI scope of a request, and an extension appends to it. Without the middleware
there is no list, and nothing happens.
"""

from collections.abc import Callable, Mapping, MutableSequence
from dataclasses import dataclass, field
from typing import Any, Final

from custody.emit.quiet import QuietLog
from custody.format.limits import INT_MAX

SCOPE_KEY: Final = "custody.notes"
"""Where the list is in the scope."""
NOTES: Final = 1_001
"""Notes that are kept of a request: as many as operations of a batch."""

_quiet = QuietLog()


@dataclass(frozen=True, slots=True)
class Note:
    """What is known of one operation that was executed.

    Attributes:
        document: its text, also where the request had only a hash. It has a user's values, so it is in no repr.
        operation_name: its name, as the server took it.
        operation_type: query, mutation or subscription.
        complexity: as the application computes it; None if custody's own is to be used.
        rows: of its result, as `graphql.result_rows` counts them.
    """

    document: str | None = field(default=None, repr=False)
    operation_name: str | None = None
    operation_type: str | None = None
    complexity: int | None = None
    rows: int | None = None


def add_note(scope: Mapping[str, Any], note: Note) -> None:
    """Add a note to the request's events, if the middleware audits the request."""
    notes: MutableSequence[Note] | None = scope.get(SCOPE_KEY)
    if notes is not None and len(notes) < NOTES:
        notes.append(note)


def complexity_of(compute: Callable[[], object]) -> int | None:
    """Return what an application's own `complexity` computes; None if it raises, or returns what no event may have.

    The client's answer must not suffer from it: the event has custody's own complexity then.
    """
    try:
        complexity = compute()
    except Exception as error:  # noqa: BLE001
        # Its text may have a user's values.
        _quiet.warn("raised", f"`complexity` raised {type(error).__name__}: events have custody's own")
        return None
    if complexity is None:
        return None
    if type(complexity) is int and 0 <= complexity <= INT_MAX:
        return complexity
    _quiet.warn("unusable", f"`complexity` returned a {type(complexity).__name__} that is no number from 0 to 2^63-1")
    return None


def rows_of(data: object) -> int | None:
    """Return the rows of a result's `data`; None if there is none."""
    if not isinstance(data, Mapping):
        return None
    return sum(len(value) if isinstance(value, list | tuple) else value is not None for value in data.values())
