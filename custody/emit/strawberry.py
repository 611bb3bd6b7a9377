"""Tells the audit middleware what Strawberry ran: `Schema(query=Query, extensions=[AuditExtension])`.

Give the class, not an instance. It adds the text of a persisted query, the operation's type, and the exact rows.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from strawberry.extensions import SchemaExtension

from custody.emit.notes import Note, add_note, rows_of

__all__ = ["AuditExtension"]


class AuditExtension(SchemaExtension):
    """Adds a note to the request's events for each operation."""

    def on_operation(self) -> Iterator[None]:
        """Run an operation, and add the note, however it ended."""
        try:
            yield
        finally:
            scope = self._scope()
            if scope is not None:
                add_note(scope, self._note())

    def complexity(self) -> int | None:
        """Return the operation's cost, as your server computes it; None for custody's own. For a subclass."""
        return None

    def _note(self) -> Note:
        context = self.execution_context
        parsed = context.graphql_document is not None
        kind = name = None
        if parsed:
            try:
                kind, name = context.operation_type.value.lower(), context.operation_name
            except Exception:  # noqa: BLE001
                # The name is not one of the document's: nothing ran.
                kind = None
        return Note(context.query, name, kind, self.complexity(), rows_of(getattr(context.result, "data", None)))

    def _scope(self) -> Mapping[str, Any] | None:
        """Return the ASGI scope: Strawberry's context has the request, as an item or an attribute."""
        context = self.execution_context.context
        request = context.get("request") if isinstance(context, Mapping) else getattr(context, "request", None)
        return getattr(request, "scope", None)
