"""Tells the audit middleware what Ariadne ran: `GraphQL(schema, http_handler=AuditHTTPHandler(...))`.

An extension of Ariadne sees neither the text nor the result. Its handler does, and is the one place that queries over
HTTP and WebSocket go through.
"""

from typing import Any

from ariadne.asgi.handlers import GraphQLHTTPHandler
from ariadne.types import GraphQLResult
from graphql import DocumentNode
from graphql.utilities import get_operation_ast

from custody.emit.notes import Note, add_note, rows_of

__all__ = ["AuditHTTPHandler"]


class AuditHTTPHandler(GraphQLHTTPHandler):
    """Adds a note to the request's events for each operation."""

    async def execute_graphql_query(
        self,
        request: Any,
        data: Any,
        *,
        context_value: Any = None,
        query_document: DocumentNode | None = None,
    ) -> GraphQLResult:
        """Run an operation, and add the note, however it ended."""
        result: GraphQLResult | None = None
        try:
            result = await super().execute_graphql_query(
                request, data, context_value=context_value, query_document=query_document
            )
        finally:
            scope = getattr(request, "scope", None)
            if scope is not None:
                add_note(scope, self._note(data, result, query_document))
        return result

    def complexity(self, data: Any, result: GraphQLResult | None) -> int | None:  # noqa: ARG002
        """Return the operation's cost, as your server computes it; None for custody's own. For a subclass."""
        return None

    def _note(self, data: Any, result: GraphQLResult | None, document: DocumentNode | None) -> Note:
        fields = data if isinstance(data, dict) else {}
        text, name = fields.get("query"), fields.get("operationName")
        name = name if isinstance(name, str) else None
        operation = None if document is None else get_operation_ast(document, name)
        return Note(
            document=text if isinstance(text, str) else None,
            operation_name=name,
            operation_type=None if operation is None else operation.operation.value,
            complexity=self.complexity(data, result),
            rows=None if result is None else rows_of(result[1].get("data")),
        )
