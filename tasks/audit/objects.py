"""Where what belongs to an audit lies: objects that it refers to by their digest, and its folder in `reports/`."""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec

from custody.errors import (
    FormatError,
)
from custody.format import layout
from custody.format.audit import ObjectRef
from custody.format.layout import Log
from custody.store.protocol import Store

OBJECTS_INLINE = 1000
"""Objects that an audit refers to by itself; more stand in one object that it refers to."""


def put_lines(store: Store, lines: Sequence[Any]) -> ObjectRef:
    """Put what is too much for an audit, one JSON value a line, where the audit refers to it by its SHA-256."""
    return put_object(
        store, b"".join(json.dumps(msgspec.to_builtins(one), separators=(",", ":")).encode() + b"\n" for one in lines)
    )


def put_object(store: Store, data: bytes) -> ObjectRef:
    """Put bytes under the name of their digest, where an audit refers to them."""
    digest = sha256(data).hexdigest()
    key = layout.audit_object_key(digest)
    store.create(key, data)
    return ObjectRef(key, len(data), digest)


def refer_to(store: Store, objects: Sequence[ObjectRef]) -> list[ObjectRef]:
    """Return what an audit names: its objects, or where they are many one object that lists them."""
    return list(objects) if len(objects) <= OBJECTS_INLINE else [put_lines(store, objects)]


def audit_folder(sequence: int) -> str:
    """Return the folder of what an audit's runs leave."""
    return f"reports/audits/{sequence:012}/"


def log_named(name: str) -> Log:
    """Return the log of a name `<log>/<partition>`.

    Raises:
        FormatError: it is none.
    """
    log = layout.parse_log_text(name)
    if log is None:
        raise FormatError(f"{name!r} is no log")
    return log
