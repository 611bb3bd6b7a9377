"""Objects of an audit: those that it refers to by their digest, and its folder in `reports/`."""

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
"""Objects that an audit names itself. If there are more, it names one object that lists them."""


def put_lines(store: Store, lines: Sequence[Any]) -> ObjectRef:
    """Store values that are too many for an audit, as JSON lines, under the name of their SHA-256."""
    encoded = (json.dumps(msgspec.to_builtins(line), separators=(",", ":")).encode() + b"\n" for line in lines)
    return put_object(store, b"".join(encoded))


def put_object(store: Store, data: bytes) -> ObjectRef:
    """Store bytes under the name of their SHA-256, and return the reference for an audit."""
    digest = sha256(data).hexdigest()
    key = layout.audit_object_key(digest)
    store.create(key, data)
    return ObjectRef(key, len(data), digest)


def refer_to(store: Store, objects: Sequence[ObjectRef]) -> list[ObjectRef]:
    """Return the references for an audit: its objects, or one object that lists them if they are many."""
    return list(objects) if len(objects) <= OBJECTS_INLINE else [put_lines(store, objects)]


def audit_folder(sequence: int) -> str:
    """Return the folder for the results of an audit's runs."""
    return f"reports/audits/{sequence:012}/"


def log_named(name: str) -> Log:
    """Return the log with the name `<log>/<partition>`.

    Raises:
        FormatError: the name is invalid.
    """
    log = layout.parse_log_text(name)
    if log is None:
        raise FormatError(f"{name!r} is not the name of a log")
    return log
