"""What an extension inside a GraphQL server adds to the events of a request: it knows what no body shows.

The middleware puts a list into the ASGI scope of a request, and an extension appends to it. Without the middleware
there is no list, and nothing happens.
"""

from collections.abc import Mapping, MutableSequence
from dataclasses import dataclass, field
from typing import Any, Final

SCOPE_KEY: Final = "custody.notes"
"""Where the list is in the scope."""
NOTES: Final = 1_001
"""Notes that are kept of a request: as many as operations of a batch."""


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


def rows_of(data: object) -> int | None:
    """Return the rows of a result's `data`; None if there is none."""
    if not isinstance(data, Mapping):
        return None
    return sum(len(value) if isinstance(value, list | tuple) else value is not None for value in data.values())
