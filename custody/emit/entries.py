"""Makes events of what other servers post: entries of FraiseQL 2's audit log, and events in custody's own shapes.

- An entry with `event_type` is an event. A `query_executed` may have the text of its `query` instead of the hash.
- An entry of FraiseQL 2 (`AuditEntry`) becomes a `query_executed`. Its text of a query becomes hashes, its variables
  and the text of its error are dropped: they have what users typed.
- FraiseQL's `id` is the number of an entry, not of a request. So it becomes `origin_id`, and `request_id` is ours. The
  `event_id` is made of the entry, so that an entry that was posted twice has it twice.
- What FraiseQL does not know is said to be unknown: `result_rows_exact` and `execution_time_exact` are false.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID, uuid5

from custody.emit.address import Peer, Proxies
from custody.emit.builders import AuditEvent, own, query_executed
from custody.emit.errors import AuditError
from custody.emit.forks import ForkLock
from custody.emit.graphql import Analysis, Analyzer, clean_name
from custody.emit.identity import uuid7
from custody.emit.operations import Operation, operation
from custody.emit.signatures import SignatureTexts

MapEntry = Callable[[Mapping[str, Any]], AuditEvent | None]
"""An application's own mapping: returns the event of a decoded entry, or None for one that is mapped as usual."""

_FRAISEQL: Final = frozenset(("timestamp", "operation", "query"))
"""What every entry of FraiseQL 2 has."""
_SPACE: Final = UUID("6f1f9d1e-4b53-5d0c-9a86-0f6a8e1f2c10")
"""The namespace of ids that are made of entries. Another one would give entries that are posted again another id."""
_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LEVELS: Final = frozenset(("INFO", "WARN", "ERROR"))
_OPERATIONS: Final = frozenset(("query", "mutation", "subscription"))
_NO_PROXIES: Final = Proxies()


class Entries:
    """Maps entries to events. Any thread may use it."""

    def __init__(self, map_entry: MapEntry | None = None) -> None:
        """Set up; `map_entry` is asked first."""
        self._map_entry = map_entry
        self._analyzer, self._texts = Analyzer(), SignatureTexts()
        self._lock = ForkLock()

    def event(self, entry: object) -> AuditEvent:
        """Return the event of a decoded entry.

        Raises:
            AuditError: it is none. The text has no value of the entry (`Serialization`).
        """
        if not isinstance(entry, dict):
            raise AuditError("Serialization", "the entry is not an object")
        mapped = self._mapped(entry)
        if mapped is not None:
            return mapped
        if "event_type" in entry:
            return self._own(entry)
        if entry.keys() >= _FRAISEQL:
            return self._fraiseql(entry)
        raise AuditError("Serialization", "event_type is missing, and this is no audit entry of FraiseQL")

    def _mapped(self, entry: dict[str, Any]) -> AuditEvent | None:
        """Return what the application's mapping makes of an entry.

        Raises:
            AuditError: it refuses the entry, fails, or returns something else.
        """
        if self._map_entry is None:
            return None
        refusal = ""
        try:
            event: object = self._map_entry(entry)
            if event is None or isinstance(event, AuditEvent):
                return event
            refusal = f"mapping it returned {type(event).__name__}, not an event"
        except AuditError as error:
            refusal = str(error)
        except Exception as error:  # noqa: BLE001 - an application's function may raise anything
            # Its text may have a value of the entry.
            refusal = f"mapping it raised {type(error).__name__}"
        # Raised here, so that the error has no context: that one may have values.
        raise AuditError("Serialization", refusal)

    def _own(self, entry: Mapping[str, Any]) -> AuditEvent:
        fields = dict(entry)
        kind, timestamp, event_id = (fields.pop(name, None) for name in ("event_type", "timestamp", "event_id"))
        if not isinstance(kind, str):
            raise AuditError("Serialization", "event_type is not a string")
        if kind == "query_executed":
            fields.pop("variables", None)
            if "query" in fields:
                analysis, measures = self._analyze(fields.pop("query"), fields.get("operation_name"))
                computed = {"query_hash": analysis.query_hash, "complexity": analysis.complexity, **measures}
                fields = {**computed, **fields}
        return own(kind, timestamp=timestamp, event_id=event_id, **fields)

    def _fraiseql(self, entry: Mapping[str, Any]) -> AuditEvent:
        analysis, measures = self._analyze(entry["query"], None)
        client = _NO_PROXIES.client(Peer(_text(entry.get("ip_address"))), ())
        duration, kind, level = entry.get("duration_ms"), entry["operation"], entry.get("level")
        failed = entry.get("error") is not None
        more = {
            "client_ip_source": "unknown" if client.source == "unknown" else "sender",
            "status": "errors" if failed else "ok",
            "errors": 1 if failed else None,
            "result_rows_exact": False,
            "execution_time_exact": False if duration is None else None,
            "user_id": _number_or_text(entry.get("user_id")),
            "tenant_id": _number_or_text(entry.get("tenant_id")),
            "user_agent": _text(entry.get("user_agent")) or None,
            "level": level if isinstance(level, str) and level in _LEVELS else None,
            "origin": "fraiseql",
            "origin_id": _number_or_text(entry.get("id")),
            "origin_hash": _hash(entry.get("integrity_hash")),
            "origin_previous_hash": _hash(entry.get("previous_hash")),
            **measures,
        }
        if isinstance(kind, str) and kind in _OPERATIONS:
            more["operation_type"] = kind
        return query_executed(
            request_id=uuid7(),
            api_key_id=None,
            client_ip=client.ip,
            query_hash=analysis.query_hash,
            complexity=analysis.complexity,
            execution_time=0 if duration is None else duration,
            result_rows=0,
            timestamp=entry["timestamp"],
            event_id=_entry_id(entry),
            **{name: value for name, value in more.items() if value is not None},
        )

    def _analyze(self, document: object, name: object) -> tuple[Analysis, dict[str, Any]]:
        """Return the analysis of a query, and the further fields that it gives, as the middleware names them."""
        read: Operation = operation({"query": document, "operationName": name})
        with self._lock.here:
            analysis = self._analyzer.analyze(read)
            signature = self._texts.first(analysis)
        fields = {
            "query_hash_of": analysis.hashed,
            "query_signature": signature,
            "document_hash": analysis.document_hash,
            "operation_type": analysis.operation_type,
            "operation_name": analysis.operation_name,
            "aliases": analysis.aliases,
            "root_fields": analysis.root_fields,
            "depth": analysis.depth,
            "introspection": analysis.introspection or None,
        }
        return analysis, {name: value for name, value in fields.items() if value is not None}


def _entry_id(entry: Mapping[str, Any]) -> str | None:
    """Return the id of an entry's event: the same for the same entry. None if nothing tells it from others."""
    identity, digest = _number_or_text(entry.get("id")), _hash(entry.get("integrity_hash"))
    if identity is None and digest is None:
        return None
    parts = (identity, digest, entry["timestamp"], entry.get("tenant_id"), entry.get("user_id"))
    return str(uuid5(_SPACE, repr(parts).encode("utf-8", "replace").decode()))


def _text(value: object) -> str | None:
    """Return a text as an event may have it: not empty, and short."""
    return clean_name(value) if isinstance(value, str) else None


def _number_or_text(value: object) -> int | str | None:
    """Return an id as FraiseQL has it, a number, or as text. None if it is neither."""
    return value if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _hash(value: object) -> str | None:
    return value if isinstance(value, str) and _HASH.fullmatch(value) else None
