"""Events of an application's own types: fields of any name, whose types differ, and clash with custody's."""

import json
from typing import Any

from tests.helpers.corpus import TIME

SHAPES: tuple[dict[str, Any], ...] = (
    {"event_type": "user_login", "user": "ada", "amount": 7, "client_ip": "192.0.2.17", "status": "success"},
    # The same field, of another type; and a common one that is no text.
    {"event_type": "order.placed", "user": {"name": "ada", "id": 9}, "amount": [{"eur": 1.5}], "request_id": 17},
    # Each of custody's own columns, of a type that it cannot hold.
    {
        "event_type": "everything else", "client_ip": {"v4": "192.0.2.17"}, "complexity": "much", "details": "text",
        "execution_time": [1], "permission_granted": "yes", "permissions": {"a": 1}, "severity": {"level": 3},
        "status": ["a", {"b": 1}], "changes": [1], "key_version": 10**30, "result_rows": 1.5,
    },
    # Names of what custody adds itself; halves of characters; numbers that are too large.
    {"event_type": "offset", "event": 1, "own": [2], "log": 3, "offset": "x", "half": "\ud800", "big": 10**400},
    {"event_type": "a\n\x00é\U0001f600", "user": None, "a.b": 1, "a": {"b": 2}},
)  # fmt: skip


def own_event(offset: int) -> bytes:
    """Return the event at an offset: each of the shapes in turn."""
    shape = SHAPES[offset % len(SHAPES)]
    return json.dumps({"timestamp": TIME, "number": offset, **shape}).encode()
