"""Objects under `audits/objects/`: those that audits refer to must be unchanged; the others are reported."""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from custody.errors import CustodyError, FormatError, ObjectMissing
from custody.findings import Finding, finding, loss_digest
from custody.format import layout, limits
from custody.format.audit import Audit, ObjectRef, parse_object
from custody.store.protocol import Store


def referred(store: Store, audit: Audit) -> Iterator[ObjectRef]:
    """Return the objects under `audits/objects/` that an audit refers to."""
    refs = [*audit.objects, *([audit.findings] if isinstance(audit.findings, ObjectRef) else [])]
    if len(audit.objects) == 1:
        refs += _listed_in(store, audit.objects[0])
    # Objects elsewhere are made from the archive, and can be made again.
    return (ref for ref in refs if layout.parse_audit_object_key(ref.key) is not None)


def check_referred(store: Store, audit: Audit, ref: ObjectRef, *, contents: bool) -> Finding | None:
    """Return what is wrong with an object that an audit refers to by its hash, None if nothing is wrong.

    Args:
        store: the archive.
        audit: the audit.
        ref: the object.
        contents: whether it is read.
    """
    where: dict[str, Any] = {"log": str(layout.AUDIT_LOG), "sequence": audit.sequence, "key": ref.key}
    digest = layout.parse_audit_object_key(ref.key)
    if digest != ref.sha256:
        message = "the audit refers to an object by a SHA-256 that is not the one in its key"
        return finding("audit", message, expected=ref.sha256, found=digest, sha256=digest, **where)
    return _check_object(store, ref, where) if contents else None


def check_unreferred(store: Store, key: str, digest: str) -> Finding | None:
    """Return the finding about an object that no audit refers to: left by an unfinished audit, or foreign.

    Args:
        store: the archive.
        key: of the object.
        digest: the SHA-256 that it names.
    """
    try:
        found = sha256(store.read(key, limit=limits.FILE_BYTES)).hexdigest()
    except ObjectMissing:
        return None
    except FormatError:
        found = ""
    except CustodyError as error:
        return finding("unreadable", f"the object cannot be read: {error}", key=key)
    if found == digest:
        return finding("orphan", "no audit refers to it", key=key)
    message = "its SHA-256 is not the one in its key, and no audit refers to it"
    return finding("unlisted", message, key=key, sha256=found or loss_digest(key))


def _listed_in(store: Store, ref: ObjectRef) -> list[ObjectRef]:
    """Return the objects listed in an object of an audit, one JSON object per line; none if it is not such a list."""
    if layout.parse_audit_object_key(ref.key) is None or ref.size > limits.FILE_BYTES:
        return []
    try:
        data = store.read(ref.key, limit=ref.size)
        if sha256(data).hexdigest() != ref.sha256:
            return []
        return [parse_object(line) for line in data.splitlines()]
    except CustodyError:
        # A missing or changed list is reported where the list itself is checked.
        return []


def _check_object(store: Store, ref: ObjectRef, where: Mapping[str, Any]) -> Finding | None:
    try:
        data = store.read(ref.key, limit=ref.size)
    except (ObjectMissing, FormatError) as error:
        message = f"an object that the audit refers to is missing or changed: {error}"
        return finding("audit", message, loss=(ref.key, ref.sha256), **where)
    except CustodyError as error:
        return finding("unreadable", f"an object that the audit refers to cannot be read: {error}", **where)
    found = sha256(data).hexdigest()
    if found == ref.sha256:
        return None
    message = "an object that the audit refers to was changed"
    return finding("audit", message, expected=ref.sha256, found=found, sha256=found, **where)
