"""What audits refer to under `audits/objects/`: there as it was, or referred to by none."""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from custody.errors import CustodyError, FormatError, ObjectMissing
from custody.findings import Finding, finding, loss_digest
from custody.format import layout
from custody.format.audit import Audit, ObjectRef, parse_object
from custody.format.envelope import FILE_LIMIT
from custody.store.protocol import Store


def referred(store: Store, audit: Audit) -> Iterator[ObjectRef]:
    """Return the objects under `audits/objects/` that an audit refers to."""
    refs = [*audit.objects, *([audit.findings] if isinstance(audit.findings, ObjectRef) else [])]
    if len(audit.objects) == 1:
        refs += _listed_in(store, audit.objects[0])
    # What lies elsewhere is made from the archive, and can be made again.
    return (ref for ref in refs if layout.parse_audit_object_key(ref.key) is not None)


def check_referred(store: Store, audit: Audit, ref: ObjectRef, *, contents: bool) -> Finding | None:
    """Return what is wrong with an object that an audit refers to by hash, None if nothing is.

    Args:
        store: the archive.
        audit: the audit.
        ref: the object.
        contents: whether it is read.
    """
    where: dict[str, Any] = {"log": str(layout.AUDIT_LOG), "sequence": audit.sequence, "key": ref.key}
    digest = layout.parse_audit_object_key(ref.key)
    if digest != ref.sha256:
        what = "the audit refers to an object by another SHA-256 than its key has"
        return finding("audit", what, expected=ref.sha256, found=digest, sha256=digest, **where)
    return _check_object(store, ref, where) if contents else None


def check_unreferred(store: Store, key: str, digest: str) -> Finding | None:
    """Return what an object is that no audit refers to: left by an audit that died or is at work, or foreign.

    Args:
        store: the archive.
        key: of the object.
        digest: the SHA-256 that it names.
    """
    try:
        found = sha256(store.read(key, limit=FILE_LIMIT)).hexdigest()
    except ObjectMissing:
        return None
    except FormatError:
        found = ""
    except CustodyError as error:
        return finding("unreadable", f"the object cannot be read: {error}", key=key)
    if found == digest:
        return finding("orphan", "no audit refers to it", key=key)
    what = "its bytes are not those that its key names, and no audit refers to it"
    return finding("unlisted", what, key=key, sha256=found or loss_digest(key))


def _listed_in(store: Store, ref: ObjectRef) -> list[ObjectRef]:
    """Return the objects that an audit's one object lists, a JSON object a line; none where it is no such list."""
    if layout.parse_audit_object_key(ref.key) is None or ref.size > FILE_LIMIT:
        return []
    try:
        data = store.read(ref.key, limit=ref.size)
        if sha256(data).hexdigest() != ref.sha256:
            return []
        return [parse_object(line) for line in data.splitlines()]
    except CustodyError:
        # That it is missing, or another, is said where it is looked at for itself.
        return []


def _check_object(store: Store, ref: ObjectRef, where: Mapping[str, Any]) -> Finding | None:
    try:
        data = store.read(ref.key, limit=ref.size)
    except (ObjectMissing, FormatError) as error:
        what = f"what the audit refers to is not there as it was: {error}"
        return finding("audit", what, sha256=loss_digest(ref.key, ref.sha256), **where)
    except CustodyError as error:
        return finding("unreadable", f"what the audit refers to cannot be read: {error}", **where)
    found = sha256(data).hexdigest()
    if found == ref.sha256:
        return None
    what = "what the audit refers to is not what it was"
    return finding("audit", what, expected=ref.sha256, found=found, sha256=found, **where)
